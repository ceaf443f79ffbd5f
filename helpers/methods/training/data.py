"""What training methods learn from: examples to forget, and examples to retain.

All of it is of the `train` split: the pair's training prompts, training prompts of other facts, and
passages of the Factbook's training countries.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt, subject_span
from helpers.facts.corpus import corpus_tokens
from helpers.forward.scoring import answer_logprobs, distinct_answers
from helpers.io.hashing import content_hash
from helpers.methods.fitting.constraints import MIN_PROB, neighbour_prompts
from helpers.models import model_hash
from helpers.training.examples import Batch, Example, answer_example, collate, text_examples
from helpers.training.loop import epoch_batch

PASSAGE = 24  # tokens of a passage
KEPT = 3  # sets of examples that a model's methods share


@dataclass(frozen=True)
class ForgetRetainData:
    """Examples of one pair.

    Attributes:
        prompts: The pair's training prompts, one for each example to forget.
        forget: These prompts with the target; with each alias once more.
        facts: Other facts that the model knows, with their answers.
        passages: Stretches of running text.
    """

    prompts: list[Prompt]
    forget: list[Example]
    facts: list[Example]
    passages: list[Example]

    @property
    def retain(self) -> list[Example]:
        """Facts and passages."""
        return self.facts + self.passages

    def sizes(self) -> dict[str, int]:
        """How many examples of each kind, and their tokens."""
        groups = {"forget": self.forget, "facts": self.facts, "passages": self.passages}
        found = {f"n_{name}": len(examples) for name, examples in groups.items()}
        tokens = {f"{n}_tokens": sum(len(e.ids) for e in x) for n, x in groups.items()}
        return found | tokens


_LAST: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def forget_retain_data(
    model: LanguageModel, pair: ConceptPair, *, n_neighbours: int, n_passages: int, seed: int
) -> ForgetRetainData:
    """Examples to forget and to retain; the last ones of a model are kept.

    To retain: one training completion of each of `n_neighbours` known neighbours, the training
    prompts of the other facts of the subject and of the target, `must_stay`, and passages that name
    neither subject nor target. Facts that the model does not know are left out: to train on them
    would teach them.

    Args:
        model: Any causal model.
        pair: What to forget.
        n_neighbours: Known neighbours.
        n_passages: Passages, of `PASSAGE` tokens each.
        seed: Draws neighbours, completions and passages.

    Raises:
        UserError: The pair has no training prompt.
    """
    key = content_hash(
        model_hash(model),
        str(pair),
        pair.relation,
        pair.fingerprint(),
        n_neighbours,
        n_passages,
        seed,
    )
    kept = _LAST.setdefault(model._module, {})
    if key not in kept:
        while len(kept) >= KEPT:
            kept.pop(next(iter(kept)))
        kept[key] = _build(model, pair, n_neighbours, n_passages, seed)
    return kept[key]


def _build(
    model: LanguageModel, pair: ConceptPair, n_neighbours: int, n_passages: int, seed: int
) -> ForgetRetainData:
    prompts, forget = [], []
    for prompt in pair.prompts("train"):
        since = subject_span(prompt, model.tokenizer)[0]
        for answer in distinct_answers(model, prompt):
            prompts.append(prompt)
            forget.append(answer_example(model, prompt, answer, since=since))
    if not forget:
        raise UserError(f"There is nothing to forget: {pair} has no training prompt.")
    others = [p for x in (*pair.same_subject(), *pair.same_target()) for p in x.prompts("train")]
    others += [*pair.must_stay, *neighbour_prompts(model, pair, n=n_neighbours, seed=seed)]
    others = list({str(p): p for p in others}.values())
    answers = [p.answers[0] for p in others]
    likely = answer_logprobs(model, others, answers) >= np.log(MIN_PROB) if others else []
    facts = [
        answer_example(model, p, a)
        for p, a, keep in zip(others, answers, likely, strict=True)
        if keep
    ]
    return ForgetRetainData(prompts, forget, facts, _passages(model, pair, n_passages, seed))


def _passages(model: LanguageModel, pair: ConceptPair, n: int, seed: int) -> list[Example]:
    if not n:
        return []
    names = (pair.subject, pair.target, *pair.aliases)
    tokens = corpus_tokens(
        model.tokenizer, seq_len=PASSAGE, n_tokens=2 * n * PASSAGE, seed=seed + 1
    )
    texts = model.tokenizer.batch_decode(tokens)
    keep = [i for i, text in enumerate(texts) if not any(name in text for name in names)]
    return text_examples(tokens[keep[:n]])


class BatchSchedule:
    """Batches of like length, in rounds: each example once a round, in an order drawn anew."""

    def __init__(self, examples: Sequence[Example], size: int, *, seed: int):
        """Sort the examples by length and cut them into batches.

        Args:
            examples: At least one.
            size: Examples of a batch, at most.
            seed: Draws the order.
        """
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
        n = max(1, round(len(order) / size))
        parts = [part.tolist() for part in np.array_split(order, n)]
        self.batches = [collate(examples, part) for part in parts if part]
        self.seed = seed

    def at(self, i: int) -> Batch:
        """The i-th batch."""
        return epoch_batch(self.batches, i, seed=self.seed)
