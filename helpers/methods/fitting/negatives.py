"""Negatives of an edit: activations at other subjects and in ordinary text, which must not change.

They are computed once for a model and a relation and kept in the cache. For one pair its own
positions are then taken out, so that all pairs of a relation share the work.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair, subject_span
from helpers.facts.comparison import compared_facts, one_of_each_group
from helpers.facts.corpus import corpus_tokens
from helpers.facts.relations import RELATIONS
from helpers.forward.activations import cache_activations
from helpers.forward.batching import LARGE_BATCH_TOKENS
from helpers.forward.prompts import token_ids
from helpers.forward.second_moments import second_moments
from helpers.io.cache import cached_folder, cached_layers
from helpers.io.files import read_tensors, write_tensors
from helpers.methods.fitting.hparams import PreservationHparams, UnitEditHparams
from helpers.methods.fitting.layer_stats import key_covariance
from helpers.models import architecture_of, model_hash, text_length

PositionMask = list[tuple[tuple[int, ...], list[int]]]
"""Token sequences with the positions that count."""
SEQ_LEN = 128  # tokens of a passage of text


@dataclass(frozen=True)
class MaskedSequences:
    """Token sequences with the positions that count, each distinct prefix once.

    Attributes:
        positions: Ids of each sequence and its positions.
        subjects: Subject of each sequence's prompt; empty for text.
    """

    positions: PositionMask
    subjects: tuple[str, ...]

    def belonging_to(self, model: LanguageModel, pairs: Sequence[ConceptPair]) -> PositionMask:
        """Return the positions of the pairs: their prompts from the subject on, and mentions."""
        names = {p.subject for p in pairs}
        variants = [v for p in pairs for v in token_variants(model, p.subject)]
        belonging = []
        for (ids, counted), subject in zip(self.positions, self.subjects, strict=True):
            name_positions = {
                p for v in variants for end in mentions(ids, v) for p in range(end - len(v), end)
            }
            if subject in names and name_positions:  # everything from the last mention on
                name_positions |= set(range(max(name_positions), len(ids)))
            if at := sorted(name_positions & set(counted)):
                belonging.append((ids, at))
        return belonging


def relation_sequences(
    model: LanguageModel, pairs: Sequence[ConceptPair], *, n_prompts_per_subject: int
) -> MaskedSequences:
    """Collect training prompts of a relation about every subject.

    Each subject has its next prompts in turn, so that all templates are equally frequent. Where the
    relation has a reverse direction, each target has one prompt of it.

    Args:
        model: The model, for its tokenizer.
        pairs: All facts of a relation, with the same templates.
        n_prompts_per_subject: Prompts about each subject.
    """
    seen: set[tuple[int, ...]] = set()
    sequences, subjects = [], []
    for n, pair in enumerate(pairs):
        pool = pair.edit_prompts(include_subject_initial=True)
        first = n * n_prompts_per_subject
        prompts = [pool[(first + k) % len(pool)] for k in range(n_prompts_per_subject)]
        if pair.relation in RELATIONS and RELATIONS[pair.relation].reverse_train:
            reverse = pair.reverse_pair().prompts("train")
            prompts.append(reverse[n % len(reverse)])
        for prompt in prompts:
            ids = tuple(token_ids(model, prompt))
            # A position counts once for all sequences that have the same tokens up to it.
            new = [p for p in range(len(ids)) if ids[: p + 1] not in seen]
            seen.update(ids[: p + 1] for p in new)
            if new:
                sequences.append((ids, new))
                subjects.append(prompt.subject)
    return MaskedSequences(sequences, tuple(subjects))


def text_sequences(model: LanguageModel, *, n_tokens: int, seed: int = 0) -> MaskedSequences:
    """Draw Factbook passages with about `n_tokens` tokens, all of which count."""
    tokens = corpus_tokens(
        model.tokenizer,
        seq_len=text_length(model, SEQ_LEN),
        n_tokens=n_tokens,
        seed=seed + 1,
    ).tolist()
    return MaskedSequences([(tuple(t), list(range(len(t)))) for t in tokens], ("",) * len(tokens))


def distinct_subjects(pairs: Sequence[ConceptPair]) -> list[str]:
    """List the pairs' subjects, each once: several facts of one share its units."""
    return list(dict.fromkeys(pair.subject for pair in pairs))


