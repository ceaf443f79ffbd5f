"""Trained SAEs in the cache: found again, made anew only when what they depend on changes."""

import pytest
import torch

from helpers.artifacts import cache_dir
from helpers.errors import UserError
from helpers.sae import SAEConfig, TrainSettings, store
from helpers.sae.store import stored_sae, trained_saes

TEXT = torch.randint(4, 60, (40, 12), generator=torch.Generator().manual_seed(0))
BRIEF = TrainSettings(steps=6, batch=64, log_every=2)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own."""
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))


def harvests() -> list:
    """Folders of activations that are in the cache."""
    return [path for path in cache_dir().glob("activations/*") if path.is_dir()]


def config(**numbers) -> SAEConfig:
    return SAEConfig("topk", 16, 24, **{"k": 3, "site": "mlp_in", "layer": 1} | numbers)


def test_what_was_trained_is_found_again_and_harvests_are_deleted(cache, tiny_model, monkeypatch):
    model = tiny_model()
    seen = []
    jobs = [(config(), BRIEF), (config(layer=2, seed=1), BRIEF)]
    first = trained_saes(model, TEXT, jobs, watch=lambda lines: seen.append(len(lines)))
    assert [s.sae.cfg.layer for s in first] == [1, 2] and seen
    assert [line["step"] for line in first[0].metrics] == [2, 4, 6]
    assert not harvests()
    monkeypatch.setattr(store, "_harvest", lambda *_: pytest.fail("it was harvested again"))
    again = trained_saes(model, TEXT, jobs)
    for a, b in zip(first, again, strict=True):
        assert a.key == b.key and torch.equal(a.sae.W_dec, b.sae.W_dec)
        assert a.metrics == b.metrics
    assert torch.equal(stored_sae(first[1].key).W_dec, first[1].sae.W_dec)


def test_anything_that_it_depends_on_gives_another(cache, tiny_model):
    model = tiny_model()
    base = trained_saes(model, TEXT, [(config(), BRIEF)])[0].key
    longer = TrainSettings(steps=7, batch=64, log_every=2)
    others = [(config(seed=1), BRIEF), (config(k=2), BRIEF), (config(), longer)]
    keys = [s.key for s in trained_saes(model, TEXT, others)]
    keys += [s.key for s in trained_saes(model, TEXT[:20], [(config(), BRIEF)])]
    with torch.no_grad():
        next(model._module.parameters()).add_(1e-3)
    keys += [s.key for s in trained_saes(model, TEXT, [(config(), BRIEF)])]
    assert len({base, *keys}) == 6


def test_an_sae_that_is_gone_is_told(cache):
    with pytest.raises(UserError, match=r"0123 is not in the cache.*04_sparse"):
        stored_sae("0123")
