"""The machinery of the book: settings, pipeline, steps and pages."""
