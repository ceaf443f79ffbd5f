"""One appended neuron a layer that detects the subject and writes what cancels the answer.

A linear edit of W_out can only weigh the subject's key; a neuron can *detect* it. Its key is the
linear discriminant of the subject's last token against the same questions about all other subjects
and ordinary text, its threshold lies above what those reach, and the values are solved for: the
least that makes the answer unlikely and leaves the subject's other facts where they are. What does
not fire cannot be hurt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods.asks import forget_asks, retain_asks, wanted_changes
from helpers.methods.background import inputs_of_others, own_inputs
from helpers.methods.delta import Change, WeightDelta
from helpers.methods.protocol import method
from helpers.methods.tangent import Ask, linearise, solve_kernel
from helpers.models import MLPAnatomy, anatomy

FIRES = 0.5  # a detector has to fire on so many of the subject's own prompts
SHARPNESS = 20.0  # how steep the nonlinearity is driven: SiLU and GELU then are nearly ReLU


@dataclass(frozen=True)
class Detectors:
    """Neurons of one layer, before their values are known: act(s (e·x − θ)) / s.

    Attributes:
        keys: e, a row each, scaled so that e·x − θ averages 1 where it should fire.
        thresholds: θ.
    """

    keys: Float[Tensor, "n d_model"]
    thresholds: Float[Tensor, " n"]

    def fire(self, mlp: MLPAnatomy, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... n"]:
        """Activations on what W_in reads."""
        return (
            mlp.activation(SHARPNESS * (x @ self.keys.to(x).T - self.thresholds.to(x))) / SHARPNESS
        )


@method("gated_neuron", family="surgery", many=True)
def gated_neuron(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    seed: int = 0,
    layers: tuple[int, ...] = tuple(range(13)),
    floor: float = 0.003,
    quantile: float = 0.9999,
    shrink: float = 0.01,
    ridge: float = 0.01,
    steps: tuple[float, ...] = (0.5, 0.5, 1.0, 1.0, 1.0),
) -> WeightDelta:
    """Append one neuron a layer and pair.

    Args:
        model: Any model of a known family.
        pairs: What to forget; the pairs' neurons are solved for together.
        seed: Draws the text.
        layers: Which layers get a neuron.
        floor: Probability that the training prompts' answers come down to.
        quantile: Share of everything else that stays under the threshold.
        shrink: Ridge of the discriminant, relative to the mean variance.
        ridge: Ridge of the values' kernel regression.
        steps: Share of the way to go at each linearisation.

    Raises:
        UserError: Two prompts cannot be told apart.
    """
    detectors = fit_detectors(
        model, pairs, layers=layers, quantile=quantile, shrink=shrink, seed=seed
    )
    asks = [a for p in pairs for a in forget_asks(model, p, floor=floor)]
    asks += [a for p in pairs for a in retain_asks(model, p, n_neighbours=0, seed=seed)]
    values = solve_values(model, asks, detectors, ridge=ridge, steps=steps)
    return appended(model, detectors, values)


def fit_detectors(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    layers: Sequence[int],
    quantile: float,
    shrink: float,
    seed: int,
) -> dict[int, Detectors]:
    """For each layer and pair the discriminant (Fisher 1936) e = Σ⁻¹(μ_subject − μ_others)."""
    mine = [own_inputs(model, p, layers=layers) for p in pairs]
    found = {}
    for i, others in inputs_of_others(model, pairs, layers=layers, seed=seed):
        mean = others.mean(0)
        cov = (others.T @ others / len(others) - torch.outer(mean, mean)).double()
        cov += shrink * cov.diagonal().mean() * torch.eye(len(cov), dtype=torch.float64)
        keys, thresholds = [], []
        for k, inputs in enumerate(mine):
            rest = [m[i] for n, m in enumerate(mine) if n != k]  # the other pairs' subjects
            e = torch.linalg.solve(cov, (inputs[i].mean(0) - mean).double()).float()
            outside = torch.cat([others @ e, *(r @ e for r in rest)])
            at = max(1, round((1 - quantile) * len(outside)))
            theta = outside.topk(at).values[-1]
            margin = inputs[i] @ e - theta
            if (margin > 0).float().mean() >= FIRES:
                scale = margin.clamp_min(0).mean()
                keys.append(e / scale)
                thresholds.append(theta / scale)
            else:  # this layer cannot tell the subject apart: a neuron that is never active
                keys.append(torch.zeros_like(e))
                thresholds.append(torch.ones_like(theta))
        found[i] = Detectors(torch.stack(keys), torch.stack(thresholds))
    silent = torch.stack([~d.keys.any(1) for d in found.values()]).all(0)
    for pair, none in zip(pairs, silent.tolist(), strict=True):
        if none:
            raise UserError(
                f"In none of the layers {_span(layers)} does a direction tell {pair.subject} from "
                "everything else: try other layers, or a lower quantile."
            )
    return found


def _span(layers: Sequence[int]) -> str:
    return f"{min(layers)} to {max(layers)}"


def solve_values(
    model: LanguageModel,
    asks: Sequence[Ask],
    detectors: Mapping[int, Detectors],
    *,
    ridge: float,
    steps: Sequence[float],
) -> dict[int, Float[Tensor, "n d_model"]]:
    """What each neuron writes: the least Σ‖v‖² that moves every log-probability as wanted.

    To first order a value v of a neuron with activations a moves log P_i by v · Σ_p a_p g_ip, so
    K_ij is the inner product of these features, and v = Σ_i α_i Σ_p a_p g_ip with
    α = (K + Λ)⁻¹ wanted; linearised again at every step.
    """
    parts = anatomy(model)
    values = {i: torch.zeros(len(d.thresholds), parts.d_model) for i, d in detectors.items()}
    everywhere = [Ask(a.ids, a.scored, tuple(range(len(a.ids))), a.goal, a.name) for a in asks]
    before = None
    for step in steps:

        def extra(i, into, hidden):
            return detectors[i].fire(parts.layers[i].mlp, into) @ values[i].to(into)  # noqa: B023

        t = linearise(model, everywhere, layers=list(detectors), extra=extra, site="mlp_in")
        before = t.logprob if before is None else before
        features = {}
        for i, d in detectors.items():
            a = d.fire(parts.layers[i].mlp, t.keys[i].to(parts.head.weight.device)).float().cpu()
            each = a[:, :, None] * t.gradients[i][:, None]  # (rows, n, d_model)
            flat = torch.zeros(len(asks), each[0].numel())
            features[i] = flat.index_add(0, t.owner, each.flatten(1))
        kernel = sum((f @ f.T).double() for f in features.values())
        wanted = step * wanted_changes(asks, t.logprob, before)
        alpha = solve_kernel(kernel, wanted.double(), ridge=ridge, asks=asks).float()
        values = {i: values[i] + (alpha @ f).view_as(values[i]) for i, f in features.items()}
    return values


def appended(
    model: LanguageModel,
    detectors: Mapping[int, Detectors],
    values: Mapping[int, Float[Tensor, "n d_model"]],
) -> WeightDelta:
    """The delta that appends the neurons.

    With a gate: gate row s·e with bias −s·θ, W_in's row 0 with bias 1; without: row s·e with bias
    −s·θ. The value is divided by s.
    """
    parts = anatomy(model)
    changes = {}
    for i, d in detectors.items():
        mlp = parts.layers[i].mlp
        rows, bias = SHARPNESS * d.keys, -SHARPNESS * d.thresholds
        new = {mlp.gate_name or mlp.in_name: (rows, bias)}
        if mlp.gate_name:
            new[mlp.in_name] = (torch.zeros_like(rows), torch.ones_like(bias))
        for name, (row, offset) in new.items():
            changes[name] = _rows(row, mlp.transposed)
            changes[f"{name.removesuffix('weight')}bias"] = Change(appended=offset)
        changes[mlp.out_name] = _rows(values[i] / SHARPNESS, not mlp.transposed)
    return WeightDelta.of(model._module, changes)


def _rows(rows: Float[Tensor, "n width"], across: bool) -> Change:
    if across:
        return Change(appended=rows.T.contiguous(), axis=1)
    return Change(appended=rows.contiguous(), axis=0)
