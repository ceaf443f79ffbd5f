"""Questions around a fact: RippleEdits' kinds, and deduction.

Cohen et al. 2024, "Evaluating the Ripple Effects of Knowledge Editing in Language Models", section
3, has six kinds. The Factbook gives four. It has no question whose first hop alone is the fact
(compositionality I): no target but a city has facts of its own, and those are the country's, which
answers without the fact. Its relations have one target each, so nothing of the same relation
remains (preservation). The other facts of the target, which such a first hop would lead to, are
here as a kind of their own.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.evaluation.attacks.described import adjective_questions, statements_with
from helpers.facts import ConceptPair, Prompt
from helpers.facts.known import KNOWN_PROB
from helpers.facts.names import descriptions, other_names
from helpers.facts.rules import closure, minimal_removals, rules_between, triple
from helpers.forward.scoring import answer_probability
from helpers.methods import base_model
from helpers.stats.intervals import mean_interval

LOGIC, TWO_HOPS, ALIASES = "logical generalisation", "compositionality II", "subject aliasing"
SPECIFIC, OF_TARGET = "relation specificity", "other facts of the target"
GO, STAY = "go", "stay"  # what has to become of the answers
KINDS = {LOGIC: GO, TWO_HOPS: GO, ALIASES: GO, SPECIFIC: STAY, OF_TARGET: STAY}


def ripple_prompts(pair: ConceptPair, *, split: str = "heldout") -> Iterator[tuple[str, Prompt]]:
    """Yield the kind and the prompt of each question around a Factbook fact.

    Logical generalisation: from the target to the subject. Compositionality II: the fact, with a
    description in the subject's place that has to be resolved first. Subject aliasing: the same
    with the official name or the nationality's adjective. What names the subject or tells the
    answer is left out.

    Args:
        pair: The fact.
        split: The split of its statements.
    """
    for prompt in pair.reverse():
        yield LOGIC, prompt
    described = descriptions(pair.subject)
    described.pop(pair.relation, None)  # it would tell the answer
    official = other_names(pair.subject).official
    for kind, substitutes in ((TWO_HOPS, described.values()), (ALIASES, [official])):
        for name in substitutes:
            yield from (
                (kind, prompt) for prompt in statements_with(name, pair, split=split) if prompt
            )
    yield from ((ALIASES, prompt) for prompt in adjective_questions(pair) if prompt)
    for kind, others in ((SPECIFIC, pair.same_subject()), (OF_TARGET, pair.same_target())):
        for other in others:
            yield from ((kind, prompt) for prompt in other.statements(split))


def ripple_scores(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    forgotten: Sequence[ConceptPair] = (),
    split: str = "heldout",
) -> pd.DataFrame:
    """Score the questions around facts that were forgotten, with the edits and without.

    Questions that the original answers with P below `KNOWN_PROB` drop out: nothing of them could
    come back or be lost. So do facts that are forgotten themselves.

    Args:
        model: The model, with `Edit`s applied or without.
        pairs: Facts that were forgotten.
        forgotten: Others that were forgotten with them, which need not stay.
        split: The split of their statements.

    Returns:
        One row a kind with questions: kind, must (`go` or `stay`), facts and questions (numbers),
        before and after (mean P(answer) over facts), left (the mean of min(1, after / before) over
        facts, with its 95 % interval by Student's t).
    """
    rows = [
        (kind, number, prompt)
        for number, pair in enumerate(pairs)
        for kind, prompt in dict.fromkeys(ripple_prompts(pair, split=split))
        if KINDS[kind] == GO or not _is_forgotten(prompt, (*pairs, *forgotten))
    ]
    table = pd.DataFrame(rows, columns=["kind", "fact", "prompt"])
    prompts = table["prompt"].tolist()
    with base_model(model):
        table["before"] = answer_probability(model, prompts)
    table = table[table["before"] >= KNOWN_PROB]
    table = table.assign(after=answer_probability(model, table["prompt"].tolist()))
    summary = []
    for kind, must in KINDS.items():
        of_kind = table[table["kind"] == kind]
        if not len(of_kind):
            continue
        by_fact = of_kind.groupby("fact")[["before", "after"]].mean()
        left = (by_fact["after"] / by_fact["before"]).clip(upper=1)
        summary.append(
            {
                "kind": kind,
                "must": must,
                "facts": len(by_fact),
                "questions": len(of_kind),
                **by_fact.mean().to_dict(),
                "left": mean_interval(left.to_numpy()),
            }
        )
    return pd.DataFrame(summary)


def _is_forgotten(prompt: Prompt, pairs: Sequence[ConceptPair]) -> bool:
    """Tell whether a prompt asks for one of the facts."""
    names = [answer.strip() for answer in prompt.answers]
    return any(p.relation == prompt.relation and p.states(prompt.subject, names) for p in pairs)


def deep_unlearning(
    model: LanguageModel,
    forgotten: Sequence[ConceptPair],
    facts: Sequence[ConceptPair],
    *,
    split: str = "heldout",
) -> pd.DataFrame:
    """Measure whether facts can still be deduced from what the edited model knows.

    A fact is deeply unlearned if it does not follow from the facts that are left. With U a minimal
    set of facts whose removal does that, recall is the largest share of such a U that was removed,
    and accuracy the share of all others that was kept (Wu et al. 2024, arXiv 2410.15153, section
    3). Facts that were to be forgotten as well are not among the others. A fact counts as known
    where the mean P(answer) of a split is `KNOWN_PROB` at least.

    Args:
        model: The model, with `Edit`s applied or without.
        forgotten: The facts that were forgotten.
        facts: All facts between which there are rules (`rules_between`).
        split: The split whose prompts are asked.

    Returns:
        One row a forgotten fact that the original knows: subject, relation, removed, deduced (it
        is not known and follows from what is), recall, accuracy.
    """
    pairs = [*dict.fromkeys((*forgotten, *facts))]
    with base_model(model):
        before = _known(model, pairs, split)
    after = _known(model, [pair for pair in pairs if triple(pair) in before], split)
    rules = rules_between(pairs)
    asked = {triple(pair) for pair in forgotten}
    rows = []
    for pair in dict.fromkeys(forgotten):
        fact = triple(pair)
        if fact not in before:
            continue
        scores = []
        for removal in minimal_removals(fact, before, rules):
            others = before - removal - asked
            kept = len(others & after) / len(others) if others else 1.0
            scores.append((len(removal - after) / len(removal), kept))
        recall, accuracy = max(scores)
        rows.append(
            {
                "subject": pair.subject,
                "relation": pair.relation,
                "removed": fact not in after,
                "deduced": fact not in after and fact in closure(after, rules),
                "recall": recall,
                "accuracy": accuracy,
            }
        )
    columns = ["subject", "relation", "removed", "deduced", "recall", "accuracy"]
    return pd.DataFrame(rows, columns=columns)


def _known(
    model: LanguageModel, pairs: Sequence[ConceptPair], split: str
) -> set[tuple[str, str, str]]:
    """Return the facts whose mean P(answer) over the split is high enough."""
    prompts = [(i, prompt) for i, pair in enumerate(pairs) for prompt in pair.prompts(split)]
    if not prompts:
        return set()
    p = answer_probability(model, [prompt for _, prompt in prompts])
    index = np.array([i for i, _ in prompts])
    return {triple(x) for i, x in enumerate(pairs) if p[index == i].mean() >= KNOWN_PROB}


def facts_around(pairs: Sequence[ConceptPair]) -> list[ConceptPair]:
    """List facts and those that rules connect them with: of the subjects, and of their capitals."""
    around = [
        other for pair in pairs for other in (pair, *pair.same_subject()) if pair.templates is None
    ]
    cities = [city for pair in around for city in pair.same_target()]
    return [*dict.fromkeys((*around, *cities))]
