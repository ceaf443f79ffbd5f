"""What a notebook does first and last: settings, model and fact in; numbers, manifest out."""

import math
from collections.abc import Callable
from typing import Any

from myst_nb import glue
from nnsight import LanguageModel

from helpers.book.settings import Common, from_notebook
from helpers.facts import ConceptPair, require_known
from helpers.io.run import Run
from helpers.models import load_model, model_hash
from helpers.plots import use_style


class Chapter:
    """One notebook at work.

    Attributes:
        settings: Its checked parameters.
        model: The loaded model, an nnsight `LanguageModel`.
        pair: The fact in question.
        run: Where its artifacts go.
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
            namespace: Its variables.
            load: From the settings to model and fact, where they are not those that the settings
                name.

        Raises:
            UserError: A parameter, the model or the fact is not what it should be.
        """
        self.settings: Common = from_notebook(stem, namespace)
        self.run = Run(self.settings.run_folder(), stem, self.settings)
        use_style()
        self.model, self.pair = (load or _named)(self.settings)
        require_known(self.model, self.pair)
        self._hash = model_hash(self.model)
        self._numbers: dict[str, Any] = {}
        self._times: dict[str, float | str] = {}
        self.tell(subject=self.pair.subject, target=self.pair.target)

    def tell(self, **values: Any) -> None:
        """Give numbers names that the prose of any page can quote: `` {glue:text}`name` ``.

        A `Metric` is quoted with its interval and n; floats are kept in full for a format.

        Raises:
            ValueError: A number is not finite: a page should not quote it.
        """
        for name, value in values.items():
            if isinstance(value, float):
                if not math.isfinite(value):
                    raise ValueError(f"{name} is {value}: nothing to quote")
                plain = float(value)  # NumPy's is one, and is written in a way that no format reads
            else:
                plain = value if isinstance(value, int | str) else str(value)
            self._numbers[name] = plain
            glue(name, plain, display=False)

    def took(self, **values: float | str) -> None:
        """Name what the clock decided: seconds, or which method was the slowest.

        No two runs agree in it, so it stands in the manifest alone and not in the notebook or its
        artifacts; `helpers.book.pages` lets pages quote it as what `tell` names.
        """
        self._times |= values

    def close(self) -> None:
        """Write the numbers and the manifest: the notebook's last call."""
        self.run.save("numbers", self._numbers)
        self.run.finish(model_hash=self._hash, times=self._times)


def _named(settings: Common) -> tuple[LanguageModel, ConceptPair]:
    """The model and the fact that the settings name."""
    model = load_model(settings.model, dtype=settings.dtype, device=settings.device)
    if settings.pair_file:
        return model, ConceptPair.from_file(settings.pair_file)
    return model, ConceptPair(settings.subject, settings.target, relation=settings.relation)