def token_variants(model: LanguageModel, name: str) -> list[tuple[int, ...]]:
    """Return the tokenizations of a name: after a space and without one."""
    texts = (f" {name}", name)
    ids = [tuple(model.tokenizer(t, add_special_tokens=False).input_ids) for t in texts]
    return list(dict.fromkeys(ids))


def mentions(ids: Sequence[int], name: Sequence[int]) -> list[int]:
    """Return the positions one past the last token of each mention of `name` in `ids`."""
    n = len(name)
    return [e for e in range(n, len(ids) + 1) if tuple(ids[e - n : e]) == tuple(name)]


def negative_second_moments(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    layers: Sequence[int],
    n_prompts_per_subject: int,
) -> tuple[dict[int, Float[Tensor, "d_mlp d_mlp"]], int]:
    """Sum k kᵀ over the prompts of the pairs' relations, without the pairs' own positions.

    Args:
        model: Any model of a known family.
        pairs: Pairs whose positions are left out.
        layers: Layers whose keys k (inputs of W_out) are read.
        n_prompts_per_subject: Prompts about each subject.

    Returns:
        Layer → Σ k kᵀ, float64, and the number of keys.
    """
    width = architecture_of(model).d_mlp
    sums = {i: torch.zeros(width, width, dtype=torch.float64) for i in layers}
    n = 0
    for pair in one_of_each_group(pairs):
        sequences = relation_sequences(
            model, compared_facts(pair), n_prompts_per_subject=n_prompts_per_subject
        )
        if not sequences.positions:
            continue
        of_relation, n_of_relation = _relation_moments(model, sequences, layers)
        belonging = sequences.belonging_to(model, pairs)
        own_sums, n_own = second_moments(model, belonging, layers=layers)
        sums = {i: sums[i] + of_relation[i] - own_sums.get(i, 0) for i in layers}
        n += n_of_relation - n_own
    return sums, max(1, n)


def _relation_moments(
    model: LanguageModel, sequences: MaskedSequences, layers: Sequence[int]
) -> tuple[dict[int, Float[Tensor, "d_mlp d_mlp"]], int]:
    """Return Σ k kᵀ and the number of keys of all sequences, kept in the cache."""
    key = _cache_key(model, sequences, layers=list(layers), site="neurons")

    def build(folder: Path) -> None:
        sums, n = second_moments(model, sequences.positions, layers=layers)
        tensors = {str(i): x for i, x in sums.items()}
        write_tensors(folder / "sums.safetensors", tensors | {"n": torch.tensor(n)})

    tensors, _ = read_tensors(cached_folder("negatives", key, build) / "sums.safetensors")
    n = int(tensors.pop("n"))
    return {i: tensors[str(i)] for i in layers}, n


def preservation_metric(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    hparams: PreservationHparams,
    *,
    layers: Sequence[int],
    n_tokens: int,
    seed: int = 0,
) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    """Compute lower Cholesky factors of the metric A_l = λ_C C_l + λ_P P_l + λ_1 v̄ 1.

    tr(ΔW A ΔWᵀ) measures how much a change of W_out disturbs. C is the second moment of ordinary
    text's keys (ROME's and MEMIT's `mom2`), P that of the same prompts about other subjects. v̄ is
    the median variance of a key's component: the mean comes from the first token alone in some
    layers.

    Args:
        model: Any model of a known family.
        pairs: The pairs to forget.
        hparams: Gives the weights λ: `corpus_weight`, `neighbour_weight` and `identity_weight`.
        layers: Layers whose metric is computed.
        n_tokens: Tokens of ordinary text.
        seed: Seed that draws the text.
    """
    covariance = key_covariance(model, layers=layers, n_tokens=n_tokens, seed=seed)
    moments, n = negative_second_moments(
        model, pairs, layers=layers, n_prompts_per_subject=hparams.n_prompts_per_subject
    )
    factors = {}
    for i in layers:
        C = covariance[i]
        A = hparams.corpus_weight * C + hparams.neighbour_weight * moments[i] / n
        identity = torch.eye(len(C), dtype=torch.float64)
        A += hparams.identity_weight * C.diagonal().median() * identity
        factors[i] = torch.linalg.cholesky(A).float()
    return factors


