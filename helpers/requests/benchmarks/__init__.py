"""Readers of the benchmarks' files, one module each: from files to a request.

The files are the user's own copies, as JSON arrays or JSON lines (MUSE's and WMDP's corpora as
plain text too). A field that a reader looks for is named in its docstring. Files of many concepts
have a reader in `CONCEPT_READERS`, which gets the concept to forget as well.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from helpers.requests.benchmarks import (
    counterfact,
    ember,
    lume,
    mquake,
    muse,
    ripple_edits,
    rwku,
    tofu,
    wmdp,
    zsre,
)
from helpers.requests.request import FactsRequest, TextRequest

READERS: dict[str, Callable[[Sequence[Path]], FactsRequest | TextRequest]] = {
    "counterfact": counterfact.read,
    "lume": lume.read,
    "mquake": mquake.read,
    "muse": muse.read,
    "rippleedits": ripple_edits.read,
    "rwku": rwku.read,
    "tofu": tofu.read,
    "wmdp": wmdp.read,
    "zsre": zsre.read,
}

CONCEPT_READERS: dict[str, Callable[[Sequence[Path], str], TextRequest]] = {"ember": ember.read}
