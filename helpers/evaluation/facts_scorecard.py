"""The scorecard of a request for several facts: a list, an entity, a topic."""

from collections.abc import Sequence

import pandas as pd
from nnsight import LanguageModel

from helpers.evaluation.eval_prompts import known_neighbours
from helpers.evaluation.scorecard import NAN, Scorecard, evaluate
from helpers.facts import ConceptPair, Prompt
from helpers.facts.associated import associated_controls
from helpers.facts.comparison import one_of_each_group
from helpers.facts.known import KNOWN_PROB
from helpers.forward.scoring import answer_probability
from helpers.methods import base_model
from helpers.requests import FactsRequest
from helpers.stats.intervals import Metric, mean_interval

N_CONTROLS = 4  # associated controls of each fact


class FactsScorecard(Scorecard):
    """The scorecard of several facts, with a table of each.

    Attributes:
        facts: One row a fact that the original knows: subject, target, relation, before and after
            (mean P(target) over the prompts of the split), associated (mean probability of its
            controls in the original; NaN without any).
    """

    facts: pd.DataFrame


def evaluate_facts(
    model: LanguageModel,
    request: FactsRequest,
    *,
    split: str = "heldout",
    n_neighbours: int = 24,
    n_tokens: int = 2048,
    seed: int = 0,
) -> FactsScorecard:
    """Score the model with its edits on all facts of a request, and without them for comparison.

    Of the facts that the original knows: `named`, the mean P(target) over the facts, each averaged
    over the prompts of the split; `worst_fact`, the largest; `associated`, the mean probability of
    their associated controls in the same prompts, the level of what was never an answer; `above`,
    the share of facts that are likelier than their own controls were before the edit. Of what must
    stay, means of min(1, P(answer) after / before): `neighbours`, known facts of other subjects in
    the same relations, and `same_subject`, known facts of the subjects that are not asked for. On
    ordinary text: `perplexity_change_factbook` and `kl_factbook`.

    Intervals are 95 % intervals by Student's t over facts or sequences.

    Args:
        model: The model, with `Edit`s applied or without.
        request: What was to be forgotten.
        split: The split whose templates are used.
        n_neighbours: Known facts of other subjects, all relations together.
        n_tokens: Tokens of ordinary text.
        seed: Draws neighbours and text.

    Raises:
        UserError: The model knows none of the facts.
    """
    with base_model(model):
        request = request.known(model)
        table = _prompts(model, request, split, n_neighbours, seed)
        before = answer_probability(model, table["prompt"].tolist())
    table = table.assign(before=before, after=answer_probability(model, table["prompt"].tolist()))
    facts = table.groupby(["group", "fact"])[["before", "after"]].mean()
    named = facts.loc["named"]
    controls = _group(facts, "associated")
    worst = Metric(float(named["after"].max()), NAN, NAN, len(named))
    metrics = {"named": mean_interval(named["after"].to_numpy()), "worst_fact": worst}
    values = {"named": float(named["before"].mean()), "worst_fact": float(named["before"].max())}
    if len(controls):
        metrics["associated"] = mean_interval(controls["after"].to_numpy())
        values["associated"] = float(controls["before"].mean())
        both = named.join(controls, rsuffix="_control", how="inner")
        metrics["above"] = mean_interval((both["after"] > both["before_control"]).to_numpy(float))
        values["above"] = float((both["before"] > both["before_control"]).mean())
    units = {}
    for group in ("neighbours", "same_subject"):
        known = _group(facts, group)
        known = known[known["before"] >= KNOWN_PROB]
        if len(known):
            units[group] = (known["after"] / known["before"]).clip(upper=1).to_numpy()
            metrics[group] = mean_interval(units[group])
            values[group] = 1.0
    on_text = evaluate(model, request.pairs[0], n_tokens=n_tokens, seed=seed, parts=("model",))
    for name in ("perplexity_change_factbook", "kl_factbook"):
        metrics[name], values[name] = on_text[name], 0.0
    units["perplexity_change_factbook"] = on_text.units["perplexity_change_factbook"]
    about = {"request": request.name, "kind": request.kind, "split": split, "seed": seed}
    scorecard = FactsScorecard(metrics, values, about, units)
    scorecard.facts = named.assign(
        associated=controls["before"].reindex(named.index),
        **{
            name: [getattr(request.pairs[k], name) for k in named.index]
            for name in ("subject", "target", "relation")
        },
    ).reset_index(drop=True)
    return scorecard


def _group(facts: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the facts of a group, by their number; none if it is missing."""
    if name in facts.index.get_level_values("group"):
        return facts.loc[name]
    return facts[:0].droplevel("group")


def _prompts(
    model: LanguageModel, request: FactsRequest, split: str, n_neighbours: int, seed: int
) -> pd.DataFrame:
    """List the prompts of each group and fact: columns group, fact (a number), prompt."""
    rows: list[tuple[str, int, Prompt]] = []

    def add(group: str, fact: int, pairs: Sequence[ConceptPair], statements: bool) -> None:
        for pair in pairs:
            prompts = pair.statements(split) if statements else pair.prompts(split)
            rows.extend((group, fact, prompt) for prompt in prompts)

    for k, pair in enumerate(request.pairs):
        add("named", k, [pair], statements=False)
        add("associated", k, associated_controls(pair, n=N_CONTROLS, seed=seed), statements=False)
    forgotten, subjects = request.pairs, {pair.subject for pair in request.pairs}
    groups = one_of_each_group(forgotten)
    share = -(-n_neighbours // len(groups))
    neighbours = [
        other
        for pair in groups
        for other in known_neighbours(model, pair, n=share + len(subjects), split=split, seed=seed)
        if other.subject not in subjects
    ]
    others = {
        (other.subject, other.relation): other
        for pair in forgotten
        for other in pair.same_subject()
        if not any(p.states(other.subject, other.answers) for p in forgotten)
    }
    for group, pairs in (("neighbours", neighbours), ("same_subject", [*others.values()])):
        for k, pair in enumerate(pairs):
            add(group, k, [pair], statements=True)
    return pd.DataFrame(rows, columns=["group", "fact", "prompt"])
