"""Check that a request's texts are apart: what is forgotten is not kept, and not held out."""

import hashlib
from collections.abc import Iterable

from helpers.errors import UserError
from helpers.io.safe_text import visible
from helpers.requests.corpus import Corpus, Document
from helpers.requests.request import TextRequest

MAX_SHOWN = 60  # characters of an example
HASH_BYTES = 8  # of a document: two of a hundred million differ by chance in less than .001


def check_apart(request: TextRequest) -> None:
    """Check that there is text to forget, and that no other part of the request has it too.

    Documents to forget by, and those on which strengths are chosen, may not be among the held-out
    ones, among the questions, or in what must stay. Documents are compared by hashes, without
    regard to white space, so a corpus is never in memory as a whole.

    Raises:
        UserError: There is no text to forget, or a corpus shares documents with it; the sentence
            names their number and one of them.
    """
    forget = {_hash(d) for d in request.forget if d.text.strip()}
    if not forget:
        raise UserError(
            f"There is no text to forget in '{visible(request.name)}': its corpus "
            f"'{visible(request.forget.name)}' has no document that is not empty."
        )
    seen = forget | {_hash(d) for d in request.dev if d.text.strip()}
    for corpus in request.heldout:
        _refuse_shared(request, seen, corpus, "held out")
    questions = Corpus.of_prompts("questions", (p for p in request.questions if p.answers))
    _refuse_shared(request, seen, questions, "held out")
    for corpus in (*request.retain, *request.retained):
        _refuse_shared(request, forget, corpus, "to stay")


def _refuse_shared(
    request: TextRequest, hashes: set[bytes], documents: Corpus, purpose: str
) -> None:
    """Raise an error if a corpus has documents with one of the hashes."""
    n_shared, example = _count_shared(hashes, documents)
    if n_shared:
        verb = "document is" if n_shared == 1 else "documents are"
        raise UserError(
            f"{n_shared} {verb} both to be forgotten in '{visible(request.name)}' and {purpose} "
            f"in '{visible(documents.name)}', such as '{visible(example)}': leave each in one of "
            "the two."
        )


def _count_shared(hashes: set[bytes], documents: Iterable[Document]) -> tuple[int, str]:
    """Count the documents with one of the hashes; return the beginning of the first too."""
    n_shared, example = 0, ""
    for document in documents:
        if document.text.strip() and _hash(document) in hashes:
            n_shared += 1
            example = example or f"{document.prompt}{document.text}".strip()[:MAX_SHOWN]
    return n_shared, example


def _hash(document: Document) -> bytes:
    """Hash the words of a document, its prompt's and its own as one text."""
    words = " ".join(f"{document.prompt}{document.text}".split())
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()
