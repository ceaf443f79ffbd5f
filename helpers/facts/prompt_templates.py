"""Filling templates: from a template, a subject and its answers to a prompt."""

from collections.abc import Sequence
from dataclasses import replace

from helpers.facts.relations import Template
from helpers.forward.prompts import CharSpan, Prompt, answer_separator


def render_prompt(
    template: Template,
    *,
    subject: str,
    subject_in_text: str,
    names: Sequence[str],
    relation: str,
    split: str,
    examples: Sequence[tuple[str, str]] = (),
) -> Prompt:
    """Fill a template and note where the subject stands in the text.

    Args:
        template: The template.
        subject: The subject's name.
        subject_in_text: The name as it stands inside a sentence, with its article if it has one.
        names: The target and its aliases.
        relation: Name of the relation.
        split: Name of the split.
        examples: (subject, answer) of the lines above the last one in a list.
    """
    answers = tuple(f" {name}" for name in names)
    labels = Prompt("", subject=subject, answers=answers, relation=relation, split=split)
    if template.format == "chat":
        user, user_span = fill_slots(template.text, subject_in_text, subject)
        assistant, assistant_span = fill_slots(template.prefix, subject_in_text, subject)
        prompt = replace(labels, format="chat", messages=(user, assistant))
        # The assistant's words end the plain form, and the user's stand earlier in it.
        in_assistant = len(prompt.text) - len(assistant)
        offset = in_assistant if assistant_span else prompt.text.index(user)
        return replace(prompt, slot=_shifted(assistant_span or user_span, offset))
    if template.format == "list":
        heading, line = template.text.rsplit("\n", 1)
        lines = [line.format(name) + answer for name, answer in examples]
        last_line, span = fill_slots(line, subject, subject)
        text = "\n".join([heading, *lines, last_line])
        slot = _shifted(span, len(text) - len(last_line))
        return replace(labels, format="list", text=text, slot=slot)
    text, slot = fill_slots(template.text, subject_in_text, subject)
    separator = answer_separator(text)
    answers = tuple(f"{separator}{name}" for name in names)
    return replace(labels, format=template.format, text=text, answers=answers, slot=slot)


def fill_slots(template: str, name: str, subject: str) -> tuple[str, CharSpan | None]:
    """Put a name into the slots of a template.

    The name stands as it is given; an article that begins the text gets a capital.

    Args:
        template: A text with `{}` for the subject.
        name: The name, which ends in `subject`.
        subject: The name without its article.

    Returns:
        The text, and where `subject` stands in its last slot; None without a slot.
    """
    before, slot, after = template.rpartition("{}")
    if not slot:
        return template, None
    text = f"{before.replace('{}', name)}{name}{after}"
    if template.startswith("{}") and name.startswith("the "):
        text = f"T{text[1:]}"
    end = len(text) - len(after)
    return text, (end - len(subject), end)


def with_answer(prompt: Prompt) -> str:
    """Return the prompt's text followed by its main answer."""
    return f"{prompt}{prompt.answers[0]}"


def _shifted(span: CharSpan | None, offset: int) -> CharSpan | None:
    return span and (span[0] + offset, span[1] + offset)
