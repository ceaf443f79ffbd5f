"""Ask a model something: probabilities of answers, ranks, continuations, losses.

Everything that asks a model goes through here, so that it is asked fast: sequences that begin alike
(a template up to its subject, a chat template) share one pass over their beginning; they are sorted
by length and right-padded in batches (causal attention makes padding on the right invisible to what
comes before, so no mask is needed); and the unembedding, the widest matrix of a small model, is
applied only at the positions asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.batching import (
    BATCH_TOKENS,
    Reader,
    bucket_by_length,
    common_prefix_length,
    right_padded,
    run_batched,
)
from helpers.forward.layer_cache import KeysAndValues, cached_forward, followed
from helpers.models import check_length, context_length, padding, unembed
from helpers.models.files import shown
from helpers.models.hooks import active_interventions
from helpers.models.tokenization import distinct, encode

Rows = list[tuple[tuple[int, ...], range]]
"""Requests: token ids and the positions wanted."""
LOGIT_ROWS = 256  # unembedded at a time: 50 MB of logits at 49 thousand tokens stay in cache


def rendered(prompt: str, tokenizer) -> str:
    """The text that the model sees: a prompt that knows its chat form is put in the template."""
    return prompt.render(tokenizer) if hasattr(prompt, "render") else str(prompt)


def answer_logprobs(
    model: LanguageModel, prompts: Sequence[str], answers: Sequence[str]
) -> Float[np.ndarray, " n"]:
    """log P(answer | prompt), summed over the answer's tokens, in nats.

    Prompt and answer are tokenised together, and what follows their common beginning with the
    prompt's own tokens counts as the answer: right for tokenizers that merge across the seam.

    Args:
        model: Any causal model.
        prompts: Strings, or `Prompt`s (those with a chat form are put in the chat template).
        answers: What is appended to each, with its leading space.
    """
    places, each, _ = _answers_read(model, prompts, answers)
    return _summed(each, places.owner, len(prompts))


def answer_scores(
    model: LanguageModel, prompts: Sequence
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """P(target | prompt) and the rank of the target's first token, in one pass.

    The probability is the whole answer's, summed over the target's aliases; an alias whose tokens
    begin with another one's is part of the same event and is not counted twice. The rank (0 is the
    likeliest of all tokens) is the best over the aliases.

    Args:
        model: Any causal model.
        prompts: `Prompt`s, which carry their `answers`.
    """
    best = np.full(len(prompts), np.iinfo(np.int64).max)
    index, texts, answers = _asked(prompts)
    if not index:
        return np.zeros(len(prompts)), best
    places, each, ranks = _answers_read(model, texts, answers)
    np.minimum.at(best, index, ranks[places.first])
    return _over_aliases(places, each, index, len(prompts)), best


def _asked(prompts: Sequence) -> tuple[list[int], list, list[str]]:
    """Every prompt once for each of its answers: its number, itself, the answer."""
    asked = [(i, p, a) for i, p in enumerate(prompts) for a in dict.fromkeys(p.answers)]
    return [i for i, _, _ in asked], [p for _, p, _ in asked], [a for _, _, a in asked]


def distinct_answers(model: LanguageModel, prompt) -> list[str]:
    """A `Prompt`'s answers without those whose tokens begin with another one's after it."""
    answers = list(dict.fromkeys(prompt.answers))
    counts = distinct([answer_span(model, prompt, a)[1] for a in answers])
    return [a for a, counted in zip(answers, counts, strict=True) if counted]


def _summed(values: np.ndarray, owner: list[int], n: int) -> Float[np.ndarray, " n"]:
    total = np.zeros(n)
    np.add.at(total, owner, values)
    return total


def answer_probability(model: LanguageModel, prompts: Sequence) -> Float[np.ndarray, " n"]:
    """P(target | prompt), as `answer_scores`."""
    return answer_scores(model, prompts)[0]


def answer_rank(model: LanguageModel, prompts: Sequence) -> Int[np.ndarray, " n"]:
    """Rank of the target's first token, as `answer_scores`."""
    return answer_scores(model, prompts)[1]


def token_ranks(
    model: LanguageModel, prompts: Sequence[str], answers: Sequence[str]
) -> list[Int[np.ndarray, " t"]]:
    """Rank of each token of each answer after the true ones before it; 0 is the likeliest."""
    places, _, ranks = _answers_read(model, prompts, answers)
    return np.split(ranks, places.first[1:])


