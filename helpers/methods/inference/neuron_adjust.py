"""Neuron Adjust: shift neurons from the distribution of a text to that of retained text.

Li, Sun & Weng 2025, "Effective Skill Unlearning through Intervention and Abstention" (NAACL, arXiv
2503.21730).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from helpers.errors import UserError
from helpers.io.choices import check_number
from helpers.io.safe_text import visible
from helpers.methods.fitting.retain_budget import RetainBudget, TextHparams
from helpers.methods.fitting.token_means import token_means
from helpers.methods.hook_intervention import HookIntervention, Settings, intervention_kind
from helpers.methods.registry import method
from helpers.models import architecture_of, torch_module
from helpers.models.hooks import Hook
from helpers.requests import TextRequest
from helpers.training.examples import Example

KIND = "neuron_adjust"
MOMENTS = ("forget_mean", "forget_std", "retain_mean", "retain_std")
MIN_STD = 1e-6  # of neurons that never change
N_CANDIDATES = 32  # numbers of neurons that are tried


@dataclass(frozen=True)
class NeuronAdjustHparams(TextHparams):
    """Hyperparameters of `neuron_adjust`.

    Attributes:
        max_share: Largest share of all neurons that are shifted; the paper's is .03.
    """

    max_share: float = 0.03


@method(KIND, family="inference", takes=("text",))
def neuron_adjust(
    model: LanguageModel, request: TextRequest, hparams: NeuronAdjustHparams, *, seed: int = 0
) -> HookIntervention:
    """Replace pre-activations z by μ_r + σ_r (z − μ_f) / σ_f where z is likelier on forget text.

    μ and σ are the mean and deviation of a neuron's pre-activation on text to forget and to retain.
    The neurons are those whose two normal distributions have the largest Jeffreys divergence, as
    many as the budget allows. The paper draws at random whether it shifts, by the two densities;
    here it is shifted where that of forget text is larger, so that a prediction is always the same.
    The first token of a sequence, which has a state of its own, is left as it is.

    Args:
        model: Any model of a known family.
        request: What to forget.
        hparams: Its hyperparameters.
        seed: Unused: nothing is random.

    Raises:
        UserError: A number is out of range, or one neuron passes the budget already.
    """
    check_number("max_share", hparams.max_share, 1e-9, 1)
    arch, budget = architecture_of(model), RetainBudget(model, request, hparams)
    forget = preactivation_moments(model, budget.forget)
    retain = preactivation_moments(model, budget.retain)
    order = jeffreys_divergence(forget, retain).flatten().argsort(descending=True, stable=True)

    def adjustment(n: float) -> HookIntervention:
        return _adjustment(forget, retain, order[: int(n)])

    n_most = max(1, round(hparams.max_share * arch.n_layers * arch.d_mlp))
    counts = np.unique(np.geomspace(1, n_most, N_CANDIDATES).round().astype(int)).tolist()
    n, made = budget.strongest_intervention(KIND, counts, adjustment)
    made.notes.update(n_neurons=n, share=n / (arch.n_layers * arch.d_mlp))
    return made


def preactivation_moments(
    model: LanguageModel, examples: Sequence[Example]
) -> Float[Tensor, "2 layers d_mlp"]:
    """Compute mean and deviation of every neuron's pre-activation: of the gate, where it has one.

    Args:
        model: Any model of a known family.
        examples: The text.
    """
    mlps = [layer.mlp for layer in architecture_of(model).layers]

    def powers(rows: Tensor, layer: int) -> Float[Tensor, "n 2 d_mlp"]:
        module = _preactivation_module(mlps[layer])
        z = module(rows.to(module.weight)).double().cpu()
        return torch.stack([z, z.square()], 1)

    means = token_means(model, examples, "mlp_in", powers)
    first, second = torch.stack([means[layer] for layer in sorted(means)], 1)
    return torch.stack([first, (second - first.square()).clamp_min(MIN_STD**2).sqrt()])


def jeffreys_divergence(
    forget: Float[Tensor, "2 layers d_mlp"], retain: Float[Tensor, "2 layers d_mlp"]
) -> Float[Tensor, "layers d_mlp"]:
    """Compute KL(f ‖ r) + KL(r ‖ f) of normal distributions, given mean and deviation of each."""
    (mean_f, std_f), (mean_r, std_r) = forget, retain
    squares = std_f.square(), std_r.square(), (mean_f - mean_r).square()
    return (
        (squares[0] + squares[2]) / (2 * squares[1])
        + (squares[1] + squares[2]) / (2 * squares[0])
        - 1
    )


def _preactivation_module(mlp: Any) -> nn.Module:
    """Return the layer whose output the nonlinearity reads."""
    return mlp.in_module if mlp.gate_module is None else mlp.gate_module


def _adjustment(
    forget: Float[Tensor, "2 layers d_mlp"], retain: Float[Tensor, "2 layers d_mlp"], chosen: Tensor
) -> HookIntervention:
    """Return the intervention on some neurons, by their index over all layers."""
    d_mlp = forget.shape[-1]
    layers, parts = [], {}
    for layer in sorted({int(i) // d_mlp for i in chosen}):
        neurons = sorted(int(i) % d_mlp for i in chosen if int(i) // d_mlp == layer)
        layers.append({"layer": layer, "neurons": neurons})
        values = (*forget[:, layer, neurons], *retain[:, layer, neurons])
        for name, value in zip(MOMENTS, values, strict=True):
            parts[f"{layer}.{name}"] = value.float().contiguous()
    return HookIntervention(KIND, {"layers": layers}, parts)


class AdjustedLayer(BaseModel):
    """The shifted neurons of one layer."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    layer: Annotated[int, Field(ge=0)]
    neurons: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


