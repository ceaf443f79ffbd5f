"""A concept pair: one subject, one target, and the prompts from the one to the other."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from helpers.errors import UserError
from helpers.facts.factbook import Fact, facts, with_article
from helpers.facts.pair_file import MustStay, clean_name, read_pair_file
from helpers.facts.prompt_templates import render_prompt, with_answer
from helpers.facts.relations import RELATIONS, SPLITS, Template, check_split
from helpers.forward.prompts import Prompt, answer_separator
from helpers.io.safe_text import name_pattern, visible

OWN_RELATION = "own"  # the relation of a pair that brings its own prompts
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
    """

    subject: str
    target: str
    relation: str = "capital"
    aliases: tuple[str, ...] = ()
    templates: dict[str, tuple[Template, ...]] | None = field(default=None, compare=False)
    must_stay: tuple[Prompt, ...] = field(default=(), compare=False)
    associated: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self):
        """Check the names and fill in the aliases.

        Raises:
            UserError: Subject or target is empty or no plain text, the relation is unknown, or the
                relation is the Factbook's and it has no such subject.
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
        in turn, or lists under `train`, `dev` and `heldout`; and `must_stay`, a list of `prompt`
        and `answer`. Without `prompts` the relation's templates are used, `capital` if none is
        named.

        Raises:
            UserError: The file is missing, is not YAML, or has something missing or misspelt.
        """
        content = read_pair_file(path)
        templates = None
        if content.prompts:
            templates = {
                split: tuple(Template(text) for text in texts)
                for split, texts in content.prompts.items()
            }
        return cls(
            content.subject,
            content.target,
            content.relation or (OWN_RELATION if templates else "capital"),
            tuple(content.aliases),
            templates,
            tuple(_must_stay(item, content.subject) for item in content.must_stay),
            tuple(content.associated),
        )

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
        """Return prompts of other training templates than the relation's."""
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
        subjects = TRAIN_FEW_SHOT_SUBJECTS if split == "train" else FEW_SHOT_SUBJECTS
        examples = self._examples(n_examples, subjects)
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
        """Return text and answers of every prompt of the pair, for the keys of caches."""
        prompts = [p for split in SPLITS for p in self.prompts(split)]
        prompts += [*self.subject_initial_prompts(), *self.reverse(), *self.must_stay]
        return [(p.text, tuple(p.answers)) for p in prompts]

    def subject_initial_prompts(self) -> list[Prompt]:
        """Return the training prompts that begin with the subject.

        A pair with prompts of its own has none.
        """
        templates = () if self.templates else RELATIONS[self.relation].subject_initial
        return [self._prompt(t, "train") for t in templates]

    def neighbours(self, n: int | None = None, *, seed: int = 0) -> list["ConceptPair"]:
        """Return the relation's other pairs with other targets, `n` drawn by `seed`, or all."""
        if self.relation not in RELATIONS:
            return []
        names = {self.target, *self.aliases}
        other_facts = [
            f
            for f in facts(self.relation)
            if f.subject != self.subject and not names & {f.target, *f.aliases}
        ]
        order = np.random.default_rng(seed).permutation(len(other_facts))[:n]
        return [ConceptPair.of(other_facts[i]) for i in order]

    @property
    def factbook_relation(self) -> str:
        """The Factbook relation to compare with: the pair's own if it is one, else `capital`."""
        return self.relation if self.relation in RELATIONS else "capital"

    def comparison_pairs(self, n: int | None = None, *, seed: int = 0) -> list["ConceptPair"]:
        """Return pairs of other subjects with the same templates, `n` drawn by `seed`, or all.

        These are the neighbours; for a pair with prompts of its own, countries stand in its slots,
        with the target that the Factbook gives them in `factbook_relation`.
        """
        if self.templates is None:
            return self.neighbours(n, seed=seed)
        other_facts = [f for f in facts(self.factbook_relation) if f.subject != self.subject]
        order = np.random.default_rng(seed).permutation(len(other_facts))[:n]
        return [
            ConceptPair(f.subject, f.target, self.relation, f.aliases, self.templates)
            for f in (other_facts[i] for i in order)
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
        examples = self._examples(3, FEW_SHOT_SUBJECTS) if template.format == "list" else []
        return render_prompt(
            template,
            subject=self.subject,
            subject_in_text=self.subject if self.templates else with_article(self.subject),
            names=(self.target, *self.aliases),
            relation=self.relation,
            split=split,
            examples=[(pair.subject, pair.answers[0]) for pair in examples],
        )

    def _examples(self, n: int, subjects: tuple[str, ...]) -> list["ConceptPair"]:
        """Return the first `n` facts about `subjects` that share no name with this one."""
        names = {self.subject, self.target, *self.aliases}
        by_subject = {f.subject: f for f in facts(self.relation)}
        pairs = [ConceptPair.of(by_subject[s]) for s in subjects if s in by_subject]
        return [p for p in pairs if not names & {p.subject, p.target, *p.aliases}][:n]


def _must_stay(item: MustStay, subject: str) -> Prompt:
    """Make the prompt of a `must_stay` entry; it has a subject only if it names it."""
    named_subject = subject if name_pattern(subject).search(item.prompt) else ""
    answer = f"{answer_separator(item.prompt)}{item.answer}"
    return Prompt(item.prompt, subject=named_subject, answers=(answer,), relation=OWN_RELATION)
