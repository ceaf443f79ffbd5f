"""Run attacks on an edited model, beside the original and beside facts that it never knew.

What an attack gets out of an edited model says little by itself. Each one is also run on the
original model (all that could come back) and on the same questions about subjects whose fact the
model never knew (what comes without any knowledge).
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks import ATTACKS, Attack, AttackNotApplicableError, control_facts
from helpers.facts import ConceptPair
from helpers.io.cache import cached_table
from helpers.io.code_version import code_hash
from helpers.methods import base_model
from helpers.models import model_hash

log = logging.getLogger(__name__)

PRESENT, EDITED, ABSENT = "present", "edited", "absent"
COSTLY = 2  # never-known subjects of an attack that is costly or trains


@dataclass(frozen=True)
class Evidence:
    """What attacks got out.

    Attributes:
        table: One row a prompt, budget and model: attack, state (`edited`, `present` for the
            original, `absent` for never-known facts), subject, budget, prompt, score.
        nothing: Attacks that have no hold on this pair → why.
        seconds: Attack → wall-clock seconds of the run that made its rows.
    """

    table: pd.DataFrame
    nothing: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def attacks(self) -> list[str]:
        """Attacks that were run, those without a hold included."""
        return [*dict.fromkeys(self.table["attack"]), *self.nothing]


def battery(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    attacks: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    n_absent: int = 6,
    seed: int = 0,
    asked_as: ConceptPair | None = None,
) -> Evidence:
    """Attack the model as it is, its original, and never-known facts.

    Every attack on every model is kept in the cache by all that it depends on: an interrupted
    battery goes on where it stopped, and another edit of the same model shares the comparisons.

    Args:
        model: The model with the edits that it carries.
        pair: What was to be forgotten.
        attacks: Names of `ATTACKS`, all by default.
        options: Attack → its own options (smaller budgets).
        n_absent: Never-known subjects that each attack is compared with; costly attacks, and those
            that train, with the first two.
        seed: Of everything random.
        asked_as: Ask the model as it is about this pair instead: a never-known one shows what the
            battery says of a fact that is absent.

    Raises:
        UserError: There is no such attack, or not so many never-known subjects.
    """
    names = list(ATTACKS) if attacks is None else list(attacks)
    for name in names:
        if name not in ATTACKS:
            raise UserError(f"There is no attack '{name}'; choose from {', '.join(ATTACKS)}.")
    with base_model(model):
        base = model_hash(model)
        drawn = control_facts(model, pair, n=n_absent + (asked_as is not None), seed=seed)
    strangers = [s for s in drawn if asked_as is None or s.subject != asked_as.subject][:n_absent]
    now = model_hash(model)
    tables, nothing, seconds = [], {}, {}
    for name in names:
        entry, seconds[name] = ATTACKS[name], 0.0
        own = dict((options or {}).get(name, {}))

        def run(state: str, who: ConceptPair, entry=entry, own=own) -> pd.DataFrame:
            def build() -> pd.DataFrame:
                try:
                    return entry.function(model, who, seed=seed, **own)
                except AttackNotApplicableError as error:
                    return pd.DataFrame({"budget": [0.0], "prompt": [-1], "score": [0.0]}).assign(
                        why=str(error)
                    )

            key = {
                "base": base,
                "model": now if state == EDITED else base,
                "pair": [str(who), who.relation, *who.fingerprint()],
                "attack": entry.name,
                "options": own,
                "seed": seed,
                "code": code_hash(inspect.getsourcefile(inspect.unwrap(entry.function))),
            }
            found = cached_table("attacks", key, build)
            seconds[entry.name] += found.attrs["seconds"]
            return found.assign(attack=entry.name, state=state, subject=who.subject)

        mine = [run(EDITED, asked_as or pair)]
        if "why" not in mine[0]:
            with base_model(model):
                if not entry.trains:
                    mine.append(run(PRESENT, pair))
                mine += [run(ABSENT, s) for s in _few(strangers, entry)]
            tables += mine
        else:
            nothing[name] = mine[0]["why"].iloc[0]
        log.info("%s: %.1f s", name, seconds[name])
    columns = ["attack", "state", "subject", "budget", "prompt", "score"]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    return Evidence(table[columns], nothing, seconds)


def _few(strangers: list[ConceptPair], entry: Attack) -> list[ConceptPair]:
    """As many never-known subjects as the attack can be afforded on."""
    return strangers[: COSTLY if entry.costly or entry.trains else None]
