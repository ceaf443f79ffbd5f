"""Who is: subtract what a model that knows the fact too well would add."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from pydantic import Field
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.io.code_version import code_hash
from helpers.io.safe_text import visible
from helpers.methods.change import changes_of
from helpers.methods.fitting.contrast import check_number
from helpers.methods.hook_intervention import HookIntervention, Settings, intervention_kind
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.training.recipe import LAYERS, TrainingConfig, UnlearningLoss, fit
from helpers.models import architecture_of, body_of
from helpers.models.hooks import Hook

KIND = "who_is"


def weakened(
    base: Float[Tensor, "*b vocab"], reinforced: Float[Tensor, "*b vocab"], *, alpha: float
) -> Float[Tensor, "*b vocab"]:
    """base − α · ReLU(reinforced − base), of logits."""
    return base - alpha * (reinforced - base).relu()


@dataclass(frozen=True)
class WhoIsHparams(Hyperparameters):
    """Hyperparameters of `who_is`.

    Attributes:
        alpha: The paper's 5.
        steps: Of the reinforcement.
        lr: Likewise.
        batch: Likewise.
        rank: Of the factors.
        layers: Blocks that have factors; by default as the training methods'.
    """

    alpha: float = 2.0
    steps: int = 12
    lr: float = 0.002
    batch: int = 4
    rank: int = 4
    layers: Sequence[int] | None = None


@method(KIND, family="inference")
def who_is(
    model: LanguageModel, pair: ConceptPair, hparams: WhoIsHparams, *, seed: int = 0
) -> HookIntervention:
    """logits_b − α · ReLU(logits_reinforced − logits_b) (Eldan & Russinovich 2023).

    "Who's Harry Potter?" fine-tunes the model on what is to be forgotten, takes the tokens that the
    reinforced model favours off the original's logits, and fine-tunes on the result; here the
    logits themselves are the intervention. The reinforced model is LoRA factors on the MLPs, which
    run beside the original, so each forward pass is two.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws factors and the order of batches.

    Raises:
        UserError: A number is out of range.
    """
    check_number("alpha", hparams.alpha, 0, 1e4)
    check_number("rank", hparams.rank, 1, 1e6)
    config = TrainingConfig(
        steps=hparams.steps,
        lr=hparams.lr,
        batch=hparams.batch,
        rank=int(hparams.rank),
        layers=hparams.layers or architecture_of(model).relative_layers(LAYERS),
        n_neighbours=0,
        n_passages=0,
    )
    reinforce = lambda task, _: UnlearningLoss(lambda m, s: task.forget_loss(s), early=False)  # noqa: E731
    delta = fit(model, pair, reinforce, config, seed, [KIND, code_hash(__file__)])
    return HookIntervention(KIND, {"alpha": hparams.alpha}, delta.tensors(), delta.notes)


@intervention_kind(KIND)
class Weakening(Settings):
    """How much of what the factors add is taken off."""

    alpha: Annotated[float, Field(ge=0, le=1e4)]

    def check_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Two factors for each matrix.

        Raises:
            UserError: Names the one that is something else.
        """
        for name, change in changes_of(parts).items():
            change.check(name)
            if change.left is None or change.appended is not None:
                raise UserError(f"its '{visible(name)}' is not given as two factors")

    def hooks(self, model: LanguageModel, parts: Mapping[str, Tensor]) -> list[Hook]:
        """Those that run the body once more with the factors, and combine logits at the head.

        Raises:
            UserError: The model has no such layer, or one of another size.
        """
        return _Pair(model, self.alpha, parts).hooks


class _Pair:
    """Two models in one: states of both travel side by side from the body to the head."""

    def __init__(self, model: LanguageModel, alpha: float, parts: Mapping[str, Tensor]):
        self.alpha, self.width = alpha, architecture_of(model).d_model
        self.reinforced = self.both = False
        head = architecture_of(model).head
        self.hooks = [
            Hook(body_of(model), self._again, with_kwargs=True),
            Hook(head, self._apart, before=True),
            Hook(head, self._combine),
        ]
        for name, change in changes_of(parts).items():
            layer = _layer(model._module, name)
            if change.shape != tuple(layer.weight.shape):
                raise UserError("This intervention was made for a model of another width.")
            left, right = change.left, change.right
            if isinstance(layer, Conv1D):  # stored (in, out)
                left, right = right.T, left.T
            added = self._added(left.to(layer.weight), right.to(layer.weight))
            self.hooks.append(Hook(layer, added))

    def _added(self, left: Tensor, right: Tensor):
        return lambda m, args, out: out + args[0] @ right.T @ left.T if self.reinforced else None

    def _again(self, body, args, kwargs, out):
        self.reinforced = True
        try:
            other = body.forward(*args, **kwargs).last_hidden_state
        finally:
            self.reinforced = False
        out.last_hidden_state = torch.cat([out.last_hidden_state, other], -1)
        return out

    def _apart(self, head, args):
        states = args[0]
        self.both = states.shape[-1] == 2 * self.width
        return (torch.stack(states.split(self.width, -1)),) if self.both else None

    def _combine(self, head, args, out):
        return weakened(*out, alpha=self.alpha) if self.both else None


def _layer(module: nn.Module, name: str) -> nn.Linear | Conv1D:
    try:
        layer = module.get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear | Conv1D) or not name.endswith(".weight"):
        raise UserError(f"The model has no {visible(name)}: this is for another model.")
    return layer
