"""Robustness wrappers: their terms against independent formulas, and what they all keep."""

import itertools

import numpy as np
import pytest
import torch
from small_trainings import FRANCE, QUICK, TRAINED, interrupted_at, numbers, task_of
from tiny_models import FAMILIES
from torch.nn.functional import cross_entropy

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_logprobs, answer_probability
from helpers.methods import unlearn
from helpers.methods.training.robust.ilu import N_TEXTS, ilu, invariance_penalty
from helpers.methods.training.robust.lat import (
    attack,
    lat,
    mean_length,
    perturbed,
    prompt_tokens,
)
from helpers.methods.training.robust.layered import layered
from helpers.methods.training.robust.sam import sam
from helpers.methods.training.robust.wrappers import WRAPPERS
from helpers.methods.training.stages import Stages
from helpers.methods.training.task import ForgetRetainBatch
from helpers.models import architecture_of, model_hash, torch_module
from helpers.training.examples import collate
from helpers.training.loop import choose_parameters, trainable

STRONG = {"sam_rho": 0.3, "lat_epsilon": 1.0, "ilu_weight": 5.0}


def whole_batch(task) -> ForgetRetainBatch:
    return ForgetRetainBatch(collate(task.data.forget), collate(task.data.retain))


def same_edits(a, b, *, atol: float = 0.0) -> bool:
    pairs = [(c.matrix(), b.delta.changes[n].matrix()) for n, c in a.delta.changes.items()]
    return all(torch.allclose(x, y, rtol=0, atol=atol) for x, y in pairs)


def test_the_gradient_of_sam_is_the_forget_gradient_nearby_and_the_retain_gradient_here(knowing):
    """In float64, with the perturbed point made in a second model by hand."""
    rho = 0.3
    gradients = {}
    for kind in ("wrapped", "here", "nearby"):
        model = knowing()
        module = torch_module(model).double()
        task, loss = task_of(model, "npo", QUICK | {"sam_rho": rho, "retain_weight": 1.7})
        batch, names = whole_batch(task), choose_parameters(model, "mlps", layers=[0, 1])
        before = {n: p.detach().clone() for n, p in module.named_parameters()}
        with trainable(module, names) as trained:
            if kind == "wrapped":
                (sam(task, loss).loss(batch) / 2).backward()  # as a step of two passes would
                assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())
                gradients[kind] = {n: 2 * p.grad for n, p in trained.items()}
                continue
            if kind == "nearby":
                ascent = gradients["here"]["forget"]
                length = sum(g.square().sum() for g in ascent.values()).sqrt()
                with torch.no_grad():
                    for name, p in trained.items():
                        p += rho * ascent[name] / length
            gradients[kind] = {}
            for term in ("forget", "retain"):
                getattr(loss, f"{term}_loss")(batch).backward()
                gradients[kind][term] = {n: p.grad.clone() for n, p in trained.items()}
                for p in trained.values():
                    p.grad = None
    for name, gradient in gradients["wrapped"].items():
        forget, retain = gradients["nearby"]["forget"][name], gradients["here"]["retain"][name]
        # Scores are float32 (`label_logits`), whatever the weights.
        assert torch.allclose(gradient, forget + 1.7 * retain, rtol=1e-3, atol=1e-6)
        assert not torch.allclose(forget, gradients["here"]["forget"][name], rtol=0.05)


@pytest.mark.parametrize(
    "nothing",
    [
        {"robust": "sam", "sam_rho": 0.0},
        {"robust": "lat", "lat_epsilon": 0.0},
        {"robust": "ilu", "ilu_weight": 0.0},
    ],
    ids=["sam", "lat", "ilu"],
)
def test_a_wrapper_of_no_strength_is_none(knowing, nothing):
    model = knowing()
    plain = unlearn(model, FRANCE, "npo", **QUICK)
    assert same_edits(plain, unlearn(model, FRANCE, "npo", **QUICK | nothing), atol=1e-6)
    wrapped = unlearn(model, FRANCE, "npo", **QUICK | STRONG | {"robust": nothing["robust"]})
    assert not same_edits(plain, wrapped, atol=1e-4)


