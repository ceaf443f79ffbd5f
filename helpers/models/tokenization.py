"""Text as token ids: the tokenizer's beginning token stays, an end token after the text does not.

Some tokenizers end every text with their end-of-sequence token (common after fine-tuning). A model
that reads it starts another text, so no sequence here ever ends with it.
"""

import errno
from collections.abc import Sequence
from pathlib import Path

from helpers.errors import UserError
from helpers.models.files import refusing


def opening(tokenizer) -> list[int]:
    """Return the ids that the tokenizer puts before every text: its beginning token, or none."""
    encoding, text_tokens = _encoded(tokenizer, "a")
    if text_tokens:
        return encoding.input_ids[: text_tokens.start]
    first = encoding.input_ids[:1]
    return first if first == [tokenizer.bos_token_id] else []


def encode(tokenizer, text: str) -> list[int]:
    """Return the token ids of `text`, with the tokenizer's beginning token exactly once.

    Raises:
        UserError: The text is empty.
    """
    encoding, text_tokens = _encoded(tokenizer, text)
    ids = encoding.input_ids[: text_tokens.stop] if text_tokens else opening(tokenizer)
    if not ids:
        raise UserError("An empty prompt cannot be scored: give it at least one word.")
    return ids


def encode_with_offsets(tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the ids of `encode`, and each token's [start, end) in the text.

    Tokens before the text have (0, 0).
    """
    encoding, text_tokens = _encoded(tokenizer, text, return_offsets_mapping=True)
    return encoding.input_ids[: text_tokens.stop], encoding.offset_mapping[: text_tokens.stop]


def _encoded(tokenizer, text: str, *, return_offsets_mapping: bool = False):
    """Return the tokenizer's output for a text, and the range of tokens that are the text's own."""
    # Chat templates write the beginning token into the text: it is not added once more.
    has_bos = tokenizer.bos_token and text.startswith(tokenizer.bos_token)
    encoding = tokenizer(
        text, add_special_tokens=not has_bos, return_offsets_mapping=return_offsets_mapping
    )
    inside = [i for i, text_index in enumerate(encoding.sequence_ids(0)) if text_index is not None]
    return encoding, range(inside[0], inside[-1] + 1) if inside else range(0)


def apply_chat_template(
    tokenizer, messages: Sequence[dict[str, str]], *, assistant_prefix: str | None = None
) -> str:
    """Put a conversation into the tokenizer's chat template.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Turns, each with its `role` and `content`.
        assistant_prefix: Beginning of the assistant's next turn, which may be empty; without it the
            conversation is complete.

    Raises:
        UserError: The tokenizer has no template, or one that cannot be filled in.
    """
    if not tokenizer.chat_template:
        raise UserError("This model's tokenizer has no chat template: use plain prompts.")
    with refusing("This model's chat template cannot be filled in", "use plain prompts"):
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=assistant_prefix is not None
        )
    return text + (assistant_prefix or "")


def distinct(answers: Sequence[Sequence[int]]) -> list[bool]:
    """Return which answers, given as token ids, are events of their own.

    An answer that begins with another one's tokens is part of the other's event; of two equal ones
    the first counts.
    """
    return [
        not any(
            j != i and list(a[: len(b)]) == list(b) and (len(b) < len(a) or j < i)
            for j, b in enumerate(answers)
        )
        for i, a in enumerate(answers)
    ]


def save_tokenizer(tokenizer, folder: str | Path) -> None:
    """Write the tokenizer's files into a folder.

    Raises:
        OSError: No space is left; the tokenizer's own library reports it by a bare `Exception`.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # that library's errors have no kind of their own
        if "No space left" in str(error) or "quota" in str(error).lower():
            raise OSError(errno.ENOSPC, "No space left on device") from error
        raise
