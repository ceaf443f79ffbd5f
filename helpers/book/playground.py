"""One edit by hand: make it, query it beside the original, score it, attack it, save it.

`helpers.book.panel` puts these calls behind buttons, for `notebooks/playground.ipynb`.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnsight import LanguageModel

from helpers.book.common_settings import slug
from helpers.errors import UserError
from helpers.evaluation import evaluate
from helpers.evaluation.battery import battery
from helpers.evaluation.method_choice import editing_methods
from helpers.evaluation.scaling import scale_edit
from helpers.evaluation.scorecard import Scorecard
from helpers.evaluation.tradeoff import MINI_ATTACKS, MINI_OPTIONS, N_CONTROLS
from helpers.evaluation.verdict import Verdict, verdict
from helpers.facts import ConceptPair, Prompt
from helpers.facts.find_fact import find_fact
from helpers.forward.generation import greedy
from helpers.forward.prompts import answer_separator
from helpers.forward.scoring import answer_probability, top_tokens
from helpers.io.choices import check_choice, check_number
from helpers.io.safe_text import visible
from helpers.methods import METHODS, Edit, WeightEdit, unlearn

MIN_SCALE, MAX_SCALE = 0.01, 100.0  # no method is of use beyond these
N_TOP = 6  # answers shown
N_NEW_TOKENS = 12  # of a continuation
N_NEIGHBOURS, N_TOKENS = 8, 2048  # of a scorecard, as small as in a chapter
PATCH = ".safetensors"  # ending of a patch's name


@dataclass(frozen=True)
class Reply:
    """The reply of one model to a prompt.

    Attributes:
        top: The likeliest next tokens with their probabilities.
        continuation: The greedy continuation.
        target: P(target | prompt) of the fact that is edited, summed over the target's aliases;
            None before the first edit.
    """

    top: list[tuple[str, float]]
    continuation: str
    target: float | None = None


class Playground:
    """A model, and one edit of it at a time; the model itself stays as it was loaded.

    Attributes:
        model: The original model.
        seed: Seed of everything random.
        methods: Name of each method that can be chosen → the hyperparameters that it is given.
            Methods that read SAEs are left out if there are no SAEs.
        pair: The fact of the edit; None before the first edit.
        edit: The edit at its scale; None before the first edit.
        scale: Factor of the edit's change.
    """

    def __init__(self, model: LanguageModel, *, saes: Sequence[str] = (), seed: int = 0):
        """Keep the model and list the methods.

        Args:
            model: Any model of a known family.
            saes: Folders of SAEs, for the methods that read some.
            seed: Seed of everything random.

        Raises:
            UserError: A folder holds no SAE.
        """
        families = {entry.family for entry in METHODS.values()}
        self.model, self.seed = model, seed
        self.methods = editing_methods("all", saes, families=tuple(families))
        self.pair: ConceptPair | None = None
        self.edit: Edit | None = None
        self.scale = 1.0
        self._unscaled: Edit | None = None

    def __str__(self) -> str:
        """Return the fact, the method and the scale of the edit."""
        if self.edit is None:
            return "no edit"
        return f"{visible(self.pair)}, {self.edit.method}, scale {self.scale:g}"

    def make(
        self, subject: str, relation: str, *, target: str = "", method: str, scale: float = 1.0
    ) -> Edit:
        """Make the edit that removes a fact; the one before is forgotten.

        Another scale of the same fact and method does not run the method again.

        Args:
            subject: The subject of the fact.
            relation: One of `RELATIONS`.
            target: The answer to forget; empty for the Factbook's.
            method: One of `methods`.
            scale: Factor of the edit's change; 1 is the method's own strength.

        Raises:
            UserError: The Factbook has no such subject, there is no such relation or method, the
                scale is out of range, or the method refuses the fact.

        Warns:
            UserWarning: The model does not know the fact, or the method left much undone.
        """
        subject = subject.strip()
        target = target.strip() or find_fact(subject, relation).target
        pair = ConceptPair(subject, target, relation)
        check_choice("method", method, self.methods)
        check_number("The scale", scale, MIN_SCALE, MAX_SCALE)
        edit = self._unscaled
        if edit is None or (pair, method) != (self.pair, edit.method):
            edit = unlearn(self.model, pair, method, seed=self.seed, **self.methods[method])
        scaled = _at_scale(self.model, edit, scale)
        with scaled.applied(self.model):
            pass  # an edit that cannot be applied is refused here, and the one before stays
        self.pair, self.edit, self.scale, self._unscaled = pair, scaled, scale, edit
        return scaled

    def replies(self, prompt: str) -> dict[str, Reply]:
        """Query the original and the edited model with the same prompt.

        Args:
            prompt: Any text; space around it is left away.

        Returns:
            `original` → its reply and, if there is an edit, `edited` → its reply.

        Raises:
            UserError: The prompt is empty, or longer than the model reads at once.
        """
        text = prompt.strip()
        if not text:
            raise UserError("The prompt is empty: type the beginning of a sentence.")
        replies = {"original": self._reply(text)}
        if self.edit is not None:
            with self.edit.applied(self.model):
                replies["edited"] = self._reply(text)
        return replies

    def scorecard(self, *, n_neighbours: int = N_NEIGHBOURS, n_tokens: int = N_TOKENS) -> Scorecard:
        """Score the edit on held-out prompts, and the original for comparison.

        Args:
            n_neighbours: Number of other subjects that must stay.
            n_tokens: Tokens of each text for perplexity.

        Raises:
            UserError: There is no edit.
        """
        pair, edit = self._made()
        options = {"n_neighbours": n_neighbours, "n_tokens": n_tokens, "seed": self.seed}
        with edit.applied(self.model):
            return evaluate(self.model, pair, **options)

    def short_attacks(self, *, on_start: Callable[[str], None] | None = None) -> Verdict:
        """Attack the edit with `MINI_ATTACKS`, and sum up what they find.

        Args:
            on_start: Called with the name of each attack before it runs.

        Returns:
            The verdict on these attacks. Damage is no part of it, so that it is never *verified*.

        Raises:
            UserError: There is no edit, or there are too few control facts to compare with.
        """
        pair, edit = self._made()
        budget = {"options": MINI_OPTIONS, "n_controls": N_CONTROLS, "seed": self.seed}
        with edit.applied(self.model):
            for name in MINI_ATTACKS:
                if on_start:
                    on_start(name)
                battery(self.model, pair, attacks=[name], **budget)
            # Each attack's scores are cached by now, so all of them together take no time.
            evidence = battery(self.model, pair, attacks=MINI_ATTACKS, **budget)
        return verdict(evidence, required=MINI_ATTACKS)

    def save(self, path: str | Path) -> Path:
        """Write the edit as a patch, which `load_unlearning` and `make verify PATCH=` read.

        Args:
            path: The file; a name without the ending of a patch gets it.

        Returns:
            The file's absolute path.

        Raises:
            UserError: There is no edit, the file exists, or it cannot be written.
        """
        _, edit = self._made()
        try:
            file = Path(path).expanduser().absolute()
            if file.suffix != PATCH:
                file = file.with_name(f"{file.name}{PATCH}")
            taken = file.exists()
        except (OSError, RuntimeError, ValueError):  # too long, another user's, with no name
            raise UserError(f"'{visible(path)}' is no name for a file: choose another.") from None
        if taken:
            raise UserError(f"{visible(file)} exists already: choose another name.")
        edit.save(file)
        return file

    def suggested_path(self) -> str:
        """Return a name for the patch: fact, method and scale."""
        pair, edit = self._made()
        scale = "" if self.scale == 1 else f"-{self.scale:g}"
        return f"{slug(pair.subject)}-{slug(pair.target)}-{slug(edit.method)}{scale}{PATCH}"

    def verify_command(self, path: Path) -> str:
        """Return the command that attacks a saved patch with every attack.

        Args:
            path: The patch.
        """
        pair, _ = self._made()
        values = {"PATCH": path, "SUBJECT": pair.subject, "TARGET": pair.target}
        values["RELATION"] = pair.relation
        return " ".join(["make verify", *(f"{k}={shlex.quote(str(v))}" for k, v in values.items())])

    def _made(self) -> tuple[ConceptPair, Edit]:
        """Return the fact and its edit.

        Raises:
            UserError: There is none yet.
        """
        if self.pair is None or self.edit is None:
            raise UserError("There is no edit yet: make one first.")
        return self.pair, self.edit

    def _reply(self, text: str) -> Reply:
        """Query the model as it is now."""
        top = top_tokens(self.model, [text], N_TOP)[0]
        (continuation,) = greedy(self.model, [text], max_new_tokens=N_NEW_TOKENS)
        if self.pair is None:
            return Reply(top, continuation)
        separator = answer_separator(text)
        names = (self.pair.target, *self.pair.aliases)
        query = Prompt(text, subject="", answers=tuple(f"{separator}{name}" for name in names))
        return Reply(top, continuation, float(answer_probability(self.model, [query])[0]))


def _at_scale(model: LanguageModel, edit: Edit, scale: float) -> Edit:
    """Scale an edit's change, and note the scale for the file.

    Raises:
        UserError: The edit is an intervention, which has no change of weights to scale.
    """
    if scale == 1:
        return edit
    if not edit.changes_weights:
        raise UserError(
            f"'{edit.method}' changes no weights, so there is nothing to scale: set the scale to 1."
        )
    delta = scale_edit(model, edit, scale).delta
    notes = {**delta.notes, "scale": scale}
    return replace(edit, delta=WeightEdit(delta.changes, delta.edited_tensors_hash, notes))
