"""Figures of the book: style in `base`, one module for each chapter."""
