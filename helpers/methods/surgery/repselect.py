"""RepSelect: move MLPs along the forget gradient without the directions that many examples share.

Sondej, Yang & Mahdi 2026 (arXiv 2606.17168). What fine-tuning brings back lies in directions that
other text uses too. So the gradient of the answers' loss is taken once, its strongest singular
directions are shrunk on both sides, and the weights move along what is left until a budget of
disruption is used up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts.corpus import corpus_tokens
from helpers.forward.final_states import final_states
from helpers.io.choices import check_number
from helpers.methods.change import Change
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.snapshots import owner_of, preserved_parameters, set_changed
from helpers.methods.training.data import BatchSchedule, forget_retain_data, text_data
from helpers.methods.training.early_stop import Forgotten
from helpers.methods.weight_edit import WeightEdit
from helpers.models import text_length, torch_module, unembed
from helpers.models.parameters import choose_parameters
from helpers.requests import TextRequest
from helpers.training.examples import Batch, mean_loss
from helpers.training.lora import lora_adapters

SEARCH_STEPS = 12
MIN_SQUARE = 1e-14  # squared singular values under this share of the largest are rounding errors
TOLERANCE = 0.05  # of the budget that may stay unused


@dataclass(frozen=True)
class RepSelectHparams(Hyperparameters):
    """Hyperparameters of `repselect`.

    Attributes:
        layers: Edited blocks; all of them by default, as in the paper.
        lora_rank: Rank of the adapter that first makes the answers likelier.
        lora_lr: Its learning rate, of plain SGD; 0 leaves the adapter out.
        n_components: Singular directions of each gradient that are shrunk, the strongest first.
        kl_budget: KL(before ‖ after) on ordinary text up to which the weights move, in nats a
            token.
        n_tokens: Tokens of that text.
        batch_size: Examples in a forward pass.
        n_text_tokens: Of a request for text, tokens to forget by.
        text_tokens: Tokens of a sequence of such text.
    """

    layers: Sequence[int] | None = None
    lora_rank: int = 8
    lora_lr: float = 0.01
    n_components: int = 512
    kl_budget: float = 0.01
    n_tokens: int = 1024
    batch_size: int = 4
    n_text_tokens: int = 8192
    text_tokens: int = 64


@method("repselect", family="surgery", takes=("pair", "pairs", "text"))
def repselect(
    model: LanguageModel, what: Forgotten, hparams: RepSelectHparams, *, seed: int = 0
) -> WeightEdit:
    """Edit to θ + s · collapse(∂L_F/∂θ), s the largest within the budget (Sondej et al. 2026).

    An adapter is trained on the answers for one epoch, so that what can be elicited shows in the
    gradient; then the gradient of L_F, the answers' NLL, is summed over one epoch with the adapter
    on, and the adapter is dropped.

    Args:
        model: Any model of a known family.
        what: What to forget: pairs, or text.
        hparams: Its hyperparameters.
        seed: Draws the adapter, the order of the examples and the text.

    Raises:
        UserError: A hyperparameter is out of range, or the gradient is zero.
    """
    check_number("kl_budget", hparams.kl_budget, 1e-9, 100)
    check_number("n_components", hparams.n_components, 1, 1_000_000)
    check_number("lora_lr", hparams.lora_lr, 0, 1e6)
    module = torch_module(model)
    names = choose_parameters(model, "mlps", layers=hparams.layers)
    if isinstance(what, TextRequest):
        data = text_data(model, what, n_tokens=hparams.n_text_tokens, seq_len=hparams.text_tokens)
    else:
        data = forget_retain_data(model, what, n_neighbours=0, n_passages=0, seed=seed)
    schedule = BatchSchedule(data.forget, hparams.batch_size, seed=seed)
    gradients = forget_gradients(model, names, schedule.batches, hparams, seed=seed)
    directions = {n: collapse(g, n_components=hparams.n_components) for n, g in gradients.items()}
    if not any(bool(d.any()) for d in directions.values()):
        raise UserError("The gradient of the answers is zero: there is nothing to move along.")
    tokens = corpus_tokens(
        model.tokenizer, seq_len=text_length(model), n_tokens=hparams.n_tokens, seed=seed
    )
    scale, kl = largest_scale(model, directions, tokens, hparams.kl_budget)
    changes = {name: Change(dense=scale * d) for name, d in directions.items()}
    return WeightEdit.of(module, changes, notes={"scale": scale, "kl": kl} | data.sizes())


def forget_gradients(
    model: LanguageModel,
    names: Sequence[str],
    batches: Sequence[Batch],
    hparams: RepSelectHparams,
    *,
    seed: int,
) -> dict[str, Float[Tensor, "rows columns"]]:
    """Sum ∂L_F/∂W over the batches, with an adapter on that was trained on them for one epoch.

    Args:
        model: The model; it is left as it was.
        names: The matrices.
        batches: Examples to forget.
        hparams: Gives the adapter's rank and learning rate.
        seed: Draws the adapter.
    """
    module = torch_module(model)
    with torch.enable_grad(), lora_adapters(module, names, rank=hparams.lora_rank, seed=seed) as x:
        factors = [p for adapter in x.values() for p in adapter.parameters()]
        for batch in batches if hparams.lora_lr else ():
            gradients = torch.autograd.grad(mean_loss(model, batch), factors)
            with torch.no_grad():
                for parameter, gradient in zip(factors, gradients, strict=True):
                    parameter -= hparams.lora_lr * gradient
        # The adapter adds to W, so the gradient of their sum is that of W.
        weights = [owner_of(module, name).parametrizations.weight.original for name in x]
        were_trained = [w.requires_grad for w in weights]
        sums = [torch.zeros_like(w, dtype=torch.float32) for w in weights]
        try:
            for weight in weights:
                weight.requires_grad_(True)
            for batch in batches:
                gradients = torch.autograd.grad(mean_loss(model, batch), weights)
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient
        finally:
            for weight, was_trained in zip(weights, were_trained, strict=True):
                weight.requires_grad_(was_trained)
    return {name: total.cpu() for name, total in zip(x, sums, strict=True)}


def collapse(
    gradient: Float[Tensor, "rows columns"], *, n_components: int
) -> Float[Tensor, "rows columns"]:
    """Divide the gradient's parts along its singular directions by s / s_min, on both sides.

    With all directions, U S Vᵀ becomes U (s_min² / S) Vᵀ: what most examples share is shrunk most.
    Directions after the first `n_components` stay as they are.

    Args:
        gradient: The gradient of one matrix.
        n_components: The strongest singular directions, which are shrunk.
    """
    # Both sides have one singular basis, so G V D Vᵀ with the eigenvectors V of GᵀG does it.
    wide = gradient.shape[1] > gradient.shape[0]
    G = (gradient.T if wide else gradient).double()
    squares, V = torch.linalg.eigh(G.T @ G)
    squares, V = squares.flip(0), V.flip(1)  # the strongest first
    rank = int((squares > MIN_SQUARE * squares[0]).sum())
    n = min(n_components, rank)
    if not n:
        return torch.zeros_like(gradient)
    factors = torch.ones_like(squares)
    factors[:n] = squares[n - 1] / squares[:n]  # (s_min / s)²: once for each side
    factors[rank:] = 0  # rounding errors
    collapsed = (G @ V * factors) @ V.T
    return (collapsed.T if wide else collapsed).to(gradient.dtype).contiguous()


@torch.no_grad()
def largest_scale(
    model: LanguageModel,
    directions: dict[str, Float[Tensor, "rows columns"]],
    tokens: Int[Tensor, "n t"],
    budget: float,
) -> tuple[float, float]:
    """Find the largest s for which W + s · direction stays within a KL budget on text.

    Args:
        model: The model; it is left as it was.
        directions: Name of a matrix → its direction.
        tokens: The text.
        budget: In nats a token.

    Returns:
        s, and the KL(before ‖ after) there.
    """
    module = torch_module(model)
    before = final_states(model, tokens)
    norm = sum(float(d.square().sum()) for d in directions.values()) ** 0.5
    scale, low, best = 1.0 / norm, 0.0, 0.0
    with preserved_parameters(module, directions) as snapshots:
        high = float("inf")
        for _ in range(SEARCH_STEPS):
            set_changed(snapshots, ((name, scale * d) for name, d in directions.items()))
            kl = _mean_kl(model, before, final_states(model, tokens))
            if kl <= budget:
                low, best = scale, kl
                if kl >= (1 - TOLERANCE) * budget:
                    break
            else:
                high = scale
            # KL grows with the square of a small change.
            guess = scale * ((1 - TOLERANCE / 2) * budget / max(kl, 1e-12)) ** 0.5
            scale = guess if low < guess < high else (low + min(high, 4 * scale)) / 2
    return low, best


def _mean_kl(
    model: LanguageModel, before: Float[Tensor, "n t d"], after: Float[Tensor, "n t d"]
) -> float:
    """Compute the mean KL(before ‖ after) over all tokens, a sequence at a time."""
    total = 0.0
    for old, new in zip(before, after, strict=True):
        p, q = (unembed(model, x).float().log_softmax(-1) for x in (old, new))
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total / len(before)
