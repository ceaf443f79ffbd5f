"""Controls: the same amount of change in a random place.

An edit that forgets no more than these has found nothing; collateral no larger than theirs is what
a change of that size costs anywhere.
"""

from dataclasses import dataclass

import torch
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods.change import Change
from helpers.methods.registry import METHODS, Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit
from helpers.models import architecture_of


@dataclass(frozen=True)
class RandomDirectionHparams(Hyperparameters):
    """Hyperparameters of `random_direction`.

    Attributes:
        like: The other method, with its defaults.
    """

    like: str = "rome"


@method("random_direction", family="control")
def random_direction(
    model: LanguageModel, pair: ConceptPair, hparams: RandomDirectionHparams, *, seed: int = 0
) -> WeightEdit:
    """Random factors in the tensors that another method changes, of equal rank and norm.

    Neurons that it appends are along random directions, with its thresholds.

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
    for name, change in _like(model, pair, hparams.like, seed).changes.items():
        left = right = None
        if change.is_additive:
            left, right = (torch.randn(x.shape, generator=generator) for x in change.factors())
            left *= change.matrix().norm() / (left @ right).norm()
        new = change.appended
        if new is not None and new.ndim > 1:  # biases are thresholds
            drawn = torch.randn(new.shape, generator=generator)
            new = drawn * (new.norm() / drawn.norm())
        changes[name] = Change(left=left, right=right, appended=new, axis=change.axis)
    return WeightEdit.of(model._module, changes)


@dataclass(frozen=True)
class RandomRowsHparams(Hyperparameters):
    """Hyperparameters of `random_rows`.

    Attributes:
        like: The other method, with its defaults.
    """

    like: str = "knowledge_neurons"


@method("random_rows", family="control")
def random_rows(
    model: LanguageModel, pair: ConceptPair, hparams: RandomRowsHparams, *, seed: int = 0
) -> WeightEdit:
    """The very change of another method, moved to neurons drawn at random: equal rank and norm.

    The neurons' axis of every changed matrix is permuted, the same way within a layer, so that rows
    and columns stay together.

    Args:
        model: Any model of a known family.
        pair: What the other method would forget.
        hparams: Its hyperparameters.
        seed: Draws the permutation.

    Raises:
        UserError: There is no such method, or it appends neurons.
    """
    d_mlp = architecture_of(model).d_mlp
    shuffled: dict[str, torch.Tensor] = {}
    changes = {}
    for i, layer in enumerate(architecture_of(model).layers):
        mlp = layer.mlp
        generator = torch.Generator().manual_seed(seed * 10_007 + i)
        shuffled |= dict.fromkeys(
            (mlp.in_name, mlp.gate_name, mlp.out_name), torch.randperm(d_mlp, generator=generator)
        )
    for name, change in _like(model, pair, hparams.like, seed).changes.items():
        if not change.is_additive:
            raise UserError(
                f"'{hparams.like}' appends neurons, and none of the model's own has their change: "
                "random_direction draws such neurons at random."
            )
        left, right = change.factors()
        order = shuffled[name]
        rows = left.shape[0] == d_mlp
        changes[name] = (
            Change(left=left[order], right=right)
            if rows
            else Change(left=left, right=right[:, order])
        )
    return WeightEdit.of(model._module, changes)


def _like(model: LanguageModel, pair: ConceptPair, like: str, seed: int) -> WeightEdit:
    if like not in METHODS or METHODS[like].family == "control":
        known = ", ".join(n for n, m in METHODS.items() if m.family != "control")
        raise UserError(f"There is no method '{like}' to take the size from; there are {known}.")
    return METHODS[like].make(model, [pair], seed=seed)
