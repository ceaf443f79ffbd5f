"""A concept pair: one subject, one target, and all ways of asking for the one with the other."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from helpers.errors import UserError
from helpers.facts.factbook import Fact, facts, with_article
from helpers.facts.prompts import Prompt
from helpers.facts.relations import RELATIONS, SPLITS, Template, check_split

OWN = "own"  # the relation of a pair that brings its own prompts
USUAL = ("Germany", "Italy", "Japan", "Spain", "Egypt", "Poland")  # whose facts are examples
LEARNT_SHOTS = ("Greece", "Ireland", "Cuba", "Norway", "Iran", "Vietnam")  # those of `train`
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
            UserError: Subject or target is empty, the relation is unknown, or the relation is the
                Factbook's and it has no such subject.
        """
        if not self.subject.strip() or not self.target.strip():
            raise UserError("A concept pair needs a subject and a target; one of them is empty.")
        if self.templates is not None:
            return
        if self.relation not in RELATIONS:
            raise UserError(
                f"There is no relation '{self.relation}'; choose from {', '.join(RELATIONS)}, or "
                "give your own prompts in a YAML file."
            )
        known = {f.subject: f for f in facts(self.relation)}
        if self.subject not in known:
            names = sorted({*known, *(f.subject for f in facts("language"))})
            close = difflib.get_close_matches(self.subject, names, n=3)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else "use a country's English name"
            )
            raise UserError(
                f"The Factbook has no {self.relation} for '{self.subject}': {hint}; "
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
        path = Path(path).expanduser()
        if not path.is_file():
            raise UserError(f"There is no file {path}; give the path of a YAML file with a pair.")
        try:
            content = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
        allowed = ("subject", "target", "relation", "aliases", "prompts", "must_stay")
        if not isinstance(content, dict) or not {"subject", "target"} <= content.keys():
            raise UserError(f"{path} must name at least 'subject:' and 'target:'.")
        for key in content:
            if key not in allowed:
                raise UserError(f"{path}: there is no '{key}'; known are {', '.join(allowed)}.")
        templates = _own_templates(path, content.get("prompts"))
        relation = content.get("relation", OWN if templates else "capital")
        subject, target = (str(content[k] or "") for k in ("subject", "target"))
        return cls(
            subject,
            target,
            relation,
            tuple(str(a) for a in _listed(content.get("aliases"))),
            templates,
            _own_must_stay(path, content.get("must_stay"), subject),
        )

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
        usual = LEARNT_SHOTS if split == "train" else USUAL
        shots = self._examples(n, usual)
        return [
            Prompt(
                "\n".join([*(str(s._prompt(t, split)) + s.answers[0] for s in shots), str(p)]),
                subject=p.subject,
                answers=p.answers,
                relation=self.relation,
                split=split,
                format="few_shot",
            )
            for t, p in zip(
                (self.templates or RELATIONS[self.relation].templates)[split],
                self.prompts(split),
                strict=True,
            )
            if t.format == "completion" and shots
        ]

    def learnt(self, *, first: bool = False) -> list[Prompt]:
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
    def nearest_relation(self) -> str:
        """The Factbook relation whose facts stand beside this one: its own, or `capital`."""
        return self.relation if self.relation in RELATIONS else "capital"

    def others(self, n: int | None = None, *, seed: int = 0) -> list["ConceptPair"]:
        """Other subjects asked in the same ways, `n` drawn by `seed`, or all: what to compare with.

        These are the neighbours; for a pair with prompts of its own, countries stand in its slots,
        with the target that the Factbook gives them in `nearest_relation`.
        """
        if self.templates is None:
            return self.neighbours(n, seed=seed)
        found = [f for f in facts(self.nearest_relation) if f.subject != self.subject]
        order = np.random.default_rng(seed).permutation(len(found))[:n]
        return [
            ConceptPair(f.subject, f.target, self.relation, f.aliases, self.templates)
            for f in (found[i] for i in order)
        ]

    def same_subject(self) -> list["ConceptPair"]:
        """The Factbook's other facts of the subject."""
        return [
            ConceptPair.of(fact)
            for relation in RELATIONS
            if relation != self.relation
            for fact in facts(relation)
            if fact.subject == self.subject
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
            "answers": self.answers,
            "relation": self.relation,
            "split": split,
            "format": template.format,
        }
        if template.format == "chat":
            messages = (_filled(template.text, name), _filled(template.prefix, name))
            return Prompt("", messages=messages, **common)
        if template.format == "list":
            head, line = template.text.rsplit("\n", 1)
            examples = [line.format(s.subject) + s.answers[0] for s in self._examples(3)]
            return Prompt("\n".join([head, *examples, line.format(self.subject)]), **common)
        return Prompt(_filled(template.text, name), **common)

    def _examples(self, n: int, usual: tuple[str, ...] = USUAL) -> list["ConceptPair"]:
        """Fixed, well-known facts of the relation that share nothing with this one."""
        mine = {self.subject, self.target, *self.aliases}
        by_subject = {f.subject: f for f in facts(self.relation)}
        fits = [by_subject[s] for s in usual if s in by_subject]
        return [ConceptPair.of(f) for f in fits if not mine & {f.subject, f.target, *f.aliases}][:n]


def _filled(text: str, name: str) -> str:
    """The text with the name in it, as it is given; an article that begins it gets a capital."""
    filled = text.replace("{}", name)
    article = text.startswith("{}") and name.startswith("the ")
    return f"T{filled[1:]}" if article else filled


def _listed(given: object) -> list:
    """What a file gives as a list, as one thing alone, or not at all."""
    if given is None:
        return []
    return given if isinstance(given, list) else [given]


def _own_templates(path: Path, given: object) -> dict[str, tuple[Template, ...]] | None:
    if given is None:
        return None
    if isinstance(given, list) and len(given) >= len(SPLITS):
        given = {split: given[i :: len(SPLITS)] for i, split in enumerate(SPLITS)}
    if not isinstance(given, dict) or set(given) != set(SPLITS) or not all(given.values()):
        raise UserError(
            f"{path}: 'prompts:' is a list of at least three texts, or has lists under 'train:', "
            "'dev:' and 'heldout:', so that what is reported was never trained on."
        )
    return {split: tuple(Template(str(t)) for t in _listed(given[split])) for split in SPLITS}


def _own_must_stay(path: Path, given: object, subject: str) -> tuple[Prompt, ...]:
    found = []
    for item in _listed(given):
        if not isinstance(item, dict) or not {"prompt", "answer"} <= item.keys():
            raise UserError(f"{path}: each item of 'must_stay:' needs 'prompt:' and 'answer:'.")
        answer = " " + str(item["answer"]).strip()
        named = subject if subject in str(item["prompt"]) else ""
        found.append(
            Prompt(str(item["prompt"]).rstrip(), subject=named, answers=(answer,), relation=OWN)
        )
    return tuple(found)
