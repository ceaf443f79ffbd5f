"""Appended neurons that detect the subject and write what cancels the answer.

A linear edit of W_out can only weigh the subject's key; a neuron can *detect* it. Its key is the
linear discriminant of the subject's last token against the same questions about all other subjects
and ordinary text, its threshold lies above what those reach, and the values are solved for: the
least that makes the answer unlikely and leaves the subject's other facts where they are. What does
not fire cannot be hurt.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
MARGIN = 0.02  # and by this share of the distance from what it sees elsewhere
SHARPNESS = 20.0  # how steep the nonlinearity is driven: SiLU and GELU then are nearly ReLU


@dataclass(frozen=True)
class Detectors:
    """Neurons of one layer, before their values are known: act(s (e·x − θ)) / s.

    Attributes:
        keys: e, a row each, scaled so that e·x − θ averages 1 where it should fire.
        thresholds: θ.
        share: On what share of the subject's own prompts each fires.
        pair: Number of the pair that each is of.
    """

    keys: Float[Tensor, "n d_model"]
    thresholds: Float[Tensor, " n"]
    share: Float[Tensor, " n"]
    pair: tuple[int, ...] = ()

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
    layers: tuple[int, ...] | None = None,
    floor: float = 0.001,
    quantile: float = 0.9999,
    shrink: float = 0.01,
    ridge: float = 0.01,
    steps: tuple[float, ...] = (0.3, 0.4, 0.5, 0.7, 1.0, 1.0),
) -> WeightDelta:
    """Append to each layer one neuron a pair and spelling of its subject.

    Args:
        model: Any model of a known family.
        pairs: What to forget; the pairs' neurons are solved for together.
        seed: Draws the text.
        layers: Which layers get a neuron; by default those from a fifth of the depth to a little
            over its half. Earlier ones carry all that is known of the subject, and its other facts
            suffer with the one that goes.
        floor: Probability that the training prompts' answers come down to.
        quantile: Share of everything else that stays under the threshold.
        shrink: Ridge of the discriminant, relative to the mean variance.
        ridge: Ridge of the values' kernel regression.
        steps: Share of the way to go at each linearisation.

    Raises:
        UserError: Two prompts cannot be told apart.
    """
    if layers is None:
        layers = anatomy(model).at_depth(range(6, 17))
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
    """For each layer and pair a neuron along the linear discriminant."""
    mine = [own_inputs(model, p, layers=layers) for p in pairs]
    found = {}
    for i, others in inputs_of_others(model, pairs, layers=layers, seed=seed):
        units = []
        for k, _, inside, outside in sightings(mine, others, i):
            e = discriminant(inside, outside, shrink=shrink)
            units.append(replace(detector(e, inside, outside, quantile=quantile), pair=(k,)))
        found[i] = stacked(units)
    require_firing(found, pairs)
    return found


def sightings(
    mine: Sequence[Sequence[Mapping[int, Tensor]]], others: Float[Tensor, "m d_model"], layer: int
) -> Iterator[tuple[int, int, Float[Tensor, "n d_model"], Float[Tensor, "m d_model"]]]:
    """(pair, spelling, what it reads there, what it reads elsewhere) for every neuron of a layer.

    Elsewhere are also the other pairs' subjects.
    """
    for k, groups in enumerate(mine):
        rest = [g[layer] for n, m in enumerate(mine) if n != k for g in m]
        outside = torch.cat([others, *rest])
        for n, group in enumerate(groups):
            yield k, n, group[layer], outside


def discriminant(
    inside: Float[Tensor, "n d"], outside: Float[Tensor, "m d"], *, shrink: float
) -> Float[Tensor, " d"]:
    """Fisher's (1936) direction Σ⁻¹(μ_inside − μ_outside), Σ the covariance outside."""
    mean = outside.mean(0)
    cov = (outside.T @ outside / len(outside) - torch.outer(mean, mean)).double()
    cov += shrink * cov.diagonal().mean() * torch.eye(len(cov), dtype=torch.float64)
    return torch.linalg.solve(cov, (inside.mean(0) - mean).double()).float()


