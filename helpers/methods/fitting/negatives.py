"""What an edit must not touch: keys of the same questions about all other subjects, and of text.

Both are read once for a model and a relation and kept in the cache; for one pair its own are taken
out again, so that every pair of a relation shares the work.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair, facts, subject_span
from helpers.facts.corpus import corpus_tokens
from helpers.facts.relations import RELATIONS
from helpers.forward.activations import cache_activations
from helpers.forward.batching import LARGE_BATCH_TOKENS
from helpers.forward.prompts import token_ids
from helpers.forward.second_moments import second_moments
from helpers.io.cache import cached_folder, cached_layers
from helpers.io.files import read_tensors, write_tensors
from helpers.methods.fitting.layer_stats import key_covariance
from helpers.models import architecture_of, model_hash, text_length

Where = list[tuple[tuple[int, ...], list[int]]]
"""Token sequences with the positions that count."""
TEXT_TOKENS, TEXT_LENGTH = 8_192, 128
WAYS = 5  # of asking about each other subject


@dataclass(frozen=True)
class Sequences:
    """Token sequences with the positions that count, each distinct beginning once.

    Attributes:
        where: Ids and positions.
        subjects: Whose prompt each is; empty for text.
    """

    where: Where
    subjects: tuple[str, ...]

    def own(self, model: LanguageModel, pairs: Sequence[ConceptPair]) -> Where:
        """What belongs to the pairs themselves: their prompts from the subject on, and mentions."""
        names = {p.subject for p in pairs}
        spelt = [s for p in pairs for s in spellings(model, p.subject)]
        found = []
        for (ids, positions), subject in zip(self.where, self.subjects, strict=True):
            mine = {p for s in spelt for e in mentions(ids, s) for p in range(e - len(s), e)}
            if subject in names and mine:  # from the last mention on
                last = max(mine)
                mine |= set(range(last, len(ids)))
            kept = sorted(mine & set(positions))
            if kept:
                found.append((ids, kept))
        return found


def relation_sequences(model: LanguageModel, relation: str) -> Sequences:
    """Training prompts of a relation about every subject of the Factbook.

    Each subject is asked in `WAYS` ways, the next ones in turn, so that all ways occur alike; and
    each target once in the other direction, where the relation has one.
    """
    seen: set[tuple[int, ...]] = set()
    where, subjects = [], []
    for n, fact in enumerate(facts(relation)):
        pair = ConceptPair.of(fact)
        ways = pair.edit_prompts(first=True)
        prompts = [ways[(n * WAYS + k) % len(ways)] for k in range(WAYS)]
        if RELATIONS[relation].reverse_train:
            back = pair.reversed().prompts("train")
            prompts.append(back[n % len(back)])
        for prompt in prompts:
            ids = tuple(token_ids(model, prompt))
            new = [p for p in range(len(ids)) if ids[: p + 1] not in seen]
            seen.update(ids[: p + 1] for p in new)
            if new:
                where.append((ids, new))
                subjects.append(prompt.subject)
    return Sequences(where, tuple(subjects))


def text_sequences(model: LanguageModel, *, seed: int = 0) -> Sequences:
    """Factbook passages."""
    tokens = corpus_tokens(
        model.tokenizer,
        seq_len=text_length(model, TEXT_LENGTH),
        n_tokens=TEXT_TOKENS,
        seed=seed + 1,
    ).tolist()
    return Sequences([(tuple(t), list(range(len(t)))) for t in tokens], ("",) * len(tokens))


def spellings(model: LanguageModel, name: str) -> list[tuple[int, ...]]:
    """Token ids of a name after a space and without one."""
    both = (f" {name}", name)
    ids = [tuple(model.tokenizer(n, add_special_tokens=False).input_ids) for n in both]
    return list(dict.fromkeys(ids))


def mentions(ids: Sequence[int], name: Sequence[int]) -> list[int]:
    """Where `name` ends in `ids` (one past its last token)."""
    n = len(name)
    return [e for e in range(n, len(ids) + 1) if tuple(ids[e - n : e]) == tuple(name)]


def negative_second_moments(
    model: LanguageModel, pairs: Sequence[ConceptPair], *, layers: Sequence[int]
) -> tuple[dict[int, Float[Tensor, "d_mlp d_mlp"]], int]:
    """Σ k kᵀ of W_out's keys over the relation's prompts, less the pairs' own, and their number."""
    relation = pairs[0].relation
    sequences = relation_sequences(model, relation)
    if not sequences.where:
        width = architecture_of(model).d_mlp
        return {i: torch.zeros(width, width, dtype=torch.float64) for i in layers}, 1
    key = _key(model, sequences, layers=list(layers), site="neurons")

    def build(folder):
        sums, n = second_moments(model, sequences.where, layers=layers)
        tensors = {str(i): x for i, x in sums.items()}
        write_tensors(folder / "sums.safetensors", tensors | {"n": torch.tensor(n)})

    tensors, _ = read_tensors(cached_folder("background", key, build) / "sums.safetensors")
    n = int(tensors.pop("n"))
    own, m = second_moments(model, sequences.own(model, pairs), layers=layers)
    return {i: tensors[str(i)] - own.get(i, 0) for i in layers}, n - m


