"""Prompts: texts to be continued that know their subject and their answers, and their tokens."""

from dataclasses import KW_ONLY, dataclass, replace

from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.forward.batching import common_prefix_length
from helpers.io.safe_text import is_unspaced, name_pattern, visible
from helpers.models import check_length, torch_module
from helpers.models.files import shown
from helpers.models.tokenization import apply_chat_template, encode

OPENING_MARKS = "([{<“„«‹‘「『《〈（【"  # a word follows them without a space
AMBIGUOUS_MARKS = "\"'*_`"  # they open where nothing stands right before them, else they close
CharSpan = tuple[int, int]
"""A stretch of a text: its first character and the one after its last."""


@dataclass(frozen=True)
class Prompt:
    """A text to be continued, with what a score needs to know about it.

    Two prompts are equal when everything is; `str(prompt)` is its text.

    Attributes:
        text: The plain form. For a chat prompt it is made from `messages` ("User: … Assistant: …"),
            whatever was given; `input_text` puts `messages` into the tokenizer's chat template.
        subject: The subject's name as it stands in the text.
        answers: Possible continuations, each with its leading space; the first is the main one.
        relation: Name of the relation.
        split: `train`, `dev`, `heldout`, or empty.
        format: `completion`, `question`, `chat`, `list`, `few_shot` or `reverse`.
        messages: (the user's turn, beginning of the assistant's), or None.
        slot: Where the subject was put, in the plain form; the last place where there are several.
            None where it is not known: then its last mention as a word of its own counts.
    """

    text: str
    _: KW_ONLY
    subject: str = ""
    answers: tuple[str, ...] = ()
    relation: str = ""
    split: str = ""
    format: str = "completion"
    messages: tuple[str, str] | None = None
    slot: CharSpan | None = None

    def __post_init__(self):
        """Write the plain form of a chat prompt."""
        object.__setattr__(self, "answers", tuple(self.answers))
        if self.messages is not None:
            user, assistant_prefix = self.messages
            object.__setattr__(self, "text", f"User: {user}\nAssistant: {assistant_prefix}")

    def __str__(self) -> str:
        """Return the plain form."""
        return self.text

    def with_text(self, text: str) -> "Prompt":
        """Return a plain prompt with another text and the same subject, answers and labels.

        Where the text holds this one, the subject keeps its place in it.
        """
        offset = text.rfind(self.text)
        moved = None if self.slot is None or offset < 0 else _shifted(self.slot, offset)
        return replace(self, text=text, messages=None, slot=moved)

    def locate_subject(self) -> CharSpan:
        """Return where the subject stands in the plain form.

        Raises:
            UserError: The prompt does not name its subject.
        """
        if self.slot is not None:
            return self.slot
        mentions = list(name_pattern(self.subject).finditer(self.text)) if self.subject else []
        if not mentions:
            raise UserError(
                f"The prompt '{visible(self.text)}' does not contain its subject "
                f"'{visible(self.subject)}'."
            )
        return mentions[-1].span()

    def without_subject(self) -> str:
        """Return the plain form with the subject left out."""
        start, end = self.locate_subject()
        return f"{self.text[:start]}{self.text[end:]}".replace("  ", " ")


def input_text(prompt: Prompt | str, tokenizer) -> str:
    """Return the text that the model reads for a prompt.

    It is the tokenizer's chat template where the tokenizer has one and the prompt has messages,
    and the plain text otherwise.
    """
    messages = prompt.messages if isinstance(prompt, Prompt) else None
    if messages is None or not tokenizer.chat_template:
        return str(prompt)
    user, assistant_prefix = messages
    turns = [{"role": "user", "content": user}]
    return apply_chat_template(tokenizer, turns, assistant_prefix=assistant_prefix)


def answer_separator(text: str) -> str:
    """Return what stands between a text and the answer that follows it: a space, or nothing.

    It is nothing after an opening mark ("(", a quote or an asterisk that nothing stands right
    before) and in scripts that set no spaces between words.
    """
    if not text:
        return " "
    last, before_marks = text[-1], text[:-1].rstrip(AMBIGUOUS_MARKS)[-1:]
    opens = last in OPENING_MARKS or (
        last in AMBIGUOUS_MARKS
        and (not before_marks or before_marks in OPENING_MARKS + ":=" or before_marks.isspace())
    )
    return "" if opens or is_unspaced(last) else " "


