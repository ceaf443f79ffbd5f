"""How long the fuzzers run: a few seconds in the suite, the same inputs each time; longer by hand.

FUZZ_SECONDS=90 .venv/bin/python -m pytest -k fuzz
"""

import os

from hypothesis import HealthCheck, settings

SECONDS = float(os.environ.get("FUZZ_SECONDS", 0))


def fuzz(*, per_second: float, seconds: float = 2.0) -> settings:
    """Hypothesis's settings for a test that tries so many inputs a second.

    Args:
        per_second: Inputs that the test gets through in a second.
        seconds: How long it runs in the suite; `$FUZZ_SECONDS` says how long by hand, with inputs
            that are drawn anew.
    """
    return settings(
        max_examples=max(1, int(per_second * (SECONDS or seconds))),
        derandomize=not SECONDS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
