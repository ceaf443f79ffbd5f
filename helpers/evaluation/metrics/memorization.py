"""Memorisation: how much of a text the model would generate by itself."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.forward.prompts import Prompt
from helpers.forward.scoring import token_ranks


def exact_memorisation(matches: Bool[np.ndarray, " n"]) -> float:
    """Compute the fraction of tokens that are the likeliest after the true ones before them.

    It goes from 0 to 1 (memorised). Tirumala et al. 2022, "Memorization Without Overfitting".

    Args:
        matches: Whether each token of the text is the likeliest.

    Raises:
        UserError: There is no token.
    """
    return float(_tokens(matches).mean())


def extraction_strength(matches: Bool[np.ndarray, " n"]) -> float:
    """Compute 1 − k/n, with k the shortest prefix after which all further tokens are right.

    It goes from 0 (nothing, or the last token is wrong) to 1 (the whole text from the prompt).
    Carlini et al. 2021, "Extracting Training Data from Large Language Models". A one-token answer
    has 1 when it is right and 0 when it is wrong.

    Args:
        matches: Whether each token of the text is the likeliest after the true ones before it.

    Raises:
        UserError: There is no token.
    """
    wrong = np.flatnonzero(~_tokens(matches))
    k = wrong[-1] + 1 if len(wrong) else 0
    return 1.0 - k / len(matches)


def _tokens(matches: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    matches = np.asarray(matches, bool)
    if not len(matches):
        raise UserError("There is no token to compare: give at least one.")
    return matches


def likeliest_matches(
    model: LanguageModel, prompts: Sequence[Prompt | str], texts: Sequence[str]
) -> list[Bool[np.ndarray, " n"]]:
    """Compare each token of a text with the model's likeliest after the true ones before it.

    Args:
        model: Any causal model.
        prompts: The prompt before each text.
        texts: The texts, with their leading space.

    Returns:
        For each text, whether each of its tokens is the likeliest.
    """
    return [rank == 0 for rank in token_ranks(model, prompts, texts)]
