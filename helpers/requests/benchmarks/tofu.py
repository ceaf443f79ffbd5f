"""TOFU: questions about invented authors (Maini et al. 2024).

A row has `question` and `answer`. The perturbed files have `paraphrased_answer` and
`perturbed_answer`, a list of wrong ones, too, and some a `paraphrased_question`: these make the
held-out wording. Those of real authors and of world facts have no paraphrase. Files whose names
hold `retain`, `real_authors` or `world_facts` have to stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.errors import UserError
from helpers.forward.prompts import Prompt, answer_separator
from helpers.io.safe_text import visible
from helpers.requests.benchmarks.roles import text_request
from helpers.requests.corpus import Document
from helpers.requests.items import FRAMES, Item, ItemFile, question_item, text_field, text_list
from helpers.requests.request import TextRequest
from helpers.requests.rows import Row, read_rows

FIELDS = "'question' and 'answer'"
FORGET, RETAIN, REAL_AUTHORS, WORLD_FACTS = "forget", "retain", "real_authors", "world_facts"
"""Names of the four files that TOFU's figures are of."""


@dataclass(frozen=True)
class PerturbedQuestion:
    """A question with what its truth ratio compares.

    Attributes:
        prompt: The question as methods see it.
        right: The paraphrased right answer, or else the right answer, with its leading space.
        wrong: Perturbed answers, each with its leading space.
    """

    prompt: Prompt
    right: str
    wrong: tuple[str, ...]


def read(paths: Sequence[Path]) -> TextRequest:
    """Read TOFU's files.

    Raises:
        UserError: A file is of another format, or its name does not say what it is for.
    """
    return text_request("tofu", paths, to_item, FIELDS)


def to_item(row: Row) -> Item | None:
    """Make the item of a row; None where a field is missing."""
    item = question_item(row, "question", "answer")
    answer = text_field(row, "paraphrased_answer")
    if item is None or not answer:
        return item
    question = text_field(row, "paraphrased_question") or item.prompt
    return Item(
        prompt=item.prompt, answers=item.answers, kind=item.kind, rephrased=(question, answer)
    )


def training_documents(path: Path) -> list[Document]:
    """Read the questions of a file with their answers, in the wording that methods learn from.

    Raises:
        UserError: The file is of another format.
    """
    file = ItemFile(path, to_item, FIELDS)
    file.count()
    return [item.document("train") for item in file]


def perturbed_questions(
    path: Path, *, paraphrased: bool = False, needs_wrong: bool = True
) -> list[PerturbedQuestion]:
    """Read the questions of a perturbed file, for truth ratios.

    Args:
        path: The file.
        paraphrased: Ask by `paraphrased_question`, where a row has one.
        needs_wrong: Refuse rows without perturbed answers.

    Raises:
        UserError: The file is of another format, or a row has no perturbed answers and needs some.
    """
    ItemFile(path, to_item, FIELDS).count()
    fields = ("paraphrased_question", "question") if paraphrased else ("question",)
    questions = []
    for number, row in read_rows(path):
        right, wrong = (
            text_field(row, "paraphrased_answer", "answer"),
            text_list(row, "perturbed_answer"),
        )
        if needs_wrong and not wrong:
            raise UserError(
                f"Row {number} of {visible(path)} lacks 'perturbed_answer': a truth ratio compares "
                "wrong answers with the right one, so take a perturbed file."
            )
        text = FRAMES["question"]["train"].replace("{}", text_field(row, *fields))
        space = answer_separator(text)
        prompt = Prompt(text, answers=(f"{space}{text_field(row, 'answer')}",), format="question")
        answers = tuple(f"{space}{answer}" for answer in wrong)
        questions.append(PerturbedQuestion(prompt, f"{space}{right}", answers))
    return questions
