"""The gradient loop: the same numbers as AdamW by hand, stopped and gone on with, and diverging."""

import ctypes
import logging
import math
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES
from torch import nn

from helpers.book.environment import MALLOC
from helpers.errors import UserError
from helpers.models import architecture_of, model_hash
from helpers.training.loop import choose_parameters, train, trainable


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def batches(n: int = 4) -> list:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(6, 3, generator=draw) for _ in range(n)]


def squares(module, batch):
    return module(batch).square().mean()


def noisy(module, batch):
    return module(batch + 0.1 * torch.randn_like(batch)).square().mean()


def state(module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_steps_are_those_of_adamw(monkeypatch):
    """AdamW written out: m, v, bias correction, decay of matrices only, gradient clipped."""
    module, data = small(), batches(1)
    by_hand = small()
    names = [n for n, _ in by_hand.named_parameters()]
    m = dict.fromkeys(names, 0.0)
    v = dict.fromkeys(names, 0.0)
    lr, decay, max_norm = 0.05, 0.1, 0.02
    monkeypatch.setattr("helpers.training.state.MAX_GRAD_NORM", max_norm)
    for t in range(1, 6):
        squares(by_hand, data[0]).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in by_hand.parameters()))
        rate = lr * min(1, t / 3)
        with torch.no_grad():
            for n, p in by_hand.named_parameters():
                g = p.grad * min(1, max_norm / (norm + 1e-6))
                m[n] = 0.9 * m[n] + 0.1 * g
                v[n] = 0.999 * v[n] + 0.001 * g.square()
                p *= 1 - rate * (decay if p.ndim > 1 else 0)
                p -= rate * (m[n] / (1 - 0.9**t)) / ((v[n] / (1 - 0.999**t)).sqrt() + 1e-8)
                p.grad = None
    history = train(
        module, squares, data, steps=5, lr=lambda i: lr * min(1, (i + 1) / 3), weight_decay=decay
    )
    for a, b in zip(module.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert history.steps == 5 and history.losses[-1] < history.losses[0]


def test_accumulated_batches_are_one_large_batch():
    one, two = small(), small()
    data = batches(4)
    train(one, squares, lambda i: data[i], steps=2, lr=0.1, gradient_accumulation_steps=2)
    pairs = [torch.cat(data[:2]), torch.cat(data[2:])]
    train(two, squares, lambda i: pairs[i], steps=2, lr=0.1)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_list_of_batches_is_gone_through_in_rounds():
    seen = []

    def loss(module, batch):
        seen.append(int(batch[0]))
        return module.weight.sum() * 0

    train(nn.Linear(1, 1), loss, [torch.tensor([i]) for i in range(5)], steps=10, lr=0.1, seed=3)
    assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(5))
    assert seen[:5] != seen[5:]


def test_a_stopped_training_goes_on_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.training.state.CHECKPOINT_SECONDS", 0.0)
    whole, path = small(), tmp_path / "training.safetensors"
    train(whole, noisy, batches(), steps=9, lr=0.05, seed=2)

    def kill(step, loss):
        if step == 7:
            raise KeyboardInterrupt

    how = {"steps": 9, "lr": 0.05, "seed": 2, "checkpoint": path}
    with pytest.raises(KeyboardInterrupt):
        train(small(), noisy, batches(), on_step=kill, **how)
    with pytest.raises(UserError, match="another training"):
        train(small(), noisy, batches(), **how | {"lr": 0.01})
    with pytest.raises(UserError, match="another training"):
        train(small(seed=1), noisy, batches(), **how)
    resumed, told = small(), []
    history = train(resumed, noisy, batches(), on_step=lambda s, x: told.append(s), **how)
    assert told == [7, 8, 9]
    assert history.steps == 9
    assert same(state(whole), state(resumed))
    assert not path.exists()  # nothing is left of a training that is done


def changed(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        changed,
        lambda path: path.write_bytes(path.read_bytes()[:-7]),
        lambda path: path.write_text(""),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: save_file({"parameter.0.weight": torch.ones(1)}, path, {"history": "{"}),
        lambda path: save_file(
            {n: t / 0 for n, t in load_file(path).items()}, path, {"history": "[]", "about": ""}
        ),
    ],
    ids=["a byte", "cut", "empty", "a folder", "another file", "not finite"],
)
def test_a_training_whose_checkpoint_is_damaged_starts_anew(tmp_path, monkeypatch, spoil, caplog):
    monkeypatch.setattr("helpers.training.state.CHECKPOINT_SECONDS", 0.0)
    path, straight, again = tmp_path / "training.safetensors", small(), small()
    how = {"steps": 5, "lr": 0.05, "seed": 2}

    def kill(step, loss):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small(), noisy, batches(), on_step=kill, checkpoint=path, **how)
    spoil(path)
    with caplog.at_level(logging.WARNING):
        history = train(again, noisy, batches(), checkpoint=path, **how)
    expected = train(straight, noisy, batches(), **how)
    assert history.losses == expected.losses and same(state(again), state(straight))
    (told,) = [r.getMessage() for r in caplog.records]
    assert "starts anew" in told and "\n" not in told
    assert not path.exists()


@pytest.mark.parametrize(("bad", "kept"), [(3, 0), (6, 4)])
def test_a_diverging_run_keeps_the_last_good_weights(bad, kept):
    module, before = small(), []

    def loss(module, batch):
        before.append(state(module))
        return module(batch).square().mean() * (float("nan") if len(before) > bad else 1)

    with pytest.raises(UserError, match=f"not finite at step {bad}: lower the learn") as error:
        train(module, loss, batches(), steps=9, lr=0.05)
    assert str(error.value).endswith(f"the weights are those of step {kept}.")
    assert "\n" not in str(error.value)
    assert same(state(module), before[kept])  # whose loss was finite
    assert not any(p.grad is not None for p in module.parameters())