def test_the_attack_of_lat_stays_in_its_ball_and_brings_the_answer_back(knowing):
    model = knowing()
    how = QUICK | {"layers": (0,)}
    task, loss = task_of(model, "npo", how)
    batch, block = whole_batch(task), torch_module(architecture_of(model).layers[1].block)
    with unlearn(model, FRANCE, "npo", **how).applied(model):
        lengths_before = []
        for e in task.data.forget:
            with torch.no_grad():
                states = model._module(torch.tensor([e.ids]), output_hidden_states=True)
            lengths_before.append(states.hidden_states[1][0, 1 : e.labels_start].norm(dim=-1))
        assert mean_length(task, block) == pytest.approx(torch.cat(lengths_before).mean().item())
        radius = 0.5 * mean_length(task, block)
        losses, lengths = [], {}
        for steps in (1, 4, 16):
            delta = attack(task, batch, block, radius=radius, steps=steps)
            lengths[steps] = delta.norm(dim=-1)
            with torch.no_grad(), perturbed(block, delta):
                losses.append(task.forget_loss(batch).item())
        with torch.no_grad():
            without, npo_loss = task.forget_loss(batch).item(), loss.forget_loss(batch).item()
        # What unlearning wants is further away under the attack.
        assert lat(task, loss).forget_loss(batch).item() > npo_loss + 0.1
    assert losses[2] <= losses[1] < without - 0.5 and losses[0] < without
    asked = torch.zeros(batch.forget.ids.shape, dtype=torch.bool)
    for row, example in enumerate(task.data.forget):
        asked[row, 1 : example.labels_start] = True
    assert torch.equal(prompt_tokens(batch.forget), asked)
    for length in lengths.values():
        assert (length[~asked] == 0).all() and length.max() <= radius * (1 + 1e-5)
    # The first step is longer than the radius, whatever the gradient: it ends on the sphere.
    assert torch.allclose(lengths[1][asked], torch.tensor(radius))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_perturbation_is_added_between_two_blocks(tiny_model, family):
    """Against a change of what the block below returns; a longer sequence has none at its end."""
    model, tokens = tiny_model(family), torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    module, layers = torch_module(model), architecture_of(model).layers
    delta = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    long = torch.cat([delta, torch.zeros(2, 1, 16)], 1)

    def after(below, inputs, out):
        return (out[0] + long, *out[1:]) if isinstance(out, tuple) else out + long

    with torch.no_grad():
        plain = module(tokens).logits
        handle = torch_module(layers[0].block).register_forward_hook(after)
        expected = module(tokens).logits
        handle.remove()
        with perturbed(torch_module(layers[1].block), delta):
            changed, short = module(tokens).logits, module(tokens[:, :2]).logits
        assert torch.equal(module(tokens).logits, plain)
    assert torch.allclose(changed, expected, atol=1e-6) and not torch.allclose(changed, plain)
    assert torch.allclose(short, changed[:, :2], atol=1e-5)


def test_the_penalty_of_ilu_is_the_square_of_a_derivative():
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(7, 11, generator=draw, dtype=torch.float64)
    labels, h = torch.randint(11, (7,), generator=draw), 1e-5
    slope = (cross_entropy((1 + h) * logits, labels) - cross_entropy((1 - h) * logits, labels)) / (
        2 * h
    )
    assert abs(slope) > 0.1
    assert invariance_penalty(logits, labels).item() == pytest.approx(slope.item() ** 2, rel=1e-6)


