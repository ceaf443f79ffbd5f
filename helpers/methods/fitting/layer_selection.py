"""Where an edit at the subject has to act: up to which layer its tokens carry a fact, and which do.

An edit can take away no more than what passes the place where it acts. Activation patching says
what passes: the subject's residual stream of one prompt, put into another subject's, brings back
the answer as long as the subject's tokens still hold it (Meng et al. 2022). After that layer
attention has handed it over, and a change at the subject comes too late.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt, fact_split, facts, subject_span
from helpers.facts.known import KNOWN_PROB
from helpers.facts.relations import RELATIONS
from helpers.forward.scoring import answer_scores
from helpers.io.cache import cached_table
from helpers.io.code_version import code_hash
from helpers.models import REFERENCE_DEPTH, architecture_of, model_hash
from helpers.tracing import activation_patching, clean_corrupted_pairs

MIN_PATCHING_EFFECT = 0.8  # share of the answer that has to pass the place of an edit
N_FACTS = 6  # known development facts that are patched
DEFAULT = 22  # of 30: where the relation has no known facts to patch


@dataclass(frozen=True)
class EditSite:
    """Where an edit acts.

    Attributes:
        layers: Those right below the hand-over, ascending.
        every: At every token of the subject; otherwise at its last, which carries enough alone.
    """

    layers: tuple[int, ...]
    every: bool = False


def select_layers(model: LanguageModel, pairs: Sequence[ConceptPair], *, width: int) -> EditSite:
    """The layers up to the last whose subject carries `MIN_PATCHING_EFFECT` of the relation's answers.

    Measured on other facts of the relation (`carried`); where none can be, two thirds to three
    quarters up.

    Args:
        model: Any model of a known family.
        pairs: What is edited; the first one's relation counts.
        width: How many layers, of `REFERENCE_DEPTH`; as large a share of the depth in other models.
    """
    arch = architecture_of(model)
    last, every = arch.relative_layers([DEFAULT])[0], False
    effects = carried(model, pairs[0].relation)
    if len(effects):
        means = effects.groupby(["position", "layer"])["patching_effect"].mean()
        last = _last(means["subject"])
        every = bool(means["end", last] < MIN_PATCHING_EFFECT * means["subject", last])
    n = math.ceil(width * arch.n_layers / REFERENCE_DEPTH)
    return EditSite(tuple(range(max(0, last - n + 1), last + 1)), every)


def carried(model: LanguageModel, relation: str) -> pd.DataFrame:
    """How much of an answer the subject's residual stream carries after each layer.

    Patched are known development facts of the relation, in a training wording: all tokens of the
    subject after every layer, and its last token alone after the last that carries enough.

    Args:
        model: Any model of a known family.
        relation: One of `RELATIONS`; of another there are no facts to patch.

    Returns:
        One row a fact, layer and position (`subject`, `end`): subject, layer, position, patching_effect (0:
        the other subject's answer, 1: the subject's own). Empty where the model knows no two facts
        whose names have as many tokens. Kept in the cache by the model's hash, the prompts and the
        code.
    """
    none = pd.DataFrame(columns=["subject", "layer", "position", "patching_effect"])
    if relation not in RELATIONS:
        return none
    asked = [
        ConceptPair.of(fact).prompts("train")[0]
        for fact in facts(relation)
        if fact_split(fact.subject) == "dev"
    ]
    key = {
        "model": model_hash(model),
        "prompts": [[str(p), *p.answers] for p in asked],
        "code": code_hash(__file__),
    }

    def build() -> pd.DataFrame:
        if not (both := _contrasts(model, asked)):
            return none
        whole = pd.concat([_patched(model, *two, position="subject") for two in both])
        last = [_last(whole.groupby("layer")["patching_effect"].mean())]
        ends = [_patched(model, *two, position="end", layers=last) for two in both]
        return pd.concat([whole, *ends], ignore_index=True)

    return cached_table("handover", key, build)


def _last(share: pd.Series) -> int:
    """The last layer that carries enough; the first where none does."""
    enough = share[share >= MIN_PATCHING_EFFECT]
    return int(enough.index.max()) if len(enough) else 0


def _contrasts(model: LanguageModel, asked: Sequence[Prompt]) -> list[tuple[Prompt, Prompt]]:
    probability, rank = answer_scores(model, asked)
    known = [
        p for p, sure, r in zip(asked, probability, rank, strict=True) if r == 0 and sure >= KNOWN_PROB
    ]
    try:
        return clean_corrupted_pairs(model, known, known)[:N_FACTS] if known else []
    except UserError:  # no two names have as many tokens
        return []


def _patched(
    model: LanguageModel,
    clean: Prompt,
    corrupt: Prompt,
    *,
    position: str,
    layers: Sequence[int] | None = None,
) -> pd.DataFrame:
    start, end = subject_span(clean, model.tokenizer)
    where = {position: range(start if position == "subject" else end - 1, end)}
    how = {"sites": ["residual"], "layers": layers, "positions": where}
    table = activation_patching(model, clean, corrupt, **how)
    return table[["layer", "position", "patching_effect"]].assign(subject=clean.subject)


WIDTH = {"neurons": 4, "weights": 8}  # layers, of 30: a change that more share is smaller in each
