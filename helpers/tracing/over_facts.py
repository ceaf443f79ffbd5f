"""Activation patching over many facts, with the results in the cache."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.forward.prompts import Prompt, first_token, subject_span, token_ids
from helpers.io.cache import cached_table
from helpers.io.code_version import code_hash
from helpers.models import model_hash
from helpers.tracing.patching import activation_patching


def clean_corrupted_pairs(
    model: LanguageModel, prompts: Sequence[Prompt], candidates: Sequence[Prompt], *, seed: int = 0
) -> list[tuple[Prompt, Prompt]]:
    """Pair each clean prompt with a corrupted one for activation patching.

    The partner is one of the candidates, drawn by `seed`, that has as many tokens before, in and
    after its subject and another first answer token. A prompt without such a partner is left out.

    Args:
        model: Its tokenizer decides.
        prompts: The clean prompts.
        candidates: Corrupted prompts to draw from, of the same template.
        seed: Draws the partners.

    Returns:
        (clean, corrupted), in the order of `prompts`.

    Raises:
        UserError: No prompt has a partner.
    """

    def shape(prompt: Prompt) -> tuple[int, ...]:
        return (*subject_span(prompt, model.tokenizer), len(token_ids(model, prompt)))

    order = np.random.default_rng(seed).permutation(len(candidates))
    shuffled = [candidates[i] for i in order]
    described = [(p, shape(p), first_token(model, p, p.answers[0])) for p in shuffled]
    pairs = []
    for clean in prompts:
        clean_shape, answer = shape(clean), first_token(model, clean, clean.answers[0])
        partners = [
            p for p, shape_, token in described if shape_ == clean_shape and token != answer
        ]
        if partners:
            pairs.append((clean, partners[len(pairs) % len(partners)]))
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
    """Run `activation_patching` for each pair, at all the subject's tokens and at the last token.

    Args:
        model: Any model of a known family.
        pairs: (clean, corrupted), from `clean_corrupted_pairs`.
        by_head: Patch single heads at the last token instead.
        sites: Sites that are patched, any of `helpers.forward.sites.SITES`.
        positions: `subject`, `last` or both.

    Returns:
        The tables of all pairs one after another, with the clean prompt's `subject`; `position` is
        `subject` or `last`. The cache keeps it by the model's hash, the prompts and the code.
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
            subject = range(*subject_span(clean, model.tokenizer))
            last = [len(token_ids(model, clean)) - 1]
            indices = {"subject": subject, "last": last}
            chosen = {name: indices[name] for name in (["last"] if by_head else positions)}
            table = activation_patching(
                model, clean, corrupt, sites=sites, positions=chosen, by_head=by_head
            )
            tables.append(table.assign(subject=clean.subject))
        return pd.concat(tables, ignore_index=True)

    return cached_table("patching", key, build)
