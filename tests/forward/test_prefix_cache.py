"""Prefix caches: passes over suffixes give what full passes give."""

import numpy as np
import pytest
import torch
from small_constraints import constraints_of
from tiny_models import FAMILIES

from helpers.facts import Prompt
from helpers.forward import batching, prefix_cache
from helpers.forward.activations import cache_activations
from helpers.forward.prefix_cache import PrefixCache
from helpers.forward.scoring import next_token_and_answer
from helpers.methods.fitting.constraints import RetainPrompts, preservation_constraints
from helpers.methods.fitting.hparams import PreservationHparams
from helpers.methods.fitting.linearization import answer_logodds, linearize
from helpers.models import architecture_of

LAYERS = (1, 2)


def ordered(linearization, rows):
    """(constraint, position) of each row of a linearization, positions ascending."""
    positions = {n: sorted(p for m, p in rows if m == n) for n in {n for n, _ in rows}}
    return [(n, positions[n].pop(0)) for n in linearization.constraint_index.tolist()]


@pytest.mark.parametrize("family", FAMILIES)
def test_suffixes_give_what_whole_sequences_give(tiny_model, family):
    model = tiny_model(family)
    arch = architecture_of(model)
    draw = torch.Generator().manual_seed(0)
    lengths = (5, 6, 7, 7, 9, 3)
    sequences = [tuple(torch.randint(4, 60, (n,), generator=draw).tolist()) for n in lengths]
    key, write = torch.randn(2, arch.d_model, generator=draw)
    inputs = [
        cache_activations(model, [ids], sites=["mlp_in"], layers=LAYERS, positions="all")
        for ids in sequences
    ]
    largest = {i: torch.stack([(x["mlp_in", i] @ key).max() for x in inputs]) for i in LAYERS}
    # at least one sequence is above no threshold
    threshold = {i: x.topk(2, largest=False).values.mean() for i, x in largest.items()}

    def is_active(i, x):
        return x @ key.to(x) > threshold[i].to(x)

    def edit_output(i, x, hidden):
        return is_active(i, x)[..., None] * write.to(x)

    cache = PrefixCache(model, layers=LAYERS, is_active=is_active)
    cache.prefill(sequences)
    for ids, x in zip(sequences, inputs, strict=True):
        active = torch.stack([is_active(i, x["mlp_in", i]) for i in LAYERS]).any(0)
        positions = active.nonzero().flatten().tolist()
        assert cache.first_active(ids) == (positions[0] if positions else None)
    constraints = constraints_of([ids for ids in sequences if cache.first_active(ids) is not None])
    assert len({cache.first_active(c.ids) for c in constraints}) > 1  # prefixes of several lengths
    for hook in (None, edit_output):
        site = {"layers": LAYERS, "edit_output": hook, "site": "mlp_in"}
        whole = linearize(model, constraints, **site)
        suffix = linearize(model, constraints, **site, prefix_cache=cache)
        torch.testing.assert_close(suffix.logodds, whole.logodds, rtol=1e-4, atol=1e-4)
        forward_only = answer_logodds(model, constraints, **site, prefix_cache=cache)
        torch.testing.assert_close(forward_only, suffix.logodds, rtol=1e-4, atol=1e-4)
        rows = [(n, p) for n, c in enumerate(constraints) for p in c.edit_positions]
        later = [(n, p) for n, p in rows if p >= cache.first_active(constraints[n].ids)]
        row_of = {key: r for r, key in enumerate(ordered(whole, rows))}
        suffix_row_of = {key: r for r, key in enumerate(ordered(suffix, later))}
        for i in LAYERS:
            a = torch.stack([suffix.gradients[i][suffix_row_of[key]] for key in later])
            b = torch.stack([whole.gradients[i][row_of[key]] for key in later])
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_common_prefixes_are_run_once(tiny_model, monkeypatch, family):
    """The edit is active within the common prefix, right after it, later, or nowhere."""
    model = tiny_model(family)
    ends = ((), (14,), (9, 14), (22, 23, 24), (30,), (31, 32))
    sequences = [(*begin, *end) for begin in ((5, 6, 7, 8), (40, 41, 42)) for end in ends[1:]]
    constraints = constraints_of([*sequences, (5, 6, 7, 8)])
    draw = torch.Generator().manual_seed(0)

    starts = set()
    for _ in range(12):
        results, key = [], torch.randn(architecture_of(model).d_model, generator=draw)

        def is_active(i, x, key=key):
            return x @ key.to(x) > key.norm()

        for saving in (1, 10**6):  # common prefixes are split off, or never
            monkeypatch.setattr(batching, "MIN_PREFIX_SAVING", saving)
            cache = PrefixCache(model, layers=LAYERS, is_active=is_active)
            cache.prefill(c.ids for c in constraints)
            first = {c.ids: cache.first_active(c.ids) for c in constraints}
            active = [c for c in constraints if first[c.ids] is not None]
            linearization = active and linearize(
                model, active, layers=LAYERS, site="mlp_in", prefix_cache=cache
            )
            results.append((first, linearization))
        (first_split, split), (first_whole, whole) = results
        assert first_split == first_whole
        starts |= set(first_split.values())
        if whole:
            torch.testing.assert_close(split.logodds, whole.logodds, rtol=1e-4, atol=1e-4)
            assert torch.equal(split.constraint_index, whole.constraint_index)
            for i in LAYERS:
                same = {"rtol": 1e-3, "atol": 1e-5}
                torch.testing.assert_close(split.keys[i], whole.keys[i], **same)
                torch.testing.assert_close(split.gradients[i], whole.gradients[i], **same)
    assert {0, None} < starts
    assert {1, 2, 3} & starts and {4, 5, 6} & starts


def test_the_pass_that_predicts_fills_the_cache(tiny_model, monkeypatch):
    model, draw = tiny_model(), torch.Generator().manual_seed(0)
    texts = [
        " ".join(f"w{torch.randint(9, (), generator=draw)}" for _ in range(n))
        for n in (3, 9, 4, 9, 7, 5) * 4
    ]
    prompts = [Prompt(t, subject=t[:2], answers=(" w5 w6 w7",)) for t in texts]
    key = torch.randn(architecture_of(model).d_model, generator=draw)

    def is_active(i, x):
        return x @ key.to(x) > key.norm() / 2

    cache, separate = (PrefixCache(model, layers=LAYERS, is_active=is_active) for _ in range(2))
    predicted = cache.prefill_prompts(prompts)
    expected = next_token_and_answer(model, prompts)
    torch.testing.assert_close(predicted[0], expected[0], rtol=1e-4, atol=1e-4)
    assert predicted[1] == pytest.approx(expected[1], rel=1e-3)
    # half of the answers are likely enough to be preserved whole
    hparams = PreservationHparams(min_prob=float(np.median(predicted[1])))
    constraints = preservation_constraints(model, RetainPrompts(prompts), predicted, hparams)
    separate.prefill(c.ids for c in constraints)
    monkeypatch.setattr(prefix_cache, "_forward", None)  # from here on nothing may run
    cache.prefill(c.ids for c in constraints)
    first = [separate.first_active(c.ids) for c in constraints]
    assert [cache.first_active(c.ids) for c in constraints] == first
    constraints = [c for c, n in zip(constraints, first, strict=True) if n is not None]
    assert len(set(first)) > 3
    assert {len(c.target_tokens) for c in constraints} == {1, 3}
    short, whole = (
        linearize(model, constraints, layers=LAYERS, site="mlp_in", prefix_cache=used)
        for used in (cache, None)
    )
    torch.testing.assert_close(short.logodds, whole.logodds, rtol=1e-4, atol=1e-4)
