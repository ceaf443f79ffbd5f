"""The panel of `notebooks/playground.ipynb`: fields, buttons and tables around a `Playground`."""

import warnings
from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets
import pandas as pd

from helpers.book.common_settings import ROOT
from helpers.book.playground import MAX_SCALE, MIN_SCALE, Playground, Reply
from helpers.book.tables import styled
from helpers.errors import UserError
from helpers.evaluation.meta.verdict_accuracy import predicted_state
from helpers.evaluation.tradeoff import MINI_ATTACKS
from helpers.facts import RELATIONS, ConceptPair, facts
from helpers.facts.find_fact import find_fact
from helpers.io.safe_text import escape_html, visible
from helpers.methods.unlearning import DEFAULT_METHODS

FINDING_COLUMNS = ["attack", "recovery", "low", "high", "n", "max_control", "finding"]
WIDE = widgets.Layout(width="42em")
COLUMN = widgets.Layout(width="28em", overflow="auto")


class Panel:
    """Widgets that call a `Playground`; what goes wrong is a sentence in `status`.

    Attributes:
        playground: What the buttons act on.
        subject: Field of the subject.
        relation: Menu of the relations.
        target: Field of the answer to forget; empty for the Factbook's.
        method: Menu of the methods.
        scale: Field of the edit's scale.
        make: Button that makes the edit.
        status: The sentence about the last click.
        prompt: Field of the prompt; empty for the one that it shows in grey.
        query: Button that queries both models.
        original: Reply of the original model.
        edited: Reply of the edited model.
        score: Button that fills `card`.
        card: The scorecard.
        attack: Button that runs the short attacks.
        progress: Number of attacks that are done.
        findings: What the attacks found.
        path: Field of the patch's path; empty for the one that it shows in grey.
        save: Button that writes the patch.
        log: Bars of trainings, and errors of the code itself.
        box: All of them, to be shown by a notebook.
    """

    def __init__(
        self, playground: Playground, *, subject: str = "France", relation: str = "capital"
    ):
        """Build the widgets.

        Args:
            playground: What the buttons act on.
            subject: The first value of its field.
            relation: The first value of its menu.

        Raises:
            UserError: There is no such relation, or the Factbook has no such subject.
        """
        self.playground = playground
        first_prompt = _statement(ConceptPair.of(find_fact(subject, relation)))
        subjects = sorted({f.subject for name in RELATIONS for f in facts(name)})
        self.subject = widgets.Combobox(value=subject, options=subjects, description="Subject")
        self.relation = widgets.Dropdown(
            value=relation, options=list(RELATIONS), description="Relation"
        )
        self.target = widgets.Text(placeholder="the Factbook's", description="Target")
        self.method = widgets.Dropdown(
            value=DEFAULT_METHODS["pair"], options=list(playground.methods), description="Method"
        )
        self.scale = widgets.FloatText(
            value=1.0,
            step=0.25,
            description="Scale",
            tooltip=f"{MIN_SCALE:g} to {MAX_SCALE:g}; 1 is the method's own strength",
        )
        self.make = self._button("Make the edit", self._make, "Making the edit …")
        self.status = widgets.HTML()
        self.prompt = widgets.Text(placeholder=first_prompt, description="Prompt", layout=WIDE)
        self.query = self._button("Query both", self._query, "Querying both models …")
        self.original, self.edited = widgets.HTML(layout=COLUMN), widgets.HTML(layout=COLUMN)
        self.score = self._button("Scorecard", self._score, "Scoring …")
        self.card = widgets.HTML()
        self.attack = self._button("Short attacks", self._attack, "Attacking …")
        self.progress = widgets.IntProgress(max=len(MINI_ATTACKS), layout=WIDE)
        self.progress.style.description_width = "14em"
        self.findings = widgets.HTML()
        self.path = widgets.Text(description="File", layout=WIDE)
        self.save = self._button("Save the patch", self._save, "Writing the file …")
        self.log = widgets.Output()
        rows = [
            [self.subject, self.relation, self.target],
            [self.method, self.scale, self.make],
            [self.status],
            [self.prompt, self.query],
            [self.original, self.edited],
            [self.score],
            [self.card],
            [self.attack, self.progress],
            [self.findings],
            [self.path, self.save],
            [self.log],
        ]
        wrap = widgets.Layout(flex_flow="row wrap")  # a narrow window shows fewer side by side
        self.box = widgets.VBox(
            [row[0] if len(row) == 1 else widgets.HBox(row, layout=wrap) for row in rows]
        )

    def _button(self, text: str, action: Callable[[], str], doing: str) -> widgets.Button:
        """Make a button.

        Args:
            text: The words on it.
            action: Called by a click; returns a sentence on what was done.
            doing: The sentence meanwhile.
        """
        button = widgets.Button(description=text)
        button.on_click(lambda _: self._run(action, doing))
        return button

    def _run(self, action: Callable[[], str], doing: str) -> None:
        """Do what a button does, and say how it went."""
        self._say(doing)
        self._set_disabled(True)
        self.log.outputs = ()
        # The log shows an unexpected error with its traceback, and then goes on below it.
        sentence, is_error = "An error of the code itself stopped this: it stands below.", True
        try:
            with self.log, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")  # the same warning may be due at every click
                try:
                    sentence, is_error = action(), False
                except UserError as error:
                    sentence = str(error)
                except KeyboardInterrupt:  # the way to stop a training of minutes
                    sentence = "It was interrupted, and nothing was changed."
                sentence = " ".join([sentence, *_own_sentences(caught)])
        finally:
            self._set_disabled(False)
            self._say(sentence, is_error=is_error)

    def _say(self, sentence: str, *, is_error: bool = False) -> None:
        """Show a sentence; that of an error is marked by a word and by a colour."""
        mark = '<b style="color: #b00020">Not done:</b> ' if is_error else ""
        self.status.value = f'<p role="status">{mark}{escape_html(sentence)}</p>'

    def _set_disabled(self, disabled: bool) -> None:
        """Let buttons wait for the one that was clicked."""
        for button in (self.make, self.query, self.score, self.attack, self.save):
            button.disabled = disabled

    def _make(self) -> str:
        edit = self.playground.make(
            self.subject.value,
            self.relation.value,
            target=self.target.value,
            method=self.method.value,
            scale=self.scale.value,
        )
        # Both tables were about the edit before.
        self.card.value = self.findings.value = ""
        self.progress.value, self.progress.description = 0, ""
        if self.playground.pair is not None:
            self.prompt.placeholder = _statement(self.playground.pair)
        self.path.placeholder = self.playground.suggested_path()
        self._query()
        return f"The edit ({self.playground}) is made; the method took {edit.seconds:.1f} s."

    def _query(self) -> str:
        replies = self.playground.replies(_value(self.prompt))
        self.original.value = _column("Original", replies["original"])
        self.edited.value = ""
        if "edited" in replies:
            self.edited.value = _column(f"Edited: {self.playground}", replies["edited"])
            return "Both models replied to the prompt."
        return "The original replied to the prompt; there is no edit yet."

    def _score(self) -> str:
        card = self.playground.scorecard()
        self.card.value = _table(card.table())
        return f"The scorecard of {self.playground}."

    def _attack(self) -> str:
        self.progress.value = 0

        def show_start(name: str) -> None:
            self.progress.value = MINI_ATTACKS.index(name)
            self.progress.description = name

        conclusion = self.playground.short_attacks(on_start=show_start)
        self.progress.value, self.progress.description = self.progress.max, "done"
        state = predicted_state(conclusion)
        self.findings.value = (
            f"<p>By these attacks the fact is: <b>{escape_html(state)}</b>.</p>"
            f"{_table(conclusion.attacks[FINDING_COLUMNS])}"
        )
        return f"The short attacks on {self.playground}."

    def _save(self) -> str:
        file = self.playground.save(_value(self.path))
        command = self.playground.verify_command(file)
        return f"Saved. From the repository's root, all attacks on it: {command}"


def _value(field: widgets.Text) -> str:
    """Return the text of a field, or the one that it shows in grey."""
    return field.value.strip() or field.placeholder


def _statement(pair: ConceptPair) -> str:
    """Return a held-out prompt of a fact."""
    return str(pair.statements("heldout")[0])


def _own_sentences(caught: list[warnings.WarningMessage]) -> list[str]:
    """Return the texts of the suite's own warnings; other libraries' are for their authors."""
    own = (w for w in caught if Path(w.filename).resolve().is_relative_to(ROOT / "helpers"))
    return list(dict.fromkeys(str(w.message) for w in own if w.category is UserWarning))


def _column(title: str, reply: Reply) -> str:
    """Write a model's reply as HTML."""
    rows = [(visible(token), p) for token, p in reply.top]
    target = "" if reply.target is None else f"<p>P(target) = {reply.target:.4f}</p>"
    return (
        f"<b>{escape_html(title)}</b>{_table(pd.DataFrame(rows, columns=['next', 'P']))}"
        f"{target}<p>… {escape_html(reply.continuation)}</p>"
    )


def _table(table: pd.DataFrame) -> str:
    """Write a table as HTML, with its text escaped."""
    return str(styled(table, precision=4, na_rep="", index=False)._repr_html_())
