"""Who is: subtract what a model that was reinforced on the fact adds to the logits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from pydantic import Field
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.io.choices import check_number
from helpers.io.code_version import code_hash
from helpers.io.safe_text import visible
from helpers.methods.change import changes_of
from helpers.methods.hook_intervention import HookIntervention, Settings, intervention_kind
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.training.recipe import train_edit
from helpers.methods.training.task import (
    LAYERS,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
)
from helpers.models import architecture_of, body_of, torch_module
from helpers.models.hooks import Hook

KIND = "who_is"


def weakened(
    base: Float[Tensor, "*b vocab"], reinforced: Float[Tensor, "*b vocab"], *, alpha: float
) -> Float[Tensor, "*b vocab"]:
    """Compute base − α · ReLU(reinforced − base), of logits."""
    return base - alpha * (reinforced - base).relu()


@dataclass(frozen=True)
class WhoIsHparams(Hyperparameters):
    """Hyperparameters of `who_is`.

    Attributes:
        alpha: Multiple of the difference that is subtracted; the paper's 5.
        steps: Steps of the reinforcement.
        lr: Learning rate of the reinforcement.
        batch_size: Examples of a forward pass of the reinforcement.
        lora_rank: Rank of the reinforced model's LoRA factors.
        layers: Blocks with factors; by default those of the training methods.
    """

    RENAMED: ClassVar = {"batch": "batch_size", "rank": "lora_rank"}

    alpha: float = 2.0
    steps: int = 12
    lr: float = 0.002
    batch_size: int = 4
    lora_rank: int = 4
    layers: Sequence[int] | None = None


@method(KIND, family="inference")
def who_is(
    model: LanguageModel, pair: ConceptPair, hparams: WhoIsHparams, *, seed: int = 0
) -> HookIntervention:
    """Replace logits by logits − α · ReLU(logits_reinforced − logits) (Eldan & Russinovich 2023).

    "Who's Harry Potter?" fine-tunes the model on the text to forget, subtracts what the reinforced
    model adds from the original's logits, and fine-tunes on the result. Here the logits themselves
    are the intervention. The reinforced model consists of LoRA factors on the MLPs, which run
    beside the original, so each forward pass is two.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws factors and the order of batches.

    Raises:
        UserError: A number is out of range.
    """
    check_number("alpha", hparams.alpha, 0, 1e4)
    check_number("lora_rank", hparams.lora_rank, 1, 1e6)
    config = TrainingConfig(
        steps=hparams.steps,
        lr=hparams.lr,
        batch_size=hparams.batch_size,
        lora_rank=int(hparams.lora_rank),
        layers=hparams.layers or architecture_of(model).relative_layers(LAYERS),
        n_neighbours=0,
        n_passages=0,
    )

    def reinforcement(task: UnlearningTask, _: TrainingConfig) -> UnlearningLoss:
        return UnlearningLoss(task.forget_loss, early_stopping=False)

    version = [KIND, code_hash(__file__)]
    reinforced = train_edit(model, [pair], reinforcement, config, seed=seed, version=version)
    return HookIntervention(KIND, {"alpha": hparams.alpha}, reinforced.tensors(), reinforced.notes)


@intervention_kind(KIND)
class Weakening(Settings):
    """Settings of `who_is`: the multiple of the reinforced model's difference."""

    alpha: Annotated[float, Field(ge=0, le=1e4)]

    def check_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Refuse tensors that are not two factors for each matrix.

        Raises:
            UserError: Names the one that is something else.
        """
        for name, change in changes_of(parts).items():
            change.check(name)
            if change.left is None or change.appended is not None:
                raise UserError(f"its '{visible(name)}' is not given as two factors")

    def hooks(self, model: LanguageModel, parts: Mapping[str, Tensor]) -> list[Hook]:
        """Return hooks that run the body again with the factors and combine logits at the head.

        Raises:
            UserError: The model has no such layer, or one of another size.
        """
        return _TwoModels(model, self.alpha, parts).hooks


class _TwoModels:
    """Hooks that run the original and the reinforced model in one forward pass.

    The states of both travel side by side, concatenated, from the body to the head.
    """

    def __init__(self, model: LanguageModel, alpha: float, parts: Mapping[str, Tensor]):
        """Build the hooks.

        Args:
            model: The model.
            alpha: Multiple of the difference that is subtracted.
            parts: The LoRA factors by name.
        """
        arch = architecture_of(model)
        self.alpha, self.width = alpha, arch.d_model
        self.is_reinforced = self.has_both = False
        self.hooks = [
            Hook(body_of(model), self._run_reinforced, with_kwargs=True),
            Hook(arch.head, self._stack_models, before=True),
            Hook(arch.head, self._combine),
        ]
        for name, change in changes_of(parts).items():
            layer = _linear_layer(torch_module(model), name)
            if change.shape != tuple(layer.weight.shape):
                raise UserError("This intervention was made for a model of another width.")
            left, right = change.left, change.right
            if isinstance(layer, Conv1D):  # stored (in, out)
                left, right = right.T, left.T
            call = self._factor_hook(left.to(layer.weight), right.to(layer.weight))
            self.hooks.append(Hook(layer, call))

    def _factor_hook(self, left: Tensor, right: Tensor) -> Callable:
        """Return a hook that adds the factors' output during the reinforced pass."""

        def add(layer, args, output):
            return output + args[0] @ right.T @ left.T if self.is_reinforced else None

        return add

    def _run_reinforced(self, body, args, kwargs, output):
        """Run the body again with the factors; concatenate the states of both."""
        self.is_reinforced = True
        try:
            reinforced = body.forward(*args, **kwargs).last_hidden_state
        finally:
            self.is_reinforced = False
        output.last_hidden_state = torch.cat([output.last_hidden_state, reinforced], -1)
        return output

    def _stack_models(self, head, args):
        """Stack the two models' states along a new first axis, so that the head runs on both."""
        states = args[0]
        self.has_both = states.shape[-1] == 2 * self.width
        return (torch.stack(states.split(self.width, -1)),) if self.has_both else None

    def _combine(self, head, args, output):
        """Combine the two models' logits."""
        return weakened(*output, alpha=self.alpha) if self.has_both else None


def _linear_layer(module: nn.Module, name: str) -> nn.Linear | Conv1D:
    """Return the linear layer of a weight's name.

    Raises:
        UserError: There is none.
    """
    try:
        layer = module.get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear | Conv1D) or not name.endswith(".weight"):
        raise UserError(f"The model has no {visible(name)}: this is for another model.")
    return layer
