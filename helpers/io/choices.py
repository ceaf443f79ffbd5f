"""Checks of what a user chooses: a name among several, a number within its range."""

import difflib
from collections.abc import Collection

from helpers.errors import UserError
from helpers.io.safe_text import visible

MAX_SHOWN = 100  # characters of a name that are shown and compared


def check_choice(kind: str, name: str, choices: Collection[str]) -> None:
    """Check that a name is one of the choices.

    Args:
        kind: What the choices are, in the singular, for the sentence.
        name: The name to check.
        choices: The names that exist.

    Raises:
        UserError: It is none of them; the sentence lists the choices.
    """
    if name not in choices:
        known = ", ".join(str(choice) for choice in choices)
        raise UserError(f"There is no {kind} '{visible(name)[:MAX_SHOWN]}'; choose from {known}.")


def check_number(name: str, value: float, low: float, high: float) -> None:
    """Refuse a hyperparameter outside [low, high].

    Raises:
        UserError: It is outside; the sentence names the range.
    """
    if not low <= value <= high:
        raise UserError(f"{name} is {value}: choose a value from {low:g} to {high:g}.")


def suggestion(name: str, choices: Collection[str]) -> str:
    """Return the end of a sentence about an unknown name: similar choices, or all of them."""
    known = [str(choice) for choice in choices]
    similar = difflib.get_close_matches(str(name)[:MAX_SHOWN], known, n=3, cutoff=0.5)
    if similar:
        return f"; did you mean {' or '.join(similar)}"
    return f"; there are {', '.join(known)}" if known else "; there are none"
