"""The registry of attacks, the table that every attack returns, and the control facts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.facts.associated import associated_controls
from helpers.facts.known import KNOWN_PROB
from helpers.forward.prompts import first_token
from helpers.forward.scoring import answer_probability
from helpers.io.cache import cached_table
from helpers.io.choices import check_choice
from helpers.io.code_version import code_hash
from helpers.models import model_hash, torch_module
from helpers.models.hooks import active_interventions

COLUMNS = ["budget", "prompt", "score"]
N_PROMPTS = 4  # training statements on which a control fact is checked

# Names that attacks had until 2026-11; profiles, commands and calls may still use them.
RENAMED_ATTACKS = {
    "prefilled": "prefill",
    "languages": "cross_lingual",
    "lens": "logit_lens",
    "stitched": "stitching",
    "trigger": "gcg",
    "cut_neurons": "neuron_ablation",
    "cut_directions": "directional_ablation",
}


class AttackKind(StrEnum):
    """Kinds of attacks: by another prompt, reading activations, or changing weights."""

    PROMPTS = "other prompts"
    ACTIVATIONS = "reading inside"
    WEIGHTS = "changing weights"


class AttackNotApplicableError(UserError):
    """The attack cannot be run on this pair: it has no fitting prompts, or no known fact to use.

    An attack that was not run is another thing.
    """


class ControlsError(UserError):
    """There are too few control facts to compare an attack with."""


@dataclass(frozen=True)
class Attack:
    """An entry of the registry.

    Attributes:
        name: The name by which users choose it.
        budget: What its budget counts, such as steps.
        function: (model, pair, *, seed, options of its own) → a table of `COLUMNS`: the score of
            every prompt at every budget, from 0 (gone) to 1 (present). It attacks the model with
            the edits that are applied, and restores it afterwards.
        fine_tunes: It trains the weights: control facts are trained in the same way, and the
            original is not attacked.
        aggregate_budgets: Its recovery ratio is over all budgets instead of one a budget.
        expensive: It is compared with a few control facts only.
        counts_for_verdict: The verdict rests on it; otherwise it is only reported.
        by_rank: Its score is a rank among answers, in which all that the subject is associated with
            stands high.
        amplifies: It finds answers of small probability too, which all that the subject is
            associated with has.
        kind: What the attacker does.
        shows_suppression: What it recovers, the edited weights compute by themselves: it cuts
            something off, or reads before the answer is handed over.
    """

    name: str
    budget: str
    function: Callable[..., pd.DataFrame]
    fine_tunes: bool = False
    aggregate_budgets: bool = False
    expensive: bool = False
    counts_for_verdict: bool = True
    by_rank: bool = False
    amplifies: bool = False
    kind: AttackKind = AttackKind.PROMPTS
    shows_suppression: bool = False

    @property
    def needs_associated(self) -> bool:
        """Tell whether its zero are associated controls: it finds these without the fact."""
        return self.by_rank or self.amplifies

    @property
    def is_costly(self) -> bool:
        """Tell whether it takes so long that it is repeated as seldom as possible."""
        return self.expensive or self.fine_tunes


class AttackRegistry(dict[str, Attack]):
    """Attacks by name; a name that an attack had before finds it too."""

    def __missing__(self, name: str) -> Attack:
        """Return the attack that once had this name."""
        return self[RENAMED_ATTACKS[name]]

    def __contains__(self, name: object) -> bool:
        """Tell whether an attack has or had this name."""
        return super().__contains__(RENAMED_ATTACKS.get(str(name), name))


ATTACKS = AttackRegistry()


def attack(
    name: str,
    *,
    budget: str,
    fine_tunes: bool = False,
    aggregate_budgets: bool = False,
    expensive: bool = False,
    counts_for_verdict: bool = True,
    by_rank: bool = False,
    amplifies: bool = False,
    kind: AttackKind = AttackKind.PROMPTS,
    shows_suppression: bool = False,
) -> Callable:
    """Register a function as the attack `name`; see `Attack` for the arguments.

    Raises:
        ValueError: There is an attack of that name.
    """

    def register(function: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
        if name in ATTACKS:
            raise ValueError(f"There are two attacks '{name}': name one of them otherwise.")
        ATTACKS[name] = Attack(
            name,
            budget,
            function,
            fine_tunes=fine_tunes,
            aggregate_budgets=aggregate_budgets,
            expensive=expensive,
            counts_for_verdict=counts_for_verdict,
            by_rank=by_rank,
            amplifies=amplifies,
            kind=kind,
            shows_suppression=shows_suppression,
        )
        return function

    return register


def checked_names(names: Sequence[str]) -> list[str]:
    """Return today's names of attacks, in the same order.

    Raises:
        UserError: There is no such attack.
    """
    for name in names:
        check_choice("attack", name, ATTACKS)
    return [ATTACKS[name].name for name in names]


def require_budgets(name: str, budgets: Sequence[float], *, most: float = np.inf) -> None:
    """Check the budgets that an attack is given: at least one, all positive.

    Args:
        name: The option's name, for the sentence.
        budgets: Its value.
        most: Largest budget that means something.

    Raises:
        UserError: There is none, or one is not positive or too large.
    """
    if not len(budgets) or not all(0 < budget <= most for budget in budgets):
        limit = "" if np.isinf(most) else f" and at most {most:g}"
        raise UserError(
            f"{name} is {tuple(budgets)}: give at least one number, each above 0{limit}."
        )


def score_table(scores: Mapping[Any, Iterable[float]]) -> pd.DataFrame:
    """Build a table of `COLUMNS` from budget → the scores of all prompts."""
    rows = [(b, i, float(s)) for b, values in scores.items() for i, s in enumerate(values)]
    return pd.DataFrame(rows, columns=COLUMNS)


def probability_of_prompts(
    model: LanguageModel, prompts: Sequence[Prompt], *, why_none: str
) -> np.ndarray:
    """Compute P(target) of each prompt.

    Args:
        model: The model with its edits.
        prompts: The attack's prompts.
        why_none: Sentence for the error if there is no prompt.

    Raises:
        AttackNotApplicableError: There is no prompt.
    """
    if not prompts:
        raise AttackNotApplicableError(why_none)
    return answer_probability(model, prompts)


def require_own_tokens(model: LanguageModel) -> None:
    """Check that no request stands before every text, for attacks that read a text's own tokens.

    Raises:
        AttackNotApplicableError: The model carries `in_context`.
    """
    if any(mark.startswith("in_context ") for mark in active_interventions(torch_module(model))):
        raise AttackNotApplicableError("A request before every text moves what would be looked at.")


def cached_probability(
    model: LanguageModel, prompts: Sequence[Prompt], *, kind: str, source: str
) -> Float[np.ndarray, " n"]:
    """Compute P(answer) of each prompt, or take it from the cache.

    Args:
        model: The original model.
        prompts: Prompts with their `answers`.
        kind: Name of the cached tables.
        source: File of the caller's code, on which the cached values depend.
    """
    key = {
        "model": model_hash(model),
        "prompts": [[str(p), p.answers] for p in prompts],
        "code": code_hash(source),
    }
    table = cached_table(kind, key, lambda: pd.DataFrame({"p": answer_probability(model, prompts)}))
    return table["p"].to_numpy()


def control_facts(
    model: LanguageModel, pair: ConceptPair, *, n: int = 3, seed: int = 0, n_candidates: int = 48
) -> list[ConceptPair]:
    """Draw control facts: other subjects with the pair's target, which the model does not know.

    The original does not know the subjects' own targets either, so no other fact is in the way.
    Each is checked on the pair's own templates; the probabilities are cached.

    Args:
        model: The original model.
        pair: What was forgotten.
        n: Number of control facts.
        seed: Draws the subjects.
        n_candidates: Number of subjects that are checked.

    Raises:
        ControlsError: The model does not know too few of the candidates.
    """
    others = [
        o
        for o in pair.comparison_pairs(n_candidates, seed=seed)
        if pair.target not in (o.target, o.subject)
    ]
    candidates = [pair.about(o.subject, pair.target, aliases=pair.aliases) for o in others]
    prompts = pair.prompts("train")
    templates = [i for i, p in enumerate(prompts) if p.format == "completion"][:N_PROMPTS]
    queries = [x.prompts("train")[i] for x in (*others, *candidates) for i in templates]
    p = cached_probability(model, queries, kind="control-facts", source=__file__)
    means = p.reshape(-1, len(templates)).mean(1)
    p_own, p_target = means[: len(others)], means[len(others) :]
    controls = [
        candidate
        for candidate, *p in zip(candidates, p_own, p_target, strict=True)
        if max(p) < KNOWN_PROB
    ]
    if len(controls) < n:
        raise ControlsError(
            f"A comparison needs {n} subjects that the model knows nothing of, and of "
            f"{len(others)} others there are {len(controls)}: "
            + ("name more under 'others:'." if pair.others else "ask for fewer.")
        )
    return controls[:n]


def associated_facts(
    model: LanguageModel, pair: ConceptPair, *, n: int, seed: int = 0
) -> list[ConceptPair]:
    """Make associated controls whose first token is not the target's.

    Scores go by first tokens: "San Pedro" would be scored as "San José" is.

    Args:
        model: The original model.
        pair: What was forgotten.
        n: Largest number of controls.
        seed: Draws the other subjects, where the pair's own has too few.
    """
    prompts = pair.prompts("heldout")
    if not prompts:
        return []
    taken = {first_token(model, prompts[0], name) for name in pair.answers}
    facts = associated_controls(pair, n=2 * n, seed=seed)
    return [fact for fact in facts if first_token(model, prompts[0], fact.answers[0]) not in taken][
        :n
    ]