def test_only_what_is_named_is_trained_and_flags_come_back(tiny_model):
    model = tiny_model()
    module = model._module
    tokens = torch.tensor([[5, 6, 7, 8]])

    def loss(module, batch):
        return module(input_ids=batch, labels=batch).loss

    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    names = choose_parameters(model, "values", layers=[1, -1])
    train(module, loss, [tokens], steps=2, lr=0.01, parameters=names)
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(names) == {architecture_of(model).layers[i].mlp.out_name for i in (1, 2)}
    assert not any(p.requires_grad for p in module.parameters())


def test_low_precision_weights_move_by_small_steps(tiny_model):
    model = tiny_model()
    module = model._module.to(torch.bfloat16)
    name = architecture_of(model).layers[0].mlp.out_name
    weight = module.get_parameter(name)
    with torch.no_grad():
        weight.fill_(1.0)
    pull = lambda m, b: m.get_parameter(name).float().sum()  # noqa: E731
    train(module, pull, [0], steps=40, lr=1e-3, parameters=[name])
    assert torch.allclose(weight.float(), torch.full_like(weight, 0.96).float(), atol=0.005)


def test_the_same_seed_trains_the_same_and_leaves_the_callers_randomness():
    one, two = small(), small()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    train(one, noisy, batches(), steps=5, lr=0.1, seed=4)
    assert torch.equal(torch.rand(3), expected)
    train(two, noisy, batches(), steps=5, lr=0.1, seed=4)
    assert same(state(one), state(two))
    train(two, noisy, batches(), steps=5, lr=0.1, seed=5)
    assert not same(state(one), state(two))


def test_stop_ends_it():
    history = train(small(), squares, batches(), steps=50, lr=0.1, stop=lambda step: step == 3)
    assert history.steps == 3 and history.stopped


@pytest.mark.parametrize("family", FAMILIES)
def test_kinds_of_parameters_are_those_of_the_family(tiny_model, family):
    model = tiny_model(family)
    arch, every = architecture_of(model), [n for n, _ in model._module.named_parameters()]
    assert choose_parameters(model) == every
    mlps = choose_parameters(model, "mlps", layers=[0])
    mlp = arch.layers[0].mlp
    assert set(mlps) == {n for n in (mlp.in_name, mlp.gate_name, mlp.out_name) if n}
    inside = choose_parameters(model, "all", layers=[1])
    assert arch.layers[1].mlp.out_name in inside and arch.layers[0].mlp.out_name not in inside
    last = mlp.out_name.rsplit(".", 2)[-2]
    assert mlp.out_name in choose_parameters(model, last, layers=[0])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: choose_parameters(m, "q_prj"), "have no matrix 'q_prj': choose all, mlps"),
        (lambda m: choose_parameters(m, "mlps", layers=[9]), "no layer 9"),
        (lambda m: train(m._module, squares, [], steps=1, lr=1), "nothing to train on"),
        (lambda m: train(m._module, squares, [1], steps=0, lr=1), "steps is 0"),
        (lambda m: train(m._module, squares, [1], steps=1, lr=1, parameters=["x"]), "parameter x"),
        (lambda m: train(m._module, squares, [1], steps=1, lr=1, parameters=[]), "no parameter to"),
    ],
)
def test_bad_input_is_one_sentence_and_the_model_stays(tiny_model, call, sentence):
    model = tiny_model()
    before = model_hash(model)
    with pytest.raises(UserError, match=sentence) as error:
        call(model)
    assert "\n" not in str(error.value)
    assert model_hash(model) == before
    assert not any(p.requires_grad for p in model._module.parameters())


def _page_faults() -> tuple[list[int], float]:
    """Page faults up to each step, and the pages of a gradient."""
    wide, faults = nn.Linear(1024, 8192), []
    count = lambda *_: faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)  # noqa: E731
    train(
        wide,
        lambda module, batch: module(batch).square().mean(),
        [torch.ones(64, 1024)],
        steps=8,
        lr=1e-4,
        on_step=count,
    )
    return faults, 4 * wide.weight.numel() / resource.getpagesize()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_a_step_takes_the_memory_of_the_last_one(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", MALLOC)  # as the pipeline starts its kernels
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # what ran before leaves holes
        faults, pages = fresh.submit(_page_faults).result()
    assert faults[-1] - faults[3] < pages  # four steps


def test_frozen_for_a_while():
    module = small()
    with trainable(module, ["0.weight"]) as found:
        assert list(found) == ["0.weight"]
        assert [n for n, p in module.named_parameters() if p.requires_grad] == ["0.weight"]
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        ({"JPY_SESSION_NAME": "07.ipynb"}, True),  # somebody's JupyterLab
        ({"JPY_SESSION_NAME": "07.ipynb", "UNLEARNING_PLAN": "{}"}, False),  # a run's kernel
        ({}, False),  # a script whose output is kept
    ],
)
def test_progress_is_shown_where_a_person_watches(where, shown, monkeypatch, capfd):
    for name in ("JPY_SESSION_NAME", "UNLEARNING_PLAN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    slowly = lambda *_: time.sleep(0.12)  # noqa: E731  a bar is drawn ten times a second at most
    train(small(), squares, batches(), steps=3, lr=0.01, on_step=slowly)
    told = capfd.readouterr().err
    assert ("2/3" in told and "loss=" in told) if shown else not told