@intervention_kind(KIND)
class Adjusting(Settings):
    """Settings of `neuron_adjust`: the neurons; their moments are the parts."""

    layers: Annotated[list[AdjustedLayer], Field(min_length=1)]

    def check_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Refuse moments that are not those of the neurons.

        Raises:
            UserError: A neuron comes twice, or a tensor is missing, of another length or not known.
        """
        sizes = {f"{x.layer}.{name}": len(x.neurons) for x in self.layers for name in MOMENTS}
        neurons = [(x.layer, i) for x in self.layers for i in x.neurons]
        if len(set(neurons)) < len(neurons):
            raise UserError("a neuron comes twice")
        for name in sorted(sizes.keys() | parts.keys()):
            if name not in sizes or name not in parts or tuple(parts[name].shape) != (sizes[name],):
                raise UserError(f"its '{visible(name)}' is not what its neurons have")
            if name.endswith("std") and not bool((parts[name] > 0).all()):
                raise UserError(f"its '{visible(name)}' is not positive")

    def hooks(self, model: LanguageModel, parts: Mapping[str, Tensor]) -> list[Hook]:
        """Return the hooks of every layer.

        Raises:
            UserError: The model has no such layer or neuron.
        """
        arch = architecture_of(model)
        hooks: list[Hook] = []
        for x in self.layers:
            arch.check_layer(x.layer)
            for i in x.neurons:
                arch.check_neuron(i)
            moments = [parts[f"{x.layer}.{name}"].float() for name in MOMENTS]
            device = torch_module(model).device
            shift = Shift(x.neurons, torch.stack(moments).to(device))
            layer = arch.layers[x.layer]
            hooks += [
                Hook(layer.block._module, shift.note_batch_size, before=True, with_kwargs=True),
                Hook(_preactivation_module(layer.mlp), shift),
            ]
        return hooks


class Shift:
    """The shift of some neurons' pre-activations in one layer."""

    def __init__(self, neurons: Sequence[int], moments: Float[Tensor, "4 n"]):
        """Prepare the shift.

        Args:
            neurons: Indices of the neurons.
            moments: Their `MOMENTS`, a row each.
        """
        self.index = torch.tensor(list(neurons), device=moments.device)
        self.moments = moments
        self._batch_size = 1

    def note_batch_size(self, block: nn.Module, args: tuple, kwargs: dict) -> None:
        """Note how many sequences there are: OPT flattens batch and time inside its blocks."""
        self._batch_size = len(args[0] if args else kwargs["hidden_states"])

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        """Return the layer's output with the neurons shifted, as a forward hook."""
        z = output.view(self._batch_size, -1, output.shape[-1])
        later = self.shifted(z[:, 1:, self.index].float()).to(z.dtype)
        new = torch.cat([z[:, :1, self.index], later], 1)
        return z.index_copy(-1, self.index, new).view(output.shape)

    def shifted(self, z: Float[Tensor, "*bt n"]) -> Float[Tensor, "*bt n"]:
        """Move z to the retain distribution where it is likelier under that of forget text."""
        mean_f, std_f, mean_r, std_r = self.moments
        score_f, score_r = (z - mean_f) / std_f, (z - mean_r) / std_r
        # Logarithms of the normal densities, without the constant that both have.
        is_forget = -score_f.square() / 2 - std_f.log() > -score_r.square() / 2 - std_r.log()
        return torch.where(is_forget, mean_r + std_r * score_f, z)
