"""Who is put to the test, and which measurements tell a hidden fact from a never-known one."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks import ATTACKS
from helpers.evaluation.audit import Audit, NoChangeError, audit_delta
from helpers.evaluation.battery import ABSENT, EDITED, PRESENT, Evidence
from helpers.evaluation.metrics.mia import auc
from helpers.facts import ConceptPair, facts
from helpers.io.safe_text import visible
from helpers.methods import METHODS, Edit, load_unlearning, unlearn
from helpers.methods.unlearning import require_finite_answers


def load_edit_under_test(
    model: LanguageModel, pair: ConceptPair, *, patch: str = "", method: str = "", seed: int = 0
) -> Edit:
    """The edit to verify: from a file, or made now.

    Args:
        model: The original model.
        pair: What it should have removed.
        patch: A file that `Edit.save` wrote; it goes before `method`.
        method: A name of `METHODS`.
        seed: Of the method.

    Raises:
        UserError: The patch is of another pair, there is neither patch nor method, or what the
            edited model says is not finite: then nothing can be verified.
    """
    made = _made(model, pair, patch=patch, method=method, seed=seed)
    require_finite_answers(model, made, [pair])
    return made


def _made(model: LanguageModel, pair: ConceptPair, *, patch: str, method: str, seed: int) -> Edit:
    if not patch:
        if method not in METHODS:
            raise UserError(f"There is no method '{method}' to verify; there are {list(METHODS)}.")
        return unlearn(model, pair, method, seed=seed)
    made = load_unlearning(patch)
    removed = made.pair if isinstance(made.pair, list) else [made.pair]
    if not any((p["subject"], p["target"]) == (pair.subject, pair.target) for p in removed):
        named = ", ".join(f"{p['subject']} → {p['target']}" for p in removed)
        raise UserError(
            f"{visible(patch)} removes {visible(named)}, not {visible(pair)}: give its subject and "
            "target (SUBJECT=..., TARGET=...)."
        )
    return made


def audit_report(
    model: LanguageModel, pair: ConceptPair, made: Edit, *, seed: int = 0
) -> tuple[Audit | None, str]:
    """What an auditor of the edit finds, and a sentence; only the sentence where he can't look.

    Args:
        model: The original model.
        pair: What was forgotten.
        made: The edit.
        seed: Draws the edit in a random direction that he is tried on as well.
    """
    if pair.subject not in {f.subject for f in facts("capital")}:
        return None, "The auditor knows only countries and was not asked."
    try:
        found = audit_delta(model, made)
    except NoChangeError as error:
        return None, str(error)
    control = audit_delta(model, unlearn(model, pair, "random_direction", seed=seed))
    told = (
        "He names {} → {}; the edit writes {:.1f} times as much there as at the next. Of an "
        "edit in a random direction he would say {} → {} ({:.2f} times the next)."
    )
    return found, told.format(*found.guess, found.margin, *control.guess, control.margin)


def chosen_attacks(names: str) -> list[str]:
    """Attacks from "all" or names separated by commas.

    Raises:
        UserError: There is no such attack, or `paraphrases` is missing, which all others need.
    """
    found = list(ATTACKS) if names.strip() == "all" else [n.strip() for n in names.split(",")]
    for name in found:
        if name not in ATTACKS:
            raise UserError(f"There is no attack '{name}'; choose from {', '.join(ATTACKS)}.")
    if "paraphrases" not in found:
        raise UserError("Every verdict begins with the attack 'paraphrases': add it.")
    return found


def auroc_vs_controls(evidence: Evidence, names: Sequence[str] | None = None) -> pd.DataFrame:
    """How well each attack's score tells the edited model from facts that were never known.

    The area under the ROC curve over prompts: 0.5 is blind, 1 tells every prompt apart. The score
    of a prompt is its mean over the budgets at which the original shows at least half of what it
    ever does (for attacks that train, over all after the first). An attack with a score that is not
    finite tells nothing: NaN.

    Args:
        evidence: Of a model that is known to hide the fact, or of any other.
        names: Attacks, all by default.

    Returns:
        One row an attack: attack, edited, present (the original's AUC, NaN where it isn't run).
    """
    rows = []
    for name in names or list(dict.fromkeys(evidence.table["attack"])):
        mine = evidence.table[evidence.table["attack"] == name]
        if not np.isfinite(mine["score"]).all():
            rows.append({"attack": name, "edited": np.nan, "present": np.nan})
            continue
        scores = {}
        for state in (EDITED, PRESENT, ABSENT):
            part = mine[mine["state"] == state]
            scores[state] = part.pivot_table(
                index=["subject", "prompt"], columns="budget", values="score"
            )
        budgets = _shown(scores)
        values = {s: x[budgets].mean(axis=1).to_numpy() for s, x in scores.items() if len(x)}
        rows.append(
            {
                "attack": name,
                "edited": auc(values[EDITED], values[ABSENT]),
                "present": auc(values[PRESENT], values[ABSENT]) if PRESENT in values else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _shown(scores: dict[str, pd.DataFrame]) -> list[float]:
    if not len(scores[PRESENT]):
        return [b for b in scores[EDITED] if b > 0]
    above = scores[PRESENT].mean() - scores[ABSENT].mean()
    return list(above.index[above >= max(above.max() / 2, 0)]) or list(above.index)
