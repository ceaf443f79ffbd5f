"""What the landing page tells people to type works."""

import re
from pathlib import Path

from matplotlib.figure import Figure

PAGE = Path(__file__).parents[1] / "book" / "intro.md"


def test_the_example_makes_a_figure():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    *first, last = code.strip().splitlines()
    names: dict = {}
    exec("\n".join(first), names)
    figure = eval(last, names)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 2 and all(axis.lines for axis in figure.axes)
