"""A prompt is text that knows its subject and its answers."""

from helpers.errors import UserError
from helpers.io.safe_text import is_unspaced, mention, visible
from helpers.models import chat
from helpers.models.tokenization import encode

OPENING = "([{<“„«‹‘「『《〈（【"  # marks after which a word follows without a space
EITHER = "\"'*_`"  # they open where nothing stands right before them, and close elsewhere
Slot = tuple[int, int]
"""Where the subject stands: its first character and the one after its last."""


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
        slot: Where the subject was put, in the plain form; the last place where there are several.
            None: not known, then its last mention as a word of its own counts.
    """

    subject: str
    answers: tuple[str, ...]
    relation: str
    split: str
    format: str
    messages: tuple[str, str] | None
    slot: Slot | None

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
        slot: Slot | None = None,
    ) -> "Prompt":
        """Make a prompt; `text` is ignored in favour of the plain form when `messages` is given."""
        if messages is not None:
            text = f"User: {messages[0]}\nAssistant: {messages[1]}"
        prompt = super().__new__(cls, text)
        prompt.subject, prompt.answers, prompt.relation = subject, tuple(answers), relation
        prompt.split, prompt.format, prompt.messages = split, format, messages
        prompt.slot = slot
        return prompt

    def but(self, text: str) -> "Prompt":
        """Another text with the same subject, answers, relation, split and format.

        Where the text holds this one the subject stays where it is in it.
        """
        at = text.rfind(self)
        moved = None if self.slot is None or at < 0 else (self.slot[0] + at, self.slot[1] + at)
        return Prompt(
            text,
            subject=self.subject,
            answers=self.answers,
            relation=self.relation,
            split=self.split,
            format=self.format,
            slot=moved,
        )

    def place(self) -> Slot:
        """Where the subject stands in the plain form.

        Raises:
            UserError: The prompt does not name its subject.
        """
        if self.slot is not None:
            return self.slot
        found = list(mention(self.subject).finditer(self)) if self.subject else []
        if not found:
            raise UserError(
                f"The prompt '{visible(self)}' does not contain its subject "
                f"'{visible(self.subject)}'."
            )
        return found[-1].span()

    def without_subject(self) -> str:
        """The plain form with the subject left out."""
        start, end = self.place()
        return f"{self[:start]}{self[end:]}".replace("  ", " ")

    def render(self, tokenizer) -> str:
        """What the model sees: the chat template's text where both sides have a chat form."""
        if self.messages is None or not tokenizer.chat_template:
            return str(self)
        return chat(tokenizer, *self.messages)


def render(prompt: Prompt, tokenizer) -> str:
    """`prompt.render(tokenizer)`, for plain strings too."""
    return prompt.render(tokenizer) if isinstance(prompt, Prompt) else str(prompt)


def joint(text: str) -> str:
    """What stands between a text and the answer that goes on with it: a space, or nothing.

    Nothing after an opening mark ("(", a quote or an asterisk that nothing stands right before)
    and in scripts that set no spaces between words.
    """
    if not text:
        return " "
    last, before = text[-1], text[:-1].rstrip(EITHER)[-1:]
    opens = last in OPENING or (
        last in EITHER and (not before or before in OPENING + ":=" or before.isspace())
    )
    return "" if opens or is_unspaced(last) else " "


def subject_span(prompt: Prompt, tokenizer) -> tuple[int, int]:
    """Token positions [start, end) of the subject in the rendered prompt, where it was put last.

    Raises:
        UserError: The prompt does not name its subject.
    """
    text = render(prompt, tokenizer)
    start, end = _rendered_place(prompt, text)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    before = len(encode(tokenizer, text)) - len(tokens["input_ids"])  # a beginning token or none
    inside = [
        before + i
        for i, (a, b) in enumerate(tokens["offset_mapping"])
        if a < end and b > start and b > a
    ]
    return inside[0], inside[-1] + 1


def _rendered_place(prompt: Prompt, text: str) -> Slot:
    """Where the subject stands in a rendered prompt."""
    start, end = prompt.place()
    if text == prompt:
        return start, end
    user, assistant = prompt.messages  # a chat template stands around and between the two
    begin = len(prompt) - len(assistant)
    if start >= begin:
        shift = len(text) - len(prompt)
    else:
        shift = text.rindex(user.strip()) - prompt.index(user.strip())
    return start + shift, end + shift
