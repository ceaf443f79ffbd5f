"""What every attack returns, and the register of attacks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.forward.scoring import answer_probability
from helpers.io.cache import cached_table
from helpers.models import model_hash
from helpers.models.hooks import active_interventions

COLUMNS = ["budget", "prompt", "score"]


class AttackNotApplicableError(UserError):
    """The attack has no hold on this pair: no prompts of that kind, or nothing known to begin with.

    Not the same as an attack that was not run.
    """


class ControlsError(UserError):
    """There are too few never-known subjects to compare an attack with."""


@dataclass(frozen=True)
class Attack:
    """An entry of the register.

    Attributes:
        name: What users call it.
        budget: What its curve is over.
        function: (model, pair, *, seed, its own options) → a table of `COLUMNS`: the score of every
            prompt at every budget, 0 for gone and 1 for there. The model is attacked as it is, and
            left as it was.
        trains: It changes the weights: the never-known control is taught the same way, and the
            original need not be.
        pooled: Its share is taken over the whole curve rather than budget by budget.
        costly: Compared with a few never-known subjects only.
        judged: The verdict rests on it; otherwise it is only reported.
    """

    name: str
    budget: str
    function: Callable[..., pd.DataFrame]
    trains: bool = False
    pooled: bool = False
    costly: bool = False
    judged: bool = True


ATTACKS: dict[str, Attack] = {}


def attack(name: str, *, budget: str, **flags: bool) -> Callable:
    """Register a function as the attack `name`; flags as in `Attack`."""

    def register(function: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
        ATTACKS[name] = Attack(name, budget, function, **flags)
        return function

    return register


def curve(scores: dict[float, Sequence[float]]) -> pd.DataFrame:
    """A table of `COLUMNS` from budget → the prompts' scores."""
    rows = [(b, i, float(s)) for b, values in scores.items() for i, s in enumerate(values)]
    return pd.DataFrame(rows, columns=COLUMNS)


def asked(model: LanguageModel, prompts: Sequence[Prompt], *, why: str) -> np.ndarray:
    """P(target) of each prompt.

    Raises:
        NothingToAttackError: There is no prompt; says `why`.
    """
    if not prompts:
        raise AttackNotApplicableError(why)
    return answer_probability(model, prompts)


def require_own_tokens(model: LanguageModel) -> None:
    """For attacks that look inside at a text's own tokens: no request may stand before them.

    Raises:
        NothingToAttackError: The model carries `in_context`.
    """
    if any(mark.startswith("in_context ") for mark in active_interventions(model._module)):
        raise AttackNotApplicableError("A request before every text moves what would be looked at.")


def control_facts(
    model: LanguageModel, pair: ConceptPair, *, n: int = 3, seed: int = 0, tried: int = 48
) -> list[ConceptPair]:
    """Other subjects with the pair's target: facts that the model never knew, for comparison.

    Subjects whose own target the original model doesn't know, so that there is nothing else to be
    overwritten either. Asked in the pair's own ways; kept in the cache.

    Args:
        model: The original model.
        pair: What was forgotten.
        n: How many.
        seed: Draws the subjects.
        tried: So many others are looked at.

    Raises:
        NoStrangersError: There are not so many.
    """
    others = [o for o in pair.others(tried, seed=seed) if pair.target not in (o.target, o.subject)]
    strangers = [
        ConceptPair(o.subject, pair.target, pair.relation, pair.aliases, pair.templates)
        for o in others
    ]
    ways = [i for i, p in enumerate(pair.prompts("train")) if p.format == "completion"][:4]
    both = [x.prompts("train")[i] for x in (*others, *strangers) for i in ways]
    key = {"model": model_hash(model), "asked": [[str(p), p.answers] for p in both]}
    table = cached_table(
        "never-known", key, lambda: pd.DataFrame({"p": answer_probability(model, both)})
    )
    means = table["p"].to_numpy().reshape(-1, len(ways)).mean(1)
    own, target = means[: len(others)], means[len(others) :]
    found = [s for s, a, b in zip(strangers, own, target, strict=True) if max(a, b) < UNKNOWN]
    if len(found) < n:
        raise ControlsError(
            f"A comparison needs {n} subjects that the model knows nothing of, and of "
            f"{len(others)} others there are {len(found)}: ask for fewer."
        )
    return found[:n]


UNKNOWN = 0.1  # a fact counts as never known below this mean probability