def token_ids(model: LanguageModel, prompt: Prompt | str) -> list[int]:
    """Return the tokens that the model reads for a prompt.

    Raises:
        UserError: The text is empty, is longer than what the model reads at once, or has a token
            without an embedding.
    """
    return _checked_ids(model, input_text(prompt, model.tokenizer))


def encode_pair(model: LanguageModel, prompt: Prompt | str, answer: str) -> tuple[int, list[int]]:
    """Tokenise a prompt and its answer together.

    The answer is what follows the common prefix with the prompt's own tokens: right for tokenizers
    that merge characters across the seam.

    Returns:
        The position of the answer's first token, and the tokens of both.

    Raises:
        UserError: No token of the answer can be predicted from what stands before it, or the two
            are longer than what the model reads at once.
    """
    text = input_text(prompt, model.tokenizer)
    # The answer's last token is predicted but never read, so one token more than the context fits.
    prompt_ids, ids = _checked_ids(model, text), _checked_ids(model, text + answer, n_unread=1)
    start = common_prefix_length(prompt_ids, ids)
    if start == len(ids):
        raise UserError(f"The answer '{shown(answer)}' adds no token to '{shown(prompt)}'.")
    if start == 0:
        raise UserError(
            f"Nothing stands before the first token of '{shown(f'{prompt}{answer}')}': the prompt "
            "has become part of the answer's first word; begin with a word more, or end with a "
            "space."
        )
    return start, ids


def _checked_ids(model: LanguageModel, text: str, *, n_unread: int = 0) -> list[int]:
    """Tokenise a text and check that the model can read all but its last `n_unread` tokens."""
    ids = encode(model.tokenizer, text)
    check_length(model, len(ids) - n_unread, f"The prompt '{shown(text)}'")
    n_embeddings = torch_module(model).get_input_embeddings().weight.shape[0]
    if max(ids) >= n_embeddings:
        token = model.tokenizer.convert_ids_to_tokens(max(ids))
        raise UserError(
            f"The prompt '{shown(text)}' has the token '{shown(token)}', for which the model has "
            "no embedding: leave it out."
        )
    return ids


def first_token(model: LanguageModel, prompt: Prompt | str, answer: str) -> int:
    """Return the id of the token that begins `answer` after `prompt`."""
    start, ids = encode_pair(model, prompt, answer)
    return ids[start]


def answer_tokens(model: LanguageModel, prompt: Prompt) -> list[int]:
    """Return the distinct ids of the tokens that begin the target or any of its aliases."""
    return list(dict.fromkeys(first_token(model, prompt, name) for name in prompt.answers))


def subject_span(prompt: Prompt, tokenizer) -> tuple[int, int]:
    """Return token positions [start, end) of the subject's last mention in the input text.

    Raises:
        UserError: The prompt does not name its subject.
    """
    text = input_text(prompt, tokenizer)
    start, end = _locate_in_input(prompt, text)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    n_special = len(encode(tokenizer, text)) - len(tokens["input_ids"])  # a beginning token or none
    positions = [
        n_special + i
        for i, (a, b) in enumerate(tokens["offset_mapping"])
        if a < end and b > start and b > a
    ]
    return positions[0], positions[-1] + 1


def _locate_in_input(prompt: Prompt, text: str) -> CharSpan:
    """Find the subject in the prompt's input text."""
    start, end = prompt.locate_subject()
    plain = prompt.text
    if text == plain or prompt.messages is None:
        return start, end
    user, assistant_prefix = prompt.messages  # a chat template stands around and between the two
    if start >= len(plain) - len(assistant_prefix):
        return _shifted((start, end), len(text) - len(plain))
    return _shifted((start, end), text.rindex(user.strip()) - plain.index(user.strip()))


def _shifted(span: CharSpan, offset: int) -> CharSpan:
    return span[0] + offset, span[1] + offset


def position_of(model: LanguageModel, prompt: Prompt, where: str) -> int:
    """Return the index of the subject's last token (`subject`) or of the prompt's (`last`).

    Raises:
        UserError: `where` is neither, or the prompt does not name its subject.
    """
    if where == "last":
        return len(token_ids(model, prompt)) - 1
    if where == "subject":
        return subject_span(prompt, model.tokenizer)[1] - 1
    raise UserError(f"There is no position '{where}'; choose 'subject' or 'last'.")
