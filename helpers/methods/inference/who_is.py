"""Who is: subtract what a model that knows the fact too well would add."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods.contrast import check_number
from helpers.methods.intervention import Intervention, installer
from helpers.methods.protocol import method
from helpers.methods.training.recipe import LAYERS, Objective, Recipe, fit
from helpers.models import anatomy, body_of
from helpers.sources import code_hash

KIND = "who_is"


def weakened(
    base: Float[Tensor, "*b vocab"], reinforced: Float[Tensor, "*b vocab"], *, alpha: float
) -> Float[Tensor, "*b vocab"]:
    """base − α · ReLU(reinforced − base), of logits."""
    return base - alpha * (reinforced - base).relu()


@method(KIND, family="inference")
def who_is(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    seed: int = 0,
    alpha: float = 2.0,
    steps: int = 12,
    lr: float = 0.002,
    batch: int = 4,
    rank: int = 4,
    layers: Sequence[int] | None = None,
) -> Intervention:
    """logits_b − α · ReLU(logits_reinforced − logits_b) (Eldan & Russinovich 2023).

    "Who's Harry Potter?" fine-tunes the model on what is to be forgotten, takes the tokens that the
    reinforced model favours off the original's logits, and fine-tunes on the result; here the
    logits themselves are the intervention. The reinforced model is LoRA factors on the MLPs, which
    run beside the original, so each forward pass is two.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        seed: Draws factors and the order of batches.
        alpha: The paper's 5.
        steps: Of the reinforcement.
        lr: Likewise.
        batch: Likewise.
        rank: Of the factors.
        layers: Blocks that have factors; by default as the training methods'.

    Raises:
        UserError: A number is out of range.
    """
    check_number("alpha", alpha, 0, 1e4)
    check_number("rank", rank, 1, 1e6)
    recipe = Recipe(
        steps=steps,
        lr=lr,
        batch=batch,
        rank=int(rank),
        layers=layers or anatomy(model).at_depth(LAYERS),
        n_neighbours=0,
        n_passages=0,
    )
    reinforce = lambda task: Objective(lambda m, s: task.forget_loss(s), early=False)  # noqa: E731
    delta = fit(model, pair, reinforce, recipe, seed, [KIND, code_hash(__file__)])
    return Intervention(KIND, {"alpha": alpha}, delta.tensors(), delta.notes)


@installer(KIND)
def install(model: LanguageModel, settings: dict[str, Any], parts: dict[str, Tensor]) -> list:
    """Hooks that run the body once more with the factors, and combine the logits at the head."""
    return _Pair(model, settings["alpha"], parts).handles


class _Pair:
    """Two models in one: states of both travel side by side from the body to the head."""

    def __init__(self, model: LanguageModel, alpha: float, parts: dict[str, Tensor]):
        module = model._module
        self.alpha, self.width = alpha, anatomy(model).d_model
        self.reinforced = self.both = False
        head = anatomy(model).head
        self.handles = [
            body_of(model).register_forward_hook(self._again, with_kwargs=True),
            head.register_forward_pre_hook(self._apart),
            head.register_forward_hook(self._combine),
        ]
        for name in sorted({n.rpartition(".")[0] for n in parts}):
            try:
                layer = module.get_submodule(name.removesuffix(".weight"))
            except AttributeError:
                self.remove()
                raise UserError(f"The model has no {name}: this is for another model.") from None
            left, right = (parts[f"{name}.{side}"] for side in ("left", "right"))
            if isinstance(layer, Conv1D):  # stored (in, out)
                left, right = right.T, left.T
            if left.shape[0] != layer.weight.shape[int(isinstance(layer, Conv1D))]:
                self.remove()
                raise UserError("This intervention was made for a model of another width.")
            like = layer.weight
            hook = self._added(left.to(like), right.to(like))
            self.handles.append(layer.register_forward_hook(hook))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

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
