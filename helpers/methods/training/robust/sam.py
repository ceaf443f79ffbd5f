"""SAM: forget where the forget loss is high nearby, so that a small step does not undo it."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from helpers.methods.training.task import ForgetRetainBatch, UnlearningLoss, UnlearningTask
from helpers.models import torch_module


def sam(task: UnlearningTask, loss: UnlearningLoss) -> UnlearningLoss:
    """Return L_forget(θ + ρ g/‖g‖) + L_retain(θ), g the gradient of L_forget at θ.

    Sharpness-aware minimisation (Foret et al. 2021). A step along g raises the forget loss as
    relearning does, so Fan et al. 2025 ("Towards LLM Unlearning Resilient to Relearning Attacks")
    perturb that term alone. Its gradient is taken at the perturbed point and applied at θ, without
    the derivative of the perturbation. θ is what is trained: matrices, or LoRA's factors.

    Args:
        task: Gives ρ, and the model.
        loss: The method's loss.
    """
    module, rho = torch_module(task.model), task.config.sam_rho

    def forget_loss(batch: ForgetRetainBatch) -> Tensor:
        parameters = [p for p in module.parameters() if p.requires_grad]
        ascent = torch.autograd.grad(loss.forget_loss(batch), parameters, allow_unused=True)
        with moved(parameters, ascent, rho):
            value = loss.forget_loss(batch)
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        return WithGradients.apply(value.detach(), gradients, *parameters)

    return replace(loss, forget_loss=forget_loss)


@contextlib.contextmanager
def moved(
    parameters: Sequence[nn.Parameter], directions: Sequence[Tensor | None], distance: float
) -> Iterator[None]:
    """Move parameters for a `with` block; restore them bit by bit after it.

    Args:
        parameters: The parameters.
        directions: A direction for each, of its shape; None leaves it where it is.
        distance: Length of the step over all parameters together.
    """
    kept = [p.detach().clone() for p in parameters]
    squares = [d.float().square().sum() for d in directions if d is not None]
    norm = float(torch.stack(squares).sum().sqrt())
    scale = distance / norm if norm else 0.0  # a zero gradient has no direction
    try:
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                if d is not None:
                    p.add_(d, alpha=scale)
        yield
    finally:
        with torch.no_grad():
            for p, k in zip(parameters, kept, strict=True):
                p.copy_(k)


class WithGradients(torch.autograd.Function):
    """A scalar with given gradients, which were computed at another point."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *parameters: Tensor
    ) -> Tensor:
        """Return the value and keep its gradients.

        Args:
            ctx: Passed to `backward`.
            value: The scalar.
            gradients: Its gradient with respect to each parameter; None for zero.
            *parameters: The parameters.
        """
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        """Return the kept gradients times the outer derivative."""
        return (None, None, *(None if g is None else g * outer.to(g.dtype) for g in ctx.gradients))
