"""What an unlearning removed and what it cost, each number with its interval."""

from helpers.evaluation.bootstrap import Metric, bootstrap, bootstrap_by
from helpers.evaluation.questions import known_neighbours
from helpers.evaluation.scorecard import Scorecard, evaluate

__all__ = ["Metric", "Scorecard", "bootstrap", "bootstrap_by", "evaluate", "known_neighbours"]
