"""Strict loading: checked files become a model with exactly its own tensors.

The loading libraries would draw missing weights at random, drop superfluous ones, turn integers
into weights and offer to run foreign code. Here each of these is an error with one sentence.
"""

import contextlib
import re
from collections.abc import Iterator

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.utils import logging as transformers_logging

from helpers.errors import UserError
from helpers.io.files import check_finite
from helpers.models.files import FLOATS, ModelFiles, refusing, shown
from helpers.models.tokenization import opening

# How much larger than the weights a model may be before they are compared in full: a head that is
# tied, buffers. What is far beyond would fill the memory first.
TIMES, MORE = 3, 50_000_000
IN_MLP = re.compile(r"\b(mlp|fc1|fc2)\b")
LAYERS = (  # how configurations call their number of blocks
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
)
AGAIN = "save the model again with save_pretrained, or fetch it again"


def load_files(files: ModelFiles, *, dtype: torch.dtype, device: str) -> tuple[nn.Module, object]:
    """Load the model and the tokenizer of a folder.

    Args:
        files: The folder.
        dtype: Data type of the parameters.
        device: Device of the parameters, as in transformers' `device_map`.

    Raises:
        UserError: Configuration, weights and tokenizer are not of one model, or one of them is
            damaged.
    """
    what = files.what
    with refusing(f"{what} cannot be loaded", AGAIN), _quietly():
        config = _config(files)
        size = sum(stored.size for stored in files.tensors.values())
        plan = outline(config, what, tensors=len(files.tensors), numbers=size)
        _check_numbers(plan, files)
        module, report = AutoModelForCausalLM.from_pretrained(
            files.folder,
            config=config,
            dtype=dtype,
            device_map=device,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are in the report, with their names
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        _check_report(module, report, files, what)
        # Penalties and sampling that a folder asks for are not what its model finds likeliest.
        tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
        special_tokens = {name: getattr(module.generation_config, name) for name in tokens}
        module.generation_config = GenerationConfig(**special_tokens)
        module.name_or_path = module.config.name_or_path = files.name
    in_memory = {n: p for n, p in module.named_parameters() if not p.is_meta}  # not on the disk
    check_finite(in_memory, what)
    with refusing(f"{what} has a tokenizer that cannot be loaded", AGAIN), _quietly():
        tokenizer = AutoTokenizer.from_pretrained(
            files.folder, config=config, trust_remote_code=False
        )
        _fit_tokenizer(tokenizer, module)
    return module, tokenizer


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence transformers' warnings: their causes are errors here."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _config(files: ModelFiles) -> PreTrainedConfig:
    """Read the configuration, without its settings of how the model is run."""
    config = AutoConfig.from_pretrained(
        files.folder, local_files_only=True, trust_remote_code=False
    )
    config._attn_implementation = None  # the best of transformers' own; never a kernel of the hub
    config._experts_implementation = None
    config.output_attentions = config.output_hidden_states = False
    config.return_dict, config.is_encoder_decoder = True, False
    config.name_or_path = files.name
    return config


def outline(config: PreTrainedConfig, what: str, *, tensors: int, numbers: int) -> nn.Module:
    """Build the model that a configuration describes, without memory for its parameters.

    Args:
        config: An untrusted configuration, which may ask for any size.
        what: Beginning of the error sentence: what is loaded.
        tensors: Number of tensors in the weights.
        numbers: Upper bound on the numbers in the weights.

    Raises:
        UserError: The configuration is of another, far larger model.
    """
    for key, value in _entries(config.to_dict()):
        if key in LAYERS and isinstance(value, int) and value > tensors:
            raise UserError(
                f"{what} cannot be loaded: its configuration says {shown(key, 40)} "
                f"{shown(value, 20)}, but its weights are {tensors} tensors: {AGAIN}."
            )
    with torch.device("meta"):
        plan = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    described = sum(t.numel() for t in (*plan.parameters(), *plan.buffers()))
    if described > TIMES * numbers + MORE:
        raise UserError(
            f"{what} cannot be loaded: its configuration describes {described:,} numbers, but its "
            f"weights have {numbers:,}: {AGAIN}."
        )
    return plan


def _check_numbers(plan: nn.Module, files: ModelFiles) -> None:
    """Refuse weights that are no floating-point numbers, but for buffers that nobody reads."""
    ignored = plan._keys_to_ignore_on_load_unexpected or []
    for name, stored in files.tensors.items():
        if stored.dtype not in FLOATS and not any(re.search(p, name) for p in ignored):
            raise UserError(
                f"{files.what} cannot be loaded: its tensor '{shown(name)}' is of {stored.dtype}, "
                f"and weights are read as {', '.join(FLOATS)}: save it in float32, bfloat16 or "
                "float16."
            )


def _entries(config: dict) -> Iterator[tuple[str, object]]:
    """Yield the entries of an object and of the objects nested in it."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _entries(value)


def _check_report(module: nn.Module, report: dict, files: ModelFiles, what: str) -> None:
    """Refuse weights that are not exactly the model's, and name the first tensor that differs.

    Tied weights and buffers, which transformers makes anew, are not in the report.
    """
    order = {name: i for i, name in enumerate(module.state_dict())}

    def first(names):
        return min(names, key=lambda name: (order.get(name, len(order)), name))

    if mismatched := {name: shapes for name, *shapes in report["mismatched_keys"]}:
        name = first(mismatched)
        stored, expected = map(tuple, mismatched[name])
        larger = any(s > e for s, e in zip(stored, expected, strict=False))
        widened = (
            " If an edit had appended neurons when it was saved: save it with save_widened instead."
            if larger and IN_MLP.search(name)
            else ""
        )
        raise UserError(
            f"{what} cannot be loaded: its config.json asks for {expected} as the shape of "
            f"'{shown(name)}', but the weights have {stored}.{widened}"
        )
    if missing := report["missing_keys"]:
        raise UserError(
            f"{what} cannot be loaded: its weights lack '{shown(first(missing))}', which its "
            f"config.json asks for ({len(missing)} such): {AGAIN}."
        )
    if unexpected := report["unexpected_keys"]:
        raise UserError(
            f"{what} cannot be loaded: its weights have '{shown(first(unexpected))}', for which "
            f"its config.json has no place ({len(unexpected)} such): {AGAIN}."
        )
    if report["error_msgs"]:
        raise ValueError(report["error_msgs"][0])


def _fit_tokenizer(tokenizer, module: nn.Module) -> None:
    """Check that the tokenizer fits the model, and set its padding token and length.

    Padding is masked, so any token that has an embedding serves for it.
    """
    rows = module.get_input_embeddings().weight.shape[0]
    if not 0 < tokenizer.vocab_size <= rows:
        raise ValueError(
            f"it has {tokenizer.vocab_size} tokens, the model {rows}: it is another model's"
        )
    if not isinstance(tokenizer.chat_template, str | dict | None):
        raise ValueError("its chat template is no text")
    opening(tokenizer)  # it does turn text into tokens
    if not valid_id(tokenizer.pad_token_id, rows):
        specials = (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token)
        ids = (tokenizer.convert_tokens_to_ids(t) for t in specials if t is not None)
        usable = next((i for i in ids if valid_id(i, rows)), None)
        tokenizer.pad_token = None if usable is None else tokenizer.convert_ids_to_tokens(usable)
    if length := context_length(module):
        tokenizer.model_max_length = min(tokenizer.model_max_length, length)


def valid_id(token: int | None, rows: int) -> bool:
    """Return True if a token has one of the embedding's `rows` rows."""
    return token is not None and 0 <= token < rows


def context_length(module: nn.Module) -> int | None:
    """Return how many tokens a model reads at once, or None if its family sets no limit."""
    length = getattr(module.config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None
