"""Harvesting: against plain forward passes, through kills, and with bad input."""

import contextlib
import json
import threading

import numpy as np
import pytest
import torch
from conftest import FAMILIES

from helpers import activations
from helpers.activations import harvest, open_shards
from helpers.artifacts import alone
from helpers.errors import UserError
from helpers.models import anatomy
from helpers.tracing import SITES, Patch, run_patched
from helpers.tracing.states import capture_all

TOKENS = torch.randint(4, 64, (6, 5), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def small_passes(monkeypatch, tmp_path):
    monkeypatch.setattr(activations, "PASS_TOKENS", 10)  # two sequences a pass
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path / "cache"))


def plain(model, module, tokens, *, before=False):
    """What goes into or comes out of `module` in an ordinary forward pass."""
    seen = []

    def hook(_, inputs, output):
        seen.append(inputs[0] if before else output)

    handle = module.register_forward_hook(hook)
    with torch.inference_mode():
        model._module(tokens)
    handle.remove()
    return seen[0].view(len(tokens), -1, seen[0].shape[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_equal_a_plain_forward_pass_to_float16(tiny_model, family):
    model = tiny_model(family)
    shards = harvest(model, TOKENS, sites=SITES, layers=[0, -1], first=0)
    assert set(shards.widths) == {(s, i) for s in SITES for i in (0, 2)}
    mlp = anatomy(model).layers[2].mlp
    for site, module, before in [
        ("mlp_in", mlp.in_module, True),
        ("neurons", mlp.out_module, True),
        ("mlp", mlp.out_module, False),
    ]:
        expected = plain(model, module, TOKENS, before=before).flatten(0, 1).half().numpy()
        assert np.allclose(shards[site, 2], expected, rtol=2e-3, atol=1e-6)
    row = 13
    assert shards.source(row) == (2, 3)
    state = capture_all(model, TOKENS[2].tolist(), ["residual"])["residual"][2, 3]
    assert np.allclose(shards["residual", 2][row], state.numpy(), atol=2e-3)


def test_left_out_tokens_have_no_row(tiny_model):
    model = tiny_model()
    tokens = TOKENS.clone()
    tokens[1, 3:] = model.tokenizer.pad_token_id
    shards = harvest(model, tokens, layers=[1])
    assert len(shards) == 6 * 4 - 2
    assert [shards.source(i) for i in range(3, 8)] == [(0, 4), (1, 1), (1, 2), (2, 1), (2, 2)]
    everything = harvest(model, tokens, layers=[1], leave_out=[], first=0)
    assert len(everything) == 30
    assert np.array_equal(shards["mlp", 1][4], everything["mlp", 1][6])


def test_a_killed_harvest_goes_on_where_it_stopped(tiny_model, monkeypatch, tmp_path):
    model = tiny_model()
    whole = harvest(model, TOKENS, layers=[0], folder=tmp_path / "whole")
    real, calls = activations.passes, []

    def dies(*arguments, start):
        for sequences, values in real(*arguments, start=start):
            if calls:
                raise KeyboardInterrupt
            calls.append(sequences)
            yield sequences, values

    monkeypatch.setattr(activations, "passes", dies)
    with pytest.raises(KeyboardInterrupt):
        harvest(model, TOKENS, layers=[0], folder=tmp_path / "part")
    with (tmp_path / "part" / "mlp.0.f16").open("ab") as file:
        file.write(b"half a pass")  # what a kill leaves behind the last good row
    with pytest.raises(UserError, match="stopped at sequence 2 of 6"):
        open_shards(tmp_path / "part")
    seen = []

    def counts(*arguments, start):
        seen.append(start)
        yield from real(*arguments, start=start)

    monkeypatch.setattr(activations, "passes", counts)
    part = harvest(model, TOKENS, layers=[0], folder=tmp_path / "part")
    assert seen == [2]  # two sequences were there
    assert np.array_equal(part["mlp", 0], whole["mlp", 0])
    harvest(model, TOKENS, layers=[0], folder=tmp_path / "part")
    assert seen == [2]
    assert np.array_equal(open_shards(tmp_path / "part").rows, whole.rows)


def test_a_harvest_waits_for_another_into_the_same_folder(tiny_model, monkeypatch, tmp_path):
    model, looked = tiny_model(), threading.Event()

    def resumed(*_):
        looked.set()
        raise UserError("enough")

    def work():
        with contextlib.suppress(UserError):
            harvest(model, TOKENS, layers=[0], folder=tmp_path / "same")

    monkeypatch.setattr("helpers.activations._resumed", resumed)
    other = threading.Thread(target=work)
    with alone(tmp_path / "same"):
        other.start()
        assert not looked.wait(0.5)
    assert looked.wait(30)
    other.join()


def test_bad_harvests_are_told_in_one_sentence(tiny_model, tmp_path):
    model, folder = tiny_model(), tmp_path / "shards"
    with pytest.raises(UserError, match="no site 'nowhere'"):
        harvest(model, TOKENS, sites=["nowhere"], layers=[0])
    with pytest.raises(UserError, match="no layer 9"):
        harvest(model, TOKENS, layers=[9])
    with pytest.raises(UserError, match="No token is left"):
        harvest(model, TOKENS, layers=[0], first=5)
    shards = harvest(model, TOKENS, layers=[0], folder=folder)
    with pytest.raises(UserError, match="layer 1 was not harvested; there are mlp 0"):
        shards["mlp", 1]
    with pytest.raises(UserError, match="holds another harvest"):
        harvest(model, TOKENS[:3], layers=[0], folder=folder)
    other = tiny_model("qwen2")
    with pytest.raises(UserError, match="of another model"):
        harvest(other, TOKENS, layers=[0], folder=folder)
    with pytest.raises(UserError, match="of another model"):
        shards.check(other)
    data = (folder / "mlp.0.f16").read_bytes()
    (folder / "mlp.0.f16").write_bytes(data[:-7])
    for again in (
        lambda: open_shards(folder),
        lambda: harvest(model, TOKENS, layers=[0], folder=folder),
    ):
        with pytest.raises(UserError, match="truncated or missing"):
            again()


def test_activations_beyond_float16_stop_the_harvest(tiny_model, tmp_path):
    model = tiny_model()
    with torch.no_grad():
        anatomy(model).layers[0].mlp.W_out().mul_(1e9)
    with pytest.raises(UserError, match="site mlp of layer 0 does not fit float16"):
        harvest(model, TOKENS, layers=[0], folder=tmp_path / "big")


def test_a_full_disk_keeps_what_is_there(tiny_model, monkeypatch, tmp_path):
    model = tiny_model()
    real = activations.write_json

    def full(path, value):
        if value["done"] > 2:
            raise OSError(activations.FULL[0], "No space left on device")
        real(path, value)

    monkeypatch.setattr(activations, "write_json", full)
    with pytest.raises(UserError, match="disk is full"):
        harvest(model, TOKENS, layers=[0], folder=tmp_path / "part")
    assert json.loads((tmp_path / "part" / "shards.json").read_text())["done"] == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_the_mlps_input_runs_the_whole_mlp_on_it(tiny_model, family):
    """The gate must read the patch too."""
    model = tiny_model(family)
    mlp = anatomy(model).layers[1].mlp
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    patch = [Patch("mlp_in", 1, [1, 3], x)]
    with torch.inference_mode():
        gate = mlp.activation((mlp.gate_module or mlp.in_module)(x))
        expected = mlp.out_module(gate * mlp.in_module(x) if mlp.gate_module else gate)
    ids = TOKENS[0].tolist()
    for row, position in enumerate((1, 3)):
        got = run_patched(model, ids, [patch], read=("mlp", 1, position))[0]
        assert torch.allclose(got, expected[row], atol=1e-6)
    base = capture_all(model, ids, ["residual", "mlp"])
    got = run_patched(model, ids, [patch], read=("residual", 1, 3))[0]
    without = base["residual"][1, 3] - base["mlp"][1, 3]
    assert torch.allclose(got, without + expected[1], atol=1e-5)  # nothing else was changed
