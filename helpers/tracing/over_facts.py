"""The picture over many facts: the same patching for each, kept in the cache."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts.prompts import Prompt, subject_span
from helpers.forward.scoring import first_token
from helpers.forward.sites import token_ids
from helpers.io.cache import cached_table
from helpers.io.code_version import code_hash
from helpers.models import model_hash
from helpers.tracing.patching import activation_patching


def clean_corrupted_pairs(
    model: LanguageModel, prompts: Sequence[Prompt], others: Sequence[Prompt], *, seed: int = 0
) -> list[tuple[Prompt, Prompt]]:
    """Pairs (clean, corrupted) for activation patching, in the order of `prompts`.

    Each prompt is paired with one of the others, drawn by `seed`, that has as many tokens before,
    in and after its subject and another first answer token. A prompt without such a partner is
    left out.

    Args:
        model: Whose tokenizer counts.
        prompts: The clean prompts.
        others: The corrupted ones to choose from, from the same template.
        seed: Draws the partners.

    Raises:
        UserError: No prompt has a partner.
    """

    def shape(prompt: Prompt) -> tuple[int, ...]:
        return (*subject_span(prompt, model.tokenizer), len(token_ids(model, prompt)))

    drawn = [others[i] for i in np.random.default_rng(seed).permutation(len(others))]
    kinds = [(p, shape(p), first_token(model, p, p.answers[0])) for p in drawn]
    pairs = []
    for clean in prompts:
        wanted, answer = shape(clean), first_token(model, clean, clean.answers[0])
        fits = [p for p, kind, other in kinds if kind == wanted and other != answer]
        if fits:
            pairs.append((clean, fits[len(pairs) % len(fits)]))
    if not pairs:
        raise UserError(
            f"Patching needs another subject of as many tokens as {prompts[0].subject} whose fact "
            "the model knows, and there is none: take another fact or a larger model."
        )
    return pairs


def patching_over_facts(
    model: LanguageModel,
    pairs: Sequence[tuple[Prompt, Prompt]],
    *,
    by_head: bool = False,
    sites: Sequence[str] = ("attention", "mlp", "residual"),
    positions: Sequence[str] = ("subject", "last"),
) -> pd.DataFrame:
    """`activation_patching` for each pair, at all the subject's tokens and at the last token.

    Args:
        model: Any model of a known family.
        pairs: From `clean_corrupted_pairs`.
        by_head: Patch single heads at the last token instead.
        sites: As in `activation_patching`.
        positions: `subject`, `last` or both.

    Returns:
        The tables under each other with the clean prompt's `subject`; `position` is `subject` or
        `last`. Kept in the cache by the model's hash, the prompts and this package's code.
    """
    key = {
        "model": model_hash(model),
        "pairs": [[str(a), a.answers[0], str(b), b.answers[0]] for a, b in pairs],
        "by_head": by_head,
        "where": [list(sites), list(positions)],
        "code": code_hash(__file__),
    }

    def build() -> pd.DataFrame:
        tables = []
        for clean, corrupt in pairs:
            last = len(token_ids(model, clean)) - 1
            where = {"subject": range(*subject_span(clean, model.tokenizer)), "last": [last]}
            wanted = {name: where[name] for name in (["last"] if by_head else positions)}
            table = activation_patching(
                model, clean, corrupt, sites=sites, positions=wanted, by_head=by_head
            )
            tables.append(table.assign(subject=clean.subject))
        return pd.concat(tables, ignore_index=True)

    return cached_table("patching", key, build)