def test_ilu_adds_its_penalty_on_text_without_the_pair(knowing, monkeypatch):
    model, drawn = knowing(), []
    task, loss = task_of(model, "npo", QUICK | {"ilu_weight": 2.5})

    def recording(logits, labels):
        drawn.append(invariance_penalty(logits, labels))
        return drawn[-1]

    def texts(*args, **kwargs):
        assert kwargs["n"] == N_TEXTS
        return task.data.passages

    monkeypatch.setattr("helpers.methods.training.robust.ilu.invariance_penalty", recording)
    monkeypatch.setattr("helpers.methods.training.robust.ilu.unrelated_passages", texts)
    wrapped, batch = ilu(task, loss), whole_batch(task)
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        values.append(wrapped.loss(batch).item())
    expected = [loss.loss(batch).item() + 2.5 * penalty.item() for penalty in drawn]
    assert values == pytest.approx(expected, rel=1e-6)
    assert values[0] == values[1] != values[2]  # the seed alone decides on the texts


def test_folds_grow_until_everything_is_forgotten_and_the_rest_is_retained(knowing):
    model = knowing()
    task, _ = task_of(model, "npo", QUICK | {"layered_folds": 3})
    stages = layered(task)
    data = [stage.data for stage in stages]
    assert data[-1].forget == task.data.forget and data[-1].retain == task.data.retain
    prompts, forget = task.data.prompts, task.data.forget
    logprobs = answer_logprobs(model, prompts, [p.answers[0] for p in prompts])
    known = [e for e, x in zip(forget, logprobs, strict=True) if x >= np.log(0.02)]
    assert 0 < len(known) < len(forget)
    sizes = [len({str(p) for p in d.prompts}) for d in data]
    folds = np.diff([0, *sizes])
    assert sum(folds) == len({str(p) for p in prompts}) and folds.max() - folds.min() <= 1
    for earlier, later in itertools.pairwise(data):
        assert set(earlier.forget) < set(later.forget)
    for d in data:
        later = [e for e in known if e not in d.forget]
        assert d.retain == task.data.facts + later + task.data.passages
        texts = zip(d.prompts, d.forget, strict=True)
        assert all(e.text.startswith(str(p)) for p, e in texts)


def test_layered_unlearning_retains_no_answer_that_the_model_does_not_know(knowing):
    alias = ConceptPair("France", "Paris", aliases=("Madrid",))
    task, _ = task_of(knowing(), "npo", QUICK | {"min_answer_prob": 0.5}, alias)
    assert any("Madrid" in e.text for e in task.data.forget)
    for stage in layered(task):
        retained = [e for e in task.data.forget if e in stage.data.retain]
        assert not any(e.text.endswith("Madrid") for e in retained)
        texts = [str(p) for p in stage.data.prompts]
        assert all(texts.count(t) == 2 for t in texts)  # both answers of a prompt, or none


