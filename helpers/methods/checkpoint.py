"""An edit from another checkpoint: the exact difference between two models' weights.

Whoever unlearned a fact elsewhere has a second checkpoint, or an adapter. As an edit of the
original it is measured, attacked and reverted like any other.
"""

import time

import torch
from nnsight import LanguageModel
from torch import Tensor, nn

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.forward.scoring import next_token_logprobs
from helpers.io.safe_text import visible
from helpers.methods.change import Change, dtype_name
from helpers.methods.edit import Edit
from helpers.methods.edit_stack import base_model
from helpers.methods.weight_edit import WeightEdit
from helpers.models import load_model, model_hash, torch_module
from helpers.models.adapters import is_adapter, merge_adapter

METHOD = "checkpoint"
SAME_LOGPROB = 1e-2  # nats: equal weights in equal configurations differ by rounding alone
OWN_TO_A_FOLDER = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


def edit_from_checkpoint(model: LanguageModel, pair: ConceptPair, checkpoint: str) -> Edit:
    """Load another checkpoint, and return the edit that turns the model into it.

    Every parameter that differs gets the difference as a dense change. It is stored as float32
    where the sum restores the checkpoint's bits, and as float64 elsewhere. There only a weight
    that is 2²⁹ times smaller than the original's may be off, by float64's rounding.

    Args:
        model: The original; edits that it carries are left out.
        pair: The fact that the checkpoint should lack.
        checkpoint: A hub name, a local folder, a `.gguf` file, or the folder of a LoRA adapter of
            the model.

    Raises:
        UserError: There is no such checkpoint or it may not be loaded; its tokenizer, parameters or
            configuration are not the original's; its weights are all equal to the original's.
    """
    start_time, what = time.perf_counter(), f"The checkpoint {visible(checkpoint)}"
    prompts = pair.prompts("train")
    with base_model(model):
        other = None if is_adapter(checkpoint) else _load_like(model, checkpoint)
        if other is not None:
            _require_same_tokenizer(model, other, prompts, what)
        weights = merge_adapter(model, checkpoint) if other is None else torch_module(other)
        delta = WeightEdit.of(torch_module(model), _differences(torch_module(model), weights, what))
        fact = {"subject": pair.subject, "target": pair.target, "relation": pair.relation}
        seconds = time.perf_counter() - start_time
        settings = {"checkpoint": str(checkpoint)}
        edit = Edit(METHOD, fact, delta, settings, 0, seconds, model_hash(model))
        if other is not None:
            _require_same_outputs(model, other, edit, prompts[:1], what)
    return edit


def _load_like(model: LanguageModel, name: str) -> LanguageModel:
    """Load a checkpoint in the model's dtype, on its device."""
    module = torch_module(model)
    device = "auto" if hasattr(module, "hf_device_map") else str(module.device)
    return load_model(name, dtype=dtype_name(module.dtype), device=device)


def _require_same_tokenizer(
    model: LanguageModel, other: LanguageModel, prompts: list[Prompt], what: str
) -> None:
    """Refuse a checkpoint with another vocabulary, or that splits the prompts into other tokens."""
    ours, theirs = model.tokenizer, other.tokenizer
    texts = [str(p) for p in prompts if p.messages is None]
    if ours.get_vocab() != theirs.get_vocab() or any(
        ours(text).input_ids != theirs(text).input_ids for text in texts
    ):
        raise UserError(
            f"{what} has another tokenizer than the original, so their answers cannot be compared: "
            "give the original that it was trained from."
        )


def _differences(original: nn.Module, other: nn.Module, what: str) -> dict[str, Change]:
    """Return parameter → difference, for every parameter that differs.

    Raises:
        UserError: The two have other parameters, or no parameter differs.
    """
    ours, theirs = dict(original.named_parameters()), dict(other.named_parameters())
    shapes, other_shapes = ({n: tuple(p.shape) for n, p in x.items()} for x in (ours, theirs))
    names = [n for n in {**shapes, **other_shapes} if shapes.get(n) != other_shapes.get(n)]
    if names:
        there, here = (x.get(names[0], "absent") for x in (other_shapes, shapes))
        raise UserError(
            f"{what} is of another architecture than the original ({visible(names[0])}: {there}, "
            f"in the original {here}): give the original that it was trained from."
        )
    changes = {
        name: Change(dense=_difference(ours[name].detach().cpu(), theirs[name].detach().cpu()))
        for name in ours
        if not torch.equal(ours[name].cpu(), theirs[name].cpu())
    }
    if not changes:
        raise UserError(
            f"{what} has the very weights of the original, so nothing was unlearned: give the one "
            "from after the training."
        )
    return changes


def _difference(original: Tensor, other: Tensor) -> Tensor:
    """Return `other` − `original` in the narrowest dtype in which the sum restores `other`."""
    difference = other.float() - original.float()
    if torch.equal((original.float() + difference).to(other.dtype), other):
        return difference
    return other.double() - original.double()


def _require_same_outputs(
    model: LanguageModel, other: LanguageModel, edit: Edit, prompts: list[Prompt], what: str
) -> None:
    """Refuse a checkpoint that computes another function of the same weights.

    Its configuration may have another activation, normalization or position encoding, which no
    change of weights can express.
    """
    with edit.applied(model):
        logprobs = next_token_logprobs(model, prompts)
    expected = next_token_logprobs(other, prompts)
    if torch.allclose(logprobs, expected, atol=SAME_LOGPROB, equal_nan=True):
        return
    ours, theirs = (torch_module(m).config.to_dict() for m in (model, other))
    differing = sorted(
        key
        for key in ours.keys() | theirs.keys()
        if ours.get(key) != theirs.get(key) and key not in OWN_TO_A_FOLDER
    )
    raise UserError(
        f"{what} computes something else with the same weights, since its config.json is not the "
        f"original's ({visible(', '.join(differing))[:200]}): give the original that it was "
        "trained from."
    )
