"""Layers and subject tokens of an edit: those that still carry the fact, by activation patching.

An edit can remove only what flows through the layers and tokens on which it acts. Activation
patching measures that flow: the subject's residual stream of one prompt, put into the prompt of
another subject, restores the answer as long as the subject's tokens carry it (Meng et al. 2022).
From the extraction layer on (Geva et al. 2023) attention has moved the fact to the last token, and
a change at the subject comes too late.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt, fact_split, facts, subject_span
from helpers.facts.comparison import one_of_each_group
from helpers.facts.known import KNOWN_PROB
from helpers.forward.scoring import answer_scores
from helpers.io.cache import cached_table
from helpers.io.code_version import code_hash
from helpers.methods.fitting.hparams import UnitEditHparams
from helpers.models import REFERENCE_DEPTH, architecture_of, model_hash
from helpers.tracing import activation_patching, clean_corrupted_pairs

log = logging.getLogger(__name__)

COLUMNS = ["subject", "layer", "position", "patching_effect"]


@dataclass(frozen=True)
class EditSite:
    """Layers and tokens on which an edit acts.

    Attributes:
        layers: Layers right below the extraction layer, ascending.
        all_subject_tokens: The edit acts at every token of the subject; otherwise at the last
            token, which then carries enough alone.
    """

    layers: tuple[int, ...]
    all_subject_tokens: bool = False


def select_layers(
    model: LanguageModel, pairs: Sequence[ConceptPair], hparams: UnitEditHparams | None = None
) -> EditSite:
    """Select the layers up to the last whose subject carries a relation's answers.

    That is measured on other facts of the relation, or on a pair's `others`
    (`subject_patching_effect`). Without such facts it is `default_layer`, at the same relative
    depth. Pairs of several relations get the layers of each, since attention reads different
    answers at different depths.

    Args:
        model: Any model of a known family.
        pairs: The pairs to forget.
        hparams: Gives `min_patching_effect`, the default layer and the number of layers, in units
            of a model of 30 layers.
    """
    hparams = hparams or UnitEditHparams()
    sites = [_relation_site(model, pair, hparams) for pair in one_of_each_group(pairs)]
    layers = sorted({layer for site in sites for layer in site.layers})
    return EditSite(tuple(layers), any(site.all_subject_tokens for site in sites))


def _relation_site(model: LanguageModel, pair: ConceptPair, hparams: UnitEditHparams) -> EditSite:
    """Select the layers and tokens for one relation, or for one set of others."""
    arch = architecture_of(model)
    last, all_subject_tokens = arch.relative_layers([hparams.default_layer])[0], False
    effects = subject_patching_effect(model, pair.relation, hparams, others=pair.others)
    if len(effects):
        means = effects.groupby(["position", "layer"])["patching_effect"].mean()
        last = _last_carrying_layer(means["subject"], hparams.min_patching_effect)
        # The last token alone is enough only if it carries nearly all that the subject carries.
        least = hparams.min_patching_effect * means["subject", last]
        all_subject_tokens = bool(means["end", last] < least)
    else:
        log.warning("%s: no two known subjects could be patched; layer %d is assumed.", pair, last)
    n_layers = math.ceil(hparams.n_layers * arch.n_layers / REFERENCE_DEPTH)
    layers = range(max(0, last - n_layers + 1), last + 1)
    return EditSite(tuple(layers), all_subject_tokens)


def subject_patching_effect(
    model: LanguageModel,
    relation: str,
    hparams: UnitEditHparams | None = None,
    *,
    others: Sequence[ConceptPair] = (),
) -> pd.DataFrame:
    """Measure how much of an answer the subject's residual stream carries after each layer.

    Known development facts of the relation are patched, in a training prompt: all tokens of the
    subject after every layer, and its last token alone after the last layer that carries enough.

    Args:
        model: Any model of a known family.
        relation: One of `RELATIONS`; other relations have no facts to patch.
        hparams: Gives `min_patching_effect` and the number of patched facts.
        others: Facts of other subjects in the same templates, instead of the relation's.

    Returns:
        One row per fact, layer and position (`subject`, `end`): subject, layer, position,
        patching_effect (0: the other subject's answer, 1: the subject's own). Empty if the model
        does not know two facts whose names have equally many tokens. The cache keeps it by the
        model's hash, the prompts, the hyperparameters and the code.
    """
    hparams = hparams or UnitEditHparams()
    empty = pd.DataFrame(columns=COLUMNS)
    development_facts = [f for f in facts(relation) if fact_split(f.subject) == "dev"]
    prompts = [
        pair.prompts("train")[0] for pair in others or map(ConceptPair.of, development_facts)
    ]
    if not prompts:
        return empty
    key = {
        "model": model_hash(model),
        "prompts": [[str(p), *p.answers] for p in prompts],
        "min_patching_effect": hparams.min_patching_effect,
        "n_patched_facts": hparams.n_patched_facts,
        "code": code_hash(__file__),
    }

    def build() -> pd.DataFrame:
        contrasts = _known_contrasts(model, prompts)[: hparams.n_patched_facts]
        if not contrasts:
            return empty
        subject = pd.concat([_patched(model, *two, position="subject") for two in contrasts])
        means = subject.groupby("layer")["patching_effect"].mean()
        last = [_last_carrying_layer(means, hparams.min_patching_effect)]
        ends = [_patched(model, *two, position="end", layers=last) for two in contrasts]
        return pd.concat([subject, *ends], ignore_index=True)

    return cached_table("subject_patching_effect", key, build)


def _last_carrying_layer(effects: pd.Series, min_patching_effect: float) -> int:
    """Return the last layer with a sufficient effect, or the first layer if none has one."""
    sufficient = effects[effects >= min_patching_effect]
    return int(sufficient.index.max()) if len(sufficient) else 0


def _known_contrasts(
    model: LanguageModel, prompts: Sequence[Prompt]
) -> list[tuple[Prompt, Prompt]]:
    """Return (clean, corrupted) pairs of prompts whose answers the model knows."""
    probabilities, ranks = answer_scores(model, prompts)
    known = [
        prompt
        for prompt, probability, rank in zip(prompts, probabilities, ranks, strict=True)
        if rank == 0 and probability >= KNOWN_PROB
    ]
    try:
        return clean_corrupted_pairs(model, known, known) if known else []
    except UserError:  # no two names have equally many tokens
        return []


def _patched(
    model: LanguageModel,
    clean: Prompt,
    corrupted: Prompt,
    *,
    position: str,
    layers: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Patch all tokens of the subject (`subject`), or its last one (`end`)."""
    start, end = subject_span(clean, model.tokenizer)
    tokens = range(start if position == "subject" else end - 1, end)
    table = activation_patching(
        model, clean, corrupted, sites=["residual"], layers=layers, positions={position: tokens}
    )
    return table[["layer", "position", "patching_effect"]].assign(subject=clean.subject)
