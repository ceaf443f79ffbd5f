"""The library that the notebooks share: facts, models, tracing, edits, scores, and the pipeline."""
