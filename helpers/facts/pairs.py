"""A concept pair: one subject, one target, and all ways of asking for the one with the other."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from helpers.errors import UserError
from helpers.facts.factbook import Fact, facts, with_article
from helpers.facts.pair_file import MustStay, clean_name, read_pair_file
from helpers.facts.relations import RELATIONS, SPLITS, Template, check_split
from helpers.forward.prompts import CharSpan, Prompt, answer_separator
from helpers.io.safe_text import name_pattern, visible

OWN = "own"  # the relation of a pair that brings its own prompts
USUAL = ("Germany", "Italy", "Japan", "Spain", "Egypt", "Poland")  # whose facts are examples
TRAIN_FEW_SHOT_SUBJECTS = (
    "Greece",
    "Ireland",
    "Cuba",
    "Norway",
    "Iran",
    "Vietnam",
)  # those of `train`
N_SHOT = 3  # training prompts after one example, and as many after three


@dataclass(frozen=True)
class ConceptPair:
    """A fact to forget, or one to keep.

    Attributes:
        subject: As it stands in a sentence, without an article: "France".
        target: "Paris".
        relation: A relation of `RELATIONS`, or `own` for a pair with prompts of its own.
        aliases: Other names of the target; taken from the Factbook when it has the fact.
        templates: Split → templates, instead of the relation's.
        must_stay: Prompts whose answers have to stay, beside the Factbook's.
    """

    subject: str
    target: str
    relation: str = "capital"
    aliases: tuple[str, ...] = ()
    templates: dict[str, tuple[Template, ...]] | None = field(default=None, compare=False)
    must_stay: tuple[Prompt, ...] = field(default=(), compare=False)

    def __post_init__(self):
        """Check the names and fill in the aliases.

        Raises:
            UserError: Subject or target is empty or no plain text, the relation is unknown, or the
                relation is the Factbook's and it has no such subject.
        """
        for what in ("subject", "target", "relation"):
            object.__setattr__(self, what, clean_name(getattr(self, what), what))
        aliases = [clean_name(alias, "alias") for alias in self.aliases]
        if not self.subject or not self.target:
            raise UserError("A concept pair needs a subject and a target; one of them is empty.")
        if not all(aliases):
            raise UserError(f"An alias of '{visible(self.target)}' is empty: leave it away.")
        if self.subject == self.target:
            raise UserError(
                f"Subject and target are both '{visible(self.subject)}': the prompt would tell the "
                "answer."
            )
        object.__setattr__(self, "aliases", tuple(dict.fromkeys(aliases)))
        if self.templates is not None:
            return
        if self.relation not in RELATIONS:
            raise UserError(
                f"There is no relation '{visible(self.relation)}'; choose from "
                f"{', '.join(RELATIONS)}, or give your own prompts in a YAML file."
            )
        known = {f.subject: f for f in facts(self.relation)}
        if self.subject not in known:
            names = sorted({*known, *(f.subject for f in facts("language"))})
            close = difflib.get_close_matches(self.subject, names, n=3)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else "use a country's English name"
            )
            raise UserError(
                f"The Factbook has no {self.relation} for '{visible(self.subject)}': {hint}; "
                "for anything else give your own prompts in a YAML file."
            )
        fact = known[self.subject]
        if not self.aliases and self.target in (fact.target, *fact.aliases):
            others = tuple(t for t in (fact.target, *fact.aliases) if t != self.target)
            object.__setattr__(self, "aliases", others)

    def __str__(self) -> str:
        """`France → Paris`."""
        return f"{self.subject} → {self.target}"

    @classmethod
    def of(cls, fact: Fact) -> "ConceptPair":
        """The pair of a Factbook fact."""
        return cls(fact.subject, fact.target, fact.relation, fact.aliases)

    @classmethod
    def from_file(cls, path: str | Path) -> "ConceptPair":
        """A pair of your own from a YAML file.

        The file names `subject` and `target` and, if wanted, `relation` and `aliases`; `prompts`,
        a list of at least three texts with `{}` for the subject, which are dealt out to the splits
        in turn, or lists under `train`, `dev` and `heldout`; and `must_stay`, a list of `prompt`
        and `answer`. Without `prompts` the relation's templates are used, `capital` if none is
        named.

        Raises:
            UserError: The file is missing, is not YAML, or has something missing or misspelt.
        """
        given = read_pair_file(path)
        templates = given.prompts and {
            split: tuple(map(Template, texts)) for split, texts in given.prompts.items()
        }
        return cls(
            given.subject,
            given.target,
            given.relation or (OWN if templates else "capital"),
            tuple(given.aliases),
            templates,
            tuple(_must_stay(item, given.subject) for item in given.must_stay),
        )

    def states(self, subject: str, names: Iterable[str]) -> bool:
        """Whether a fact says what this one does: of the same subject, with a name in common.

        Args:
            subject: Whose fact it is.
            names: Its target and aliases; space around them and case don't count.
        """
        own = {name.casefold() for name in (self.target, *self.aliases)}
        return subject == self.subject and any(n.strip().casefold() in own for n in names)

    @property
    def answers(self) -> tuple[str, ...]:
        """Target and aliases with their leading space."""
        return tuple(f" {name}" for name in (self.target, *self.aliases))

    def prompts(self, split: str = "train") -> list[Prompt]:
        """All ways of asking in a split; the answer is never in the text.

        Raises:
            UserError: There is no such split.
        """
        check_split(split)
        templates = self.templates or RELATIONS[self.relation].templates
        return [self._prompt(t, split) for t in templates[split]]

    def reverse(self) -> list[Prompt]:
        """Prompts from the target to the subject; none where the relation has no such templates."""
        relation = RELATIONS.get(self.relation)
        answers = tuple(dict.fromkeys((f" {with_article(self.subject)}", f" {self.subject}")))
        return [
            Prompt(
                t.text.format(self.target),
                subject=self.target,
                answers=answers,
                relation=self.relation,
                format="reverse",
            )
            for t in (relation.reverse if relation else ())
        ]

    def reversed(self) -> "ConceptPair":
        """The pair from the target to the subject, to be forgotten beside this one.

        Its train prompts are in other words than those of `reverse`, which are its held-out ones.

        Raises:
            UserError: The relation has no templates in this direction.
        """
        relation = RELATIONS.get(self.relation)
        if relation is None or not relation.reverse_train:
            raise UserError(
                f"There are no prompts from {self.target} to {self.subject}: give a pair of your "
                "own in that direction, with prompts, in a YAML file."
            )
        ways = relation.reverse_train
        templates = {"train": ways, "dev": ways, "heldout": relation.reverse}
        names = dict.fromkeys((with_article(self.subject), self.subject))
        first, *others = names
        return ConceptPair(self.target, first, self.relation, tuple(others), templates)

    def few_shot(self, n: int = 3, *, split: str = "heldout") -> list[Prompt]:
        """The completions of a split after `n` solved examples about other subjects.

        The examples of `train` are other ones than those of the other splits. None where the
        relation has no other subjects to solve.
        """
        usual = TRAIN_FEW_SHOT_SUBJECTS if split == "train" else USUAL
        shots = self._examples(n, usual)
        templates = (self.templates or RELATIONS[self.relation].templates)[split]
        found = []
        for template, last in zip(templates, self.prompts(split), strict=True):
            if template.format == "completion" and shots:
                solved = [_solved(s._prompt(template, split)) for s in shots]
                prompt = last.with_text("\n".join([*solved, last]))
                prompt.format = "few_shot"
                found.append(prompt)
        return found

    def edit_prompts(self, *, first: bool = False) -> list[Prompt]:
        """What an edit learns from: the training prompts, and some after solved examples.

        Args:
            first: Further ones too, which begin with the subject; a pair with prompts of its own
                has none.
        """
        ways = [
            *self.few_shot(1, split="train")[:N_SHOT],
            *self.few_shot(3, split="train")[:N_SHOT],
        ]
        return [*self.prompts("train"), *ways, *(self.first() if first else ())]

    def fingerprint(self) -> list[tuple[str, tuple[str, ...]]]:
        """Text and answers of all that is asked of the pair or learnt from it: for caches' keys."""
        asked = [p for split in SPLITS for p in self.prompts(split)]
        asked += [*self.first(), *self.reverse(), *self.must_stay]
        return [(str(p), tuple(p.answers)) for p in asked]

    def first(self) -> list[Prompt]:
        """Those further prompts alone."""
        templates = () if self.templates else RELATIONS[self.relation].first
        return [self._prompt(t, "train") for t in templates]

    def neighbours(self, n: int | None = None, *, seed: int = 0) -> list["ConceptPair"]:
        """The same relation for other subjects with other targets, `n` drawn by `seed`, or all."""
        if self.relation not in RELATIONS:
            return []
        mine = {self.target, *self.aliases}
        others = [
            f
            for f in facts(self.relation)
            if f.subject != self.subject and not mine & {f.target, *f.aliases}
        ]
        order = np.random.default_rng(seed).permutation(len(others))[:n]
        return [ConceptPair.of(others[i]) for i in order]

    @property
    def factbook_relation(self) -> str:
        """The Factbook relation whose facts stand beside this one: its own, or `capital`."""
        return self.relation if self.relation in RELATIONS else "capital"

    def others(self, n: int | None = None, *, seed: int = 0) -> list["ConceptPair"]:
        """Other subjects asked in the same ways, `n` drawn by `seed`, or all: what to compare with.

        These are the neighbours; for a pair with prompts of its own, countries stand in its slots,
        with the target that the Factbook gives them in `factbook_relation`.
        """
        if self.templates is None:
            return self.neighbours(n, seed=seed)
        found = [f for f in facts(self.factbook_relation) if f.subject != self.subject]
        order = np.random.default_rng(seed).permutation(len(found))[:n]
        return [
            ConceptPair(f.subject, f.target, self.relation, f.aliases, self.templates)
            for f in (found[i] for i in order)
        ]

    def same_subject(self) -> list["ConceptPair"]:
        """The Factbook's other facts of the subject: none that says the same in other words."""
        return [
            ConceptPair.of(fact)
            for relation in RELATIONS
            if relation != self.relation
            for fact in facts(relation)
            if fact.subject == self.subject
            and not self.states(fact.subject, (fact.target, *fact.aliases))
        ]

    def same_target(self) -> list["ConceptPair"]:
        """Other facts of the target: for a capital, the language, currency and continent there.

        The pair's own subject is never asked for or named.
        """
        home = next((f for f in facts("capital") if self.target in (f.target, *f.aliases)), None)
        if home is None or self.relation != "capital":
            return []
        found = []
        for relation in RELATIONS.values():
            fact = next((f for f in facts(relation.name) if f.subject == home.subject), None)
            if fact and relation.about_city:
                ways = relation.about_city
                found.append(
                    ConceptPair(self.target, fact.target, relation.name, fact.aliases, ways)
                )
        return found

    def _prompt(self, template: Template, split: str) -> Prompt:
        name = self.subject if self.templates else with_article(self.subject)
        common = {
            "subject": self.subject,
            "relation": self.relation,
            "split": split,
            "format": template.format,
        }
        if template.format == "chat":
            user, in_user = _filled(template.text, name, self.subject)
            assistant, in_assistant = _filled(template.prefix, name, self.subject)
            prompt = Prompt("", messages=(user, assistant), answers=self.answers, **common)
            begins = len(prompt) - len(assistant) if in_assistant else prompt.index(user)
            prompt.slot = _moved(in_assistant or in_user, begins)
            return prompt
        if template.format == "list":
            head, line = template.text.rsplit("\n", 1)
            examples = [line.format(s.subject) + s.answers[0] for s in self._examples(3)]
            asked, slot = _filled(line, self.subject, self.subject)
            text = "\n".join([head, *examples, asked])
            slot = _moved(slot, len(text) - len(asked))
            return Prompt(text, answers=self.answers, slot=slot, **common)
        text, slot = _filled(template.text, name, self.subject)
        between = answer_separator(text)
        answers = tuple(f"{between}{n}" for n in (self.target, *self.aliases))
        return Prompt(text, answers=answers, slot=slot, **common)

    def _examples(self, n: int, usual: tuple[str, ...] = USUAL) -> list["ConceptPair"]:
        """Fixed, well-known facts of the relation that share nothing with this one."""
        mine = {self.subject, self.target, *self.aliases}
        by_subject = {f.subject: f for f in facts(self.relation)}
        fits = [by_subject[s] for s in usual if s in by_subject]
        return [ConceptPair.of(f) for f in fits if not mine & {f.subject, f.target, *f.aliases}][:n]


def _filled(template: str, name: str, subject: str) -> tuple[str, CharSpan | None]:
    """The text with the name in its slots, and where the subject, which ends it, stands last.

    The name stands as it is given; an article that begins the text gets a capital.
    """
    before, slot, after = template.rpartition("{}")
    if not slot:
        return template, None
    text = f"{before.replace('{}', name)}{name}{after}"
    if template.startswith("{}") and name.startswith("the "):
        text = f"T{text[1:]}"
    end = len(text) - len(after)
    return text, (end - len(subject), end)


def _moved(slot: CharSpan | None, by: int) -> CharSpan | None:
    return slot and (slot[0] + by, slot[1] + by)


def _solved(prompt: Prompt) -> str:
    """The prompt with its answer."""
    return f"{prompt}{prompt.answers[0]}"


def _must_stay(item: MustStay, subject: str) -> Prompt:
    named = subject if name_pattern(subject).search(item.prompt) else ""
    answer = f"{answer_separator(item.prompt)}{item.answer}"
    return Prompt(item.prompt, subject=named, answers=(answer,), relation=OWN)
