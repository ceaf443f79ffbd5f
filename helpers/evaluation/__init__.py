"""Evaluation: forgetting and retention with intervals, attacks, and the verdict."""

from helpers.evaluation.eval_prompts import known_neighbours
from helpers.evaluation.scorecard import Scorecard, evaluate
from helpers.stats.intervals import Metric, bootstrap, bootstrap_by

__all__ = ["Metric", "Scorecard", "bootstrap", "bootstrap_by", "evaluate", "known_neighbours"]
