"""What an unlearning removed and what it cost."""

from helpers.evaluation.bootstrap import Metric, bootstrap, bootstrap_by

__all__ = ["Metric", "bootstrap", "bootstrap_by"]
