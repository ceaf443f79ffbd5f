"""Closed-form and surgical edits of the MLPs."""
