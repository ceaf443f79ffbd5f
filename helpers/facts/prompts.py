"""A prompt is text that knows its subject and its answers."""

from helpers.errors import UserError
from helpers.models import chat
from helpers.scoring import encode


class Prompt(str):
    """The text to be continued, with what a score needs to know about it.

    A chat prompt is, as a string, its plain form ("User: … Assistant: …"); `render` puts it into
    the chat template of a tokenizer that has one.

    Attributes:
        subject: The subject's name as it stands in the text.
        answers: What may follow, each with its leading space; the first is the main one.
        relation: Name of the relation.
        split: `train`, `dev`, `heldout`, or empty.
        format: `completion`, `question`, `chat`, `list`, `few_shot` or `reverse`.
        messages: (user's turn, beginning of the assistant's), or None.
    """

    subject: str
    answers: tuple[str, ...]
    relation: str
    split: str
    format: str
    messages: tuple[str, str] | None

    def __new__(
        cls,
        text: str,
        *,
        subject: str = "",
        answers: tuple[str, ...] = (),
        relation: str = "",
        split: str = "",
        format: str = "completion",
        messages: tuple[str, str] | None = None,
    ) -> "Prompt":
        """Make a prompt; `text` is ignored in favour of the plain form when `messages` is given."""
        if messages is not None:
            text = f"User: {messages[0]}\nAssistant: {messages[1]}"
        prompt = super().__new__(cls, text)
        prompt.subject, prompt.answers, prompt.relation = subject, tuple(answers), relation
        prompt.split, prompt.format, prompt.messages = split, format, messages
        return prompt

    def but(self, text: str) -> "Prompt":
        """Another text with the same subject, answers, relation, split and format."""
        return Prompt(
            text,
            subject=self.subject,
            answers=self.answers,
            relation=self.relation,
            split=self.split,
            format=self.format,
        )

    def render(self, tokenizer) -> str:
        """What the model sees: the chat template's text where both sides have a chat form."""
        if self.messages is None or not tokenizer.chat_template:
            return str(self)
        return chat(tokenizer, *self.messages)


def render(prompt: Prompt, tokenizer) -> str:
    """`prompt.render(tokenizer)`, for plain strings too."""
    return prompt.render(tokenizer) if isinstance(prompt, Prompt) else str(prompt)


def subject_span(prompt: Prompt, tokenizer) -> tuple[int, int]:
    """Token positions [start, end) of the last mention of the subject in the rendered prompt.

    Raises:
        UserError: The prompt does not name its subject.
    """
    text = render(prompt, tokenizer)
    start = text.rfind(prompt.subject) if prompt.subject else -1
    if start < 0:
        raise UserError(f"The prompt '{prompt}' does not contain its subject '{prompt.subject}'.")
    end = start + len(prompt.subject)
    special = len(encode(tokenizer, text)) == len(tokenizer(text).input_ids)
    offsets = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    inside = [
        i for i, (a, b) in enumerate(offsets["offset_mapping"]) if a < end and b > start and b > a
    ]
    return inside[0], inside[-1] + 1
