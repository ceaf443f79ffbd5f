"""Load a causal language model, and know where its family keeps its MLPs.

One vocabulary over all families: in every block the MLP's *keys* are the rows of its first matrix
(and of its gate, where it has one) and its *values* are the columns of its last (Geva et al. 2021,
"Transformer Feed-Forward Layers Are Key-Value Memories"). `anatomy` finds them, checks their
shapes, and names what did not fit.
"""

import os
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float
from nnsight import LanguageModel, NNsightDeprecationWarning
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils.logging import disable_progress_bar

from helpers.artifacts import content_hash
from helpers.errors import UserError
from helpers.hooks import marks
from helpers.model_files import refusing, shown
from helpers.model_loading import context_length, load_files, valid_id
from helpers.model_sources import DEFAULT, find_model
from helpers.tokenisation import in_template

DEPTH = 30  # blocks of the default model, on which methods' layers were chosen
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Where each family keeps its parts, tried in this order. Paths of a block are relative to it.
NORM = ("norm", "ln_f", "final_layer_norm", "decoder.final_layer_norm")
POSITIONS = ("wpe", "embed_positions")  # tables of learned positions
BLOCKS = ("layers", "h", "decoder.layers")
ATTENTION_OUT = ("self_attn.o_proj", "attn.c_proj", "attention.dense", "self_attn.out_proj")
MLP_PARTS = (  # gate, in, out, activation
    ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.act_fn"),
    (None, "mlp.c_fc", "mlp.c_proj", "mlp.act"),
    (None, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "mlp.act"),
    (None, "fc1", "fc2", "activation_fn"),
)
POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")  # Gemma 2 and 3, OLMo 2


@dataclass(frozen=True)
class MLPAnatomy:
    """One block's MLP: h = act(W_gate x) ⊙ W_in x with a gate, act(W_in x) without; y = W_out h.

    Attributes:
        in_name, out_name, gate_name: Names of the matrices in the model's `state_dict`;
            `gate_name` is None where there is no gate.
        in_module, out_module, gate_module: The same as modules.
        out_envoy: nnsight's handle of W_out: `.input` is h, `.output` is y.
        in_envoy: nnsight's handle of W_in: `.input` is x.
        gate_envoy: The gate's handle, or None.
        activation: The nonlinearity.
        transposed: The weights are stored (in, out), as GPT-2's `Conv1D` does.
    """

    in_name: str
    out_name: str
    gate_name: str | None
    in_module: nn.Module
    out_module: nn.Module
    gate_module: nn.Module | None
    in_envoy: object
    out_envoy: object
    gate_envoy: object | None
    activation: nn.Module
    transposed: bool

    def _view(self, module: nn.Module) -> Tensor:
        return module.weight.T if self.transposed else module.weight

    def W_in(self) -> Float[Tensor, "d_mlp d_model"]:
        """The keys, one a row; a view of the parameter."""
        return self._view(self.in_module)

    def W_gate(self) -> Float[Tensor, "d_mlp d_model"] | None:
        """The gate's rows, or None; a view of the parameter."""
        return self._view(self.gate_module) if self.gate_module is not None else None

    def W_out(self) -> Float[Tensor, "d_model d_mlp"]:
        """The values, one a column; a view of the parameter."""
        return self._view(self.out_module)


@dataclass(frozen=True)
class LayerAnatomy:
    """One block.

    Attributes:
        block: nnsight's handle; `.output` is the residual stream after the block.
        attention: Handle of attention's output projection: `.input` is the heads' outputs side by
            side (B, T, n_heads · d_head), `.output` what they write.
        attention_write, mlp_write: Handles whose `.output` is added to the residual stream; they
            differ from the projections where a family normalises once more.
        mlp: The MLP's parts.
    """

    block: object
    attention: object
    attention_write: object
    mlp_write: object
    mlp: MLPAnatomy