def detector(
    e: Float[Tensor, " d_model"],
    inside: Float[Tensor, "n d_model"],
    outside: Float[Tensor, "m d_model"],
    *,
    quantile: float,
) -> Detectors:
    """One neuron along `e`: threshold at the quantile of everything else, mean 1 where it fires.

    Where it would fire on fewer than half of the subject's prompts, or only just, a neuron that is
    never active.
    """
    scores = outside @ e
    theta = scores.topk(max(1, round((1 - quantile) * len(scores)))).values[-1]
    margin = inside @ e - theta
    scale = margin.clamp_min(0).mean()
    gap = (inside @ e).mean() - scores.mean()
    if (margin > 0).float().mean() < FIRES or scale < MARGIN * gap:
        return Detectors(torch.zeros_like(e)[None], torch.ones(1), torch.zeros(1))
    share = (margin > 0).float().mean()[None]
    return Detectors(e[None] / scale, theta[None] / scale, share)


def stacked(units: Sequence[Detectors]) -> Detectors:
    """Several neurons of one layer as one set."""
    return Detectors(
        torch.cat([u.keys for u in units]),
        torch.cat([u.thresholds for u in units]),
        torch.cat([u.share for u in units]),
        tuple(k for u in units for k in u.pair),
    )


def require_firing(found: Mapping[int, Detectors], pairs: Sequence[ConceptPair]) -> None:
    """Stop when a pair's subject is detected in no layer.

    Raises:
        UserError: Names the subject.
    """
    best = torch.stack([d.share for d in found.values()]).max(0).values.tolist()
    owner = next(iter(found.values())).pair
    for k, pair in enumerate(pairs):
        if not any(share for share, o in zip(best, owner, strict=True) if o == k):
            raise UserError(
                f"In none of the layers {_span(found)} does a direction tell {pair.subject} from "
                "everything else: try other layers, or a lower quantile."
            )


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
    """What each neuron writes: the least Σ‖v‖² that moves every answer's log-odds as wanted.

    To first order a value v of a neuron with activations a moves the log-odds of answer i by
    v · Σ_p a_p g_ip, so K_ij is the inner product of these features, and v = Σ_i α_i Σ_p a_p g_ip
    with α = (K + Λ)⁻¹ wanted; linearised again at every step.
    """
    parts = anatomy(model)
    values = {i: torch.zeros(len(d.thresholds), parts.d_model) for i, d in detectors.items()}
    everywhere = [Ask(a.ids, a.scored, tuple(range(len(a.ids))), a.goal, a.name) for a in asks]
    before = None
    for step in steps:

        def extra(i, into, hidden):
            return detectors[i].fire(parts.layers[i].mlp, into) @ values[i].to(into)  # noqa: B023

        t = linearise(model, everywhere, layers=list(detectors), extra=extra, site="mlp_in")
        before = t.logodds if before is None else before
        features = {}
        for i, d in detectors.items():
            a = d.fire(parts.layers[i].mlp, t.keys[i].to(parts.head.weight.device)).float().cpu()
            each = a[:, :, None] * t.gradients[i][:, None]  # (rows, n, d_model)
            flat = torch.zeros(len(asks), each[0].numel())
            features[i] = flat.index_add(0, t.owner, each.flatten(1))
        kernel = sum((f @ f.T).double() for f in features.values())
        wanted = step * wanted_changes(asks, t.logodds, before)
        alpha = solve_kernel(kernel, wanted.double(), ridge=ridge, asks=asks).float()
        values = {i: values[i] + (alpha @ f).view_as(values[i]) for i, f in features.items()}
    return values


def appended(
    model: LanguageModel,
    detectors: Mapping[int, Detectors],
    values: Mapping[int, Float[Tensor, "n d_model"]],
    *,
    notes: Mapping[str, Any] | None = None,
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
    fires = {str(i): [round(s, 3) for s in d.share.tolist()] for i, d in detectors.items()}
    return WeightDelta.of(model._module, changes, notes={"fires": fires, **(notes or {})})


def _rows(rows: Float[Tensor, "n width"], across: bool) -> Change:
    if across:
        return Change(appended=rows.T.contiguous(), axis=1)
    return Change(appended=rows.contiguous(), axis=0)
