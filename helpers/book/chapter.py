"""A notebook's first and last calls: read settings, model and fact; write numbers and manifest."""

import math
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from myst_nb import glue
from nnsight import LanguageModel

from helpers.book.settings import Common, from_notebook
from helpers.errors import UserError
from helpers.facts import ConceptPair, require_known
from helpers.io.run import Run
from helpers.io.safe_text import visible
from helpers.models import load_model, model_hash
from helpers.plots.base import use_style

NOT_MEASURED = "–"  # stands in prose for a number that a run did not measure


def format_number(value: float | None, spec: str = ".3f") -> str:
    """Format a number for prose that also has to read well in a run without it.

    Args:
        value: The number; None or NaN if it was not measured.
        spec: Its format.
    """
    return NOT_MEASURED if value is None or math.isnan(value) else format(value, spec)


def require_edits(results: pd.DataFrame) -> None:
    """Stop a chapter that compares methods, where none of them made an edit.

    Args:
        results: One row a method, or a method and fact: family, score (NaN without an edit), and
            refused (the reason in words, or how many were).

    Raises:
        UserError: Every method refused every fact, controls aside.
    """
    methods = results[results["family"] != "control"]
    if methods["score"].isna().all():
        reasons = [why for why in methods.get("refused", []) if why and isinstance(why, str)]
        raise UserError(
            "No method made an edit of these facts, so there is nothing to compare: name other "
            f"methods or another fact. {visible(' '.join(reasons[:1]))}".rstrip()
        )


class Chapter:
    """The run of one notebook.

    Attributes:
        settings: Its checked parameters.
        model: The loaded model, an nnsight `LanguageModel`.
        pair: The fact that the run unlearns.
        run: Writes and reads artifacts of the run folder.
    """

    def __init__(
        self,
        stem: str,
        namespace: dict[str, Any],
        *,
        load: Callable[[Any], tuple[LanguageModel, ConceptPair]] | None = None,
    ):
        """Open notebook `stem`; call as `Chapter("02_propagation", globals())`.

        Args:
            stem: The notebook's name.
            namespace: The notebook's variables.
            load: Load the model and the fact from the settings; by default those that the settings
                name.

        Raises:
            UserError: A parameter, the model or the fact is invalid.
        """
        self.settings: Common = from_notebook(stem, namespace)
        self.run = Run(self.settings.run_folder(), stem, self.settings)
        use_style()
        self.model, self.pair = (load or _load_named)(self.settings)
        require_known(self.model, self.pair)
        self._hash = model_hash(self.model)
        self._numbers: dict[str, Any] = {}
        self._times: dict[str, float | str] = {}
        self.glue(subject=self.pair.subject, target=self.pair.target)

    def glue(self, **values: Any) -> None:
        """Give values names that the prose of any page can quote: `` {glue:text}`name` ``.

        A `Metric` becomes text with its interval and n. A float keeps all digits, so that the page
        can format it.

        Raises:
            ValueError: A number is not finite: a page should not quote it.
        """
        for name, value in values.items():
            if isinstance(value, float):
                if not math.isfinite(value):
                    raise ValueError(f"{name} is {value}: nothing to quote")
                plain: float | int | str = float(
                    value
                )  # a NumPy float has a repr that MyST cannot format
            else:
                plain = value if isinstance(value, int | str) else str(value)
            self._numbers[name] = plain
            glue(name, plain, display=False)

    def glue_times(self, **values: float | str) -> None:
        """Give names to values that the clock decided: seconds, or the slowest method.

        They differ between equal runs, so they stand in the manifest alone, neither in the notebook
        nor in its artifacts. `helpers.book.pages` adds them to the page, where prose quotes them
        like values of `glue`.
        """
        self._times |= values

    def save_picture(self, name: str, figure: Figure) -> None:
        """Write a figure as an SVG that a page of prose shows: `/pictures/<stem>/<name>.svg`.

        It is closed, so that the notebook does not show it too.
        """
        figure.savefig(self.run.path(f"{name}.svg"), metadata={"Date": None})
        plt.close(figure)

    def finish(self) -> None:
        """Write the numbers and the manifest; the last call of a notebook."""
        self.run.save("numbers", self._numbers)
        self.run.finish(model_hash=self._hash, times=self._times)


def _load_named(settings: Common) -> tuple[LanguageModel, ConceptPair]:
    """Load the model and the fact that the settings name."""
    model = load_model(settings.model, dtype=settings.dtype, device=settings.device)
    if settings.pair_file:
        return model, ConceptPair.from_file(settings.pair_file)
    return model, ConceptPair(settings.subject, settings.target, relation=settings.relation)
