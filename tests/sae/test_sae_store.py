"""Trained SAEs in the cache: found again, made anew only when what they depend on changes."""

import json
import logging
import shutil
import threading

import pytest
import torch

from helpers.errors import UserError
from helpers.io.cache import file_lock
from helpers.io.files import cache_dir
from helpers.sae import SAEConfig, TrainSettings, store, trainer
from helpers.sae.store import stored_folder, stored_sae, trained_saes

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


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "weights cut": ("sae-0/sae_weights.safetensors", cut),
    "weights flipped": ("sae-0/sae_weights.safetensors", flipped),
    "weights gone": ("sae-0/sae_weights.safetensors", lambda p: p.unlink()),
    "weights a folder": ("sae-0/sae_weights.safetensors", a_folder),
    "cfg gone": ("sae-0/cfg.json", lambda p: p.unlink()),
    "cfg a list": ("sae-0/cfg.json", lambda p: p.write_text("[]")),
    "cfg of another layer": (
        "sae-0/cfg.json",
        lambda p: p.write_text(p.read_text().replace('"layer": 1', '"layer": 2')),
    ),
    "metrics gone": ("metrics.jsonl", lambda p: p.unlink()),
    "metrics a list": ("metrics.jsonl", lambda p: p.write_text("[]\n")),
    "metrics cut": ("metrics.jsonl", cut),
    "metrics flipped": ("metrics.jsonl", lambda p: p.write_text(p.read_text().replace("1", "2"))),
    "metrics binary": ("metrics.jsonl", lambda p: p.write_bytes(b"\xff\xfe\n")),
    "metrics a folder": ("metrics.jsonl", a_folder),
    "record damaged": ("files.json", lambda p: p.write_text("{")),
    "record empty": ("files.json", lambda p: p.write_text("{}")),
    "the SAE a file": ("sae-0", lambda p: (shutil.rmtree(p), p.write_text(""))),
    "all a file": ("", lambda p: (shutil.rmtree(p), p.write_text(""))),
}


@pytest.fixture
def trained(cache, tiny_model):
    """A model, its trained SAE in the cache and the folder of it."""
    model = tiny_model()
    (stored,) = trained_saes(model, TEXT, [(config(), BRIEF)])
    return model, stored, cache_dir() / "saes" / stored.key


def without_seconds(metrics) -> list:
    return [line | {"seconds": 0} for line in metrics]


WITHOUT_RECORD = [  # as earlier versions left it: what contradicts itself is found
    *("weights cut", "weights flipped", "weights gone", "weights a folder"),
    *("cfg a list", "cfg of another layer"),
    *("metrics gone", "metrics a list", "metrics cut", "metrics binary", "metrics a folder"),
]


@pytest.mark.parametrize(
    ("damage", "recorded"), [(d, True) for d in DAMAGE] + [(d, False) for d in WITHOUT_RECORD]
)
def test_an_sae_that_is_damaged_is_trained_again(trained, damage, recorded, caplog):
    model, stored, folder = trained
    name, spoil = DAMAGE[damage]
    if not recorded:
        (folder / "files.json").unlink()
    spoil(folder / name)
    with caplog.at_level(logging.WARNING):
        (again,) = trained_saes(model, TEXT, [(config(), BRIEF)])
    assert torch.equal(again.sae.W_dec, stored.sae.W_dec)
    assert again.sae.cfg == stored.sae.cfg
    assert without_seconds(again.metrics) == without_seconds(stored.metrics)
    told = [r.getMessage() for r in caplog.records if r.name == "helpers.sae.store"]
    assert len(told) == (damage != "all a file") and not any("\n" in line for line in told)
    caplog.clear()
    trained_saes(model, TEXT, [(config(), BRIEF)])
    assert not caplog.records and stored_folder(stored.key).is_dir()
    assert not harvests()


def test_an_older_versions_sae_is_taken_and_recorded(trained, monkeypatch):
    model, stored, folder = trained
    (folder / "files.json").unlink()
    monkeypatch.setattr(store, "train", lambda *_, **__: pytest.fail("it was trained again"))
    (again,) = trained_saes(model, TEXT, [(config(), BRIEF)])
    assert again.metrics == stored.metrics
    assert set(json.loads((folder / "files.json").read_text())) == set(store.FILES)


