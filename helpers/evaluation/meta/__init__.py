"""Meta-evaluation: tests of the metrics and of the verdict on facts whose state is known."""
