"""The parts of a model under names that hold for every family.

In every block the MLP's *keys* are the rows of its first matrix (and of its gate, where it has one)
and its *values* are the columns of its last (Geva et al. 2021, "Transformer Feed-Forward Layers Are
Key-Value Memories"). `architecture_of` finds them, checks their shapes, and names what did not fit.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from helpers.errors import UserError

REFERENCE_DEPTH = 30  # blocks of the default model, on which methods' layers were chosen


# Where each family keeps its parts, tried in this order. Paths of a block are relative to it.
NORM = ("norm", "ln_f", "final_layer_norm", "decoder.final_layer_norm")


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
class MLPArchitecture:
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
    in_envoy: Any
    out_envoy: Any
    gate_envoy: Any
    activation: nn.Module
    transposed: bool

    def _view(self, module: nn.Module) -> Tensor:
        return module.weight.T if self.transposed else module.weight

    def W_in(self) -> Float[Tensor, "d_mlp d_model"]:
        """Return the keys, one a row; a view of the parameter."""
        return self._view(self.in_module)

    def W_gate(self) -> Float[Tensor, "d_mlp d_model"] | None:
        """Return the gate's rows, or None without a gate; a view of the parameter."""
        return self._view(self.gate_module) if self.gate_module is not None else None

    def W_out(self) -> Float[Tensor, "d_model d_mlp"]:
        """Return the values, one a column; a view of the parameter."""
        return self._view(self.out_module)

    def forward(self, x: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
        """Compute the MLP's output by its modules alone, without the rest of the model."""
        hidden = self.in_module(x)
        if self.gate_module is None:
            return self.out_module(self.activation(hidden))
        return self.out_module(self.activation(self.gate_module(x)) * hidden)


@dataclass(frozen=True)
class LayerArchitecture:
    """One block.

    Attributes:
        block: nnsight's handle; `.output` is the residual stream after the block.
        attention: Handle of attention's output projection: `.input` is the heads' outputs side by
            side (B, T, n_heads · d_head), `.output` what they write.
        attention_write, mlp_write: Handles whose `.output` is added to the residual stream; they
            differ from the projections where a family normalises once more.
        mlp: The MLP's parts.
    """

    block: Any
    attention: Any
    attention_write: Any
    mlp_write: Any
    mlp: MLPArchitecture


@dataclass(frozen=True)
class Architecture:
    """A model's parts under names that hold for every family."""

    layers: tuple[LayerArchitecture, ...]
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

    def relative_layers(self, layers: Sequence[int]) -> tuple[int, ...]:
        """Map layers of a model of `REFERENCE_DEPTH` blocks to this model's relative depth."""
        return tuple(dict.fromkeys(i * self.n_layers // REFERENCE_DEPTH for i in layers))

    def check_layer(self, layer: int) -> int:
        """Return `layer`, counted from the end if it is negative.

        Raises:
            UserError: There is no such layer.
        """
        if not -self.n_layers <= layer < self.n_layers:
            raise UserError(
                f"There is no layer {layer}: this model has layers 0 to {self.n_layers - 1}."
            )
        return layer % self.n_layers

    def check_neuron(self, neuron: int) -> int:
        """Return `neuron` if there is one of that index.

        Raises:
            UserError: There is no such neuron.
        """
        if not 0 <= neuron < self.d_mlp:
            raise UserError(f"There is no neuron {neuron}: this MLP has 0 to {self.d_mlp - 1}.")
        return neuron


def torch_module(model: LanguageModel) -> nn.Module:
    """Return the transformers model that an nnsight `LanguageModel` wraps.

    It is the only place that reads nnsight's private attribute.
    """
    return model._module


_ARCHITECTURES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def architecture_of(model: LanguageModel) -> Architecture:
    """Return the parts of `model`, located once and checked against the weights' shapes.

    Raises:
        UserError: The family keeps its parts elsewhere; says which part did not fit.
    """
    module = model._module
    if module not in _ARCHITECTURES:
        _ARCHITECTURES[module] = _read_architecture(model)
    return _ARCHITECTURES[module]


def _read_architecture(model: LanguageModel) -> Architecture:
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
            LayerArchitecture(
                block=_envoy(model, base),
                attention=_envoy(model, attention),
                attention_write=_envoy(model, writes[0]),
                mlp_write=_envoy(model, writes[1]),
                mlp=MLPArchitecture(
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
    arch = Architecture(
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
        _check_shapes(kind, i, layer.mlp, arch)
    return arch


def _check_shapes(kind: str, layer: int, mlp: MLPArchitecture, arch: Architecture) -> None:
    keys, values = (arch.d_mlp, arch.d_model), (arch.d_model, arch.d_mlp)
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
    """Return the module that turns token ids into the states that the unembedding reads."""
    base = model._module.base_model
    return getattr(base, "decoder", base)  # OPT's whole model calls this one, past its base


def unembed(
    model: LanguageModel, hidden: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch vocab"]:
    """Compute the logits of states to which the final norm has already been applied."""
    module = model._module
    project = _attribute(module, f"{module.base_model_prefix}.decoder.project_out")  # OPT-350m
    logits = architecture_of(model).head(project(hidden) if project is not None else hidden)
    cap = getattr(module.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def final_norm(
    model: LanguageModel, residual: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """Apply the model's last normalisation, as the logit lens does at any layer."""
    return architecture_of(model).norm(residual)
