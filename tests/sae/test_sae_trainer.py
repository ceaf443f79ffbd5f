"""Training: what it learns, that it resumes to the bit, and what stops it."""

import json
import shutil

import numpy as np
import pytest
import torch

from helpers.errors import UserError
from helpers.forward import harvest as activations
from helpers.forward.shards import Shards
from helpers.sae import SAEConfig, TrainSettings, load_sae, train, trainer
from helpers.sae.buffer import ActivationBuffer
from helpers.sae.checkpoints import read_metrics

D, N = 12, 3000
SETTINGS = TrainSettings(
    steps=40,
    batch=256,
    lr=5e-3,
    warmup=2,
    log_every=5,
    checkpoint_every=10,
    dead_feature_window=2000,
)
TOPK = SAEConfig("topk", d_in=D, d_sae=32, k=3, site="mlp", layer=0)


@pytest.fixture
def shards(tmp_path) -> Shards:
    """Sparse combinations of 24 directions, far from the origin and large, on disk."""
    draw = np.random.default_rng(0)
    directions = draw.normal(size=(24, D))
    codes = np.abs(draw.normal(size=(N, 24))) * (draw.uniform(size=(N, 24)) < 0.1)
    x = (20 * codes @ directions + 100).astype(np.float16)
    (tmp_path / "shards").mkdir()
    for site, values in (("mlp", x), ("mlp_in", x[:, ::-1])):
        np.ascontiguousarray(values).tofile(tmp_path / "shards" / f"{site}.0.f16")
    widths = {("mlp", 0): D, ("mlp_in", 0): D}
    tokens = torch.zeros(N // 10, 10, dtype=torch.long)
    return Shards(tmp_path / "shards", "a model", "a tokenizer", tokens, np.arange(N), widths)


def unexplained(sae, x, y) -> float:
    x, y = (torch.from_numpy(np.array(t)).float() for t in (x, y))
    return float((sae(x) - y).square().sum() / (y - y.mean(0)).square().sum())


@pytest.mark.parametrize(
    "numbers",
    [
        {"architecture": "topk", "k": 3},
        {"architecture": "batch_topk", "k": 3},
        {"architecture": "matryoshka", "k": 3},
        {"architecture": "relu", "l1_coefficient": 0.1},
        {"architecture": "gated", "l1_coefficient": 0.1},
        {"architecture": "jumprelu", "l0_coefficient": 0.003, "jumprelu_bandwidth": 0.1},
        {"architecture": "topk", "k": 3, "site": "mlp_in", "target": "mlp"},
    ],
    ids=lambda n: n["architecture"] + n.get("target", ""),
)
def test_every_architecture_explains_sparse_data_in_the_models_units(shards, numbers):
    cfg = SAEConfig(**{"d_in": D, "d_sae": 32, "site": "mlp"} | numbers)
    settings = TrainSettings(steps=120, batch=256, lr=1e-2, warmup=5)
    (sae,) = train(shards, [cfg], settings)
    x, y = shards[cfg.site, 0], shards["mlp", 0]
    assert unexplained(sae, x, y) < 0.25
    active = (sae.encode(torch.from_numpy(np.array(x)).float()) > 0).sum(1).float().mean()
    assert active < 16  # of 32
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(32), atol=1e-4)


def test_a_resumed_training_ends_in_the_same_bits(shards, tmp_path, monkeypatch):
    configs = [TOPK, TOPK.replace(architecture="batch_topk", d_sae=16, seed=1)]
    straight = train(shards, configs, SETTINGS, folder=tmp_path / "straight")
    real = trainer.SAETrainer.step

    def dies(self, batch, settings, step):
        if step == 27:
            raise KeyboardInterrupt
        return real(self, batch, settings, step)

    monkeypatch.setattr(trainer.SAETrainer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(shards, configs, SETTINGS, folder=tmp_path / "stopped")
    steps = []

    def counts(self, batch, settings, step):
        steps.append(step)
        return real(self, batch, settings, step)

    monkeypatch.setattr(trainer.SAETrainer, "step", counts)
    resumed = train(shards, configs, SETTINGS, folder=tmp_path / "stopped")
    assert steps[0] == 20
    for a, b in zip(straight, resumed, strict=True):
        for name, tensor in a.state_dict().items():
            assert torch.equal(tensor, b.state_dict()[name]), name
    lines = [read_metrics(tmp_path / f) for f in ("straight", "stopped")]
    for line in lines[0] + lines[1]:
        del line["seconds"]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [s for s in range(5, 41, 5) for _ in configs]
    monkeypatch.setattr(trainer.SAETrainer, "step", dies)  # nothing is trained again
    again = train(shards, configs, SETTINGS, folder=tmp_path / "stopped")
    assert torch.equal(again[0].W_dec, straight[0].W_dec)
    assert torch.equal(load_sae(tmp_path / "stopped" / "sae-1").encoder, straight[1].encoder)
    with pytest.raises(UserError, match="holds another training"):
        train(shards, [TOPK.replace(k=2), TOPK], SETTINGS, folder=tmp_path / "stopped")


def test_side_by_side_and_alone_are_the_same_training(shards):
    both = train(shards, [TOPK.replace(seed=5), TOPK], SETTINGS)
    alone = train(shards, [TOPK], SETTINGS)
    assert torch.equal(both[1].encoder, alone[0].encoder)
    assert not torch.equal(both[0].encoder, alone[0].encoder)


def test_every_vector_once_an_epoch(shards):
    buffer = ActivationBuffer(shards, [("mlp", 0)], batch=300, seed=1)
    epoch = torch.cat([buffer.batch(i)["mlp", 0] for i in range(10, 20)])
    everything = (
        torch.from_numpy(np.array(shards["mlp", 0])).float() - buffer.center["mlp", 0]
    ) * (buffer.scale["mlp", 0])
    assert torch.equal(epoch.sort(0).values, everything.sort(0).values)
    assert everything.square().sum(1).mean().item() == pytest.approx(1, rel=1e-3)
    assert not torch.equal(buffer.batch(0)["mlp", 0], buffer.batch(10)["mlp", 0])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    shards, tmp_path, monkeypatch
):
    real = ActivationBuffer.batch

    def spoilt(self, step):
        batch = real(self, step)
        if step == 33:
            batch["mlp", 0][0, 0] = float("nan")
        return batch

    monkeypatch.setattr(ActivationBuffer, "batch", spoilt)
    with pytest.raises(UserError, match=r"not finite at step 33.*last good checkpoint is kept"):
        train(shards, [TOPK], SETTINGS, folder=tmp_path / "run")
    assert (
        json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 30
    )
    monkeypatch.setattr(ActivationBuffer, "batch", real)
    (resumed,) = train(shards, [TOPK], SETTINGS, folder=tmp_path / "run")
    (straight,) = train(shards, [TOPK], SETTINGS)
    assert torch.equal(resumed.encoder, straight.encoder)