def preservation_metric(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    layers: Sequence[int],
    text: float = 1.0,
    protect: float = 10.0,
    damping: float = 0.1,
    n_tokens: int = 60_000,
    seed: int = 0,
) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    """Cholesky factors of A_l = text · C_l + protect · P_l + damping · v̄ · 1.

    C is the second moment of ordinary text's keys, P that of the questions about other subjects,
    v̄ the median variance of a key's component (the mean is the first token's alone in some layers).
    """
    covariance = key_covariance(model, layers=layers, n_tokens=n_tokens, seed=seed)
    moments, n = negative_second_moments(model, pairs, layers=layers)
    factors = {}
    for i in layers:
        C = covariance[i]
        A = text * C + protect * moments[i] / n
        A += damping * C.diagonal().median() * torch.eye(len(C), dtype=torch.float64)
        factors[i] = torch.linalg.cholesky(A).float()
    return factors


def negative_inputs(
    model: LanguageModel, pairs: Sequence[ConceptPair], *, layers: Sequence[int], seed: int = 0
) -> Iterable[tuple[int, Float[Tensor, "n d_model"]]]:
    """(layer, what W_in reads) in text and in the relation's prompts, less the pairs' own.

    Kept in the cache as float16.
    """
    layers = sorted(set(layers))
    sources = [relation_sequences(model, pairs[0].relation), text_sequences(model, seed=seed)]
    kept = []
    for sequences in sources:
        if sequences.where:
            drop = {ids: set(at) for ids, at in sequences.own(model, pairs)}
            keep = [p not in drop.get(ids, ()) for ids, at in sequences.where for p in at]
            kept.append((_harvested(model, sequences, layers), torch.tensor(keep)))
    for i in layers:
        parts = [read_tensors(f[i])[0]["x"][keep].float() for f, keep in kept]
        yield i, torch.cat(parts)


def _harvested(
    model: LanguageModel, sequences: Sequences, layers: Sequence[int]
) -> dict[int, Path]:
    """Layer → file of its inputs; those that the cache lacks are read in one pass."""

    def build(missing):
        ids, positions = zip(*sequences.where, strict=True)
        activations = cache_activations(
            model,
            ids,
            sites=["mlp_in"],
            layers=missing,
            positions=positions,
            max_tokens=LARGE_BATCH_TOKENS,
        )
        for (_, i), x in activations.items():
            yield i, {"x": x.half()}

    key = _key(model, sequences, site="mlp_in")
    return cached_layers("background", key, layers, "x.safetensors", build)


def _key(model: LanguageModel, sequences: Sequences, **more) -> dict:
    return {"model": model_hash(model), "where": sequences.where, "version": 2, **more}


def subject_inputs(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    layers: Sequence[int],
    first: bool = False,
    every: bool = False,
) -> list[list[dict[int, Float[Tensor, "n d_model"]]]]:
    """What W_in reads at each subject's last token, in its pair's training prompts.

    For each pair one entry for each way in which the name ends (another token after a space than
    at a line's beginning, other states where it begins a text): they are told apart by different
    directions.

    Args:
        model: Any model of a known family.
        pairs: The subjects.
        layers: Which layers.
        first: Also in the prompts that begin with the name. Where it is a single token, which is
            then the text's first, the token after it is read instead, one entry for each: a text's
            first token is a state of its own in most models, in which the higher layers see no
            name.
        every: At each token of the subject, entries for each, the last token's first.
    """
    where: Where = []
    groups: list[dict[tuple[int, int, int, bool], list[int]]] = [{} for _ in pairs]
    for pair, mine in zip(pairs, groups, strict=True):
        for prompt in pair.edit_prompts(first=first):
            ids = tuple(token_ids(model, prompt))
            start, end = subject_span(prompt, model.tokenizer)
            for back in range(end - start if every else 1):
                own = end - 1 - back
                at = 1 if first and end == 1 < len(ids) else own
                mine.setdefault((back, ids[own], ids[at], start == 0), []).append(len(where))
                where.append((ids, [at]))
    ids, positions = zip(*where, strict=True)
    activations = cache_activations(
        model,
        ids,
        sites=["mlp_in"],
        layers=layers,
        positions=positions,
        max_tokens=LARGE_BATCH_TOKENS,
    )
    return [
        [
            {i: x[mine[kind]] for (_, i), x in activations.items()}
            for kind in sorted(mine, key=lambda k: k[0])
        ]
        for mine in groups
    ]
