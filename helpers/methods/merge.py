"""Merge edits that were made on the same model into one: the sum of their changes."""

from collections.abc import Sequence

import torch
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.io.safe_text import visible
from helpers.methods.change import Change
from helpers.methods.edit import Edit
from helpers.methods.edit_stack import base_model
from helpers.methods.snapshots import edited_tensors_hash
from helpers.methods.weight_edit import WeightEdit
from helpers.models import model_hash, torch_module


def merge_edits(model: LanguageModel, edits: Sequence[Edit]) -> Edit:
    """Return one edit with the changes of all: ΔW = Σ ΔW_i, and the neurons that each appends.

    Each was made without the others, so where they change the same tensors their joint effect is
    not solved for: measure it, or solve for all pairs at once where a method can.

    Args:
        model: The model that they were made on, with edits or without.
        edits: Weight edits, at least one.

    Raises:
        UserError: There is none, one is an intervention, is given twice, or was made on another
            model.
    """
    if not edits:
        raise UserError("There is no edit to compose: give at least one.")
    changes: dict[str, list[Change]] = {}
    with base_model(model):
        for number, edit in enumerate(edits):
            if any(edit.delta.same_as(other.delta) for other in edits[:number]):
                raise UserError(f"The edit by {visible(edit.method)} is given twice: give it once.")
            if not edit.changes_weights:
                raise UserError(
                    f"{visible(edit.method)} is an intervention: only edits of weights add up."
                )
            if (
                edited_tensors_hash(torch_module(model), edit.delta.changes)
                != edit.delta.edited_tensors_hash
            ):
                raise UserError(f"The edit by {visible(edit.method)} was made on another model.")
            for name, change in edit.delta.changes.items():
                changes.setdefault(name, []).append(change)
        base = model_hash(model)
        delta = WeightEdit.of(torch_module(model), {n: _sum(c) for n, c in changes.items()})
    pairs = [p for e in edits for p in (e.pair if isinstance(e.pair, list) else [e.pair])]
    hyperparameters = {"edits": [e.method for e in edits]}
    seconds = sum(e.seconds for e in edits)
    return Edit("composed", pairs, delta, hyperparameters, edits[0].seed, seconds, base)


def _sum(changes: Sequence[Change]) -> Change:
    """Return the sum of one tensor's changes, of low rank if all of them are."""
    additive = [c for c in changes if c.is_additive]
    dense = left = right = None
    if any(c.dense is not None for c in additive):
        dense = torch.stack([c.matrix().float() for c in additive]).sum(0)
    elif additive:  # Σ left_i @ right_i as one product
        left = torch.cat([c.left.float() for c in additive], 1)
        right = torch.cat([c.right.float() for c in additive], 0)
    appending = [c for c in changes if c.appended is not None]
    axis = appending[0].axis if appending else 0
    appended = torch.cat([c.appended.float() for c in appending], axis) if appending else None
    return Change(dense, left, right, appended, axis)
