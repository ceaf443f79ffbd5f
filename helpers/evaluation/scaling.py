"""Strengths of an edit: the same edit with its change scaled."""

from dataclasses import replace

from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.methods import Edit, WeightEdit
from helpers.models import architecture_of


def parse_scales(text: str) -> list[float]:
    """Read scales of an edit from numbers separated by commas, such as "0.5, 1, 2".

    Raises:
        UserError: One is no positive number.
    """
    try:
        scales = [float(x) for x in text.split(",") if x.strip()]
    except ValueError:
        scales = []
    if not scales or min(scales) <= 0:
        raise UserError(f"scales is '{text}': give positive numbers separated by commas.")
    return sorted(scales)


def scale_edit(model: LanguageModel, edit: Edit, scale: float) -> Edit:
    """Multiply an edit's change by a factor; appended neurons keep their keys, not their values.

    Args:
        model: The model that the edit was made for.
        edit: An edit of weights.
        scale: Positive factor; 1 is the edit itself.
    """
    value_names = {layer.mlp.out_name for layer in architecture_of(model).layers}
    value_names |= {f"{name.removesuffix('weight')}bias" for name in value_names}
    changes = {}
    for name, change in edit.delta.changes.items():
        appended = change.appended
        if appended is not None and name in value_names:
            appended = scale * appended
        changes[name] = replace(
            change,
            dense=None if change.dense is None else scale * change.dense,
            left=None if change.left is None else scale * change.left,
            appended=appended,
        )
    delta = WeightEdit(changes, edit.delta.edited_tensors_hash, edit.delta.notes)
    return replace(edit, delta=delta)
