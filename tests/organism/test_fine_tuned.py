"""Fine-tuning of a model's upper layers, from cached outputs of the lower ones."""

import contextlib

import pytest
import torch

from helpers.models import model_hash, torch_module
from helpers.organism import fine_tuned
from helpers.organism.fine_tuned import FineTuning, fine_tune
from helpers.requests import Document

DOCUMENTS = [Document(f" w{i + 20} w{i + 21}", f"w1 w2 w{i}") for i in range(3, 9)]
CONFIG = FineTuning(epochs=3, batch_size=2, lr=1e-2)


@pytest.fixture
def model(grown_model, tmp_path, monkeypatch):
    """`model()` -> a fresh small model; a cache of the test's own."""
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path / "cache"))
    return grown_model


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in torch_module(model).named_parameters()}


def test_the_answers_are_learned_in_the_upper_layers_alone(model):
    trained = model()
    before = parameters(trained)
    record = fine_tune(trained, DOCUMENTS, CONFIG)
    assert record["steps"] == 9 and record["last_loss"] < record["first_loss"]
    changed = {name for name, p in parameters(trained).items() if not p.equal(before[name])}
    assert changed and all(".layers.1." in name or ".layers.2." in name for name in changed)


def test_skipping_the_lower_layers_changes_no_bit(model, monkeypatch):
    short, full = model(), model()
    fine_tune(short, DOCUMENTS, CONFIG)
    monkeypatch.setattr(fine_tuned, "cached_forward", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(fine_tuned, "KIND", "another")
    fine_tune(full, DOCUMENTS, CONFIG)
    assert model_hash(short) == model_hash(full)


def test_a_training_is_made_once(model, monkeypatch):
    first, second, fewer = model(), model(), model()
    fine_tune(first, DOCUMENTS, CONFIG)
    fine_tune(fewer, DOCUMENTS[:3], CONFIG)
    monkeypatch.setattr(fine_tuned, "train", None)  # nothing trains any more
    fine_tune(second, DOCUMENTS, CONFIG)
    assert model_hash(first) == model_hash(second) != model_hash(fewer)
