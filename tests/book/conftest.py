"""The fixture of the pipeline's tests."""

from fake_project import project  # noqa: F401
