"""Several edits that were made on the same model as one: their changes added up."""

from collections.abc import Sequence

import torch
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.io.safe_text import visible
from helpers.methods.change import Change
from helpers.methods.edit import Edit, base_model
from helpers.methods.snapshots import edited_tensors_hash
from helpers.methods.weight_edit import WeightEdit
from helpers.models import model_hash


def merge_edits(model: LanguageModel, edits: Sequence[Edit]) -> Edit:
    """One edit with the changes of all: ΔW = Σ ΔW_i, and the neurons that each appends.

    Each was made without the others, so where they change the same tensors what they do together
    is not solved for: measure it, or solve for all pairs at once where a method can.

    Args:
        model: The model that they were made on, with edits or without.
        edits: At least one; of weights.

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
            if not edit.removes:
                raise UserError(
                    f"{visible(edit.method)} is an intervention: only edits of weights add up."
                )
            if (
                edited_tensors_hash(model._module, edit.delta.changes)
                != edit.delta.edited_tensors_hash
            ):
                raise UserError(f"The edit by {visible(edit.method)} was made on another model.")
            for name, change in edit.delta.changes.items():
                changes.setdefault(name, []).append(change)
        base = model_hash(model)
        delta = WeightEdit.of(model._module, {n: _added_up(c) for n, c in changes.items()})
    pairs = [p for e in edits for p in (e.pair if isinstance(e.pair, list) else [e.pair])]
    of = {"edits": [e.method for e in edits]}
    seconds = sum(e.seconds for e in edits)
    return Edit("composed", pairs, delta, of, edits[0].seed, seconds, base)


def _added_up(changes: Sequence[Change]) -> Change:
    adding = [c for c in changes if c.adds]
    dense = left = right = None
    if any(c.dense is not None for c in adding):
        dense = torch.stack([c.matrix().float() for c in adding]).sum(0)
    elif adding:
        left = torch.cat([c.left.float() for c in adding], 1)
        right = torch.cat([c.right.float() for c in adding], 0)
    new = [c for c in changes if c.appended is not None]
    axis = new[0].axis if new else 0
    appended = torch.cat([c.appended.float() for c in new], axis) if new else None
    return Change(dense, left, right, appended, axis)
