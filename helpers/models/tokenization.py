"""Text as token ids: what a tokenizer puts before a text stays, what it puts after it does not.

Some tokenizers end every text with their end-of-sequence token (common after fine-tuning). A model
that reads it goes on with another text, so nothing here ever ends with it.
"""

import errno
from collections.abc import Sequence
from pathlib import Path

from helpers.errors import UserError
from helpers.models.files import refusing


def opening(tokenizer) -> list[int]:
    """Ids that the tokenizer puts before every text: mostly its beginning token, or none."""
    coded, own = _coded(tokenizer, "a")
    if own:
        return coded.input_ids[: own.start]
    return coded.input_ids[:1] if coded.input_ids[:1] == [tokenizer.bos_token_id] else []


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of `text`, with the tokenizer's beginning-of-sequence token exactly once.

    Raises:
        UserError: The text is empty.
    """
    coded, own = _coded(tokenizer, text)
    ids = coded.input_ids[: own.stop] if own else opening(tokenizer)
    if not ids:
        raise UserError("An empty prompt cannot be scored: give it at least one word.")
    return ids


def encode_with_places(tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """As `encode`, and where in the text each token stands; (0, 0) for those before it."""
    coded, own = _coded(tokenizer, text, return_offsets_mapping=True)
    return coded.input_ids[: own.stop], coded.offset_mapping[: own.stop]


def _coded(tokenizer, text: str, **options: bool):
    """What the tokenizer makes of a text, and which of the tokens are the text's own."""
    begun = tokenizer.bos_token and text.startswith(tokenizer.bos_token)  # as chat templates do
    coded = tokenizer(text, add_special_tokens=not begun, **options)
    own = [i for i, text_of in enumerate(coded.sequence_ids(0)) if text_of is not None]
    return coded, range(own[0], own[-1] + 1) if own else range(0)


def in_template(tokenizer, messages: Sequence[dict[str, str]], *, answer: bool = False) -> str:
    """A conversation in the tokenizer's chat template; with `answer` the assistant's turn begins.

    Raises:
        UserError: The tokenizer has none, or one that cannot be filled in.
    """
    if not tokenizer.chat_template:
        raise UserError("This model's tokenizer has no chat template: use plain prompts.")
    with refusing("This model's chat template cannot be filled in", "use plain prompts"):
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)


def distinct(asked: Sequence[Sequence[int]]) -> list[bool]:
    """Which answers to count, of token ids: not those that begin with another one's tokens.

    They are part of the other's event; of two that are the same the first counts.
    """
    return [
        not any(
            j != i and list(a[: len(b)]) == list(b) and (len(b) < len(a) or j < i)
            for j, b in enumerate(asked)
        )
        for i, a in enumerate(asked)
    ]


def save_tokenizer(tokenizer, folder: str | Path) -> None:
    """Write the tokenizer's files into a folder.

    Raises:
        OSError: No space is left; the tokenizer's own library says so by a bare `Exception`.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # that library's errors have no kind of their own
        if "No space left" in str(error) or "quota" in str(error).lower():
            raise OSError(errno.ENOSPC, "No space left on device") from error
        raise
