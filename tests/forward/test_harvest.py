"""Harvesting: against plain forward passes, through kills, and with bad input."""

import contextlib
import gc
import json
import logging
import shutil
import threading

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES

from helpers.errors import UserError
from helpers.forward import harvest as harvest_module
from helpers.forward.activations import cache_activations
from helpers.forward.harvest import harvest
from helpers.io.cache import file_lock
from helpers.models import architecture_of
from helpers.tracing import SITES, Patch, run_patched

TOKENS = torch.randint(4, 64, (6, 5), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def small_passes(monkeypatch, tmp_path):
    monkeypatch.setattr(harvest_module, "PASS_TOKENS", 10)  # two sequences a pass
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
    shards = harvest(model, TOKENS, sites=SITES, layers=[0, -1], first_position=0)
    assert set(shards.widths) == {(s, i) for s in SITES for i in (0, 2)}
    mlp = architecture_of(model).layers[2].mlp
    for site, module, before in [
        ("mlp_in", mlp.in_module, True),
        ("neurons", mlp.out_module, True),
        ("mlp", mlp.out_module, False),
    ]:
        expected = plain(model, module, TOKENS, before=before).flatten(0, 1).half().numpy()
        assert np.allclose(shards[site, 2], expected, rtol=2e-3, atol=1e-6)
    row = 13
    assert shards.source(row) == (2, 3)
    states = cache_activations(model, [TOKENS[2].tolist()], sites=["residual"], positions="all")
    assert np.allclose(shards["residual", 2][row], states["residual", 2][3].numpy(), atol=2e-3)


def test_left_out_tokens_have_no_row(tiny_model):
    model = tiny_model()
    tokens = TOKENS.clone()
    tokens[1, 3:] = model.tokenizer.pad_token_id
    shards = harvest(model, tokens, layers=[1])
    assert len(shards) == 6 * 4 - 2
    assert [shards.source(i) for i in range(3, 8)] == [(0, 4), (1, 1), (1, 2), (2, 1), (2, 2)]
    from_start = harvest(model, tokens, layers=[1], first_position=0)
    assert len(from_start) == 30 - 2
    assert np.array_equal(shards["mlp", 1][4], from_start["mlp", 1][6])


def test_a_killed_harvest_goes_on_where_it_stopped(tiny_model, monkeypatch, tmp_path):
    model = tiny_model()
    whole = harvest(model, TOKENS, layers=[0], folder=tmp_path / "whole")
    real, calls = harvest_module.forward_passes, []

    def dies(*arguments, start):
        for sequences, values in real(*arguments, start=start):
            if calls:
                raise KeyboardInterrupt
            calls.append(sequences)
            yield sequences, values

    monkeypatch.setattr(harvest_module, "forward_passes", dies)
    with pytest.raises(KeyboardInterrupt):
        harvest(model, TOKENS, layers=[0], folder=tmp_path / "part")
    with (tmp_path / "part" / "mlp.0.f16").open("ab") as file:
        file.write(b"half a pass")  # what a kill leaves behind the last good row
    seen = []

    def counts(*arguments, start):
        seen.append(start)
        yield from real(*arguments, start=start)

    monkeypatch.setattr(harvest_module, "forward_passes", counts)
    part = harvest(model, TOKENS, layers=[0], folder=tmp_path / "part")
    assert seen == [2]  # two sequences were there
    assert np.array_equal(part["mlp", 0], whole["mlp", 0])
    harvest(model, TOKENS, layers=[0], folder=tmp_path / "part")
    assert seen == [2]
    assert np.array_equal(part.rows, whole.rows)


def test_a_harvest_waits_for_another_into_the_same_folder(tiny_model, monkeypatch, tmp_path):
    model, looked = tiny_model(), threading.Event()

    def resumed(*_):
        looked.set()
        raise UserError("enough")

    def work():
        with contextlib.suppress(UserError):
            harvest(model, TOKENS, layers=[0], folder=tmp_path / "same")

    monkeypatch.setattr("helpers.forward.harvest._stored_index", resumed)
    other = threading.Thread(target=work)
    with file_lock(tmp_path / "same"):
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
        harvest(model, TOKENS, layers=[0], first_position=5)
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
    with pytest.raises(UserError, match="truncated or missing"):
        harvest(model, TOKENS, layers=[0], folder=folder)


def rewritten(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "data zeroed": ("mlp.0.f16", lambda p: p.write_bytes(bytes(p.stat().st_size))),
    "data flipped": ("mlp.0.f16", flipped),
    "data cut": ("mlp.0.f16", lambda p: p.write_bytes(p.read_bytes()[:-7])),
    "data longer": ("mlp.0.f16", lambda p: p.write_bytes(p.read_bytes() + b"12")),
    "data gone": ("mlp.0.f16", lambda p: p.unlink()),
    "data a folder": ("mlp.0.f16", a_folder),
    "data without end": ("mlp.0.f16", lambda p: (p.unlink(), p.symlink_to("/dev/zero"))),
    "index a list": ("shards.json", lambda p: p.write_text("[]")),
    "index empty": ("shards.json", lambda p: p.write_text("{}")),
    "index cut": ("shards.json", lambda p: p.write_text(p.read_text()[:-30])),
    "index binary": ("shards.json", lambda p: p.write_bytes(b"\xff\x00")),
    "index a folder": ("shards.json", a_folder),
    "index counts text": ("shards.json", lambda p: rewritten(p, done="x")),
    "index counts too far": ("shards.json", lambda p: rewritten(p, done=7)),
    "index of another width": ("shards.json", lambda p: rewritten(p, widths=[15])),
    "index without widths": ("shards.json", lambda p: rewritten(p, widths=[])),
    "index of an older version": ("shards.json", lambda p: rewritten(p, checksums=[])),
    "index leads elsewhere": ("shards.json", lambda p: rewritten(p, keys=[["../mlp", 0]])),
    "tokens cut": ("tokens.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-7])),
    "tokens flipped": ("tokens.safetensors", flipped),
    "tokens gone": ("tokens.safetensors", lambda p: p.unlink()),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("cached", [True, False], ids=["cache", "folder"])
def test_a_damaged_harvest_is_made_again_or_told(tiny_model, tmp_path, damage, cached, caplog):
    """That of the cache is made again, with a line in the log; a folder of the user's is told."""
    model, mine = tiny_model(), None if cached else tmp_path / "mine"
    shards = harvest(model, TOKENS, layers=[0], folder=mine)
    folder, expected = shards.folder, np.array(shards["mlp", 0])
    name, spoil = DAMAGE[damage]
    spoil(folder / name)
    if not cached:
        sentence = r"cannot be read .*: delete that folder and harvest"
        with pytest.raises(UserError, match=sentence) as error:
            harvest(model, TOKENS, layers=[0], folder=mine)
        assert "\n" not in str(error.value)
        shutil.rmtree(folder)
    with caplog.at_level(logging.WARNING):
        again = harvest(model, TOKENS, layers=[0], folder=mine)
    assert np.array_equal(again["mlp", 0], expected)
    assert len([r for r in caplog.records if "is made again" in r.getMessage()]) == cached


def test_who_has_mapped_a_file_keeps_it_when_the_harvest_is_made_again(tiny_model):
    model = tiny_model()
    shards = harvest(model, TOKENS, layers=[0])
    mapped = shards["mlp", 0]
    (shards.folder / "shards.json").write_text("{}")
    again = harvest(model, TOKENS, layers=[0])
    assert again.folder == shards.folder and np.array_equal(again["mlp", 0], mapped)
    assert not np.shares_memory(again["mlp", 0], mapped)
    assert not again.reading.release()  # the first one counts as a reader still


def test_a_damaged_part_is_not_gone_on_with(tiny_model, monkeypatch, tmp_path, caplog):
    model = tiny_model()
    whole = np.array(harvest(model, TOKENS, layers=[0], folder=tmp_path / "whole")["mlp", 0])
    real = harvest_module.write_json

    def full(path, value):
        if value["done"] > 4:
            raise OSError(harvest_module.DISK_FULL[0], "No space left on device")
        real(path, value)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="disk is full"):
        patch.setattr(harvest_module, "write_json", full)
        harvest(model, TOKENS, layers=[0])
    (data,) = (tmp_path / "cache" / "activations").glob("*/mlp.0.f16")
    content = data.read_bytes()
    data.write_bytes(content[:20] + bytes(20) + content[40:])
    shards = harvest(model, TOKENS, layers=[0])
    assert np.array_equal(shards["mlp", 0], whole)
    assert "made again: mlp.0.f16 is damaged (its checksum differs)" in caplog.text


@pytest.mark.parametrize("name", ["model_hash", "tokenizer_hash"])
def test_an_index_of_another_model_in_the_cache_is_damage(tiny_model, name, caplog):
    model = tiny_model()
    shards = harvest(model, TOKENS, layers=[0])
    expected = np.array(shards["mlp", 0])
    rewritten(shards.folder / "shards.json", **{name: "0123456789abcdef"})
    assert np.array_equal(harvest(model, TOKENS, layers=[0])["mlp", 0], expected)
    assert "made again: shards.json names another harvest" in caplog.text


def test_a_file_where_the_folder_should_be(tiny_model, tmp_path):
    model = tiny_model()
    shards = harvest(model, TOKENS, layers=[0])
    expected = np.array(shards["mlp", 0])
    shutil.rmtree(shards.folder)
    shards.folder.write_text("")
    assert np.array_equal(harvest(model, TOKENS, layers=[0])["mlp", 0], expected)
    (tmp_path / "mine").write_text("")
    with pytest.raises(UserError, match="it is no folder"):
        harvest(model, TOKENS, layers=[0], folder=tmp_path / "mine")


def test_a_harvest_is_deleted_by_the_last_who_reads_it(tiny_model):
    model = tiny_model()
    first, second, third = (harvest(model, TOKENS, layers=[0]) for _ in range(3))
    assert not first.reading.release()
    assert second["mlp", 0].shape == (len(second), 16)
    del third  # who is gone reads no more
    gc.collect()
    assert second.reading.release() and not second.folder.exists()


def test_activations_beyond_float16_stop_the_harvest(tiny_model, tmp_path):
    model = tiny_model()
    with torch.no_grad():
        architecture_of(model).layers[0].mlp.W_out().mul_(1e9)
    with pytest.raises(UserError, match="site mlp of layer 0 does not fit float16"):
        harvest(model, TOKENS, layers=[0], folder=tmp_path / "big")


def test_a_full_disk_keeps_what_is_there(tiny_model, monkeypatch, tmp_path):
    model = tiny_model()
    real = harvest_module.write_json

    def full(path, value):
        if value["done"] > 2:
            raise OSError(harvest_module.DISK_FULL[0], "No space left on device")
        real(path, value)

    monkeypatch.setattr(harvest_module, "write_json", full)
    with pytest.raises(UserError, match="disk is full"):
        harvest(model, TOKENS, layers=[0], folder=tmp_path / "part")
    assert json.loads((tmp_path / "part" / "shards.json").read_text())["done"] == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_the_mlps_input_runs_the_whole_mlp_on_it(tiny_model, family):
    """The gate must read the patch too."""
    model = tiny_model(family)
    mlp = architecture_of(model).layers[1].mlp
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    patch = [Patch("mlp_in", 1, [1, 3], x)]
    with torch.inference_mode():
        gate = mlp.activation((mlp.gate_module or mlp.in_module)(x))
        expected = mlp.out_module(gate * mlp.in_module(x) if mlp.gate_module else gate)
    ids = TOKENS[0].tolist()
    for row, position in enumerate((1, 3)):
        got = run_patched(model, ids, [patch], read=("mlp", 1, position))[0]
        assert torch.allclose(got, expected[row], atol=1e-6)
    base = cache_activations(model, [ids], sites=["residual", "mlp"], positions="all")
    got = run_patched(model, ids, [patch], read=("residual", 1, 3))[0]
    without = base["residual", 1][3] - base["mlp", 1][3]
    assert torch.allclose(got, without + expected[1], atol=1e-5)  # nothing else was changed
