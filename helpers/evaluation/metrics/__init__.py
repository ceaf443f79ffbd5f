"""Metrics of one model: on text, on answers, and inside the model."""