@dataclass(frozen=True)
class _Answers:
    """Where answers' tokens are read.

    Attributes:
        rows: For each answer the tokens before its last, and the positions that tell its own.
        targets: The tokens of all answers.
        owner: Whose each of them is.
        first: Where each answer begins in them.
        whole: The tokens of each prompt with its answer.
    """

    rows: Rows
    targets: list[int]
    owner: list[int]
    first: list[int]
    whole: list[list[int]]


def _answers_read(
    model: LanguageModel, prompts: Sequence[str], answers: Sequence[str]
) -> tuple[_Answers, np.ndarray, np.ndarray]:
    """The answers' places, and of each of their tokens log P and rank."""
    places = _places(model, prompts, answers)
    states, row = _states_at(model, places.rows)
    return places, *_read(model, states, row, places.targets)


def _places(model: LanguageModel, prompts: Sequence[str], answers: Sequence[str]) -> _Answers:
    found = _Answers([], [], [], [], [])
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start, ids = answer_span(model, prompt, answer)
        found.first.append(len(found.targets))
        found.rows.append((tuple(ids[:-1]), range(start - 1, len(ids) - 1)))
        found.targets.extend(ids[start:])
        found.owner.extend([i] * (len(ids) - start))
        found.whole.append(ids)
    return found


def _over_aliases(
    places: _Answers, each: np.ndarray, index: list[int], n: int
) -> Float[np.ndarray, " n"]:
    """P(target) of n prompts: the sum over its answers, without those that are part of another."""
    asked = groupby(zip(index, places.whole, strict=True), key=lambda x: x[0])
    counted = [counts for _, mine in asked for counts in distinct([ids for _, ids in mine])]
    return _summed(np.exp(_summed(each, places.owner, len(index))) * counted, index, n)