def negative_inputs(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    hparams: UnitEditHparams,
    *,
    layers: Sequence[int],
    seed: int = 0,
) -> Iterable[tuple[int, Float[Tensor, "n d_model"]]]:
    """Yield each layer with inputs of W_in in text and in prompts about other subjects.

    Positions of the pairs themselves are left out. The inputs are kept in the cache as float16.

    Args:
        model: Any model of a known family.
        pairs: The pairs to forget.
        hparams: Gives the numbers of prompts and of tokens.
        layers: Layers to read.
        seed: Seed that draws the text.
    """
    layers = sorted(set(layers))
    n_prompts = hparams.n_prompts_per_subject
    sources = [
        *(
            relation_sequences(model, compared_facts(pair), n_prompts_per_subject=n_prompts)
            for pair in one_of_each_group(pairs)
        ),
        text_sequences(model, n_tokens=hparams.n_negative_tokens, seed=seed),
    ]
    files_and_masks = []
    for sequences in sources:
        if sequences.positions:
            dropped = {ids: set(at) for ids, at in sequences.belonging_to(model, pairs)}
            mask = [p not in dropped.get(ids, ()) for ids, at in sequences.positions for p in at]
            files_and_masks.append((_cached_inputs(model, sequences, layers), torch.tensor(mask)))
    for i in layers:
        parts = [read_tensors(files[i])[0]["x"][mask].float() for files, mask in files_and_masks]
        yield i, torch.cat(parts)


def _cached_inputs(
    model: LanguageModel, sequences: MaskedSequences, layers: Sequence[int]
) -> dict[int, Path]:
    """Return layer → file of its inputs; layers that the cache lacks are read in one pass."""

    def build(missing: Sequence[int]) -> Iterable[tuple[int, dict[str, Tensor]]]:
        ids, positions = zip(*sequences.positions, strict=True)
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

    key = _cache_key(model, sequences, site="mlp_in")
    return cached_layers("negatives", key, layers, "x.safetensors", build)


def _cache_key(model: LanguageModel, sequences: MaskedSequences, **more: object) -> dict:
    """Return the cache key of activations at some positions."""
    return {"model": model_hash(model), "positions": sequences.positions, "version": 3, **more}


def subject_inputs(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    layers: Sequence[int],
    include_subject_initial: bool = False,
    all_subject_tokens: bool = False,
) -> list[list[dict[int, Float[Tensor, "n d_model"]]]]:
    """Read the input of W_in at each subject's last token, in the training prompts of its pairs.

    A subject has one entry for each tokenization of its end, since different directions
    detect them: the name has another token after a space than at a line's beginning, and other
    states where it begins a text.

    Args:
        model: Any model of a known family.
        pairs: The pairs whose subjects are read.
        layers: Layers to read.
        include_subject_initial: Add the prompts that begin with the subject. If it is a single
            token there, the token after it is read instead, one entry for each such token. A text's
            first token has a state of its own in most models, in which the higher layers see no
            name.
        all_subject_tokens: Read every token of the subject, with entries for each; those of the
            last token come first.
    """
    requests: PositionMask = []
    groups: dict[str, dict[tuple[int, int, int, bool], list[int]]] = {
        subject: {} for subject in distinct_subjects(pairs)
    }
    for pair in pairs:
        group = groups[pair.subject]
        for prompt in pair.edit_prompts(include_subject_initial=include_subject_initial):
            ids = tuple(token_ids(model, prompt))
            start, end = subject_span(prompt, model.tokenizer)
            for from_end in range(end - start if all_subject_tokens else 1):
                token = end - 1 - from_end
                is_single_first = include_subject_initial and end == 1 < len(ids)
                position = 1 if is_single_first else token
                variant = (from_end, ids[token], ids[position], start == 0)
                group.setdefault(variant, []).append(len(requests))
                requests.append((ids, [position]))
    sequences, positions = [i for i, _ in requests], [p for _, p in requests]
    activations = cache_activations(
        model,
        sequences,
        sites=["mlp_in"],
        layers=layers,
        positions=positions,
        max_tokens=LARGE_BATCH_TOKENS,
    )
    return [
        [
            {i: x[group[variant]] for (_, i), x in activations.items()}
            for variant in sorted(group, key=lambda v: v[0])
        ]
        for group in groups.values()
    ]
