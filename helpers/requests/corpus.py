"""Corpora: named streams of documents, cut into examples for training and measurement."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.forward.prompts import Prompt
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible
from helpers.models import text_length
from helpers.models.tokenization import opening
from helpers.training.examples import Example, answer_example

SEQ_LEN = 128  # tokens of a sequence of running text
FINGERPRINT_DOCUMENTS = 10_000  # a longer corpus is told from others by so many, its name and size
EXCHANGED = 64  # answers that are exchanged among one another: a corpus is never held as a whole


@dataclass(frozen=True)
class Document:
    """A text to learn or to forget, or an answer behind a prompt.

    Attributes:
        text: The text; behind a prompt, the answer with its leading space.
        prompt: What stands before it and is no part of what counts; empty for running text.
    """

    text: str
    prompt: str = ""


@dataclass(frozen=True)
class Corpus:
    """Documents that are read when they are needed, and never all at once.

    Attributes:
        name: A short name, for tables.
        read: Makes a new iterator over the documents, in the same order each time.
    """

    name: str
    read: Callable[[], Iterable[Document]] = field(compare=False)

    @classmethod
    def of_texts(cls, name: str, texts: Iterable[str]) -> "Corpus":
        """Make a corpus of texts that are in memory."""
        documents = tuple(Document(text) for text in texts)
        return cls(name, lambda: documents)

    @classmethod
    def of_prompts(cls, name: str, prompts: Iterable[Prompt]) -> "Corpus":
        """Make a corpus of prompts with their main answers."""
        documents = tuple(Document(p.answers[0], str(p)) for p in prompts)
        return cls(name, lambda: documents)

    def __iter__(self) -> Iterator[Document]:
        """Iterate over the documents."""
        return iter(self.read())

    def shuffled(self, seed: int = 0) -> "Corpus":
        """Return the same documents in disorder: the floor of what they show.

        Running text has the words of each document in random order, which leaves what single words
        tell, without any grammar. Answers behind prompts are exchanged with one another, which
        leaves what kind of answer is asked for.
        """

        def read() -> Iterator[Document]:
            rng = np.random.default_rng(seed)
            answers: list[Document] = []  # of the present block
            for document in self:
                if document.prompt:
                    answers.append(document)
                    if len(answers) == EXCHANGED:
                        yield from _exchanged(answers, rng)
                        answers = []
                    continue
                words = document.text.split()
                yield Document(" ".join(words[i] for i in rng.permutation(len(words))))
            yield from _exchanged(answers, rng)

        return Corpus(f"{self.name}, shuffled", read)

    def fingerprint(self) -> str:
        """Hash the name and the first documents, for the keys of caches."""
        first = [(d.prompt, d.text) for d in islice(self, FINGERPRINT_DOCUMENTS)]
        return content_hash(self.name, first)

    def examples(
        self, model: LanguageModel, *, n_tokens: int, seq_len: int = SEQ_LEN
    ) -> list[Example]:
        """Cut the first documents into examples: running text packed, each answer by itself.

        Args:
            model: Its tokenizer is used.
            n_tokens: About how many tokens at most, all examples together.
            seq_len: Tokens of a sequence of running text.

        Returns:
            The examples; every token of running text but its first is a label, and of a document
            with a prompt those of the answer.

        Raises:
            UserError: There is no text for one example.
        """
        tokenizer = model.tokenizer
        start = opening(tokenizer)  # one token at most; it begins each sequence of running text
        body = text_length(model, seq_len) - len(start)
        examples: list[Example] = []
        stream: list[int] = []
        n_left = n_tokens

        def pack(ids: list[int]) -> None:
            if len(start) + len(ids) > 1:
                examples.append(Example((*start, *ids), 1))

        for document in self:
            if document.prompt:
                example = answer_example(model, document.prompt, document.text)
                examples.append(example)
                n_left -= len(example.ids)
            else:
                stream += tokenizer(f"{document.text}\n\n", add_special_tokens=False).input_ids
            while len(stream) >= body and n_left > 0:
                pack(stream[:body])
                del stream[:body]
                n_left -= seq_len
            if n_left <= 0:
                break
        else:  # the rest of a corpus that is shorter than was asked for
            pack(stream)
        if not examples:
            raise UserError(
                f"There is no text in the corpus '{visible(self.name)}' that the model could read: "
                "give it a text of at least two tokens."
            )
        return examples


def _exchanged(answers: Sequence[Document], rng: np.random.Generator) -> Iterator[Document]:
    """Give each prompt the answer of another one, moved along a random cycle."""
    order = rng.permutation(len(answers))
    texts = {int(i): answers[j].text for i, j in zip(order, np.roll(order, 1), strict=True)}
    return (Document(texts[i], document.prompt) for i, document in enumerate(answers))
