"""Control edits: random changes of the same rank and norm as another method's.

A method that forgets no more than its control did not locate the fact. Collateral damage no larger
than the control's is what a change of that size costs anywhere.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods.change import Change
from helpers.methods.registry import METHODS, Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit
from helpers.models import architecture_of, torch_module


@dataclass(frozen=True)
class RandomDirectionHparams(Hyperparameters):
    """Hyperparameters of `random_direction`.

    Attributes:
        reference_method: The method with whose rank and norm, at its defaults.
    """

    RENAMED: ClassVar = {"like": "reference_method"}

    reference_method: str = "rome"


@method("random_direction", family="control")
def random_direction(
    model: LanguageModel, pair: ConceptPair, hparams: RandomDirectionHparams, *, seed: int = 0
) -> WeightEdit:
    """Draw random factors of equal rank and norm in the tensors that another method changes.

    Neurons that it appends get random directions, with its thresholds.

    Args:
        model: Any model of a known family.
        pair: What the other method would forget.
        hparams: Its hyperparameters.
        seed: Draws the factors.

    Raises:
        UserError: There is no such method.
    """
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    reference = _reference_edit(model, pair, hparams.reference_method, seed)
    for name, change in reference.changes.items():
        left = right = None
        if change.is_additive:
            left, right = (torch.randn(x.shape, generator=generator) for x in change.factors())
            left *= change.matrix().norm() / (left @ right).norm()
        appended = change.appended
        if appended is not None and appended.ndim > 1:  # biases are thresholds: they stay
            noise = torch.randn(appended.shape, generator=generator)
            appended = noise * (appended.norm() / noise.norm())
        changes[name] = Change(left=left, right=right, appended=appended, axis=change.axis)
    return WeightEdit.of(torch_module(model), changes)


@dataclass(frozen=True)
class RandomRowsHparams(Hyperparameters):
    """Hyperparameters of `random_rows`.

    Attributes:
        reference_method: The method whose change is moved, at its defaults.
    """

    RENAMED: ClassVar = {"like": "reference_method"}

    reference_method: str = "knowledge_neurons"


@method("random_rows", family="control")
def random_rows(
    model: LanguageModel, pair: ConceptPair, hparams: RandomRowsHparams, *, seed: int = 0
) -> WeightEdit:
    """Move another method's change to neurons drawn at random, with equal rank and norm.

    The neurons' axis of every changed matrix is permuted, in the same way within a layer, so that
    rows and columns stay together.

    Args:
        model: Any model of a known family.
        pair: What the other method would forget.
        hparams: Its hyperparameters.
        seed: Draws the permutation.

    Raises:
        UserError: There is no such method, or it appends neurons.
    """
    arch = architecture_of(model)
    orders: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(arch.layers):
        generator = torch.Generator().manual_seed(seed * 10_007 + i)
        order = torch.randperm(arch.d_mlp, generator=generator)
        names = (layer.mlp.in_name, layer.mlp.gate_name, layer.mlp.out_name)
        orders |= dict.fromkeys(filter(None, names), order)
    changes = {}
    reference = _reference_edit(model, pair, hparams.reference_method, seed)
    for name, change in reference.changes.items():
        if not change.is_additive:
            raise UserError(
                f"'{hparams.reference_method}' appends neurons, and none of the model's own has "
                "their change: random_direction draws such neurons at random."
            )
        left, right = change.factors()
        if left.shape[0] == arch.d_mlp:  # neurons are rows
            changes[name] = Change(left=left[orders[name]], right=right)
        else:
            changes[name] = Change(left=left, right=right[:, orders[name]])
    return WeightEdit.of(torch_module(model), changes)


def _reference_edit(model: LanguageModel, pair: ConceptPair, name: str, seed: int) -> WeightEdit:
    """Make the edit of another method, which is no control, with its defaults."""
    fit = [n for n, m in METHODS.items() if m.family != "control" and "pair" in m.takes]
    if name not in fit:
        known = ", ".join(fit)
        raise UserError(f"There is no method '{name}' to take the size from; there are {known}.")
    return cast(WeightEdit, METHODS[name].make(model, [pair], seed=seed))
