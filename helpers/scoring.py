"""Ask a model something: probabilities of answers, ranks, continuations, losses.

Everything that asks a model goes through here, so that it is asked fast: sequences are sorted by
length and right-padded in batches (causal attention makes padding on the right invisible to what
comes before, so no mask is needed), a sequence that begins another one is not run by itself, and
the unembedding, the widest matrix of a small model, is applied only at the positions asked for.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.models import unembed

BATCH_TOKENS = 1024  # a batch of this many tokens keeps two cores busy and its states in cache
LOGIT_ROWS = 1024  # unembed so many positions at a time: 200 MB of logits at 49 thousand tokens


def rendered(prompt: str, tokenizer) -> str:
    """The text that the model sees: a prompt that knows its chat form is put in the template."""
    return prompt.render(tokenizer) if hasattr(prompt, "render") else str(prompt)


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of `text`, with the tokenizer's beginning-of-sequence token exactly once.

    Raises:
        UserError: The text is empty.
    """
    special = not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))
    ids = tokenizer(text, add_special_tokens=special).input_ids
    if not ids:
        raise UserError("An empty prompt cannot be scored: give it at least one word.")
    return ids


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
    tokenizer = model.tokenizer
    spans = []
    for prompt, answer in zip(prompts, answers, strict=True):
        text = rendered(prompt, tokenizer)
        alone, whole = encode(tokenizer, text), encode(tokenizer, text + answer)
        start = _common_prefix(alone, whole)
        if start == len(whole):
            raise UserError(f"The answer {answer!r} adds no token to the prompt {prompt!r}.")
        spans.append((whole, start))
    rows, targets, owner = [], [], []
    for i, (ids, start) in enumerate(spans):
        rows.append((tuple(ids[:-1]), range(start - 1, len(ids) - 1)))
        targets += ids[start:]
        owner += [i] * (len(ids) - start)
    logprobs = np.concatenate(
        [
            logits.log_softmax(-1).gather(-1, wanted[:, None])[:, 0].double().cpu().numpy()
            for logits, wanted in _logits_at(model, rows, targets)
        ]
    )
    return np.bincount(owner, weights=logprobs, minlength=len(spans))


def answer_probability(model: LanguageModel, prompts: Sequence) -> Float[np.ndarray, " n"]:
    """P(target | prompt): the whole answer, summed over the target's aliases.

    An alias that begins with another one is part of the same event and is not counted twice.

    Args:
        model: Any causal model.
        prompts: `Prompt`s, which carry their `answers`.
    """
    pairs = [
        (i, prompt, answer)
        for i, prompt in enumerate(prompts)
        for answer in _distinct_answers(prompt.answers)
    ]
    if not pairs:
        return np.zeros(0)
    index, texts, answers = zip(*pairs, strict=True)
    logprobs = answer_logprobs(model, texts, answers)
    return np.bincount(index, weights=np.exp(logprobs), minlength=len(prompts))


def answer_rank(model: LanguageModel, prompts: Sequence) -> Int[np.ndarray, " n"]:
    """Rank of the target's first token among all next tokens; 0 is the likeliest.

    The best rank over the target's aliases.
    """
    logprobs = next_token_logprobs(model, prompts)
    ranks = []
    for prompt, row in zip(prompts, logprobs, strict=True):
        first = [first_token(model, prompt, answer) for answer in prompt.answers]
        ranks.append(min(int((row > row[t]).sum()) for t in first))
    return np.array(ranks, dtype=np.int64)


def first_token(model: LanguageModel, prompt: str, answer: str) -> int:
    """Id of the token that begins `answer` after `prompt`."""
    text = rendered(prompt, model.tokenizer)
    whole = encode(model.tokenizer, text + answer)
    return whole[_common_prefix(encode(model.tokenizer, text), whole)]


def next_token_logprobs(model: LanguageModel, prompts: Sequence[str]) -> Float[Tensor, "n vocab"]:
    """log P(next token | prompt) over the vocabulary, in nats."""
    ids = [tuple(encode(model.tokenizer, rendered(p, model.tokenizer))) for p in prompts]
    rows = [(i, range(len(i) - 1, len(i))) for i in ids]
    return torch.cat([x.log_softmax(-1).cpu() for x, _ in _logits_at(model, rows, [0] * len(rows))])


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
    """The likeliest continuation of each prompt, token by token (transformers' `generate`)."""
    tokenizer, module = model.tokenizer, model._module
    ids = [encode(tokenizer, rendered(p, tokenizer)) for p in prompts]
    texts = [""] * len(ids)
    for batch in length_batches([len(i) for i in ids]):
        width = max(len(ids[i]) for i in batch)
        rows = torch.tensor(
            [[tokenizer.pad_token_id] * (width - len(ids[i])) + ids[i] for i in batch]
        )
        mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in batch])
        with torch.inference_mode():
            out = module.generate(
                input_ids=rows.to(module.device),
                attention_mask=mask.to(module.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
            )
        for i, row in zip(batch, out[:, width:], strict=True):
            texts[i] = tokenizer.decode(row, skip_special_tokens=True)
    return texts


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
    """States after the final norm: `helpers.models.unembed` turns them into logits."""
    step = max(1, BATCH_TOKENS // tokens.shape[1])
    return torch.cat([_states(model, part) for part in tokens.split(step)])


@torch.inference_mode()
def _states(model: LanguageModel, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d_model"]:
    body = model._module.base_model
    return body(input_ids=ids.to(model._module.device), use_cache=False).last_hidden_state


def _logits_at(
    model: LanguageModel, rows: list[tuple[tuple[int, ...], range]], targets: list[int]
) -> Iterator[tuple[Float[Tensor, "m vocab"], Int[Tensor, " m"]]]:
    """Logits at the positions asked for, in the order asked, with the target ids beside them.

    Args:
        model: Any causal model.
        rows: For each request its token ids and the positions wanted.
        targets: One id per wanted position, in order.
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
    for batch in length_batches([len(ids) for ids in run]):
        width = max(len(run[i]) for i in batch)
        padded = torch.tensor([run[i] + (0,) * (width - len(run[i])) for i in batch])
        states = _states(model, padded)  # (B, T, d_model)
        for row, i in enumerate(batch):
            for position in wanted[i]:
                kept[i, position] = states[row, position]
    order = torch.stack([kept[unique[ids], p] for ids, positions in rows for p in positions])
    for part, target in zip(
        order.split(LOGIT_ROWS), torch.tensor(targets).split(LOGIT_ROWS), strict=True
    ):
        with torch.inference_mode():
            yield unembed(model, part).float(), target.to(part.device)


def length_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in batches of like length, each of at most `BATCH_TOKENS` tokens with padding."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and lengths[i] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _common_prefix(a: list[int], b: list[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _distinct_answers(answers: Sequence[str]) -> list[str]:
    return [
        a for a in dict.fromkeys(answers) if not any(a != b and a.startswith(b) for b in answers)
    ]
