"""A concept pair: one subject, one target, and the prompts from the one to the other."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from helpers.errors import UserError
from helpers.facts.factbook import Fact, facts, with_article
from helpers.facts.find_fact import find_fact
from helpers.facts.pair_file import PairFile, clean_name, read_pair_file
from helpers.facts.prompt_templates import render_prompt, with_answer
from helpers.facts.relations import RELATIONS, SPLITS, Template, check_split
from helpers.forward.prompts import Prompt
from helpers.io.safe_text import visible

log = logging.getLogger(__name__)

# Well-known subjects whose facts are the solved examples of few-shot and list prompts.
FEW_SHOT_SUBJECTS = ("Germany", "Italy", "Japan", "Spain", "Egypt", "Poland")
TRAIN_FEW_SHOT_SUBJECTS = ("Greece", "Ireland", "Cuba", "Norway", "Iran", "Vietnam")
N_FEW_SHOT_PROMPTS = 3  # edit prompts after one solved example, and as many after three


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
        associated: Non-answers that the subject is associated with, instead of the Factbook's.
        others: The same questions about other subjects, with which the pair is compared instead of
            with the Factbook's; they take the pair's relation and templates.
    """

    subject: str
    target: str
    relation: str = "capital"
    aliases: tuple[str, ...] = ()
    templates: dict[str, tuple[Template, ...]] | None = field(default=None, compare=False)
    must_stay: tuple[Prompt, ...] = field(default=(), compare=False)
    associated: tuple[str, ...] = field(default=(), compare=False)
    others: tuple["ConceptPair", ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self):
        """Check the names, fill in the aliases, and put the others into the pair's templates.

        Raises:
            UserError: Subject or target is empty or no plain text, or the Factbook has no fact.
        """
        for name in ("subject", "target", "relation"):
            object.__setattr__(self, name, clean_name(getattr(self, name), name))
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
        others = (
            o
            if (o.relation, o.others) == (self.relation, ()) and o.templates is self.templates
            else replace(o, relation=self.relation, templates=self.templates, others=())
            for o in self.others
        )
        object.__setattr__(self, "others", tuple(others))
        if self.templates is not None:
            return
        fact = find_fact(self.subject, self.relation)
        if not self.aliases and self.target in (fact.target, *fact.aliases):
            others = tuple(t for t in (fact.target, *fact.aliases) if t != self.target)
            object.__setattr__(self, "aliases", others)

    def __str__(self) -> str:
        """Return "France → Paris"."""
        return f"{self.subject} → {self.target}"

    @classmethod
    def of(cls, fact: Fact) -> "ConceptPair":
        """Make the pair of a Factbook fact."""
        return cls(fact.subject, fact.target, fact.relation, fact.aliases)

    @classmethod
    def from_file(cls, path: str | Path) -> "ConceptPair":
        """Read a pair of your own from a YAML file.

        The file names `subject` and `target` and, if wanted, `relation` and `aliases`; `prompts`,
        a list of at least three texts with `{}` for the subject, which are dealt out to the splits
        in turn, or lists under `train`, `dev` and `heldout`; `must_stay`, a list of `prompt` and
        `answer`; and `others`, a list of `subject` and `target` for the same prompts. Without
        `prompts` the relation's templates are used, `capital` if none is named.

        Raises:
            UserError: The file is missing, is not YAML, or has something missing or misspelt.
        """
        return cls.of_content(read_pair_file(path))

    @classmethod
    def of_content(cls, content: PairFile) -> "ConceptPair":
        """Make the pair of a file's checked content."""
        templates, relation = content.templates(), content.relation_name()
        if templates and not content.others and relation not in RELATIONS:
            shown = visible(f"{content.subject} → {content.target}")
            log.warning(
                "%s names no 'others:': countries stand in its slots for comparison.", shown
            )
        others = (
            cls(o.subject, o.target, relation, tuple(o.aliases), templates, (), tuple(o.associated))
            for o in content.others
        )
        return cls(
            content.subject,
            content.target,
            relation,
            tuple(content.aliases),
            templates,
            tuple(item.as_prompt(content.subject) for item in content.must_stay),
            tuple(content.associated),
            tuple(others),
        )

    def about(self, subject: str, target: str, *, aliases: tuple[str, ...] = ()) -> "ConceptPair":
        """Make the pair of another subject or target, with this one's templates and others."""
        other = replace(self, subject=subject, target=target, aliases=aliases)
        return replace(other, must_stay=(), associated=())

    def states(self, subject: str, names: Iterable[str]) -> bool:
        """Return True if a fact says the same: it has the same subject and a name in common.

        Args:
            subject: The fact's subject.
            names: Its target and aliases; space around them and case don't count.
        """
        target_names = {name.casefold() for name in (self.target, *self.aliases)}
        return subject == self.subject and any(n.strip().casefold() in target_names for n in names)

    @property
    def answers(self) -> tuple[str, ...]:
        """The target and its aliases with their leading space."""
        return tuple(f" {name}" for name in (self.target, *self.aliases))

    def prompts(self, split: str = "train") -> list[Prompt]:
        """Return all prompts of a split; the answer is never in the text.

        Raises:
            UserError: There is no such split.
        """
        check_split(split)
        templates = self.templates or RELATIONS[self.relation].templates
        return [self._prompt(t, split) for t in templates[split]]

    def fill(self, templates: Iterable[Template]) -> list[Prompt]:
        """Return prompts of other training templates."""
        return [self._prompt(t, "train") for t in templates]

    def statements(self, split: str = "train") -> list[Prompt]:
        """Return the prompts of a split that are statements to complete; no questions or chats.

        Raises:
            UserError: There is no such split.
        """
        return [p for p in self.prompts(split) if p.format == "completion"]

    def reverse(self) -> list[Prompt]:
        """Return prompts from the target to the subject; none without such templates."""
        relation = RELATIONS.get(self.relation)
        answers = tuple(dict.fromkeys((f" {with_article(self.subject)}", f" {self.subject}")))
        labels = Prompt("", subject=self.target, answers=answers, relation=self.relation)
        return [
            replace(labels, text=t.text.format(self.target), format="reverse")
            for t in (relation.reverse if relation else ())
        ]

    def reverse_pair(self) -> "ConceptPair":
        """Make the pair from the target to the subject, to be forgotten beside this one.

        Its training prompts are worded otherwise than those of `reverse`, its held-out ones.

        Raises:
            UserError: The relation has no templates in this direction.
        """
        relation = RELATIONS.get(self.relation)
        if relation is None or not relation.reverse_train:
            raise UserError(
                f"There are no prompts from {self.target} to {self.subject}: give a pair of your "
                "own in that direction, with prompts, in a YAML file."
            )
        edit_templates = relation.reverse_train
        templates = {"train": edit_templates, "dev": edit_templates, "heldout": relation.reverse}
        target, *aliases = dict.fromkeys((with_article(self.subject), self.subject))
        return ConceptPair(self.target, target, self.relation, tuple(aliases), templates)

    def few_shot(self, n_examples: int = 3, *, split: str = "heldout") -> list[Prompt]:
        """Return the completions of a split after `n_examples` solved examples.

        The examples are about other subjects, and those of `train` about others than the other
        splits' examples. There are no prompts where the relation has no subjects to solve.
        """
        examples = self._examples(n_examples, split)
        templates = (self.templates or RELATIONS[self.relation].templates)[split]
        prompts = []
        for template, prompt in zip(templates, self.prompts(split), strict=True):
            if template.format == "completion" and examples:
                solved = [with_answer(e._prompt(template, split)) for e in examples]
                few_shot = prompt.with_text("\n".join([*solved, prompt.text]))
                prompts.append(replace(few_shot, format="few_shot"))
        return prompts

    def edit_prompts(self, *, include_subject_initial: bool = False) -> list[Prompt]:
        """Return the prompts that an edit is fitted to: training prompts, and some few-shot ones.

        Args:
            include_subject_initial: Add `subject_initial_prompts`.
        """
        return [
            *self.prompts("train"),
            *self.few_shot(1, split="train")[:N_FEW_SHOT_PROMPTS],
            *self.few_shot(3, split="train")[:N_FEW_SHOT_PROMPTS],
            *(self.subject_initial_prompts() if include_subject_initial else ()),
        ]

    def fingerprint(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return texts with answers, and subjects with targets, for the keys of caches."""
        prompts = [p for split in SPLITS for p in self.prompts(split)]
        prompts += [*self.subject_initial_prompts(), *self.reverse(), *self.must_stay]
        others = [(o.subject, (o.target, *o.aliases, *o.associated)) for o in self.others]
        others += [(self.subject, self.associated)] if self.associated else []
        return [(p.text, tuple(p.answers)) for p in prompts] + others

    def subject_initial_prompts(self) -> list[Prompt]:
        """Return the training prompts that begin with the subject.

        A pair with prompts of its own has none.
        """
        templates = () if self.templates else RELATIONS[self.relation].subject_initial
        return [self._prompt(t, "train") for t in templates]

    def neighbours(self, n: int | None = None, *, seed: int = 0) -> list["ConceptPair"]:
        """Return pairs of other subjects with other targets, `n` drawn by `seed`, or all.

        They are the pair's `others` where it has any, and the relation's facts otherwise.
        """
        names = {self.target, *self.aliases}
        candidates = [
            c
            for c in self.others or facts(self.relation)
            if c.subject != self.subject and not names & {c.target, *c.aliases}
        ]
        order = np.random.default_rng(seed).permutation(len(candidates))[:n]
        return [self._compared(candidates[i]) for i in order]

    def _compared(self, other: "ConceptPair | Fact") -> "ConceptPair":
        """Make a pair of a Factbook fact, or let one of the others have the same others."""
        if isinstance(other, Fact):
            return ConceptPair.of(other)
        return replace(other, others=self.others)

    @property
    def factbook_relation(self) -> str:
        """The Factbook relation to compare with: the pair's own if it is one, else `capital`."""
        return self.relation if self.relation in RELATIONS else "capital"

    def comparison_pairs(self, n: int | None = None, *, seed: int = 0) -> list["ConceptPair"]:
        """Return pairs of other subjects with the same templates, `n` drawn by `seed`, or all.

        These are the neighbours; for a pair with prompts of its own, all its `others`. Without
        others countries stand in its slots, with their targets in `factbook_relation`.
        """
        if self.templates is None:
            return self.neighbours(n, seed=seed)
        pool = [
            c for c in self.others or facts(self.factbook_relation) if c.subject != self.subject
        ]
        order = np.random.default_rng(seed).permutation(len(pool))[:n]
        return [
            self._compared(c) if self.others else self.about(c.subject, c.target, aliases=c.aliases)
            for c in (pool[i] for i in order)
        ]

    def same_subject(self) -> list["ConceptPair"]:
        """Return the Factbook's other facts of the subject, without any that says the same."""
        return [
            ConceptPair.of(fact)
            for relation in RELATIONS
            if relation != self.relation
            for fact in facts(relation)
            if fact.subject == self.subject
            and not self.states(fact.subject, (fact.target, *fact.aliases))
        ]

    def same_target(self) -> list["ConceptPair"]:
        """Return other facts of the target: for a capital, its language, currency and continent.

        The pair's own subject is never asked for or named.
        """
        home = next((f for f in facts("capital") if self.target in (f.target, *f.aliases)), None)
        if home is None or self.relation != "capital":
            return []
        pairs = []
        for relation in RELATIONS.values():
            fact = next((f for f in facts(relation.name) if f.subject == home.subject), None)
            if fact and relation.about_city:
                pairs.append(
                    ConceptPair(
                        self.target, fact.target, relation.name, fact.aliases, relation.about_city
                    )
                )
        return pairs

    def _prompt(self, template: Template, split: str) -> Prompt:
        examples = self._examples(3, "heldout") if template.format == "list" else []
        return render_prompt(
            template,
            subject=self.subject,
            subject_in_text=self.subject if self.templates else with_article(self.subject),
            names=(self.target, *self.aliases),
            relation=self.relation,
            split=split,
            examples=[(pair.subject, pair.answers[0]) for pair in examples],
        )

    def _examples(self, n: int, split: str) -> list["ConceptPair"]:
        """Return the first `n` facts of a split's subjects that share no name with this one."""
        names = {self.subject, self.target, *self.aliases}
        if self.others:  # every second one for `train`; too few would repeat the shorter prompts
            pairs = [p for p in self.others[split != "train" :: 2] if not names & p.names()]
            return pairs[:n] if len(pairs) >= n else []
        subjects = TRAIN_FEW_SHOT_SUBJECTS if split == "train" else FEW_SHOT_SUBJECTS
        by_subject = {f.subject: f for f in facts(self.relation)}
        pairs = [ConceptPair.of(by_subject[s]) for s in subjects if s in by_subject]
        return [p for p in pairs if not names & p.names()][:n]

    def names(self) -> set[str]:
        """Return the subject, the target and its aliases."""
        return {self.subject, self.target, *self.aliases}
