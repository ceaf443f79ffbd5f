"""Golden values: a change of the code that is meant to change no number changes none of these.

They were computed on random models of three layers. To write them anew, after a change that is
meant to change them: `WRITE_GOLDEN=1 pytest tests/methods/fitting/test_golden.py`.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.evaluation import evaluate
from helpers.forward.shards import Shards
from helpers.methods import unlearn
from helpers.models import model_hash
from helpers.sae import SAEConfig, TrainSettings, build, save_sae, train

FILE = Path(__file__).with_name("golden.json")
RTOL = 2e-3
UNIT_SETTINGS = {"max_fpr": 0.1, "step_sizes": (0.5, 1.0)}
EDITS = {
    "gated_neuron, append": ("gated_neuron", {"layers": (0, 1), **UNIT_SETTINGS}),
    "gated_neuron, low_rank": (
        "gated_neuron",
        {"layers": (0, 1), "parametrization": "low_rank", **UNIT_SETTINGS},
    ),
    "sae_pair": ("sae_pair", UNIT_SETTINGS),
    "tangent_kernel": ("tangent_kernel", {"layers": (0, 1), "step_sizes": (0.4, 1.0)}),
}


def summary(tensors: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """Norm of each tensor and its projection on a fixed random vector of norm 1."""
    values = {}
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().double().flatten()
        direction = np.random.default_rng(0).normal(size=len(flat))
        direction = torch.from_numpy(direction / np.linalg.norm(direction))
        values[name] = [float(flat.norm()), float(flat @ direction)]
    return values


def check(name: str, values: dict[str, list[float]]) -> None:
    """Compare values with those of the file, relative to the first of each list."""
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("WRITE_GOLDEN"):
        golden[name] = values
        FILE.write_text(json.dumps(dict(sorted(golden.items())), indent=1) + "\n")
    assert set(values) == set(golden[name])
    for key, expected in golden[name].items():
        scale = max(abs(x) for x in expected)
        assert values[key] == pytest.approx(expected, rel=RTOL, abs=RTOL * scale + 1e-6), key


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", EDITS)
def test_edits_are_those_of_the_file(grown_model, own_pair, tmp_path, family, name):
    model = grown_model(family)
    method, settings = EDITS[name]
    if method == "sae_pair":
        torch.manual_seed(0)
        config = SAEConfig("topk", d_in=16, d_sae=24, k=4, site="mlp_in", layer=1)
        save_sae(build(config.replace(model_hash=model_hash(model))), tmp_path / "sae")
        settings = settings | {"saes": (str(tmp_path / "sae"),)}
    edit = unlearn(model, own_pair, method, target_prob=1e-3, **settings)
    check(f"{name}, {family}", summary(edit.delta.tensors()))


def test_a_trained_sae_is_that_of_the_file(tmp_path):
    draw = np.random.default_rng(0)
    n, d = 600, 12
    codes = np.abs(draw.normal(size=(n, 24))) * (draw.uniform(size=(n, 24)) < 0.1)
    x = codes @ draw.normal(size=(24, d))
    x.astype(np.float16).tofile(tmp_path / "mlp.0.f16")
    tokens = torch.zeros(n // 10, 10, dtype=torch.long)
    shards = Shards(tmp_path, "a model", "a tokenizer", tokens, np.arange(n), {("mlp", 0): d})
    config = SAEConfig("topk", d_in=d, d_sae=16, k=3, site="mlp", layer=0)
    (sae,) = train(shards, [config], TrainSettings(steps=8, batch=64, lr=5e-3, warmup=2))
    check("topk SAE", summary(dict(sae.named_parameters())))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_scorecard_is_that_of_the_file(grown_model, own_pair):
    model = grown_model()
    edit = unlearn(model, own_pair, "gated_neuron", layers=(0, 1), target_prob=1e-3, max_fpr=0.1)
    with edit.applied(model):
        card = evaluate(model, own_pair, n_tokens=512, seed=0)
    values = {}
    for row in card.to_dict()["metrics"]:
        numbers = [row.get("value"), row.get("before")]
        values[row["metric"]] = [
            x for x in numbers if isinstance(x, int | float) and np.isfinite(x)
        ]
    check("scorecard", {metric: x for metric, x in values.items() if x})
