"""The edit that is verified, its audit, and the attacks that were chosen for it."""

from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks import ATTACKS
from helpers.evaluation.audit import Audit, NoChangeError, audit_delta
from helpers.evaluation.battery import checked_battery
from helpers.evaluation.tradeoff import MINI_ATTACKS
from helpers.facts import ConceptPair, facts
from helpers.io.choices import check_choice
from helpers.io.safe_text import visible
from helpers.methods import METHODS, Edit, load_unlearning, unlearn
from helpers.methods.checkpoint import edit_from_checkpoint
from helpers.methods.unlearning import require_finite_answers


def load_edit_under_test(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    patch: str = "",
    checkpoint: str = "",
    method: str = "",
    seed: int = 0,
) -> Edit:
    """Load the edit to verify from a file or from another checkpoint, or make it.

    Args:
        model: The original model.
        pair: The fact that the edit should have removed.
        patch: A file that `Edit.save` wrote; if given, `method` is ignored.
        checkpoint: Another checkpoint of the model, or an adapter of it
            (`helpers.methods.checkpoint`); if given, `method` is ignored.
        method: A name of `METHODS`.
        seed: Seed of the method.

    Raises:
        UserError: The patch is of another pair, the checkpoint is not of this model, there is
            nothing to load or to make, or the edited model's answers are not finite: then nothing
            can be verified.
    """
    if patch and checkpoint:
        raise UserError("One edit is verified at a time: give a patch or a checkpoint.")
    if checkpoint:
        edit = edit_from_checkpoint(model, pair, checkpoint)
    else:
        edit = _load_or_make(model, pair, patch=patch, method=method, seed=seed)
    require_finite_answers(model, edit, [pair])
    return edit


def _load_or_make(
    model: LanguageModel, pair: ConceptPair, *, patch: str, method: str, seed: int
) -> Edit:
    if not patch:
        check_choice("method", method, METHODS)
        return unlearn(model, pair, method, seed=seed)
    edit = load_unlearning(patch)
    removed = edit.pair if isinstance(edit.pair, list) else [edit.pair]
    facts = [(p["subject"], p["target"]) for p in removed if "subject" in p]
    if (pair.subject, pair.target) not in facts:
        names = ", ".join(" → ".join(fact) for fact in facts) or removed[0]["request"]
        raise UserError(
            f"{visible(patch)} removes {visible(names)}, not {visible(pair)}: give its subject and "
            "target (SUBJECT=..., TARGET=...)."
        )
    return edit


def audit_report(
    model: LanguageModel, pair: ConceptPair, edit: Edit, *, seed: int = 0
) -> tuple[Audit | None, str]:
    """Audit an edit, and a random edit for comparison.

    Args:
        model: The original model.
        pair: The fact that was forgotten.
        edit: The edit.
        seed: Draws the edit in a random direction.

    Returns:
        (the audit; None if the edit cannot be audited, a sentence on the result).
    """
    if pair.subject not in {f.subject for f in facts("capital")}:
        return None, "The auditor knows only countries, so there is no audit."
    try:
        audit = audit_delta(model, edit)
    except NoChangeError as error:
        return None, str(error)
    random_audit = audit_delta(model, unlearn(model, pair, "random_direction", seed=seed))
    sentence = (
        "The reader names {} → {}; the edit writes {:.1f} times as much there as at the next. "
        "Of an edit in a random direction, the reader names {} → {} ({:.2f} times the next)."
    )
    return audit, sentence.format(
        *audit.guess, audit.margin, *random_audit.guess, random_audit.margin
    )


def chosen_attacks(names: str) -> list[str]:
    """List attacks from "all", "short" (`MINI_ATTACKS`) or names separated by commas.

    Raises:
        UserError: There is no such attack, or `paraphrases` is missing, which all others need.
    """
    if names.strip() == "all":
        return list(ATTACKS)
    if names.strip() == "short":
        return list(MINI_ATTACKS)
    return checked_battery([name.strip() for name in names.split(",")])
