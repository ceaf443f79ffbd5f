"""Read the answer inside the model by a linear probe.

Probes are reported, and no verdict rests on them. A map that is learned from other countries' names
and capitals can tell a capital from a name, known or not: it ranks the answer of subjects of which
the model knows nothing about as high as that of those it knows (chapter 09, "Which zero?").
"""

import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import (
    AttackKind,
    AttackNotApplicableError,
    attack,
    require_own_tokens,
)
from helpers.evaluation.metrics.linear_probe import linear_probe
from helpers.facts import ConceptPair
from helpers.forward.activations import Position


@attack(
    "probe",
    budget="layer",
    aggregate_budgets=True,
    by_rank=True,
    kind=AttackKind.ACTIVATIONS,
    counts_for_verdict=False,
)
def probe(model: LanguageModel, pair: ConceptPair, *, seed: int = 0) -> pd.DataFrame:
    """Rank the target by a linear probe of the last token's activations (`linear_probe`).

    The probe is trained on other subjects' facts; 1 is first, 0.5 is chance.
    """
    return _probe_ranks(model, pair, "last", seed)


@attack(
    "probe_subject",
    budget="layer",
    aggregate_budgets=True,
    by_rank=True,
    kind=AttackKind.ACTIVATIONS,
    counts_for_verdict=False,
)
def probe_subject(model: LanguageModel, pair: ConceptPair, *, seed: int = 0) -> pd.DataFrame:
    """Rank the target by a linear probe of the subject's last token."""
    return _probe_ranks(model, pair, "subject", seed)


def _probe_ranks(
    model: LanguageModel, pair: ConceptPair, position: Position, seed: int
) -> pd.DataFrame:
    require_own_tokens(model)
    try:
        table = linear_probe(model, pair, position=position, seed=seed)
    except UserError as error:
        raise AttackNotApplicableError(str(error)) from error
    return table.rename(columns={"layer": "budget"})[["budget", "prompt", "score"]]