def test_stages_share_the_steps_and_only_the_last_may_end_early(knowing, monkeypatch):
    model = knowing()
    given = {"layered_folds": 3, "steps": 8, "gradient_accumulation_steps": 2}
    task, loss = task_of(model, "npo", QUICK | given)
    stages = layered(task)
    schedule = Stages(stages, [loss] * 3)
    assert [schedule.index(step) for step in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]
    seen = []
    monkeypatch.setattr(type(loss), "loss", lambda self, batch: seen.append(batch))
    for i in range(16):
        schedule.loss(i)
    for i, batch in enumerate(seen):
        examples = [stages[schedule.index(i // 2)].data.forget[j] for j in batch.forget.index]
        assert [list(e.ids) for e in examples] == [
            row[:n] for row, n in zip(batch.forget.ids.tolist(), batch.forget.length, strict=True)
        ]
    monkeypatch.undo()
    forgotten = lambda model, prompts: np.zeros(len(prompts))  # noqa: E731
    monkeypatch.setattr("helpers.methods.training.early_stop.answer_probability", forgotten)
    how = QUICK | {"early_stop_ratio": 0.5, "layered_folds": 3}
    ends = {
        r: unlearn(model, FRANCE, "npo", robust=r, **how).delta.notes["steps"]
        for r in ("sam", "layered")
    }
    assert ends == {"sam": 2, "layered": 10}


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("robust", WRAPPERS)
def test_the_fact_is_forgotten_and_the_weights_come_back(knowing, robust, lora_rank):
    model = knowing()
    before, prompts = model_hash(model), FRANCE.prompts("heldout")
    known = answer_probability(model, prompts).mean()
    how = QUICK | {"robust": robust, "lora_rank": lora_rank, "steps": 24, "lr": 0.02}
    how |= {"sam_rho": 0.05}  # the default is for matrices that are hundreds of times as large
    edit = unlearn(model, FRANCE, "npo", **how)
    assert model_hash(model) == before
    assert not torch_module(model)._forward_pre_hooks
    with edit.applied(model):
        assert answer_probability(model, prompts).mean() < 0.5 * known
    assert edit.hyperparameters["robust"] == robust
    if lora_rank:
        assert {c.rank for c in edit.delta.changes.values()} == {lora_rank}


@pytest.mark.parametrize("method", [name for name in TRAINED if name != "task_vector"])
def test_wrappers_go_over_any_method(knowing, tmp_path, method):
    model = knowing()
    before = model_hash(model)
    given = numbers(method, model, tmp_path) | STRONG | {"steps": 3}
    plain = unlearn(model, FRANCE, method, **given)
    for robust in WRAPPERS:
        if (method, robust) == ("gradient_ascent", "layered"):
            continue  # it retains nothing
        edit = unlearn(model, FRANCE, method, **given, robust=robust)
        assert model_hash(model) == before
        assert not same_edits(plain, edit, atol=1e-6), robust


@pytest.mark.parametrize("robust", WRAPPERS)
def test_a_training_that_was_killed_resumes_to_the_same_edit(knowing, monkeypatch, robust):
    model, calls = knowing(), []
    monkeypatch.setattr("helpers.training.state.CHECKPOINT_SECONDS", 0.0)
    how = QUICK | {"robust": robust}
    whole = unlearn(model, FRANCE, "npo", **how)

    monkeypatch.setattr("helpers.methods.training.recipe.early_stop", interrupted_at(3, calls))
    before = model_hash(model)
    with pytest.raises(KeyboardInterrupt):
        unlearn(model, FRANCE, "npo", **how)
    assert model_hash(model) == before
    resumed = unlearn(model, FRANCE, "npo", **how)
    assert calls[3] == calls[2]  # its step had not been written, the one before it had
    assert same_edits(whole, resumed)


@pytest.mark.parametrize(
    ("method", "given", "sentence"),
    [
        ("npo", {"robust": "layred"}, "no wrapper .* 'layred'; did you mean layered"),
        ("npo", {"robust": "zzz"}, "there are sam, lat, ilu, layered"),
        ("task_vector", {"robust": "sam"}, "subtracts the change, so .*: leave 'robust' empty"),
        ("gradient_ascent", {"robust": "layered"}, "retains nothing"),
        ("npo", {"robust": "layered", "retain_weight": 0.0}, "a positive retain_weight"),
        ("npo", {"robust": "layered", "layered_folds": 90, "steps": 90}, "for 90 folds"),
        ("npo", {"robust": "layered", "steps": 2}, "steps is 2: choose at least one for each of 3"),
        ("npo", {"robust": "layered", "layered_folds": 1}, "layered_folds is 1: choose"),
        ("npo", {"robust": "sam", "sam_rho": -1.0}, "sam_rho is -1"),
        ("npo", {"robust": "lat", "lat_steps": 0}, "lat_steps is 0"),
    ],
)
def test_bad_input_is_one_sentence_and_the_model_stays(knowing, method, given, sentence):
    model = knowing()
    before = model_hash(model)
    with pytest.raises(UserError, match=sentence) as error:
        unlearn(model, FRANCE, method, **QUICK | given)
    assert "\n" not in str(error.value)
    assert model_hash(model) == before
