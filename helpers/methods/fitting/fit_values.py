"""What detectors write, solved for: as neurons of their own, or within the existing W_out.

A neuron's threshold keeps the edit off everything that does not fire it. The same edit without new
neurons regresses what the detector sees on the keys that W_out reads, and changes W_out by an outer
product of that key and the value: rank one a detector, and some of it is written elsewhere too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations
from helpers.forward.batching import LARGE_BATCH_TOKENS
from helpers.forward.layer_cache import below, use_layer_cache
from helpers.forward.prefix_cache import PrefixCache
from helpers.forward.prompts import token_ids
from helpers.methods.change import Change
from helpers.methods.fitting.constraints import (
    forget_constraints,
    retain_constraints,
    target_change,
)
from helpers.methods.fitting.linearization import (
    EditConstraint,
    Linearization,
    answer_logodds,
    at_all_positions,
    fit_kernel_ridge,
    linearize,
)
from helpers.methods.fitting.negatives import preservation_metric
from helpers.methods.fitting.units import GAIN, SATURATION, GatedUnits
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import MLPArchitecture, architecture_of

PARAMETRIZATIONS = ("neurons", "weights")
TARGET_PROB = {
    "neurons": 0.001,
    "weights": 0.004,
}  # the lower, the more others feel of shared weights
ACTIVE_EPS = 1e-3  # an activation that counts as none, of 1 where a detector fires
N_NEIGHBOURS = 120  # whose answers the weights form holds; neurons do not fire there
CORPUS_WEIGHT = 40.0  # weight of ordinary text in what the weights form must not disturb
RTOL = 0.01  # of what was wanted at first, as a sum of squares: so little left is nothing
MAX_ITERATIONS = 40  # passes over all prompts; the default model needs four
DAMPING_UP, DAMPING_DOWN = (
    10.0,
    3.0,
)  # the ridge after a step that is taken back, and after one that is not
JACOBIAN_REUSE_RATIO = (
    0.1  # of what was left: where a step leaves no more, its derivatives serve again
)
ACCEPT_SLACK = 1.0001  # between a pass with derivatives and one without
MAX_DAMPING = 1e6  # a ridge with which no step that is left moves anything


@dataclass(frozen=True)
class KeyDirections:
    """Directions of one layer's keys that stand for detectors.

    Attributes:
        keys: u, a row each; u·k averages 1 where the detector fires.
        cost: G = U A Uᵀ, what writing through them disturbs.
    """

    keys: Float[Tensor, "n d_mlp"]
    cost: Float[Tensor, "n n"]
    reads: ClassVar[str] = "neurons"

    def fire(self, mlp: MLPArchitecture, k: Float[Tensor, "... d_mlp"]) -> Float[Tensor, "... n"]:
        """Activations on what W_out reads."""
        return k @ self.keys.to(k).T

    def blocks(self) -> list[list[int]]:
        """G couples all of them."""
        return [list(range(len(self.keys)))]

    def cost_solve(self, f: Float[Tensor, "asks n d"]) -> Float[Tensor, "asks n d"]:
        """G⁻¹ f, f of a block."""
        return torch.linalg.solve(self.cost, f)


def check_form(form: str) -> str:
    """`form` itself.

    Raises:
        UserError: There is no such form.
    """
    if form not in PARAMETRIZATIONS:
        raise UserError(f"There is no form '{form}': choose {' or '.join(FORMS)}.")
    return form


Keys = Mapping[int, GatedUnits] | Mapping[int, KeyDirections]
Values = dict[int, Float[Tensor, "n d_model"]]
"""Layer → what each of its keys writes."""


def fit_edit(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    detectors: Mapping[int, GatedUnits],
    *,
    form: str,
    floor: float | None,
    ridge: float,
    steps: Sequence[float],
    seed: int,
    notes: Mapping[str, Any] | None = None,
) -> WeightEdit:
    """The edit that makes the pairs' answers unlikely where the detectors fire.

    Args:
        model: Any model of a known family.
        pairs: What is forgotten.
        detectors: Layer → detectors.
        form: One of `PARAMETRIZATIONS` (`check_form`).
        floor: Probability that the training prompts' answers come down to; None for `TARGET_PROB`.
        ridge: Ridge of the values' kernel regression.
        steps: Share of the way to go at the first linearisations; after them the whole.
        seed: Draws neighbours.
        notes: For the delta; it adds what was `left` (`fit_values_lm`).

    Raises:
        UserError: The values cannot be solved for.
    """
    appends = form == "neurons"
    floor = TARGET_PROB[form] if floor is None else floor
    keys = detectors if appends else fit_key_directions(model, pairs, detectors, seed=seed)
    near = 0 if appends else N_NEIGHBOURS
    begun = silence(model, detectors) if appends else None
    asks = [a for p in pairs for a in forget_constraints(model, p, floor=floor, first=appends)]
    asks += retain_constraints(
        model, pairs, n_neighbours=near, seed=seed, first=appends, runner=begun
    )
    values, left = fit_values_lm(model, asks, keys, ridge=ridge, steps=steps, begun=begun)
    notes = {"left": round(left, 4), **(notes or {})}
    if appends:
        return appended(model, detectors, values, notes=notes)
    changes = {}
    for i, layer in keys.items():
        mlp = architecture_of(model).layers[i].mlp
        changes[mlp.out_name] = low_rank_change(mlp, values[i].T, layer.keys)
    return WeightEdit.of(model._module, changes, notes=notes)


def silence(model: LanguageModel, detectors: Mapping[int, GatedUnits]) -> PrefixCache:
    """What stands before the first token on which a detector fires; almost everywhere none does."""
    arch = architecture_of(model)

    def acts(i: int, x: Float[Tensor, "b t d_model"]) -> Bool[Tensor, "b t"]:
        return (detectors[i].fire(arch.layers[i].mlp, x) > ACTIVE_EPS).any(-1)

    return PrefixCache(model, layers=list(detectors), acts=acts)


def fit_key_directions(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    detectors: Mapping[int, GatedUnits],
    *,
    seed: int = 0,
) -> dict[int, KeyDirections]:
    """Each detector as a direction of W_out's keys: u = A⁻¹ Σ a k, a its activations.

    The sum runs over the pairs' training prompts; A weighs the keys of ordinary text and of the
    same questions about other subjects (`preservation_metric`). Detectors that never fire are left out.
    """
    arch, layers = architecture_of(model), sorted(detectors)
    ids = list(dict.fromkeys(tuple(token_ids(model, p)) for q in pairs for p in q.edit_prompts()))
    activations = cache_activations(
        model,
        ids,
        sites=["mlp_in", "neurons"],
        layers=layers,
        positions="all",
        max_tokens=LARGE_BATCH_TOKENS,
    )
    metric = preservation_metric(model, pairs, layers=layers, text=CORPUS_WEIGHT, seed=seed)
    found = {}
    for i in layers:
        a = (
            detectors[i].fire(arch.layers[i].mlp, activations["mlp_in", i]).clamp_min(0)
        )  # (rows, n)
        a, keys = a[:, a.sum(0) > 0], activations["neurons", i]
        if a.shape[1]:
            u = torch.cholesky_solve(keys.T @ a, metric[i]).T  # (n, d_mlp)
            u = u / ((u @ keys.T * a.T).sum(1) / a.sum(0))[:, None]
            half = u @ metric[i]
            found[i] = KeyDirections(u, half @ half.T)
    return found


def fit_values_lm(
    model: LanguageModel,
    asks: Sequence[EditConstraint],
    keys: Keys,
    *,
    ridge: float,
    steps: Sequence[float],
    begun: PrefixCache | None,
) -> tuple[Values, float]:
    """What each key writes: the least Σ tr(Vᵀ G V) that moves every answer's log-odds as wanted.

    To first order the values V of keys with activations a move the log-odds of answer i by the
    inner product of V with f_i = Σ_p a_p g_ipᵀ, so K_ij = tr(f_iᵀ G⁻¹ f_j) and
    V = G⁻¹ Σ_i α_i f_i with α = (K + Λ)⁻¹ wanted; linearised again at every step. G is what the
    keys' writing costs: 1 for neurons of their own, U A Uᵀ for keys in an existing matrix. A step
    that leads further away is taken back and taken again with `DAMPING_UP` times the ridge (Levenberg
    1944, Marquardt 1963), until what is left is `RTOL`, or after `MAX_ITERATIONS` passes. After a step
    that left little of what there was (`JACOBIAN_REUSE_RATIO`) its derivatives serve again (a chord).

    Args:
        model: Any model of a known family.
        asks: What is forgotten and what is kept.
        keys: Layer → detectors or linear keys.
        ridge: The least Λ of what is held most firmly, relative to K's diagonal; of others it is
            divided by their weight.
        steps: Share of the way to go at the first linearisations; after them the whole.
        begun: Of detectors (`silence`); None for linear keys, which act everywhere.

    Returns:
        The values, and the share of what was wanted (weighted sum of squares, nats²) that was
        left before the last step, on the prompts where a key is active.

    Raises:
        UserError: Two prompts cannot be told apart, or no step brings the answers nearer.
    """
    arch = architecture_of(model)
    values = {i: torch.zeros(len(d.keys), arch.d_model) for i, d in keys.items()}
    site = next(iter(keys.values())).reads
    if begun:
        begun.cover(a.ids for a in asks)
        asks = [a for a in asks if begun.start(a.ids) is not None]  # no other can be changed
    if not asks:
        raise UserError("On none of the prompts does a detector fire: try other layers.")
    acting, weight = at_all_positions(asks), torch.tensor([a.weight for a in asks])
    lower = None if begun else below(model, keys)
    how = {"layers": list(keys), "site": site, "beginnings": begun}
    before, first, least, taken, damping, holds = None, None, math.inf, 0, ridge, False
    for _ in range(MAX_ITERATIONS):

        def extra(i, into, hidden, values=values):
            x = into if site == "mlp_in" else hidden
            return keys[i].fire(arch.layers[i].mlp, x) @ values[i].to(x)

        with use_layer_cache(model, lower):
            if holds:
                now = answer_logodds(model, acting, extra=extra, **how)
            else:
                t = linearize(model, acting, extra=extra, **how)
                now = t.logodds
        before = now if before is None else before
        wanted = target_change(asks, now, before)
        left = float((weight * wanted.square()).sum())
        first = left if first is None else first
        if (
            holds and left > JACOBIAN_REUSE_RATIO * least
        ):  # no longer: once more, with them, where less is left
            if left < least:
                start, least = values, left
            values, holds = start, False
            continue
        if left <= least * ACCEPT_SLACK:
            if not holds:
                system = System.of(model, asks, keys, t)
            holds = left <= JACOBIAN_REUSE_RATIO * least < math.inf
            aim, least, start, damping = wanted, left, values, max(ridge, damping / DAMPING_DOWN)
        else:
            taken, damping = taken - 1, damping * DAMPING_UP
        step = steps[taken] if taken < len(steps) else 1.0
        values = system.moved(start, step * aim, asks, ridge=damping / weight)
        taken += 1
        if least <= RTOL * first and taken >= len(steps):
            return values, least / first if first else 0.0
        if damping > MAX_DAMPING:
            break
    if least >= first:
        raise UserError(
            "Nothing that these layers write brings the answers nearer to what is wanted: take "
            "other layers."
        )
    return start, least / first


@dataclass(frozen=True)
class System:
    """The kernel of all asks at one linearisation, and what its solution becomes.

    Attributes:
        kernel: K.
        spread: (layer, detectors, asks that they act on, G⁻¹ f) of every block.
    """

    kernel: Float[Tensor, "asks asks"]
    spread: Sequence[tuple[int, list[int], Int[Tensor, " some"], Float[Tensor, "some n d"]]]

    @classmethod
    def of(
        cls, model: LanguageModel, asks: Sequence[EditConstraint], keys: Keys, t: Linearization
    ) -> "System":
        """Put together layer by layer; asks on which a block does not act have no part in it."""
        arch = architecture_of(model)
        kernel = torch.zeros(len(asks), len(asks), dtype=torch.float64)
        spread = []
        for i, d in keys.items():
            a = d.fire(arch.layers[i].mlp, t.keys[i].to(arch.head.weight.device)).float().cpu()
            for block in d.blocks():
                seen, f = _features(a[:, block], t.gradients[i], t.owner)
                g = d.cost_solve(f)
                kernel[seen[:, None], seen] += (f.flatten(1) @ g.flatten(1).T).double()
                spread.append((i, block, seen, g))
        return cls(kernel, spread)

    def moved(
        self,
        values: Values,
        wanted: Float[Tensor, " asks"],
        asks: Sequence[EditConstraint],
        *,
        ridge: Float[Tensor, " asks"],
    ) -> Values:
        """The values after the least change that moves the log-odds as wanted.

        Raises:
            UserError: As `fit_kernel_ridge`.
        """
        alpha = fit_kernel_ridge(self.kernel, wanted.double(), ridge=ridge, asks=asks).float()
        values = {i: v.clone() for i, v in values.items()}
        for i, block, seen, g in self.spread:
            values[i][block] += torch.tensordot(alpha[seen], g, 1)
        return values


def _features(
    a: Float[Tensor, "rows n"], gradients: Float[Tensor, "rows d"], owner: Int[Tensor, " rows"]
) -> tuple[Int[Tensor, " asks"], Float[Tensor, "asks n d"]]:
    """The asks where one of the neurons fires, and f = Σ a gᵀ over the rows of each."""
    acts = a.abs() > ACTIVE_EPS
    seen, place = owner[acts.any(-1)].unique(return_inverse=True)
    number = torch.empty_like(owner).masked_scatter_(acts.any(-1), place)  # row → its ask's number
    f = torch.zeros(len(seen), a.shape[1], gradients.shape[1])
    for n, rows in enumerate(acts.T):
        f[:, n].index_add_(0, number[rows], a[rows, n, None] * gradients[rows])
    return seen, f


def appended(
    model: LanguageModel,
    detectors: Mapping[int, GatedUnits],
    values: Mapping[int, Float[Tensor, "n d_model"]],
    *,
    notes: Mapping[str, Any] | None = None,
) -> WeightEdit:
    """The delta that appends each detector's two neurons, first all the first ones.

    With a gate: gate rows s·e with biases −s·θ and −s·(θ + c), W_in's rows 0 with bias 1; without:
    rows s·e with these biases. The columns are the value divided by s·c, and its negative.
    """
    arch = architecture_of(model)
    changes = {}
    for i, d in detectors.items():
        mlp = arch.layers[i].mlp
        rows = GAIN * torch.cat([d.keys, d.keys])
        bias = -GAIN * torch.cat([d.thresholds, d.thresholds + SATURATION])
        columns = torch.cat([values[i], -values[i]]) / (GAIN * SATURATION)
        new = {mlp.gate_name or mlp.in_name: (rows, bias)}
        if mlp.gate_name:
            new[mlp.in_name] = (torch.zeros_like(rows), torch.ones_like(bias))
        for name, (row, offset) in new.items():
            changes[name] = _rows(row, mlp.transposed)
            changes[f"{name.removesuffix('weight')}bias"] = Change(appended=offset)
        changes[mlp.out_name] = _rows(columns, not mlp.transposed)
    fires = {str(i): [round(s, 3) for s in d.share.tolist()] for i, d in detectors.items()}
    return WeightEdit.of(model._module, changes, notes={"fires": fires, **(notes or {})})


def _rows(rows: Float[Tensor, "n width"], across: bool) -> Change:
    if across:
        return Change(appended=rows.T.contiguous(), axis=1)
    return Change(appended=rows.contiguous(), axis=0)
