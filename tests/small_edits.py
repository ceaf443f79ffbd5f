"""Pairs and edits in the words of the tiny models, which several tests share."""

import pytest
import torch

from helpers.facts import ConceptPair
from helpers.facts.relations import Template
from helpers.methods import Edit
from helpers.methods.deleted_neurons import deletion
from helpers.models import model_hash

CHOSEN = [(0, 3), (2, 5), (2, 1), (2, 17)]  # (layer, neuron)


def own_pair() -> ConceptPair:
    """A pair with prompts in the tiny models' words."""
    ways = tuple(Template(t) for t in ("w1 w2 {} w4", "w5 {} w6 w7", "w8 w9 w10 {}"))
    return ConceptPair(
        "w3", "w20", "own", templates=dict.fromkeys(("train", "dev", "heldout"), ways)
    )


@pytest.fixture(autouse=True)
def small_world(monkeypatch, tmp_path):
    """Own cache; the tiny pair gets neighbours; text in the tiny models' words."""
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))

    def neighbours(self, n=None, *, seed=0):
        others = [
            ConceptPair(f"w{i}", f"w{i + 20}", "own", templates=self.templates)
            for i in range(30, 39)
        ]
        return others[:n]

    monkeypatch.setattr(ConceptPair, "neighbours", neighbours)
    text = torch.randint(4, 64, (240, 32), generator=torch.Generator().manual_seed(0))
    for place in ("layer_stats", "output_metric"):
        monkeypatch.setattr(f"helpers.methods.fitting.{place}.corpus_tokens", lambda *a, **k: text)
    monkeypatch.setattr("helpers.methods.surgery.leace.corpus_tokens", lambda *a, **k: text[:32])


def weights_after(model, unlearning: Edit) -> dict[str, torch.Tensor]:
    with unlearning.applied(model):
        return {n: model._module.get_parameter(n).clone() for n in unlearning.delta.changes}


def seen(mlp, weight):
    return weight.T if mlp.transposed else weight


def edit_of(model, chosen=CHOSEN) -> Edit:
    """An edit by hand, as `unlearn` would wrap it."""
    pair = {"subject": "w1", "target": "w2", "relation": "own"}
    delta = deletion(model, chosen)
    return Edit("neurons", pair, delta, {"n": len(chosen)}, 0, 0.125, model_hash(model))
