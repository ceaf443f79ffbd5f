"""The data of training methods: examples to forget, and examples to retain.

All of it is of the `train` split: the prompts that every method may forget by (`forget_prompts`),
training prompts of other facts, and passages of the Factbook's training countries.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt, subject_span
from helpers.facts.concept_prompts import forget_prompts
from helpers.facts.corpus import corpus_tokens
from helpers.forward.scoring import answer_logprobs, distinct_answers
from helpers.io.hashing import content_hash
from helpers.methods.fitting.constraints import neighbour_prompts
from helpers.models import model_hash, torch_module
from helpers.requests import TextRequest
from helpers.training.examples import Batch, Example, answer_example, collate, text_examples
from helpers.training.loop import epoch_batch

MEMO_SIZE = 3  # data sets of a model that are kept in memory, for methods that share one


@dataclass(frozen=True)
class ForgetRetainData:
    """Examples to forget and to retain.

    Attributes:
        prompts: The prompts to forget by, one for each example; none for text.
        forget: These prompts with the target, with each alias once more; or text.
        facts: Other facts that the model knows, with their answers.
        passages: Passages of text.
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
        """Count the examples of each kind, and their tokens."""
        groups = {"forget": self.forget, "facts": self.facts, "passages": self.passages}
        n_examples = {f"n_{name}": len(examples) for name, examples in groups.items()}
        n_tokens = {f"{n}_tokens": sum(len(e.ids) for e in x) for n, x in groups.items()}
        return n_examples | n_tokens


_MEMO: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def forget_retain_data(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    n_neighbours: int,
    n_passages: int,
    passage_tokens: int = 24,
    min_answer_prob: float = 0.02,
    seed: int,
) -> ForgetRetainData:
    """Collect examples to forget and to retain; the last data sets of a model stay in memory.

    To retain are one training completion of each of `n_neighbours` known neighbours, the training
    prompts of the other facts of the subjects and of the targets, `must_stay`, and passages that
    name none of them. Facts that the model does not know are left out: training on them would add
    them to it. So are those that another of the pairs is to forget.

    Args:
        model: Any causal model.
        pairs: What to forget.
        n_neighbours: Known neighbours; several pairs share them equally.
        n_passages: Passages of text.
        passage_tokens: Tokens of a passage.
        min_answer_prob: The model knows a fact if its answer is at least this likely.
        seed: Draws neighbours, completions and passages.

    Raises:
        UserError: A pair has no training prompt.
    """
    key = content_hash(
        model_hash(model),
        [(str(pair), pair.relation, pair.fingerprint()) for pair in pairs],
        n_neighbours,
        n_passages,
        passage_tokens,
        min_answer_prob,
        seed,
    )
    memo = _MEMO.setdefault(torch_module(model), {})
    if key not in memo:
        while len(memo) >= MEMO_SIZE:
            memo.pop(next(iter(memo)))  # the oldest
        prompts, forget = [], []
        for pair in pairs:
            of_pair = _forget_examples(model, pair)
            prompts += of_pair[0]
            forget += of_pair[1]
        facts = _known_facts(model, pairs, n_neighbours, min_answer_prob, seed)
        passages = unrelated_passages(
            model, pairs, n=n_passages, n_tokens=passage_tokens, seed=seed + 1
        )
        memo[key] = ForgetRetainData(prompts, forget, facts, passages)
    return memo[key]


def _forget_examples(model: LanguageModel, pair: ConceptPair) -> tuple[list[Prompt], list[Example]]:
    """Return the pair's training prompts, once an answer, and their examples."""
    prompts, examples = [], []
    for prompt in forget_prompts(pair):
        subject_start = subject_span(prompt, model.tokenizer)[0]
        for answer in distinct_answers(model, prompt):
            prompts.append(prompt)
            examples.append(answer_example(model, prompt, answer, subject_start=subject_start))
    if not examples:
        raise UserError(f"There is nothing to forget: {pair} has no training prompt.")
    return prompts, examples


def _known_facts(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    n_neighbours: int,
    min_answer_prob: float,
    seed: int,
) -> list[Example]:
    """Return examples of the other facts whose answers are likely enough."""
    prompts: list[Prompt] = []
    for pair in pairs:
        related = [
            other
            for other in (*pair.same_subject(), *pair.same_target())
            if not any(p.states(other.subject, (other.target, *other.aliases)) for p in pairs)
        ]
        prompts += [p for other in related for p in other.prompts("train")]
        neighbours = neighbour_prompts(model, pair, n=-(-n_neighbours // len(pairs)), seed=seed)
        prompts += [
            *pair.must_stay,
            *(n for n in neighbours if not any(p.states(n.subject, n.answers) for p in pairs)),
        ]
    prompts = list({str(p): p for p in prompts}.values())
    if not prompts:
        return []
    answers = [p.answers[0] for p in prompts]
    is_known = answer_logprobs(model, prompts, answers) >= np.log(min_answer_prob)
    return [
        answer_example(model, prompt, answer)
        for prompt, answer, known in zip(prompts, answers, is_known, strict=True)
        if known
    ]


def unrelated_passages(
    model: LanguageModel, pairs: Sequence[ConceptPair], *, n: int, n_tokens: int, seed: int
) -> list[Example]:
    """Return passages of the Factbook that name no subject or target.

    Args:
        model: Any causal model; its tokenizer is used.
        pairs: What is forgotten; nothing of the Factbook if it is text.
        n: Largest number of passages.
        n_tokens: Tokens of each.
        seed: Draws them.
    """
    if not n:
        return []
    names = {name for p in pairs for name in (p.subject, p.target, *p.aliases)}
    tokens = corpus_tokens(  # twice as many as needed, since some are left out
        model.tokenizer, seq_len=n_tokens, n_tokens=2 * n * n_tokens, seed=seed
    )
    texts = model.tokenizer.batch_decode(tokens)
    unrelated = [i for i, text in enumerate(texts) if not any(name in text for name in names)]
    return text_examples(tokens[unrelated[:n]])


def text_data(
    model: LanguageModel, request: TextRequest, *, n_tokens: int, seq_len: int
) -> ForgetRetainData:
    """Cut the corpora of a request into examples to forget and to retain.

    Args:
        model: Any causal model.
        request: What to forget.
        n_tokens: Tokens to forget by, and as many to retain, of all kinds together.
        seq_len: Tokens of a sequence.

    Raises:
        UserError: A corpus has no text.
    """
    share = max(seq_len, n_tokens // max(1, len(request.retain)))
    kinds = [c.examples(model, n_tokens=share, seq_len=seq_len) for c in request.retain]
    forget = request.forget.examples(model, n_tokens=n_tokens, seq_len=seq_len)
    return ForgetRetainData([], forget, [], [example for kind in kinds for example in kind])


class BatchSchedule:
    """Batches of examples of similar length; each epoch visits all of them in a new order."""

    def __init__(self, examples: Sequence[Example], batch_size: int, *, seed: int):
        """Sort the examples by length and cut them into batches.

        Args:
            examples: At least one.
            batch_size: About how many examples make a batch.
            seed: Draws the orders.
        """
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
        n_batches = max(1, round(len(order) / batch_size))
        parts = [part.tolist() for part in np.array_split(order, n_batches)]
        self.batches = [collate(examples, part) for part in parts if part]
        self.seed = seed

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        return epoch_batch(self.batches, step, seed=self.seed)
