"""Adversarial cuts: the layers and neurons without which an answer comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.methods.fitting.edit_constraint import EditConstraint
from helpers.methods.fitting.linear_model import Linearization
from helpers.methods.fitting.linearization import EditHook, answer_logodds
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
    if not n:
        return []
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


def direct_effect(
    linearization: Linearization,
    layer: int,
    values: Float[Tensor, "d_model n"],
    keys: Float[Tensor, "n d_mlp"] | None = None,
) -> Float[Tensor, " n"]:
    """Compute how much each component of W_out adds to the answer's log-odds, to first order.

    Σ_p (keys · h_p) (values · g_p), with h_p the input of W_out at position p and g_p the gradient
    at its output; the mean over constraints, in nats. Without `keys` the components are neurons.
    """
    h = linearization.keys[layer]
    activations = h if keys is None else h @ keys.T  # (rows, n)
    slopes = linearization.gradients[layer] @ values  # (rows, n): log-odds a unit of output
    return (activations * slopes).sum(0) / len(linearization.logodds)


def suppressing_neurons(
    linearization: Linearization, W_out: Mapping[int, Float[Tensor, "d_model d_mlp"]], *, n: int
) -> tuple[tuple[int, int], ...]:
    """Find the neurons that lower the answers most, by their `direct_effect`.

    Args:
        linearization: Of the answers to forget.
        W_out: Layer → its values with the trial edit.
        n: Number of neurons.

    Returns:
        (layer, neuron) pairs.
    """
    effects = torch.stack([direct_effect(linearization, i, W) for i, W in W_out.items()])
    order = effects.flatten().argsort()[:n].tolist()
    layers, width = list(W_out), effects.shape[1]
    return tuple((layers[k // width], k % width) for k in order)
