"""Run attacks on an edited model, on its original, and on control facts.

The score of an attack on an edited model says little by itself. So each attack is also run on the
original, which shows all that could come back, and on two kinds of controls, which show what comes
without the fact. *Unrelated* controls are the same prompts about subjects whose fact the model
never knew. *Associated* controls are the same prompts scored for non-answers that the subject is
associated with, in the original: an attack that ranks answers, or samples many, finds these too
(`Attack.needs_associated`).
"""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks import ATTACKS, Attack, AttackNotApplicableError, control_facts
from helpers.evaluation.attacks.registry import associated_facts, checked_names
from helpers.facts import ConceptPair
from helpers.io.cache import cached_table
from helpers.io.code_version import code_hash
from helpers.methods import active_edits, base_model
from helpers.models import model_hash

log = logging.getLogger(__name__)

PLAIN = "paraphrases"  # the attack that only asks; floors are measured on it
COLUMNS = ["attack", "state", "subject", "budget", "prompt", "score"]
N_CONTROLS_EXPENSIVE = 3  # control facts for an attack that is expensive or fine-tunes
N_ASSOCIATED = 8  # associated controls of an attack that ranks answers, and of `paraphrases`

# Arguments of `battery` that had another name until 2026-11; calls may still use it.
RENAMED_ARGUMENTS = {"n_absent": "n_controls", "asked_as": "query_pair"}


def checked_battery(names: Sequence[str]) -> list[str]:
    """Return today's names of attacks for a verdict, which needs `PLAIN` among them.

    Raises:
        UserError: There is no such attack, or `PLAIN` is missing.
    """
    attacks = checked_names(names)
    if PLAIN not in attacks:
        raise UserError(f"Every verdict begins with the attack '{PLAIN}': add it.")
    return attacks


class State(StrEnum):
    """Whose scores they are: the edited model's, its original's, or a control's."""

    EDITED = "edited"
    ORIGINAL = "original"
    CONTROL = "control"  # an unrelated one
    ASSOCIATED = "associated"


@dataclass(frozen=True)
class Evidence:
    """Results of attacks.

    Attributes:
        table: One row a prompt, budget and state: attack, state (a `State`), subject (of an
            associated control subject and target), budget, prompt, score.
        not_applicable: Attacks that can be run on the original, and not on the edited model → the
            reason.
        without_prompts: Attacks that cannot be run on this pair at all → the reason.
        seconds: Attack → wall-clock seconds of the run that computed its rows.
        is_intervention: The edited model's weights are the original's; hooks change activations.
    """

    table: pd.DataFrame
    not_applicable: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    is_intervention: bool = False
    without_prompts: dict[str, str] = field(default_factory=dict)

    @property
    def attacks(self) -> list[str]:
        """List the attacks that were tried, including those that are not applicable."""
        names = [*self.table["attack"], *self.not_applicable, *self.without_prompts]
        return list(dict.fromkeys(names))


@dataclass
class _Attacker:
    """One attack with its options; it caches the scores of every state by all they depend on."""

    model: LanguageModel
    entry: Attack
    options: dict[str, Any]
    seed: int
    model_hashes: Mapping[State, str]
    seconds: float = 0.0

    def table(self, state: State, pair: ConceptPair) -> pd.DataFrame:
        """Score a pair; the table has a column `why` if the attack is not applicable."""
        source = inspect.getsourcefile(inspect.unwrap(self.entry.function))
        key = {
            "base": self.model_hashes[State.ORIGINAL],
            "model": self.model_hashes[state],
            "pair": [str(pair), pair.relation, *pair.fingerprint()],
            "attack": self.entry.name,
            "options": self.options,
            "seed": self.seed,
            "code": code_hash(source),
        }
        table = cached_table("attacks", key, lambda: self._scores(pair))
        self.seconds += table.attrs["seconds"]
        subject = str(pair) if state == State.ASSOCIATED else pair.subject
        return table.assign(attack=self.entry.name, state=state.value, subject=subject)

    def _scores(self, pair: ConceptPair) -> pd.DataFrame:
        try:
            return self.entry.function(self.model, pair, seed=self.seed, **self.options)
        except AttackNotApplicableError as error:
            row = pd.DataFrame({"budget": [0.0], "prompt": [-1], "score": [0.0]})
            return row.assign(why=str(error))