def _read(
    model: LanguageModel,
    states: Float[Tensor, "m d_model"],
    row: Int[Tensor, " k"],
    targets: list[int],
) -> tuple[Float[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """log P and rank of each target, read at its row of the states."""
    wanted = torch.tensor(targets, dtype=torch.long)
    logprob = torch.zeros(len(targets), dtype=torch.float64)
    rank = torch.zeros(len(targets), dtype=torch.long)
    for start in range(0, len(states), LOGIT_ROWS):
        with torch.inference_mode():
            logits = unembed(model, states[start : start + LOGIT_ROWS]).float().cpu()
        here = ((row >= start) & (row < start + LOGIT_ROWS)).nonzero()[:, 0]
        local = row[here] - start
        value = logits[local, wanted[here]]
        logprob[here] = (value - logits.logsumexp(-1)[local]).double()
        rank[here] = (logits[local] > value[:, None]).sum(-1)
    return logprob.numpy(), rank.numpy()


def answer_span(model: LanguageModel, prompt: str, answer: str) -> tuple[int, list[int]]:
    """Where the answer begins in the tokens of prompt and answer together, and these tokens.

    Raises:
        UserError: No token of the answer can be told by what stands before it, or the two are
            longer than what the model reads at once.
    """
    text = rendered(prompt, model.tokenizer)
    alone, whole = _readable(model, text), _readable(model, text + answer, beyond=1)
    start = common_prefix_length(alone, whole)
    if start == len(whole):
        raise UserError(f"The answer '{shown(answer)}' adds no token to '{shown(prompt)}'.")
    if start == 0:
        raise UserError(
            f"Nothing stands before the first token of '{shown(prompt + answer)}': the prompt has "
            "become part of the answer's first word; begin with a word more, or end with a space."
        )
    return start, whole


def _readable(model: LanguageModel, text: str, *, beyond: int = 0) -> list[int]:
    """Tokens of a text, so many of them beyond what is read; the model has a place for each.

    Raises:
        UserError: The text is empty or too long, or has a token that is not the model's.
    """
    ids = encode(model.tokenizer, text)
    check_length(model, len(ids) - beyond, f"The prompt '{shown(text)}'")
    rows = model._module.get_input_embeddings().weight.shape[0]
    if max(ids) >= rows:
        token = model.tokenizer.convert_ids_to_tokens(max(ids))
        raise UserError(
            f"The prompt '{shown(text)}' has the token '{shown(token)}', for which the model has "
            "no embedding: leave it out."
        )
    return ids


def first_token(model: LanguageModel, prompt: str, answer: str) -> int:
    """Id of the token that begins `answer` after `prompt`."""
    start, ids = answer_span(model, prompt, answer)
    return ids[start]


@torch.inference_mode()
def next_token_logprobs(model: LanguageModel, prompts: Sequence[str]) -> Float[Tensor, "n vocab"]:
    """log P(next token | prompt) over the vocabulary, in nats, on the CPU."""
    states, row = _states_at(model, _prompt_rows(model, prompts))
    return _next(model, states)[row]


@torch.inference_mode()
def next_token_and_answer(
    model: LanguageModel, prompts: Sequence, *, reader: Reader | None = None
) -> tuple[Float[Tensor, "n vocab"], Float[np.ndarray, " n"]]:
    """`next_token_logprobs` and `answer_probability` of the same prompts, in one pass.

    Args:
        model: Any causal model.
        prompts: `Prompt`s, which carry their `answers`.
        reader: Runs the sequences, and may look at more.
    """
    index, texts, answers = _asked(prompts)
    places, n = _places(model, texts, answers), len(prompts)
    states, row = _states_at(model, [*_prompt_rows(model, prompts), *places.rows], reader)
    each, _ = _read(model, states, row[n:], places.targets)
    return _next(model, states)[row[:n]], _over_aliases(places, each, index, n)


def _prompt_rows(model: LanguageModel, prompts: Sequence[str]) -> Rows:
    """Each prompt with its last position."""
    ids = [tuple(_readable(model, rendered(p, model.tokenizer))) for p in prompts]
    return [(i, range(len(i) - 1, len(i))) for i in ids]


def _next(model: LanguageModel, states: Float[Tensor, "m d_model"]) -> Float[Tensor, "m vocab"]:
    """log P(next token) at each state, on the CPU."""
    parts = [unembed(model, x).float().log_softmax(-1).cpu() for x in states.split(LOGIT_ROWS)]
    return torch.cat(parts)


def top_tokens(
    model: LanguageModel, prompts: Sequence[str], k: int = 5
) -> list[list[tuple[str, float]]]:
    """For each prompt the `k` likeliest next tokens with their probabilities."""
    best = next_token_logprobs(model, prompts).topk(k)
    return [
        [
            (model.tokenizer.decode([t]), p)
            for t, p in zip(ids.tolist(), row.exp().tolist(), strict=True)
        ]
        for row, ids in zip(best.values, best.indices, strict=True)
    ]


def greedy(model: LanguageModel, prompts: Sequence[str], *, max_new_tokens: int = 8) -> list[str]:
    """The likeliest continuation of each prompt, token by token (transformers' `generate`).

    It ends after so many tokens, at an end token, or where the model reads no further.
    """
    tokenizer, module, fill = model.tokenizer, model._module, padding(model)
    ids = [_readable(model, rendered(p, tokenizer)) for p in prompts]
    end = module.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    texts = [""] * len(ids)
    for batch, n in _greedy_batches(model, [len(i) for i in ids], max_new_tokens):
        width = max(len(ids[i]) for i in batch)
        rows = torch.tensor([[fill] * (width - len(ids[i])) + ids[i] for i in batch])
        mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in batch])
        with torch.inference_mode():
            out = module.generate(
                input_ids=rows.to(module.device),
                attention_mask=mask.to(module.device),
                max_new_tokens=n,
                use_cache=not active_interventions(module),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=fill,
            )
        for i, row in zip(batch, out[:, width:].tolist(), strict=True):
            said = next((k for k, token in enumerate(row) if token in ends), len(row))
            texts[i] = tokenizer.decode(row[:said], skip_special_tokens=True)
    return texts


def _greedy_batches(
    model: LanguageModel, lengths: list[int], n: int
) -> Iterator[tuple[list[int], int]]:
    """Batches to continue, and by how many tokens.

    They are of equal length under an intervention, which knows no padding, and where the model's
    context ends before n tokens are said.
    """
    most = context_length(model._module)
    room = [n if most is None else min(n, most + 1 - length) for length in lengths]
    apart = [bool(active_interventions(model._module)) or r < n for r in room]
    free = [i for i in range(len(lengths)) if not apart[i]]
    for batch in bucket_by_length([lengths[i] for i in free], passes=n):
        yield [free[k] for k in batch], n
    for length in sorted({lengths[i] for i in range(len(lengths)) if apart[i]}):
        mine = [i for i in range(len(lengths)) if lengths[i] == length]
        for batch in bucket_by_length([length] * len(mine)):
            yield [mine[k] for k in batch], room[mine[0]]


