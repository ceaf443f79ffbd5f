"""Evaluation: forgetting and retention with intervals, attacks, and the verdict."""

from helpers.evaluation.eval_prompts import known_neighbours
from helpers.evaluation.front_door import evaluate
from helpers.evaluation.scorecard import Scorecard
from helpers.stats.intervals import Metric, mean_interval, mean_interval_by

__all__ = [
    "Metric",
    "Scorecard",
    "evaluate",
    "known_neighbours",
    "mean_interval",
    "mean_interval_by",
]
