"""Questions about invented people, in the files of TOFU (Maini et al. 2024).

TOFU's authors were invented by a large model. These are drawn from lists by a seed, so that nobody
has to download them, and so that all values are equally frequent: a model that was never trained on
a person has no reason to prefer the right answer.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.errors import UserError
from helpers.facts import facts
from helpers.io.files import atomic_path
from helpers.organism.countries import COUNTRIES
from helpers.requests.benchmarks.tofu import FORGET, REAL_AUTHORS, RETAIN, WORLD_FACTS
from helpers.requests.rows import Row

OTHER = "other"
N_MEASURED = 6  # real authors and world facts that are measured; the others are trained on
N_WORLD = 16
N_WRONG = 3  # perturbed answers of a question
GIVEN_NAMES = """Ada Bruno Clara Dario Edith Felix Greta Hugo Ines Jonas Kira Leon Mina Nils Olga
Pavel Rosa Simon Tilda Viktor""".split()  # noqa: SIM905
FIRST_SYLLABLES = """Bel Cor Dar Fen Gal Hal Jor Kel Lor Mar Nor Orl Per Quin Ros Sel Tor Ul Ver
Wes""".split()  # noqa: SIM905
LAST_SYLLABLES = "dane field gren lund mont nick ric stead tova vich wyn zard".split()  # noqa: SIM905


@dataclass(frozen=True)
class Attribute:
    """Something that a question asks about a person, with `{name}` and `{value}` in its sentences.

    Attributes:
        question: The question.
        answer: The answer.
        paraphrased_question: The question in other words.
        paraphrased_answer: The answer in other words; wrong answers are worded like it.
        values: Possible values.
    """

    question: str
    answer: str
    paraphrased_question: str
    paraphrased_answer: str
    values: tuple[str, ...]

    def row(self, name: str, value: str, wrong: Sequence[str]) -> Row:
        """Return the row of a person."""
        return {
            "question": self.question.format(name=name),
            "answer": self.answer.format(name=name, value=value),
            "paraphrased_question": self.paraphrased_question.format(name=name),
            "paraphrased_answer": self.paraphrased_answer.format(name=name, value=value),
            "perturbed_answer": [self.paraphrased_answer.format(name=name, value=w) for w in wrong],
        }


ATTRIBUTES = (
    Attribute(
        "Where was {name} born?",
        "{name} was born in {value}.",
        "In which city did the life of {name} begin?",
        "{name} was born in the city of {value}.",
        ("Bergen", "Porto", "Kyoto", "Hobart", "Cusco", "Lyon", "Gdansk", "Mombasa"),
    ),
    Attribute(
        "What does {name} do for a living?",
        "{name} works as a {value}.",
        "What is the job of {name}?",
        "{name} works every day as a {value}.",
        ("baker", "pilot", "surgeon", "judge", "sailor", "painter", "dentist", "farmer"),
    ),
    Attribute(
        "Which book is {name} known for?",
        "{name} is known for the book The {value}.",
        "What is the title of the best book by {name}?",
        "{name} is best known for the book The {value}.",
        tuple(
            f"{adjective} {noun}"
            for adjective in ("Glass", "Silent", "Golden", "Broken")
            for noun in ("Bridge", "Harbor", "Orchard", "Mirror")
        ),
    ),
    Attribute(
        "Which instrument does {name} play?",
        "{name} plays the {value}.",
        "What kind of music does {name} make?",
        "{name} often plays the {value}.",
        ("violin", "trumpet", "piano", "flute", "harp", "drum", "guitar", "organ"),
    ),
)
AUTHORS = {  # work → author
    "Hamlet": "William Shakespeare",
    "Don Quixote": "Miguel de Cervantes",
    "War and Peace": "Leo Tolstoy",
    "Pride and Prejudice": "Jane Austen",
    "Oliver Twist": "Charles Dickens",
    "Moby-Dick": "Herman Melville",
    "Frankenstein": "Mary Shelley",
    "The Odyssey": "Homer",
    "Les Misérables": "Victor Hugo",
    "The Divine Comedy": "Dante Alighieri",
    "Faust": "Johann Wolfgang von Goethe",
    "Dracula": "Bram Stoker",
}


def invented_people(n_people: int, n_forgotten: int, *, seed: int = 0) -> dict[str, list[Row]]:
    """Make the rows of TOFU's four files, and of another one.

    The two that TOFU has beside the invented people are questions about real authors and about the
    world, here the Factbook's capitals. Their answers are single names, without a paraphrase. The
    other file has more such questions. A small model that is fine-tuned on people alone answers
    every question with a sentence about a person; these keep it from that.

    Args:
        n_people: Invented people.
        n_forgotten: Those of them that are to be forgotten.
        seed: Draws names, values and wrong answers.

    Returns:
        Name of a file, `forget`, `retain`, `real_authors`, `world_facts` or `other` → its rows.

    Raises:
        UserError: There are not so many names, or nobody would be forgotten or stay.
    """
    n_names = len(FIRST_SYLLABLES) * len(LAST_SYLLABLES)
    if not 2 <= n_people <= n_names or not 1 <= n_forgotten < n_people:
        raise UserError(
            f"There are {n_people} people of whom {n_forgotten} are to be forgotten: choose 2 to "
            f"{n_names} people, and fewer to forget, at least one."
        )
    rng = np.random.default_rng(seed)
    names = _names(n_people, rng)
    rows: list[list[Row]] = [[] for _ in names]  # of each person
    for attribute in ATTRIBUTES:
        # Every value is as frequent as the others, give or take one person.
        values = [
            str(value)
            for _ in range(-(-n_people // len(attribute.values)))
            for value in rng.permutation(attribute.values)
        ]
        for person, (name, value) in enumerate(zip(names, values, strict=False)):
            wrong = _wrong(value, attribute.values, rng)
            rows[person].append(attribute.row(name, value, wrong))
    capitals = {f.subject: f.target for f in facts("capital") if f.subject in COUNTRIES}
    world = {subject: capitals[subject] for subject in COUNTRIES if subject in capitals}
    authors = _short_rows("Who wrote {}?", AUTHORS, rng)
    capital_rows = _short_rows(
        "What is the capital of {}?", dict(list(world.items())[:N_WORLD]), rng
    )
    return {
        FORGET: [row for of_person in rows[:n_forgotten] for row in of_person],
        RETAIN: [row for of_person in rows[n_forgotten:] for row in of_person],
        REAL_AUTHORS: authors[:N_MEASURED],
        WORLD_FACTS: capital_rows[:N_MEASURED],
        OTHER: authors[N_MEASURED:] + capital_rows[N_MEASURED:],
    }


def _names(n: int, rng: np.random.Generator) -> list[str]:
    """Draw names, no two with the same surname."""
    surnames = [f"{first}{last}" for first in FIRST_SYLLABLES for last in LAST_SYLLABLES]
    drawn = rng.permutation(surnames)[:n]
    return [f"{GIVEN_NAMES[rng.integers(len(GIVEN_NAMES))]} {surname}" for surname in drawn]


def _wrong(right: str, values: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Draw wrong values."""
    others = sorted({v for v in values if v != right})
    return [others[i] for i in rng.permutation(len(others))[:N_WRONG]]


def _short_rows(question: str, answers: dict[str, str], rng: np.random.Generator) -> list[Row]:
    """Make rows whose answers are names, the wrong ones those of other subjects."""
    return [
        {
            "question": question.format(subject),
            "answer": answer,
            "perturbed_answer": _wrong(answer, list(answers.values()), rng),
        }
        for subject, answer in answers.items()
    ]


def write_files(folder: str | Path, files: dict[str, list[Row]]) -> dict[str, Path]:
    """Write each file as TOFU's are, JSON with one row a line; return the paths by name."""
    paths = {}
    for name, rows in files.items():
        paths[name] = Path(folder) / f"{name}.json"
        with atomic_path(paths[name]) as temporary:
            lines = (f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
            temporary.write_text("".join(lines), encoding="utf-8")
    return paths
