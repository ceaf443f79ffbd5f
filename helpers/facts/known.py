"""Known facts: the ones that a model predicts, and with what probability."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts.factbook import facts
from helpers.facts.pairs import ConceptPair
from helpers.forward.prompts import Prompt
from helpers.forward.scoring import answer_scores, top_tokens
from helpers.io.cache import cached_table
from helpers.io.safe_text import visible
from helpers.models import model_hash

N_PROMPTS = 4  # training completions that decide whether a fact is known
# Lower bounds of the target's mean probability, by how certain a use has to be of the knowledge.
KNOWN_PROB = 0.1
WELL_KNOWN_PROB = 0.2  # facts whose remaining probability is reported as a share
SURELY_KNOWN_PROB = 0.3  # facts that test the verdict, which drops prompts of low probability
COLUMNS = [
    "subject",
    "target",
    "probability",
    "lowest",
    "highest",
    "rank",
    "n_prompts",
    "known",
]


def known_facts(model: LanguageModel, relation: str = "capital") -> pd.DataFrame:
    """Score every fact of a relation on the first four completions of its `train` split.

    A fact is *known* when its target is the likeliest answer to at least half of them: no other
    token is likelier than the target's first (of any alias), and the whole target has a
    probability of at least `KNOWN_PROB` (the first token of a long name may stand for many names).

    Args:
        model: Any causal model.
        relation: One of `RELATIONS`.

    Returns:
        One row a fact, likeliest first: subject, target, probability (mean over prompts of the
        whole target, aliases summed), lowest, highest, rank (the best; 0 is the likeliest),
        n_prompts, known. Cached by the model's hash and the prompts' texts.
    """
    return _known_table(model, [ConceptPair.of(fact) for fact in facts(relation)])


def known_others(model: LanguageModel, pair: ConceptPair) -> pd.DataFrame:
    """Score the facts that a pair is compared with, as `known_facts` does.

    They are its `others` where it has any, and those of its relation otherwise.
    """
    return _known_table(model, pair.others) if pair.others else known_facts(model, pair.relation)


def known_subjects(model: LanguageModel, pair: ConceptPair) -> set[str]:
    """Select the subjects of `known_others` whose fact the model knows."""
    return set(known_others(model, pair).query("known")["subject"])


def _known_table(model: LanguageModel, pairs: Sequence[ConceptPair]) -> pd.DataFrame:
    """Build the table of `known_facts` for pairs with equally many prompts, or take it cached."""
    prompts = [knowledge_prompts(pair) for pair in pairs]
    flat = [prompt for of_pair in prompts for prompt in of_pair]
    if not flat:
        return pd.DataFrame(columns=COLUMNS).astype({"known": bool})
    key = {
        "model": model_hash(model),
        "prompts": [[str(p), p.answers] for p in flat],
        "known_prob": KNOWN_PROB,
    }

    def build() -> pd.DataFrame:
        shape = (len(pairs), -1)
        probability, rank = (x.reshape(shape) for x in answer_scores(model, flat))
        table = pd.DataFrame(
            {
                "subject": [p.subject for p in pairs],
                "target": [p.target for p in pairs],
                "probability": probability.mean(1),
                "lowest": probability.min(1),
                "highest": probability.max(1),
                "rank": rank.min(1),
                "n_prompts": rank.shape[1],
                "known": _known(probability, rank),
            }
        )
        return table.sort_values("probability", ascending=False, ignore_index=True)

    return cached_table("known-facts", key, build)


def require_known(model: LanguageModel, pair: ConceptPair) -> None:
    """Refuse a pair that the model does not know: there is nothing to unlearn.

    Raises:
        UserError: Says how likely the target is and names facts that the model knows.
    """
    reason = why_unknown(model, pair)
    if reason is None:
        return
    table = known_others(model, pair)
    if not pair.others and pair.relation != pair.factbook_relation:
        table = known_facts(model, pair.factbook_relation)
    known = table.query("known").head(5)
    better = ", ".join(f"{r.subject} → {r.target}" for r in known.itertuples())
    raise UserError(f"{reason}; facts that it knows are {better or 'none of this relation'}.")


def why_unknown(model: LanguageModel, pair: ConceptPair) -> str | None:
    """Explain why the fact counts as unknown, or return None if the model knows it.

    A pair without completions cannot be tested and counts as known.
    """
    prompts = knowledge_prompts(pair)
    probability, rank = answer_scores(model, prompts)
    if not prompts or _known(probability, rank):
        return None
    (likeliest, _), *_ = top_tokens(model, prompts[:1], 1)[0]
    return (
        f"The model does not know {visible(pair)}: it gives '{visible(pair.target)}' a probability "
        f"of {probability.mean():.3f} on average (rank {int(np.median(rank)) + 1}); after "
        f"'{visible(prompts[0])}' it says '{visible(likeliest)}', not "
        f"'{visible(prompts[0].answers[0])}'"
    )


def are_known(model: LanguageModel, pairs: Sequence[ConceptPair]) -> list[bool]:
    """Tell of each fact whether the model knows it, in one pass; see `why_unknown`."""
    prompts = [knowledge_prompts(pair) for pair in pairs]
    probability, rank = answer_scores(model, [p for of_pair in prompts for p in of_pair])
    ends = np.cumsum([len(of_pair) for of_pair in prompts])[:-1]
    scores = zip(np.split(probability, ends), np.split(rank, ends), strict=True)
    return [not len(p) or bool(_known(p, r)) for p, r in scores]


def _known(probability: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Test whether the target is the likeliest answer to half of the prompts (the last axis)."""
    return ((rank == 0) & (probability >= KNOWN_PROB)).mean(-1) >= 0.5


def knowledge_prompts(pair: ConceptPair) -> list[Prompt]:
    """Return the first training completions, which decide whether a fact is known."""
    return pair.statements("train")[:N_PROMPTS]
