"""A bar that shows how far a loop is, where a person watches."""

import os
import sys


def bar(what: str, total: int):
    """A tqdm bar where a person watches: on a terminal, or in JupyterLab outside of a run.

    Args:
        what: What is counted.
        total: How many there will be.
    """
    from tqdm.auto import tqdm

    lab = "JPY_SESSION_NAME" in os.environ and "UNLEARNING_PLAN" not in os.environ
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(total=total, desc=what, leave=False, disable=not (lab or terminal))
