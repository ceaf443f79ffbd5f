"""The one entry point for requests from files: a user's YAML file, or a benchmark's files."""

from pathlib import Path

from helpers.errors import UserError
from helpers.io.choices import suggestion
from helpers.io.request_spec import split_spec
from helpers.io.safe_text import visible
from helpers.requests.benchmarks import CONCEPT_READERS, READERS
from helpers.requests.request import FactsRequest, TextRequest
from helpers.requests.request_file import read_request_file
from helpers.requests.rows import JSON_ENDINGS, TEXT_ENDINGS


def read_request(path_or_spec: str | Path) -> FactsRequest | TextRequest:
    """Read what is asked to be forgotten.

    Args:
        path_or_spec: A YAML file (`read_request_file`), or a benchmark's name and its files:
            `tofu:forget10.json,retain90.json`. The first file is to be forgotten; the names of the
            others say what they are (`helpers.requests.benchmarks.roles`). Of files that hold many
            concepts, one is named behind an `@`: `ember@Golf:concept_sentences.json`.

    Raises:
        UserError: There is no such file or benchmark, or the content cannot be used.
    """
    text = str(path_or_spec)
    reader, paths = split_spec(text)
    known = sorted([*READERS, *CONCEPT_READERS])
    if reader:
        name, at, concept = reader.partition("@")
        files = [part.strip() for part in paths.split(",")]
        if name.lower() not in known:
            raise UserError(
                f"There is no reader for the benchmark '{visible(name)}'"
                f"{suggestion(name.lower(), known)}."
            )
        if not all(files):
            raise UserError(f"'{visible(text)}' names an empty file: leave the comma away.")
        named = [Path(file).expanduser() for file in files]
        if read_concept := CONCEPT_READERS.get(name.lower()):
            return read_concept(named, concept.strip())
        if at:
            raise UserError(
                f"The files of {name} hold no concepts to choose from: leave "
                f"'{visible(at + concept)}' away."
            )
        return READERS[name.lower()](named)
    path = Path(text).expanduser()
    if path.suffix.lower() in JSON_ENDINGS + TEXT_ENDINGS:
        raise UserError(
            f"{visible(path)} does not say what it is: name it under 'forget:' in a YAML file, or "
            f"put a benchmark's name and a colon before it ({', '.join(known)})."
        )
    return read_request_file(path)
