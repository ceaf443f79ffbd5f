"""Scale edits to the same disruption of ordinary text, so that methods can be compared.

Each method at its own best strength pays another price. So an edit is scaled until KL(before ‖
after) on ordinary text meets a budget that is the same for all, as RepSelect does (2026).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from jaxtyping import Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.evaluation.metrics.perplexity import losses_and_kl
from helpers.evaluation.scaling import scale_edit
from helpers.forward.final_states import final_states
from helpers.methods import Edit, base_model

BUDGETS = (0.001, 0.01)  # nats a token
MAX_SCALE = 4.0
TOLERANCE = 0.05  # relative, of the budget
MAX_STEPS = 12


class ScaledEdit(NamedTuple):
    """An edit scaled to a budget.

    Attributes:
        edit: The edit.
        scale: The factor of its change.
        kl: KL(before ‖ after) in nats a token.
        meets_budget: False where the edit stays below the budget up to the largest scale.
    """

    edit: Edit
    scale: float
    kl: float
    meets_budget: bool


def scale_to_kl(
    model: LanguageModel,
    edit: Edit,
    budget: float,
    *,
    tokens: Int[Tensor, "n t"],
    max_scale: float = MAX_SCALE,
) -> ScaledEdit:
    """Scale an edit so that KL(before ‖ after) on a text is `budget`.

    KL grows with the square of a small change, so each step goes to scale · √(budget / KL), within
    the bracket that is known so far.

    Args:
        model: The original model.
        edit: An edit of weights.
        budget: In nats a token.
        tokens: The text.
        max_scale: Largest factor; 1 scales no edit up.

    Returns:
        The scaled edit; at `max_scale` if even that stays below the budget.

    Raises:
        UserError: The budget is not positive, or the edit changes no weight.
    """
    if not budget > 0:
        raise UserError(f"A budget of {budget} nats leaves no edit: give a positive one.")
    if not edit.changes_weights:
        raise UserError(f"{edit.method} changes no weight, so it has no scale.")
    with base_model(model):
        kl_of = partial(_kl_at, model, edit, tokens, final_states(model, tokens))
        scale, kl = _solve(kl_of, budget, max_scale)
    meets_budget = kl > budget * (1 - TOLERANCE)
    return ScaledEdit(scale_edit(model, edit, scale), scale, kl, meets_budget)


def _kl_at(
    model: LanguageModel,
    edit: Edit,
    tokens: Int[Tensor, "n t"],
    before: Tensor,
    scale: float,
) -> float:
    with scale_edit(model, edit, scale).applied(model):
        after = final_states(model, tokens)
        _, _, kl = losses_and_kl(model, tokens, before, after, partial(base_model, model))
    return float(kl.mean())


def _solve(kl_of: Callable[[float], float], budget: float, max_scale: float) -> tuple[float, float]:
    """Find the scale at which the KL is the budget; (scale, KL there)."""
    low, high, scale, guess = 0.0, max_scale, 1.0, min(1.0, max_scale)
    kl = 0.0
    for _ in range(MAX_STEPS):
        scale, kl = guess, kl_of(guess)
        if abs(kl - budget) <= TOLERANCE * budget or (kl < budget and scale == max_scale):
            break
        low, high = (scale, high) if kl < budget else (low, scale)
        guess = scale * (budget / max(kl, 1e-12)) ** 0.5
        if guess >= high and high == max_scale:
            guess = max_scale
        elif not low < guess < high:  # the square root's guess left what is known: halve it
            guess = (low + high) / 2
    return scale, kl