def token_nll(model: LanguageModel, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n t-1"]:
    """Negative log-likelihood of every token but the first, in nats."""
    states = final_states(model, tokens)[:, :-1]
    wanted = tokens[:, 1:].to(states.device)
    out = torch.empty(wanted.shape)
    for part in torch.arange(len(tokens)).split(max(1, LOGIT_ROWS // tokens.shape[1])):
        with torch.inference_mode():
            logits = unembed(model, states[part]).float()
            out[part] = (
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), wanted[part].flatten(), reduction="none"
                )
                .view(len(part), -1)
                .cpu()
            )
    return out


def final_states(model: LanguageModel, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n t d_model"]:
    """States after the final norm: `helpers.models.unembed` turns them into logits.

    Raises:
        UserError: The sequences are longer than what the model reads at once.
    """
    check_length(model, tokens.shape[1])
    step = max(1, BATCH_TOKENS // tokens.shape[1])
    return torch.cat([_states(model, part) for part in tokens.split(step)])


@torch.inference_mode()
def _states(
    model: LanguageModel,
    ids: Int[Tensor, "b t"],
    begin: tuple[int, ...] = (),
    cache: KeysAndValues | None = None,
) -> Float[Tensor, "b t d_model"]:
    """States after the final norm, of sequences that go on after a cached beginning."""
    module = model._module
    past = {}
    if cache is not None:  # each layer's keys and values of the beginning, for every row
        past = {"past_key_values": followed(cache, len(ids))}
    body, tokens = module.base_model, ids.to(module.device)
    with cached_forward(module, (begin, ids.shape, ids.numpy().tobytes())):
        return body(input_ids=tokens, use_cache=bool(past), **past).last_hidden_state


@torch.inference_mode()
def _states_and_cache(
    model: LanguageModel, ids: tuple[int, ...]
) -> tuple[Float[Tensor, "t d_model"], KeysAndValues]:
    """States of a beginning, and each layer's attention keys and values for what follows it."""
    module = model._module
    tokens = torch.tensor([ids]).to(module.device)
    with cached_forward(module, ids) as completed:
        out = module.base_model(input_ids=tokens, use_cache=True)
    layers = out.past_key_values.layers
    return out.last_hidden_state[0], completed([(x.keys, x.values) for x in layers])


@dataclass(frozen=True)
class _Head:
    ids: tuple[int, ...]
    states: Float[Tensor, "t d_model"]
    cache: KeysAndValues


@dataclass(frozen=True)
class _Plain:
    """The `Reader` that looks at nothing else."""

    model: LanguageModel

    def beginning(self, ids: tuple[int, ...]) -> _Head:
        return _Head(ids, *_states_and_cache(self.model, ids))

    def following(
        self, rows: Sequence[tuple[int, ...]], after: _Head | None
    ) -> Float[Tensor, "b t d_model"]:
        begin, cache = (after.ids, after.cache) if after else ((), None)
        return _states(self.model, right_padded(rows), begin, cache)


def _states_at(
    model: LanguageModel, rows: Rows, reader: Reader | None = None
) -> tuple[Float[Tensor, "m d_model"], Int[Tensor, " k"]]:
    """States after the final norm at the positions asked for, each computed once.

    Args:
        model: Any causal model.
        rows: For each request its token ids and the positions wanted.
        reader: Runs the model.

    Returns:
        The distinct states, and for each wanted position, in order, which of them it is.
    """
    unique: dict[tuple[int, ...], int] = {}  # every beginning of a sequence -> where it is run
    run: list[tuple[int, ...]] = []
    for ids in sorted({ids for ids, _ in rows}, key=len, reverse=True):
        if ids not in unique:
            for end in range(1, len(ids) + 1):
                unique.setdefault(ids[:end], len(run))
            run.append(ids)
    wanted: list[list[int]] = [[] for _ in run]  # positions to keep of each sequence
    for ids, positions in rows:
        wanted[unique[ids]] += positions
    wanted = [sorted(set(w)) for w in wanted]

    kept: dict[tuple[int, int], Tensor] = {}
    whole = bool(
        active_interventions(model._module)
    )  # an intervention may look at more than a part
    for members, head, states in run_batched(run, reader or _Plain(model), whole=whole):
        shared = len(head.ids) if head else 0
        for row, i in enumerate(members):
            for p in wanted[i]:
                kept[i, p] = states[row, p - shared] if p >= shared else head.states[p]
    wanted_keys = [(unique[ids], p) for ids, positions in rows for p in positions]
    place = {key: i for i, key in enumerate(dict.fromkeys(wanted_keys))}
    return torch.stack([kept[k] for k in place]), torch.tensor([place[k] for k in wanted_keys])
