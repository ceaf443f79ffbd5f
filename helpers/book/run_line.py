"""The line under a chapter's opening that says with which model, fact and parameters it was run."""

from collections.abc import Mapping
from typing import Any

from helpers.book.settings import NOTEBOOKS
from helpers.io.safe_text import escape_markdown, inline_code, visible

MAX_VALUE = 60  # characters of a parameter's value; the folded cell below has all of it
NAMED = ("model", "subject", "target", "profile", "seed")  # shown whatever their values are
LEFT_OUT = (*NAMED, "run")


def run_line(stem: str, settings: Mapping[str, Any], *, subject: str, target: str) -> str:
    """Write `Run with: …` in Markdown: model, fact, profile, seed and what is not the default.

    Args:
        stem: The notebook's name.
        settings: Its parameters, without folders of the machine.
        subject: Subject of the fact, which a pair file may have set.
        target: Its target.
    """
    chapter = NOTEBOOKS[stem]
    model = "organisms trained here" if chapter.trains_own_model else settings.get("model", "")
    shown = [
        escape_markdown(model),
        f"{escape_markdown(subject)} → {escape_markdown(target)}",
        f"profile {escape_markdown(settings.get('profile', ''))}",
        f"seed {escape_markdown(settings.get('seed', ''))}",
    ]
    defaults = {name: field.default for name, field in chapter.model_fields.items()}
    shown += [
        inline_code(f"{name} = {_short(value)}")
        for name, value in settings.items()
        if name not in LEFT_OUT and name in defaults and value != defaults[name]
    ]
    return f"*Run with: {' · '.join(shown)}*"


def _short(value: Any) -> str:
    """Shorten a value's text; an empty one is `none`."""
    text = visible(value) or "none"
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 1]}…"
