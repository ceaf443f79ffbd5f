"""Windows of layers without whose MLPs an answer comes back: what an attacker would leave out."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from nnsight import LanguageModel

from helpers.methods.fitting.linearization import EditConstraint, EditHook, answer_logodds
from helpers.models import architecture_of

Window = tuple[int, ...]
WIDTHS = (1, 2, 4)


def all_windows(n_layers: int, first: int) -> list[Window]:
    """List windows of each width from layer `first` up; wider ones overlap by half."""
    return [
        tuple(range(start, start + width))
        for width in WIDTHS
        for start in range(first, n_layers - width + 1, max(1, width // 2))
    ]


def weakest_windows(
    model: LanguageModel,
    constraints: Sequence[EditConstraint],
    *,
    n: int,
    layers: Sequence[int],
    edit_output: EditHook,
) -> list[Window]:
    """Find the windows of layers that bring the answers back most if their MLPs are left out.

    Args:
        model: Any model of a known family.
        constraints: A few forget constraints that decide it.
        n: Number of windows; those of one width don't overlap.
        layers: The edited layers; windows begin at the first of them or above.
        edit_output: Hook that adds the trial edit to W_out's output.
    """
    windows = all_windows(architecture_of(model).n_layers, min(layers))
    trials = [replace(c, left_out=window) for window in windows for c in constraints]
    logodds = answer_logodds(model, trials, layers=layers, edit_output=edit_output)
    means = logodds.sigmoid().reshape(len(windows), -1).mean(1).numpy()
    chosen: list[Window] = []
    for window in (windows[i] for i in np.argsort(-means, kind="stable")):
        if len(chosen) < n and all(
            len(window) != len(other) or not set(window) & set(other) for other in chosen
        ):
            chosen.append(window)
    return chosen