@dataclass(frozen=True)
class Anatomy:
    """A model's parts under names that hold for every family."""

    layers: tuple[LayerAnatomy, ...]
    norm: nn.Module
    head: nn.Module
    d_model: int
    d_mlp: int
    n_heads: int
    d_head: int

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    def at_depth(self, layers: Sequence[int]) -> tuple[int, ...]:
        """Layers of a model of `DEPTH` blocks at the same relative depth here, each once."""
        return tuple(dict.fromkeys(i * self.n_layers // DEPTH for i in layers))

    def check_layer(self, layer: int) -> int:
        """`layer` itself, counted from the end when negative.

        Raises:
            UserError: There is no such layer.
        """
        if not -self.n_layers <= layer < self.n_layers:
            raise UserError(
                f"There is no layer {layer}: this model has layers 0 to {self.n_layers - 1}."
            )
        return layer % self.n_layers

    def check_neuron(self, neuron: int) -> int:
        """`neuron` itself.

        Raises:
            UserError: There is no such neuron.
        """
        if not 0 <= neuron < self.d_mlp:
            raise UserError(f"There is no neuron {neuron}: this MLP has 0 to {self.d_mlp - 1}.")
        return neuron


def load_model(name: str = DEFAULT, *, dtype: str = "float32", device: str = "cpu"):
    """Load a causal language model with its tokenizer.

    Nothing but its weights, configuration and tokenizer is read, and no code of its own is run.
    Every parameter comes from the weights and every tensor of the weights goes into one.

    Args:
        name: `smollm2-135m` (the default, from its Python package, converted once into the
            cache), a Hugging Face hub name, a local folder, or a `.gguf` file.
        dtype: float32, bfloat16 or float16.
        device: `cpu`, `cuda`, `cuda:1`, or `auto` to spread a big model over what is there.

    Returns:
        An nnsight `LanguageModel` in evaluation mode; the torch module is `model._module`.

    Raises:
        UserError: Unknown name, damaged or unsafe files, weights that are not the configuration's,
            a dtype, device or MLP that is not known.
    """
    if dtype not in DTYPES:
        raise UserError(f"There is no dtype '{shown(dtype)}'; choose from {', '.join(DTYPES)}.")
    _check_device(device)
    disable_progress_bar()
    files = find_model(name)
    module, tokenizer = load_files(files, dtype=DTYPES[dtype], device=device)
    module.eval().requires_grad_(False)
    advice = (
        "the suite knows the families of Llama, GPT-2, GPT-NeoX, OPT, Gemma, Qwen2 and the like"
    )
    with (
        refusing(f"{files.what} is of a kind that is not known", advice),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", NNsightDeprecationWarning)  # the class is ours to pin
        spread = hasattr(module, "hf_device_map")  # then it is not to be moved
        where = {} if spread else {"device": module.device}
        model = LanguageModel(module, tokenizer=tokenizer, **where)
        anatomy(model)
    body = body_of(model)
    if any(_has(body, name) for name in POSITIONS):
        body.register_forward_pre_hook(_check_pass, with_kwargs=True)
    return model


def _check_device(device: str) -> None:
    accelerator = torch.accelerator.current_accelerator()
    kind = accelerator.type if accelerator is not None else None
    n = torch.accelerator.device_count() if kind else 0
    there = ["cpu", "auto", *([kind] if n else []), *(f"{kind}:{i}" for i in range(n))]
    if device in there:
        return
    if str(device).startswith("cuda") and kind != "cuda":
        raise UserError("No CUDA device is available here; use device 'cpu'.")
    raise UserError(f"There is no device '{shown(device)}' here; choose from {', '.join(there)}.")


_ANATOMY: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def anatomy(model: LanguageModel) -> Anatomy:
    """The parts of `model`, found once and checked against the weights' shapes.

    Raises:
        UserError: The family keeps its parts elsewhere; says which part did not fit.
    """
    module = model._module
    if module not in _ANATOMY:
        _ANATOMY[module] = _dissect(model)
    return _ANATOMY[module]


def _dissect(model: LanguageModel) -> Anatomy:
    module = model._module
    config = module.config.get_text_config()
    prefix = module.base_model_prefix
    kind = type(module).__name__

    blocks = _first(module, [f"{prefix}.{p}" for p in BLOCKS], f"{kind}'s list of blocks")
    norm = _first(module, [f"{prefix}.{p}" for p in NORM], f"{kind}'s final norm")
    head = module.get_output_embeddings()
    layers = []
    for i in range(len(module.get_submodule(blocks))):
        base = f"{blocks}.{i}"
        block = module.get_submodule(base)
        attention = _first(
            module, [f"{base}.{p}" for p in ATTENTION_OUT], f"{kind}'s attention output"
        )
        parts = next((p for p in MLP_PARTS if all(_has(block, n) for n in p if n)), None)
        if parts is None:
            names = ", ".join(n for n, _ in block.named_children())
            raise UserError(f"{kind} keeps its MLP elsewhere: block {i} has only {names}.")
        gate, first, last, activation = parts
        # Two norms around each part: what they return, not the projection, joins the residual.
        sandwich = _has(block, POST_NORMS[1])
        writes = [f"{base}.{p}" for p in POST_NORMS] if sandwich else [attention, f"{base}.{last}"]
        layers.append(
            LayerAnatomy(
                block=_envoy(model, base),
                attention=_envoy(model, attention),
                attention_write=_envoy(model, writes[0]),
                mlp_write=_envoy(model, writes[1]),
                mlp=MLPAnatomy(
                    in_name=f"{base}.{first}.weight",
                    out_name=f"{base}.{last}.weight",
                    gate_name=f"{base}.{gate}.weight" if gate else None,
                    in_module=block.get_submodule(first),
                    out_module=block.get_submodule(last),
                    gate_module=block.get_submodule(gate) if gate else None,
                    in_envoy=_envoy(model, f"{base}.{first}"),
                    gate_envoy=_envoy(model, f"{base}.{gate}") if gate else None,
                    out_envoy=_envoy(model, f"{base}.{last}"),
                    activation=_attribute(block, activation),
                    transposed=isinstance(block.get_submodule(first), Conv1D),
                ),
            )
        )
    found = Anatomy(
        layers=tuple(layers),
        norm=module.get_submodule(norm),
        head=head,
        d_model=config.hidden_size,
        d_mlp=layers[0].mlp.W_in().shape[0],
        n_heads=config.num_attention_heads,
        d_head=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
    )
    for i, layer in enumerate(layers):
        _check_shapes(kind, i, layer.mlp, found)
    return found


def _check_shapes(kind: str, layer: int, mlp: MLPAnatomy, found: Anatomy) -> None:
    keys, values = (found.d_mlp, found.d_model), (found.d_model, found.d_mlp)
    expected = {"W_in": (mlp.W_in(), keys), "W_out": (mlp.W_out(), values)}
    if mlp.gate_module is not None:
        expected["W_gate"] = (mlp.W_gate(), keys)
    for name, (weight, shape) in expected.items():
        if tuple(weight.shape) != shape:
            raise UserError(
                f"{kind} does not fit: {name} of layer {layer} is {tuple(weight.shape)}, "
                f"expected {shape}."
            )


def _has(module: nn.Module, path: str) -> bool:
    return _attribute(module, path) is not None


def _attribute(module: nn.Module, path: str):
    for part in path.split("."):
        module = getattr(module, part, None)
    return module


def _first(module: nn.Module, paths: list[str], what: str) -> str:
    for path in paths:
        if _has(module, path):
            return path
    raise UserError(f"{what} is at none of {', '.join(paths)}: this family is not known yet.")


def _envoy(model: LanguageModel, path: str):
    for part in path.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def body_of(model: LanguageModel) -> nn.Module:
    """What turns token ids into the states that the unembedding reads."""
    base = model._module.base_model
    return getattr(base, "decoder", base)  # OPT's whole model calls this one, past its base


def check_length(model: LanguageModel, n: int, what: str = "A text") -> None:
    """See that a model reads so many tokens at once.

    Raises:
        UserError: It does not; whatever was learnt, it was not for places so far on.
    """
    _check_length_of(model._module, n, what)


def _check_length_of(module: nn.Module, n: int, what: str) -> None:
    most = context_length(module)
    if most is not None and n > most:
        raise UserError(f"{what} has {n} tokens, and this model reads {most} at once: shorten it.")


def text_length(model: LanguageModel, wanted: int = 128) -> int:
    """Tokens of a stretch of text: `wanted`, or as many as the model reads at once."""
    return min(wanted, context_length(model._module) or wanted)


def _check_pass(body: nn.Module, args: tuple, kwargs: dict) -> None:
    """Before every forward pass of a model with a table of positions: none that it has not got.

    Where positions are computed a longer text can be run; prompts and texts of ours are checked and
    cut before.
    """
    given = args[0] if args else kwargs.get("input_ids")
    given = kwargs.get("inputs_embeds") if given is None else given
    past = kwargs.get("past_key_values")
    before = 0 if past is None else past.get_seq_length()
    _check_length_of(body, before + given.shape[1], "A text")


def padding(model: LanguageModel) -> int:
    """A token to fill up with where it is masked: the tokenizer's own if it has an embedding."""
    token = model.tokenizer.pad_token_id
    rows = model._module.get_input_embeddings().weight.shape[0]
    return token if valid_id(token, rows) else 0


def unembed(
    model: LanguageModel, hidden: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch vocab"]:
    """Logits of states that the final norm has already been applied to."""
    module = model._module
    project = _attribute(module, f"{module.base_model_prefix}.decoder.project_out")  # OPT-350m
    logits = anatomy(model).head(project(hidden) if project is not None else hidden)
    cap = getattr(module.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def final_norm(
    model: LanguageModel, residual: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """The model's last normalisation, as the logit lens applies it at any layer."""
    return anatomy(model).norm(residual)


def model_hash(model: LanguageModel) -> str:
    """16 hexadecimal digits over every parameter: changes with any bit of the weights.

    An intervention that is on (`helpers.hooks`) counts too.
    """
    parameters = [p for _, p in sorted(model._module.named_parameters())]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves Python's lock
        return content_hash(list(pool.map(content_hash, parameters)), *marks(model._module))


def chat(tokenizer, user: str, assistant_prefix: str = "") -> str:
    """One question in the tokenizer's chat template, with the answer begun for the assistant.

    Raises:
        UserError: The tokenizer has no chat template.
    """
    return (
        in_template(tokenizer, [{"role": "user", "content": user}], answer=True) + assistant_prefix
    )