def _with_old_arguments(function: Callable) -> Callable:
    """Accept arguments by the names that they had before."""

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Evidence:
        return function(*args, **{RENAMED_ARGUMENTS.get(k, k): v for k, v in keywords.items()})

    return call


@_with_old_arguments
def battery(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    attacks: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    n_controls: int = 6,
    seed: int = 0,
    query_pair: ConceptPair | None = None,
) -> Evidence:
    """Attack the model with its edits, its original, and control facts.

    Every attack on every model is cached by all that it depends on. So an interrupted battery
    resumes where it stopped, and another edit of the same model shares the comparisons.

    Args:
        model: The model with the edits that it carries.
        pair: The fact that was to be forgotten.
        attacks: Names of `ATTACKS`, all by default.
        options: Attack → options of its own, such as smaller budgets.
        n_controls: Control facts that each attack is compared with; expensive attacks, and those
            that fine-tune, use the first `N_CONTROLS_EXPENSIVE`.
        seed: Seed of everything random.
        query_pair: Query the edited model about this pair instead. A control pair gives the
            battery's result for an absent fact.

    Raises:
        UserError: There is no such attack, or there are no or too few control facts.
    """
    if n_controls < 1:
        raise UserError(
            f"n_controls is {n_controls}: an attack's score means nothing without control facts, "
            "so give at least 1."
        )
    names = checked_names(list(ATTACKS) if attacks is None else attacks)
    options_of = dict(
        zip(checked_names(list(options or {})), (options or {}).values(), strict=True)
    )
    with base_model(model):
        base_hash = model_hash(model)
        n_drawn = n_controls + (query_pair is not None)
        candidates = control_facts(model, pair, n=n_drawn, seed=seed)
        associated = associated_facts(model, pair, n=N_ASSOCIATED, seed=seed)
    controls = [c for c in candidates if query_pair is None or c.subject != query_pair.subject]
    hashes = dict.fromkeys(State, base_hash) | {State.EDITED: model_hash(model)}
    tables, seconds = [], {}
    not_applicable: dict[str, str] = {}
    without_prompts: dict[str, str] = {}
    for name in names:
        attacker = _Attacker(model, ATTACKS[name], dict(options_of.get(name, {})), seed, hashes)
        edited = attacker.table(State.EDITED, query_pair or pair)
        if "why" in edited:
            with base_model(model):
                original = attacker.table(State.ORIGINAL, query_pair or pair)
            reasons = without_prompts if "why" in original else not_applicable
            reasons[name] = edited["why"].iloc[0]
        else:
            tables += [edited, *_comparisons(attacker, pair, controls[:n_controls], associated)]
        seconds[name] = attacker.seconds
        log.info("%s: %.1f s", name, seconds[name])
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)
    edits = active_edits(model)
    return Evidence(
        table[COLUMNS],
        not_applicable,
        seconds,
        is_intervention=bool(edits) and not all(edit.changes_weights for edit in edits),
        without_prompts=without_prompts,
    )


def _comparisons(
    attacker: _Attacker,
    pair: ConceptPair,
    controls: Sequence[ConceptPair],
    associated: Sequence[ConceptPair],
) -> list[pd.DataFrame]:
    """Attack the original and the controls, without the edits."""
    entry, tables = attacker.entry, []
    with base_model(attacker.model):
        if not entry.fine_tunes:
            tables.append(attacker.table(State.ORIGINAL, pair))
        for control in controls[: N_CONTROLS_EXPENSIVE if entry.is_costly else None]:
            tables.append(attacker.table(State.CONTROL, control))
        if entry.needs_associated or entry.name == PLAIN:
            tables += [attacker.table(State.ASSOCIATED, fact) for fact in associated]
    return [table for table in tables if "why" not in table]
