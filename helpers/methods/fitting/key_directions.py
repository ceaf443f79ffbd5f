"""Key directions: units as directions of W_out's input, for edits without new neurons.

A unit's threshold keeps an appended neuron off everything that the unit does not detect. Within the
existing W_out there is no threshold. There the unit's activation is regressed on the keys that
W_out reads, and the edit is an outer product of that direction and a value: rank one for each unit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations
from helpers.forward.batching import LARGE_BATCH_TOKENS
from helpers.forward.prompts import token_ids
from helpers.methods.fitting.hparams import UnitEditHparams
from helpers.methods.fitting.negatives import preservation_metric
from helpers.methods.fitting.units import GatedUnits
from helpers.models import MLPArchitecture, architecture_of


@dataclass(frozen=True)
class KeyDirections:
    """Directions of one layer's keys that stand for units.

    Attributes:
        keys: u, one row for each unit; u·k averages 1 where the unit is active.
        gram: G = U A Uᵀ, how much values written along the directions disturb.
        input_site: Site whose activations the directions read.
    """

    keys: Float[Tensor, "n d_mlp"]
    gram: Float[Tensor, "n n"]
    input_site: ClassVar[str] = "neurons"

    def fire(self, mlp: MLPArchitecture, k: Float[Tensor, "... d_mlp"]) -> Float[Tensor, "... n"]:
        """Compute activations from the input of W_out."""
        return k @ self.keys.to(k).T

    def gram_blocks(self) -> list[list[int]]:
        """Return the blocks of the Gram matrix: one block, since G couples all directions."""
        return [list(range(len(self.keys)))]

    def gram_solve(self, f: Float[Tensor, "some n d"]) -> Float[Tensor, "some n d"]:
        """Compute G⁻¹ f of the block."""
        return torch.linalg.solve(self.gram, f)


Keys = Mapping[int, GatedUnits | KeyDirections]
"""Layer → its units or key directions."""


def fit_key_directions(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    units: Mapping[int, GatedUnits],
    hparams: UnitEditHparams,
    *,
    seed: int = 0,
) -> dict[int, KeyDirections]:
    """Fit a direction of W_out's keys to each unit: u = A⁻¹ Σ a k, with a its activations.

    The sum runs over the pairs' training prompts. A is the metric of `preservation_metric`. Units
    that are never active are left out.

    Args:
        model: Any model of a known family.
        pairs: The pairs to forget.
        units: Layer → its units.
        hparams: Hyperparameters of the metric.
        seed: Seed that draws the text.
    """
    arch, layers = architecture_of(model), sorted(units)
    ids = list(dict.fromkeys(tuple(token_ids(model, p)) for q in pairs for p in q.edit_prompts()))
    activations = cache_activations(
        model,
        ids,
        sites=["mlp_in", "neurons"],
        layers=layers,
        positions="all",
        max_tokens=LARGE_BATCH_TOKENS,
    )
    factors = preservation_metric(
        model, pairs, hparams, layers=layers, n_tokens=hparams.n_corpus_tokens, seed=seed
    )
    directions = {}
    for i in layers:
        a = units[i].fire(arch.layers[i].mlp, activations["mlp_in", i]).clamp_min(0)  # (rows, n)
        a, keys = a[:, a.sum(0) > 0], activations["neurons", i]
        if a.shape[1]:
            u = torch.cholesky_solve(keys.T @ a, factors[i]).T  # (n, d_mlp)
            # Scale each direction so that u·k averages 1, weighted by the activations.
            u = u / ((u @ keys.T * a.T).sum(1) / a.sum(0))[:, None]
            root = u @ factors[i]
            directions[i] = KeyDirections(u, root @ root.T)
    return directions
