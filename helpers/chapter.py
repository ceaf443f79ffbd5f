"""What a notebook does first and last: settings, model and fact in; numbers, manifest out."""

import math
from typing import Any

from myst_nb import glue

from helpers.artifacts import Run
from helpers.facts import ConceptPair, require_known
from helpers.models import load_model, model_hash
from helpers.plots import use_style
from helpers.settings import Common, from_notebook


class Chapter:
    """One notebook at work.

    Attributes:
        settings: Its checked parameters.
        model: The loaded model, an nnsight `LanguageModel`.
        pair: The fact in question.
        run: Where its artifacts go.
    """

    def __init__(self, stem: str, namespace: dict[str, Any]):
        """Open notebook `stem`; call as `Chapter("02_propagation", globals())`.

        Raises:
            UserError: A parameter, the model or the fact is not what it should be.
        """
        self.settings: Common = from_notebook(stem, namespace)
        self.run = Run(self.settings.run_folder(), stem, self.settings)
        use_style()
        s = self.settings
        self.model = load_model(s.model, dtype=s.dtype, device=s.device)
        if s.pair_file:
            self.pair = ConceptPair.from_file(s.pair_file)
        else:
            self.pair = ConceptPair(s.subject, s.target, relation=s.relation)
        require_known(self.model, self.pair)
        self._hash = model_hash(self.model)
        self._numbers: dict[str, Any] = {}
        self.tell(subject=self.pair.subject, target=self.pair.target)

    def tell(self, **values: Any) -> None:
        """Give numbers names that the prose of any page can quote: `` {glue:text}`name` ``.

        A `Metric` is quoted with its interval and n; floats are kept in full for a format.

        Raises:
            ValueError: A number is not finite: a page should not quote it.
        """
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}: nothing to quote")
            plain = value if isinstance(value, int | float | str) else str(value)
            self._numbers[name] = plain
            glue(name, plain, display=False)

    def close(self) -> None:
        """Write the numbers and the manifest: the notebook's last call."""
        self.run.save("numbers", self._numbers)
        self.run.finish(model_hash=self._hash)