def test_dead_latents_are_trained_on_the_error(shards):
    """Latents too weak to be among the largest grow with the loss for them, and not without."""

    def strength(dead_feature_window: int) -> float:
        settings = TrainSettings(
            steps=60, batch=256, lr=1e-2, warmup=1, dead_feature_window=dead_feature_window
        )
        buffer = ActivationBuffer(shards, [("mlp", 0)], batch=256)
        sae_trainer = trainer.SAETrainer(TOPK.replace(d_sae=16), buffer)
        with torch.no_grad():
            sae_trainer.sae.encoder[:4] *= 0.01
            sae_trainer.sae.b_enc[4:] = 0.2
        for step in range(settings.steps):
            sae_trainer.step(buffer.batch(step), settings, step)
        return float(sae_trainer.sae.encoder[:4].norm())

    assert strength(1000) > 3 * strength(10**9)


def test_bad_trainings_are_told_in_one_sentence(shards, tmp_path):
    calls = [
        (lambda: train(shards, [], SETTINGS), "no SAE to train"),
        (
            lambda: train(shards, [TOPK.replace(d_in=9, d_out=9)], SETTINGS),
            "d_in is 9, but site mlp",
        ),
        (lambda: train(shards, [TOPK.replace(site="residual")], SETTINGS), "was not harvested"),
        (lambda: train(shards, [TOPK.replace(model_hash="x")], SETTINGS), "of another model"),
        (
            lambda: train(shards, [TOPK.replace(architecture="relu", k=0)], SETTINGS),
            "l1_coefficient above 0",
        ),
        (lambda: TrainSettings(steps=0), "steps above 0"),
    ]
    for call, sentence in calls:
        with pytest.raises(UserError, match=sentence) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("checkpoint.safetensors", None),  # cut
        ("checkpoint.safetensors", b""),
        ("metrics.jsonl", b"[]\n"),
        ("metrics.jsonl", b"{\n"),
        ("metrics.jsonl", b"\xff\xfe\n"),
        ("metrics.jsonl", b'{"sae": 0}\n'),
        ("metrics.jsonl", b""),
    ],
)
def test_a_damaged_training_in_a_folder_of_ones_own_is_told_truly(shards, tmp_path, name, content):
    """What the sentence says to delete is enough, and the training then starts anew."""
    folder = tmp_path / "run"
    settings = TrainSettings(**vars(SETTINGS) | {"steps": 20, "checkpoint_every": 10})

    def halt(lines):
        if lines[-1]["step"] == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(shards, [TOPK], settings, folder=folder, watch=halt)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UserError, match=r"(damaged|is not what).*: delete (.*), and the") as told:
        train(shards, [TOPK], settings, folder=folder)
    assert "\n" not in str(told.value)
    (folder / "checkpoint.safetensors").unlink()
    (sae,) = train(shards, [TOPK], settings, folder=folder)
    (straight,) = train(shards, [TOPK], settings)
    assert torch.equal(sae.encoder, straight.encoder)
    assert [line["step"] for line in read_metrics(folder)] == [5, 10, 15, 20]


def test_a_damaged_sae_in_a_folder_of_ones_own_is_told_truly(shards, tmp_path):
    (sae,) = train(shards, [TOPK], SETTINGS, folder=tmp_path)
    path = tmp_path / "sae-0" / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"sae-0 does not hold .*delete this one and train"):
        train(shards, [TOPK], SETTINGS, folder=tmp_path)
    shutil.rmtree(tmp_path / "sae-0")
    (again,) = train(shards, [TOPK], SETTINGS, folder=tmp_path)
    assert torch.equal(again.encoder, sae.encoder)


def test_a_harvest_can_be_trained_on(tiny_model, monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))
    model = tiny_model()
    tokens = torch.randint(4, 64, (20, 9), generator=torch.Generator().manual_seed(0))
    found = activations.harvest(model, tokens, sites=["mlp_in", "mlp"], layers=[1])
    cfg = SAEConfig("topk", d_in=16, d_sae=64, k=8, site="mlp_in", target="mlp", layer=1)
    (sae,) = train(found, [cfg], TrainSettings(steps=60, batch=64, lr=1e-2))
    assert unexplained(sae, found["mlp_in", 1], found["mlp", 1]) < 0.5
    assert sae.cfg.model_hash == found.model_hash
