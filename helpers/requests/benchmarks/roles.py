"""Roles of a benchmark's files, by their names and by what is in them."""

import re
from collections.abc import Sequence
from pathlib import Path

from helpers.errors import UserError
from helpers.io.safe_text import visible
from helpers.requests.items import Convert, ItemFile
from helpers.requests.request import TextRequest
from helpers.requests.text_files import request_of_files

# Parts of the names that benchmarks give their files.
STAYS = re.compile(
    r"retain|neighbou?r|real_?authors|world_?facts|utility|mmlu|wikitext", re.IGNORECASE
)
NEVER_LEARNED = re.compile(r"hold_?out|never", re.IGNORECASE)
FORGOTTEN = re.compile(r"forget|wmdp|bio|cyber|chem|edit|train_positive", re.IGNORECASE)


def role_of(path: Path, *, is_first: bool) -> str:
    """Return `forget`, `retain` or `never_learned`, by a file's name.

    Args:
        path: The file.
        is_first: It is named first, and so is to be forgotten whatever its name.

    Raises:
        UserError: The name does not say what the file is for.
    """
    if is_first:
        return "forget"
    for role, pattern in (
        ("retain", STAYS),
        ("never_learned", NEVER_LEARNED),
        ("forget", FORGOTTEN),
    ):
        if pattern.search(path.stem):
            return role
    raise UserError(
        f"The name {visible(path.name)} does not say whether the file is to be forgotten: have "
        "'forget', 'retain' or 'holdout' in it, or put it first."
    )


def text_request(
    benchmark: str, paths: Sequence[Path], convert: Convert, expected: str
) -> TextRequest:
    """Make the request of a benchmark of documents and questions.

    Where some files to forget have running text, methods learn from these, and files of questions
    are only asked. Where there are questions alone, they are the documents, and are asked in
    another wording.

    Args:
        benchmark: Its name.
        paths: Its files, the first of which is to be forgotten.
        convert: Makes the item of a row.
        expected: The fields that a row has to have, for sentences.

    Raises:
        UserError: A file cannot be used, or its name does not say what it is for.
    """
    documents: dict[str, list[ItemFile]] = {"forget": [], "retain": [], "never_learned": []}
    questions: dict[str, list[ItemFile]] = {"forget": [], "retain": []}
    for number, path in enumerate(paths):
        file, role = ItemFile(path, convert, expected), role_of(path, is_first=number == 0)
        file.count()
        is_text = role == "never_learned" or next(iter(file)).kind == "text"
        (documents if is_text else questions)[role].append(file)
    name = f"{benchmark} {paths[0].stem}"
    return request_of_files(
        name,
        {
            **documents,
            "forget": documents["forget"] or questions["forget"],
            "retain": documents["retain"] or questions["retain"],
            "questions": questions["forget"],
            "retained_questions": questions["retain"],
        },
    )
