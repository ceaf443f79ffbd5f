"""Fit the values of given units, as new neurons or as a low-rank change of W_out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.forward.prefix_cache import PrefixCache
from helpers.forward.scoring import next_token_and_answer
from helpers.io.safe_text import visible
from helpers.methods.change import Change
from helpers.methods.fitting.constraints import (
    forget_constraints,
    preservation_constraints,
    retain_prompts,
)
from helpers.methods.fitting.edit_constraint import EditConstraint
from helpers.methods.fitting.hparams import UnitEditHparams
from helpers.methods.fitting.key_directions import Keys, fit_key_directions
from helpers.methods.fitting.levenberg_marquardt import fit_values_lm, is_reached
from helpers.methods.fitting.units import GatedUnits
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import architecture_of, torch_module


def fit_edit(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    units: Mapping[int, GatedUnits],
    hparams: UnitEditHparams,
    *,
    seed: int,
    notes: Mapping[str, Any] | None = None,
) -> WeightEdit:
    """Build the edit that makes the pairs' answers unlikely where the units are active.

    Args:
        model: Any model of a known family.
        pairs: The pairs to forget.
        units: Layer → its units.
        hparams: Hyperparameters of the constraints and of the fit.
        seed: Seed that draws text and neighbours.
        notes: Notes of the edit; the fit adds its `relative_cost`.

    Raises:
        UserError: The values cannot be fitted, or most of a pair's prompts have no active unit.
    """
    appends = hparams.appends
    forget_by_pair = [
        forget_constraints(
            model,
            pair,
            target_prob=hparams.chosen_target_prob,
            include_subject_initial=appends,
        )
        for pair in pairs
    ]
    constraints = [constraint for of_pair in forget_by_pair for constraint in of_pair]
    retained = retain_prompts(
        model,
        pairs,
        n_neighbours=0 if appends else hparams.n_neighbours_low_rank,
        top_k=hparams.top_k,
        seed=seed,
        include_subject_initial=appends,
    )
    keys: Keys = units
    prefix_cache: PrefixCache | None = None
    if appends:
        prefix_cache = prefix_cache_for(model, units, active_eps=hparams.active_eps)
        # One pass gives the unedited model's predictions and the prefixes of these prompts.
        predictions = [prefix_cache.prefill_prompts(group.prompts) for group in retained]
    else:
        keys = fit_key_directions(model, pairs, units, hparams, seed=seed)
        predictions = [next_token_and_answer(model, group.prompts) for group in retained]
    for group, predicted in zip(retained, predictions, strict=True):
        constraints += preservation_constraints(model, group, predicted, hparams)
    if prefix_cache:
        prefix_cache.prefill(c.ids for c in constraints)
        for pair, of_pair in zip(pairs, forget_by_pair, strict=True):
            check_reached(pair, of_pair, prefix_cache)
    values, relative_cost = fit_values_lm(
        model, constraints, keys, hparams, prefix_cache=prefix_cache
    )
    notes = {"relative_cost": round(relative_cost, 4), **(notes or {})}
    if appends:
        return append_units(model, units, values, notes=notes)
    changes = {}
    for i, directions in keys.items():
        mlp = architecture_of(model).layers[i].mlp
        changes[mlp.out_name] = low_rank_change(mlp, values[i].T, directions.keys)
    return WeightEdit.of(torch_module(model), changes, notes=notes)


def check_reached(
    pair: ConceptPair, constraints: Sequence[EditConstraint], prefix_cache: PrefixCache
) -> None:
    """Refuse units that are active on fewer than half of the prompts that they have to change.

    Args:
        pair: The pair to forget.
        constraints: Its forget constraints.
        prefix_cache: Cache that knows where a unit is active.

    Raises:
        UserError: Most prompts would stay as they are; names one.
    """
    missed = [c for c in constraints if not is_reached(c, prefix_cache)]
    if len(missed) > len(constraints) / 2:
        raise UserError(
            f"{visible(pair.subject)} is not detected in {len(missed)} of {len(constraints)} "
            f"prompts, such as '{visible(missed[0].name)}', so the edit would leave them as they "
            "are: take other layers, or a method that needs no detector, such as tangent_kernel."
        )


def prefix_cache_for(
    model: LanguageModel, units: Mapping[int, GatedUnits], *, active_eps: float
) -> PrefixCache:
    """Create the cache of sequences up to the first token on which a unit is active.

    Args:
        model: The model without the edit.
        units: Layer → its units.
        active_eps: Activations up to this size count as zero.
    """
    arch = architecture_of(model)

    def is_active(layer: int, x: Float[Tensor, "b t d_model"]) -> Bool[Tensor, "b t"]:
        return (units[layer].fire(arch.layers[layer].mlp, x) > active_eps).any(-1)

    return PrefixCache(model, layers=list(units), is_active=is_active)


def append_units(
    model: LanguageModel,
    units: Mapping[int, GatedUnits],
    values: Mapping[int, Float[Tensor, "n d_model"]],
    *,
    notes: Mapping[str, Any] | None = None,
) -> WeightEdit:
    """Build the edit that appends two neurons per unit; all lower neurons precede all upper ones.

    With a gate, the gate has rows s·e with biases −s·θ (lower) and −s·(θ + c) (upper), and W_in has
    rows 0 with bias 1. Without a gate, W_in has rows s·e with these biases. The columns of W_out
    are the value divided by s·c, and its negative.

    Args:
        model: The model.
        units: Layer → its units.
        values: Layer → the value of each unit.
        notes: Notes of the edit; the units' `recall` is added.
    """
    arch = architecture_of(model)
    changes = {}
    for i, unit in units.items():
        mlp, s, c = arch.layers[i].mlp, unit.gain, unit.saturation
        rows = s * torch.cat([unit.keys, unit.keys])
        bias = -s * torch.cat([unit.thresholds, unit.thresholds + c])
        columns = torch.cat([values[i], -values[i]]) / (s * c)
        new_rows = {mlp.gate_name or mlp.in_name: (rows, bias)}
        if mlp.gate_name:
            new_rows[mlp.in_name] = (torch.zeros_like(rows), torch.ones_like(bias))
        for name, (weight, offset) in new_rows.items():
            changes[name] = _appended(weight, is_transposed=mlp.transposed)
            changes[f"{name.removesuffix('weight')}bias"] = Change(appended=offset)
        changes[mlp.out_name] = _appended(columns, is_transposed=not mlp.transposed)
    recall = {str(i): [round(r, 3) for r in unit.recall.tolist()] for i, unit in units.items()}
    notes = {"recall": recall, **(notes or {})}
    return WeightEdit.of(torch_module(model), changes, notes=notes)


def _appended(rows: Float[Tensor, "n width"], *, is_transposed: bool) -> Change:
    """Return the change that appends rows, in the memory layout of the weight."""
    if is_transposed:
        return Change(appended=rows.T.contiguous(), axis=1)
    return Change(appended=rows.contiguous(), axis=0)
