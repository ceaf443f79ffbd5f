"""A progress bar for loops that a person watches."""

import os
import sys


def bar(unit: str, total: int):
    """Make a tqdm bar, shown only on a terminal, or in JupyterLab outside of a run.

    Args:
        unit: Name of the things that are counted.
        total: Their number.
    """
    # Imported on use: in notebooks it starts the widgets.
    from tqdm.auto import tqdm

    lab = "JPY_SESSION_NAME" in os.environ and "UNLEARNING_PLAN" not in os.environ
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(total=total, desc=unit, leave=False, disable=not (lab or terminal))
