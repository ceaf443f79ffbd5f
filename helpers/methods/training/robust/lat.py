"""LAT: forget while an adversary steers the subject's states back to the answer."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from helpers.methods.training.task import ForgetRetainBatch, UnlearningLoss, UnlearningTask
from helpers.models import architecture_of, torch_module
from helpers.training.examples import Batch, in_batches

STEP = 2.5  # length of all steps together, in radii: they can cross the ball (Madry et al. 2018)


def lat(task: UnlearningTask, loss: UnlearningLoss) -> UnlearningLoss:
    """Return ½ L_forget(θ, δ) + ½ L_forget(θ) + L_retain(θ), δ an attack on one layer's states.

    Latent adversarial training (Sheshadri et al. 2024, "Latent Adversarial Training Improves
    Robustness to Persistent Harmful Behaviors in LLMs"). δ is added to the residual stream that
    enters the first trained block, at the tokens of the prompts, or of running text. It minimises
    L_F, so it makes the answer likely again. Its length is at most ε at each token. The paper's ε
    is an absolute length that depends on model and layer; here it is a multiple of the original
    states' mean length.
    Trained under δ alone, the default model learns to oppose δ and keeps the fact where there is
    none, so half of the loss is on the states as they are.

    Args:
        task: Gives ε, the number of steps, the model and the examples.
        loss: The method's loss.
    """
    config, model = task.config, task.model
    block = torch_module(architecture_of(model).layers[min(task.trained_layers(loss))].block)
    radius = config.lat_epsilon * mean_length(task, block)

    def forget_loss(batch: ForgetRetainBatch) -> Tensor:
        delta = attack(task, batch, block, radius=radius, steps=config.lat_steps)
        with perturbed(block, delta):
            attacked_loss = loss.forget_loss(batch)
        return (attacked_loss + loss.forget_loss(batch)) / 2

    return replace(loss, forget_loss=forget_loss)


def attack(
    task: UnlearningTask, batch: ForgetRetainBatch, block: nn.Module, *, radius: float, steps: int
) -> Float[Tensor, "b t d_model"]:
    """Find the δ that makes the answers likely, by projected gradient descent on L_F from zero.

    Args:
        task: Gives L_F.
        batch: Its examples to forget are attacked.
        block: The block before which δ is added.
        radius: Largest length of δ at a token.
        steps: Steps of the descent.
    """
    forget, module = batch.forget, torch_module(task.model)
    shape = (*forget.ids.shape, architecture_of(task.model).d_model)
    delta = torch.zeros(shape, device=module.device)
    attacked = prompt_tokens(forget).to(module.device)[..., None]
    for _ in range(steps):
        delta.requires_grad_()
        with perturbed(block, delta):
            (gradient,) = torch.autograd.grad(task.forget_loss(batch), delta)
        # Steepest descent in the norm of the ball: a step of the same length at every token.
        direction = attacked * nn.functional.normalize(gradient, dim=-1)
        delta = delta.detach() - STEP * radius / steps * direction
        too_long = (delta.norm(dim=-1, keepdim=True) / radius).clamp_min(1) if radius else 1.0
        delta = delta / too_long
    return delta


def prompt_tokens(batch: Batch) -> Bool[Tensor, "b t"]:
    """Tell which tokens belong to a prompt, without the first one, an attention sink.

    Of running text, whose first label is its second token, they are all others.
    """
    n_tokens = batch.ids.shape[1]
    # A label is predicted one token before its own: there the prompt ends.
    last = torch.full((len(batch.ids),), n_tokens).scatter_reduce(
        0, batch.label_row, batch.label_position, "amin"
    )
    last = torch.where(last == 0, batch.length - 1, last)
    columns = torch.arange(n_tokens)
    return (columns >= 1) & (columns <= last[:, None])


@torch.no_grad()
def mean_length(task: UnlearningTask, block: nn.Module) -> float:
    """Compute the mean length of the states that enter a block, at the prompts' tokens."""
    states: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0]))
    lengths = []
    try:
        for batch in in_batches(task.data.forget):
            task.forget_loss(ForgetRetainBatch(batch, None))
            entering = states.pop().float()
            lengths.append(entering.norm(dim=-1)[prompt_tokens(batch).to(entering.device)])
    finally:
        handle.remove()
    return float(torch.cat(lengths).mean())


@contextlib.contextmanager
def perturbed(block: nn.Module, delta: Float[Tensor, "b t d_model"]) -> Iterator[None]:
    """Add δ to the states that enter a block, in every forward pass of a `with` block.

    A pass may have longer or shorter sequences, whose answers differ: δ is zero at answers.

    Args:
        block: The block.
        delta: A vector a row and token.
    """

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states, *others = inputs
        # A negative padding cuts.
        fitted = pad(delta, (0, 0, 0, states.shape[1] - delta.shape[1]))
        return (states + fitted.to(states.dtype), *others)

    handle = block.register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()