def test_a_damaged_sae_that_is_asked_for_by_its_key_is_told(trained):
    _, stored, folder = trained
    cut(folder / "sae-0" / "sae_weights.safetensors")
    with pytest.raises(UserError, match=r"is damaged in the cache \(sae-0/sae_weights.*04_sparse"):
        stored_sae(stored.key)


CHECKPOINTS = {
    "cut": ("checkpoint.safetensors", cut),
    "flipped": ("checkpoint.safetensors", flipped),
    "empty": ("checkpoint.safetensors", lambda p: p.write_text("")),
    "a folder": ("checkpoint.safetensors", a_folder),
    "metrics gone": ("metrics.jsonl", lambda p: p.unlink()),
    "metrics a list": ("metrics.jsonl", lambda p: p.write_text("[]\n")),
    "metrics a folder": ("metrics.jsonl", a_folder),
    "metrics without a step": ("metrics.jsonl", lambda p: p.write_text('{"sae": 0}\n')),
}


def killed_at(step: int, monkeypatch) -> None:
    """Kill the training of the SAE of layer 2 at a step."""
    real = trainer.SAETrainer.step

    def dies(self, batch, settings, now):
        if self.sae.cfg.layer == 2 and now == step:
            raise KeyboardInterrupt
        return real(self, batch, settings, now)

    monkeypatch.setattr(trainer.SAETrainer, "step", dies)


@pytest.mark.parametrize("damage", [None, *CHECKPOINTS])
def test_a_killed_training_goes_on_or_starts_anew_from_the_same_harvest(
    cache, tiny_model, monkeypatch, damage, caplog
):
    model, often = tiny_model(), TrainSettings(steps=6, batch=64, log_every=2, checkpoint_every=2)
    jobs = [(config(), often), (config(layer=2), often)]
    straight = trained_saes(model, TEXT, jobs)
    shutil.rmtree(cache_dir() / "saes")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(5, patch)
        trained_saes(model, TEXT, jobs)
    assert len(harvests()) == 1
    if damage:
        name, spoil = CHECKPOINTS[damage]
        spoil(cache_dir() / "saes" / straight[1].key / name)
    monkeypatch.setattr(
        "helpers.forward.harvest.forward_passes", lambda *_, **__: pytest.fail("harvested")
    )
    with caplog.at_level(logging.WARNING):
        again = trained_saes(model, TEXT, jobs)
    for a, b in zip(straight, again, strict=True):
        assert torch.equal(a.sae.W_dec, b.sae.W_dec)
        assert without_seconds(a.metrics) == without_seconds(b.metrics)
    assert sum("starts anew" in r.getMessage() for r in caplog.records) == bool(damage)
    assert not harvests()


def test_two_runs_train_what_both_want_once_and_share_the_harvest(cache, tiny_model, monkeypatch):
    """The second waits for the common one, and the harvest is there until nobody reads it."""
    model, seeds, results, left = tiny_model(), [], {}, []
    second_reads, first_is_gone = threading.Event(), threading.Event()
    real = store.train

    def train(shards, configs, *arguments, **named):
        seeds.append(configs[0].seed)
        if configs[0].seed == 1:
            assert second_reads.wait(30)
        if configs[0].seed == 2:
            second_reads.set()
            assert first_is_gone.wait(30)
        return real(shards, configs, *arguments, **named)

    def run(seed):
        results[seed] = trained_saes(model, TEXT, [(config(), BRIEF), (config(seed=seed), BRIEF)])
        if seed == 1:
            left.extend(harvests())
            first_is_gone.set()

    monkeypatch.setattr(store, "train", train)
    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(seeds) == [0, 1, 2] and len(left) == 1
    assert results[1][0].metrics == results[2][0].metrics
    assert [line["step"] for line in results[1][0].metrics] == [2, 4, 6]
    assert not harvests()


def test_an_sae_that_another_process_trains_is_waited_for(trained):
    model, _, folder = trained
    done = threading.Event()

    def wanted():
        trained_saes(model, TEXT, [(config(), BRIEF)])
        done.set()

    with file_lock(folder):
        thread = threading.Thread(target=wanted)
        thread.start()
        assert not done.wait(0.5)
    assert done.wait(30)
    thread.join()
