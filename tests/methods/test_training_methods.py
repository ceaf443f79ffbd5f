"""Training methods: their losses against formulas worked out apart, their data, their result."""

import math

import pytest
import torch
from small_trainings import FRANCE, QUICK, TRAINED, interrupted_at, numbers, task_of
from tiny_models import KNOWN

from helpers.errors import UserError
from helpers.facts import ConceptPair, Template
from helpers.facts.concept_prompts import forget_prompts
from helpers.forward.prompts import input_text
from helpers.forward.scoring import answer_logprobs, answer_probability
from helpers.io.files import cache_dir
from helpers.methods import unlearn
from helpers.methods.fitting.sae_latents import sae_states, specific_latents
from helpers.methods.training.crisp import suppression
from helpers.methods.training.data import BatchSchedule, forget_retain_data
from helpers.methods.training.elm import EXPERT, NOVICE, _after_context, cross_entropy, guided
from helpers.methods.training.idk_dpo import dpo_loss
from helpers.methods.training.kl_minimisation import kl_to_reference
from helpers.methods.training.npo import npo_loss
from helpers.methods.training.refusals import refusal_examples
from helpers.methods.training.rmu import steering_loss
from helpers.methods.training.simnpo import simnpo_loss
from helpers.methods.training.task import ForgetRetainBatch
from helpers.methods.training.undial import undial_loss
from helpers.methods.training.weighted_ascent import weighted
from helpers.models import architecture_of, model_hash
from helpers.models.tokenization import encode
from helpers.sae import load_sae
from helpers.training.examples import collate, mean_loss
from helpers.training.lora import lora_adapters

INDIA = ConceptPair("India", "New Delhi")


def logsigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def test_there_are_thirteen():
    assert set(TRAINED) == {
        "gradient_ascent",
        "gradient_difference",
        "kl_minimisation",
        "npo",
        "simnpo",
        "idk",
        "idk_dpo",
        "rmu",
        "undial",
        "weighted_ascent",
        "elm",
        "crisp",
        "task_vector",
    }


def test_npo_is_its_formula():
    found = npo_loss(torch.tensor([2.0, 5.0]), torch.tensor([1.0, 1.5]), beta=0.1)
    expected = -(2 / 0.1) * (logsigmoid(0.1 * 1.0) + logsigmoid(0.1 * 3.5)) / 2
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_npo_with_small_beta_has_the_gradient_of_ascent():
    nll = torch.tensor([2.0, 5.0], requires_grad=True)
    npo_loss(nll, torch.tensor([1.0, 1.5]), beta=1e-4).backward()
    assert torch.allclose(nll.grad, torch.full((2,), -0.5), atol=1e-3)


def test_simnpo_is_its_formula():
    found = simnpo_loss(torch.tensor([0.5, 2.0]), beta=2.5, delta=0.3)
    expected = -(2 / 2.5) * (logsigmoid(2.5 * 0.2) + logsigmoid(2.5 * 1.7)) / 2
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_dpo_is_its_formula_and_prefers_the_refusal():
    win, lose, wr, lr = (torch.tensor([x]) for x in (4.0, 3.0, 5.0, 1.0))
    found = dpo_loss(win, lose, wr, lr, beta=0.5)
    # log-ratios: refusal −4 − (−5) = 1, answer −3 − (−1) = −2; margin 3
    assert found.item() == pytest.approx(-(2 / 0.5) * logsigmoid(0.5 * 3.0), rel=1e-5)
    assert (
        dpo_loss(win - 1, lose, wr, lr, beta=0.5)
        < found
        < dpo_loss(win, lose - 1, wr, lr, beta=0.5)
    )


def test_kl_has_the_original_first():
    p, q = torch.tensor([[0.8, 0.2]]), torch.tensor([[0.5, 0.5]])
    expected = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    found = kl_to_reference(q.log() + 3.0, p.log() - 1.0)  # logits: a shift says nothing
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert kl_to_reference(p.log(), q.log()).item() != pytest.approx(expected, rel=1e-3)


def test_undial_lowers_the_answers_logit_only():
    reference, now = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.3, 0.2, 0.1]])
    found = undial_loss(now, reference, torch.tensor([0]), beta=10.0)
    total = math.exp(-8) + math.e + 1
    goal = [math.exp(-8) / total, math.e / total, 1 / total]
    norm = math.log(sum(math.exp(x) for x in (0.3, 0.2, 0.1)))
    expected = -sum(g * (x - norm) for g, x in zip(goal, (0.3, 0.2, 0.1), strict=True))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_weighted_ascent_has_no_gradient_through_the_weight():
    nll = torch.tensor([0.7, 2.0], requires_grad=True)
    found = weighted(nll, beta=2.0)
    assert found.tolist() == pytest.approx([math.exp(-1.4) * 0.7, math.exp(-4) * 2], rel=1e-5)
    found.sum().backward()
    assert nll.grad.tolist() == pytest.approx([math.exp(-1.4), math.exp(-4)], rel=1e-5)


def test_guidance_moves_away_from_the_expert():
    plain, novice, expert = ([0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.8, 0.1, 0.1])
    raw = [p * (a / b) ** 2 for p, a, b in zip(plain, novice, expert, strict=True)]
    expected = [x / sum(raw) for x in raw]
    logits = [torch.tensor([x]).log() + 1.5 for x in (plain, novice, expert)]
    found = guided(*logits, eta=2.0)
    assert found[0].tolist() == pytest.approx(expected, rel=1e-4)
    ce = cross_entropy(torch.tensor([plain]).log(), found).item()
    assert ce == pytest.approx(-sum(e * math.log(p) for e, p in zip(expected, plain, strict=True)))


def test_steering_and_suppression_are_means():
    states = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert steering_loss(states, torch.tensor([1.0, 0.0])).item() == (0 + 4 + 4 + 0) / 4
    assert suppression(torch.tensor([[1.0, -5.0], [3.0, 0.0]])).item() == 1.0


def test_the_loss_of_examples_is_the_mean_over_answer_tokens(knowing):
    """Against full logits, sequence by sequence; answers of one and of several tokens."""
    model = knowing()
    data = forget_retain_data(model, [FRANCE], n_neighbours=4, n_passages=2, seed=0)
    examples = [data.forget[0], data.facts[0], data.passages[0]]
    expected = []
    for e in examples:
        with torch.no_grad():
            logp = model._module(torch.tensor([e.ids])).logits[0].log_softmax(-1)
        tokens = range(e.labels_start, len(e.ids))
        expected.append(-sum(logp[i - 1, e.ids[i]].item() for i in tokens) / len(tokens))
    with torch.no_grad():
        found = mean_loss(model, collate(examples))
    assert len(examples[2].ids) - examples[2].labels_start > 1
    assert found.item() == pytest.approx(sum(expected) / 3, rel=1e-4)


class Plain:
    """What a model says of examples, from its own full forward pass, sequence by sequence."""

    def __init__(self, model, examples, layer: int = 0):
        self.examples, self.logp, self.states = examples, [], []
        for e in examples:
            with torch.no_grad():
                out = model._module(torch.tensor([e.ids]), output_hidden_states=True)
            self.logp.append(out.logits[0, e.labels_start - 1 : -1].double().log_softmax(-1))
            self.states.append(out.hidden_states[layer + 1][0].double())

    def tokens(self) -> list[torch.Tensor]:
        """NLL of each example's answer tokens."""
        rows = zip(self.examples, self.logp, strict=True)
        return [-x[range(len(x)), list(e.ids[e.labels_start :])] for e, x in rows]

    def mean(self) -> float:
        """Mean over examples of the mean over tokens."""
        return sum(x.mean().item() for x in self.tokens()) / len(self.examples)

    def sums(self) -> list[float]:
        return [x.sum().item() for x in self.tokens()]


def mean(values) -> float:
    values = list(values)
    return float(sum(values) / len(values))


def soft(margins: list[float], beta: float) -> float:
    return -(2 / beta) * mean(logsigmoid(beta * m) for m in margins)


def kl(now, was) -> float:
    """Mean over examples of the mean over tokens of KL(was ‖ now)."""
    pairs = zip(now.logp, was.logp, strict=True)
    return mean((q.exp() * (q - p)).sum(-1).mean().item() for p, q in pairs)


def distilled(now, was, beta: float) -> float:
    found = []
    for e, p, q in zip(now.examples, now.logp, was.logp, strict=True):
        lowered = q.clone()
        lowered[range(len(q)), list(e.ids[e.labels_start :])] -= beta
        found.append(-(lowered.softmax(-1) * p).sum(-1).mean().item())
    return mean(found)


def ascended(now, beta: float) -> float:
    return mean(((-beta * x).exp() * x).mean().item() for x in now.tokens())


def steered(now, was, c: float) -> float:
    """Mean square from c mean lengths along what seed 0 draws, of tokens from the subject on."""
    own = [x[max(1, e.subject_start) :] for e, x in zip(was.examples, was.states, strict=True)]
    u = torch.rand(own[0].shape[-1], generator=torch.Generator().manual_seed(0)).double()
    goal = c * torch.cat(own).norm(dim=-1).mean() * u / u.norm()
    here = [x[max(1, e.subject_start) :] for e, x in zip(now.examples, now.states, strict=True)]
    return (torch.cat(here) - goal).square().mean().item()


def drift(now, was) -> float:
    pairs = zip(now.states, was.states, strict=True)
    return torch.cat([(a - b)[1:] for a, b in pairs]).square().mean().item()


def guided_away(now, was, novice, expert, eta: float) -> float:
    found = []
    for p, q, a, b in zip(now.logp, was.logp, novice.logp, expert.logp, strict=True):
        goal = (q + eta * (a[-len(q) :] - b[-len(q) :])).softmax(-1)
        found.append(-(goal * p).sum(-1).mean().item())
    return mean(found)


WHOLE = {
    "gradient_ascent": ({}, lambda f, r, told, _: -f[1].mean()),
    "task_vector": ({}, lambda f, r, told, _: f[1].mean()),
    "gradient_difference": (
        {"retain_weight": 1.7},
        lambda f, r, told, _: -f[1].mean() + 1.7 * r[1].mean(),
    ),
    "kl_minimisation": (
        {"retain_weight": 1.7},
        lambda f, r, told, _: -f[1].mean() + 1.7 * kl(r[1], r[0]),
    ),
    "npo": (
        {"beta": 0.2, "retain_weight": 1.7},
        lambda f, r, told, _: (
            soft([a - b for a, b in zip(f[1].sums(), f[0].sums(), strict=True)], 0.2)
            + 1.7 * r[1].mean()
        ),
    ),
    "simnpo": (
        {"beta": 2.5, "delta": 0.3, "forget_weight": 0.6, "retain_weight": 1.7},
        lambda f, r, told, _: (
            0.6 * soft([x.mean().item() - 0.3 for x in f[1].tokens()], 2.5) + 1.7 * r[1].mean()
        ),
    ),
    "idk": ({"retain_weight": 1.7}, lambda f, r, told, _: told[1].mean() + 1.7 * r[1].mean()),
    "idk_dpo": (
        {"beta": 0.2, "retain_weight": 1.7},
        lambda f, r, told, _: (
            soft(
                [
                    (lose - lose_was) - (win - win_was)
                    for lose, lose_was, win, win_was in zip(
                        f[1].sums(), f[0].sums(), told[1].sums(), told[0].sums(), strict=True
                    )
                ],
                0.2,
            )
            + 1.7 * r[1].mean()
        ),
    ),
    "undial": (
        {"beta": 3.0, "retain_weight": 1.7},
        lambda f, r, told, _: distilled(f[1], f[0], 3.0) + 1.7 * r[1].mean(),
    ),
    "weighted_ascent": (
        {"beta": 0.7, "retain_weight": 1.7},
        lambda f, r, told, _: -ascended(f[1], 0.7) + 1.7 * r[1].mean(),
    ),
    "rmu": (
        {"steering_coeff": 2.0, "retain_weight": 1.7},
        lambda f, r, told, _: steered(f[1], f[0], 2.0) + 1.7 * drift(r[1], r[0]),
    ),
    "elm": (
        {"eta": 0.5, "retain_weight": 1.7, "fluency_weight": 0.0},
        lambda f, r, told, context: (
            guided_away(f[1], f[0], *context, 0.5)
            + 1.7 * (kl(r[1], r[0]) + mean(-(q.exp() * q).sum(-1).mean().item() for q in r[0].logp))
        ),
    ),
}
"""Method → hyperparameters, and its loss from (original, now) of what is forgotten, retained and
refused, and from what novice and expert say."""


@pytest.mark.parametrize("method", WHOLE)
def test_a_whole_objective_is_its_formula(knowing, method):
    """After a change of weights, for an answer of two tokens, from full logits."""
    model = knowing()
    given, formula = WHOLE[method]
    task, objective = task_of(model, method, QUICK | given | {"layers": (1,)}, INDIA)
    data, told = task.data, refusal_examples(task)
    assert {len(e.ids) - e.labels_start for e in data.forget} == {2}
    context = [Plain(model, _after_context(task, c)) for c in (NOVICE, EXPERT)]
    parts = (data.forget, data.retain, told)
    was = [Plain(model, x, layer=1) for x in parts]
    how = QUICK | {"layers": (0, 1), "lr": 0.01, "steps": 6}
    with unlearn(model, INDIA, "gradient_difference", **how).applied(model):
        now = [Plain(model, x, layer=1) for x in parts]
        with torch.no_grad():
            step = ForgetRetainBatch(collate(data.forget), collate(data.retain))
            found = objective.loss(step).item()
    pairs = list(zip(was, now, strict=True))
    expected = formula(*pairs, context)
    assert found == pytest.approx(expected, rel=1e-3)
    unchanged = formula(*[(w, w) for w in was], context)
    assert abs(expected - unchanged) > 0.01 * abs(expected)  # the weights count


def inputs_of_mlps(model, examples, layers) -> list[list[torch.Tensor]]:
    """For each example what the MLPs of `layers` read, from a full forward pass of its own."""
    read: dict[int, torch.Tensor] = {}

    def reader(layer: int):
        return lambda module, args: read.update({layer: args[0][0].double()})

    mlps = [model._module.model.layers[i].mlp for i in layers]
    hooks = [m.register_forward_pre_hook(reader(i)) for i, m in zip(layers, mlps, strict=True)]
    found = []
    for e in examples:
        with torch.no_grad():
            model._module(torch.tensor([e.ids]))
        found.append([read[i] for i in layers])
    for hook in hooks:
        hook.remove()
    return found


def test_the_whole_objective_of_crisp_is_its_formula(knowing, tmp_path):
    """After a change of weights, with SAEs of two layers, from full forward passes."""
    model, beta, gamma, layers = knowing(), 0.3, 0.2, (1, 2)
    given = numbers("crisp", model, tmp_path) | {"beta": beta, "gamma": gamma}
    task, objective = task_of(model, "crisp", given)
    data = task.data
    features = []
    for layer, folder in zip(layers, given["saes"], strict=True):
        sae = load_sae(folder)
        inside, outside = sae_states(model, FRANCE, sae, n_subjects=24, seed=0)
        chosen = specific_latents(sae, inside, outside, n=3)
        features.append((layer, sae.W_enc[:, chosen].double(), sae.b_enc[chosen].double()))

    def formula(forget, now, was) -> float:
        fire = [
            torch.cat(
                [
                    x[i][max(1, e.subject_start) :] @ W + b
                    for e, x in zip(data.forget, forget, strict=True)
                ]
            ).relu()
            for i, (_, W, b) in enumerate(features)
        ]
        total = (1 - beta) * mean(x.mean().item() for x in fire)
        n = len(data.facts)
        for i in range(len(layers)):
            scale = torch.cat([x[i][1:] for x in was]).square().sum(-1).mean()
            for weight, part in ((beta, slice(0, n)), (beta * gamma, slice(n, None))):
                pairs = zip(now[part], was[part], strict=True)
                errors = torch.cat([(a[i] - b[i])[1:].square().sum(-1) for a, b in pairs])
                total += weight * (errors / scale).mean().item()
        return total

    was = inputs_of_mlps(model, data.retain, layers)
    before = formula(inputs_of_mlps(model, data.forget, layers), was, was)
    how = QUICK | {"layers": (0, 1), "lr": 0.01, "steps": 6}
    with unlearn(model, FRANCE, "gradient_difference", **how).applied(model):
        read = [inputs_of_mlps(model, part, layers) for part in (data.forget, data.retain)]
        with torch.no_grad():
            step = ForgetRetainBatch(collate(data.forget), collate(data.retain))
            found = objective.loss(step).item()
    expected = formula(*read, was)
    assert found == pytest.approx(expected, rel=1e-3)
    assert abs(expected - before) > 0.01 * abs(before)


@pytest.mark.parametrize("method", TRAINED)
def test_a_method_lowers_its_own_objective(knowing, tmp_path, method):
    model = knowing()
    given = numbers(method, model, tmp_path)
    if method == "task_vector":
        given["alpha"] = -1.0  # what it subtracts is what it learned
    task, objective = task_of(model, method, given)
    whole = ForgetRetainBatch(collate(task.data.forget), collate(task.data.retain))

    def value() -> float:
        with torch.no_grad():
            return objective.loss(whole).item()

    before = value()
    edit = unlearn(model, FRANCE, method, **given)
    with edit.applied(model):
        after = value()
    assert after < before - 1e-4 * abs(before), (before, after)
    assert edit.delta.notes["steps"] == 12


@pytest.mark.parametrize("method", TRAINED)
def test_no_method_trains_on_a_prompt_of_another_split(knowing, tmp_path, method):
    model = knowing()
    given = numbers(method, model, tmp_path) | {
        "steps": 6,
        "n_neighbours": 20,
        "early_stop_ratio": 0.02,
    }
    seen: set[tuple[int, ...]] = set()

    def record(body, args, kwargs):
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            seen.update(tuple(row) for row in ids.tolist())

    handle = model._module.base_model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        unlearn(model, FRANCE, method, **given)
    finally:
        handle.remove()
    assert seen
    pairs = [FRANCE, *FRANCE.same_subject(), *FRANCE.same_target()]
    pairs += [p for p in FRANCE.neighbours() if p.subject in KNOWN]
    train = {str(p) for pair in pairs for p in pair.prompts("train")}
    other = [p for pair in pairs for s in ("dev", "heldout") for p in pair.prompts(s)]
    assert not any(str(p) in train for p in other)
    for prompt in other:
        ids = tuple(encode(model.tokenizer, input_text(prompt, model.tokenizer)))
        if model.tokenizer.unk_token_id not in ids:
            assert not any(row[: len(ids)] == ids for row in seen), prompt


def test_data_is_of_the_train_split_and_says_its_sizes(knowing):
    model = knowing()
    data = forget_retain_data(model, [FRANCE], n_neighbours=5, n_passages=3, seed=0)
    assert [str(p) for p in data.prompts] == [str(p) for p in forget_prompts(FRANCE)]
    sizes = data.sizes()
    assert sizes["n_forget"] == len(forget_prompts(FRANCE)) and sizes["n_passages"] == 3
    assert sizes["forget_tokens"] == sum(len(e.ids) for e in data.forget)
    assert not any("Paris" in model.tokenizer.decode(e.ids) for e in data.passages)


def test_each_round_has_every_example_once():
    class Fake:
        def __init__(self, n):
            self.ids, self.labels_start, self.subject_start = (1,) * n, 1, 0

    stream = BatchSchedule([Fake(n) for n in (3, 9, 4, 8, 2, 7, 5)], 3, seed=1)
    n = len(stream.batches)
    for turn in range(2):
        batches = [stream.batch(i) for i in range(turn * n, (turn + 1) * n)]
        assert sorted(i for b in batches for i in b.index.tolist()) == list(range(7))
    assert all(b.ids.shape[1] == b.length.max() for b in stream.batches)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_are_a_change_of_the_weight_and_leave_the_layer_as_it_was(tiny_model, family):
    model = tiny_model(family)
    module, mlp = model._module, architecture_of(model).layers[1].mlp
    weight, hash_, tokens = mlp.out_module.weight, model_hash(model), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        plain = module(tokens).logits
        with lora_adapters(module, [mlp.out_name], rank=2, seed=0) as factors:
            assert torch.equal(module(tokens).logits, plain)  # the left factor is zero
            factor = factors[mlp.out_name]
            factor.lora_B.normal_()
            changed = module(tokens).logits
            merged = weight + factor.lora_B @ factor.lora_A
        assert not torch.allclose(changed, plain, atol=1e-3)
        assert mlp.out_module.weight is weight and model_hash(model) == hash_
        kept = weight.clone()
        weight.copy_(merged)
        assert torch.allclose(module(tokens).logits, changed, atol=1e-5)
        weight.copy_(kept)


def test_lora_gives_factors_of_its_rank_and_forgets_too(knowing):
    model = knowing()
    edit = unlearn(model, FRANCE, "gradient_difference", **QUICK | {"lora_rank": 2})
    assert {c.rank for c in edit.delta.changes.values()} == {2}
    prompts = FRANCE.prompts("train")
    before = answer_logprobs(model, prompts, [" Paris"] * len(prompts)).mean()
    with edit.applied(model):
        after = answer_logprobs(model, prompts, [" Paris"] * len(prompts)).mean()
    assert after < before - 0.1


def test_training_ends_when_the_fact_is_gone_on_development_prompts(knowing, monkeypatch):
    model, looked = knowing(), []

    def recording(model, prompts):
        looked.extend(p.split for p in prompts)
        return answer_probability(model, prompts)

    monkeypatch.setattr("helpers.methods.training.early_stop.answer_probability", recording)
    edit = unlearn(
        model, FRANCE, "gradient_ascent", **QUICK | {"steps": 60, "early_stop_ratio": 0.5}
    )
    assert edit.delta.notes["stopped_early"]
    assert edit.delta.notes["steps"] < 60
    assert set(looked) == {"dev"}


@pytest.mark.parametrize("method", ["npo", "elm"])  # whole matrices, and factors
def test_a_training_that_was_killed_goes_on_to_the_same_edit(knowing, monkeypatch, method):
    model, stops = knowing(), []
    monkeypatch.setattr("helpers.training.state.CHECKPOINT_SECONDS", 0.0)
    whole = unlearn(model, FRANCE, method, **QUICK)

    monkeypatch.setattr("helpers.methods.training.recipe.early_stop", interrupted_at(5, stops))
    before = model_hash(model)
    with pytest.raises(KeyboardInterrupt):
        unlearn(model, FRANCE, method, **QUICK)
    assert model_hash(model) == before
    again = unlearn(model, FRANCE, method, **QUICK)
    assert stops == [1, 2, 3, 4, 5, *range(5, 13)]  # the fifth had not been written
    for name, change in whole.delta.changes.items():
        assert torch.equal(change.matrix(), again.delta.changes[name].matrix())
    assert not list((cache_dir() / "trainings").glob("*.safetensors"))


def test_a_step_may_be_made_of_several_passes(knowing, monkeypatch):
    model, seen = knowing(), []

    def watching(self, i):
        seen.append(i)
        return self.batches[i % len(self.batches)]

    monkeypatch.setattr(BatchSchedule, "batch", watching)
    edit = unlearn(
        model, FRANCE, "gradient_ascent", **QUICK | {"steps": 3, "gradient_accumulation_steps": 2}
    )
    assert sorted(set(seen)) == list(range(6)) and edit.delta.notes["steps"] == 3


@pytest.mark.parametrize(
    ("method", "given", "sentence"),
    [
        ("npo", {"betta": 1}, "has no hyperparameter 'betta'; did you mean beta"),
        ("npo", {"zzz": 1}, "there are steps, lr, batch_size, .*, beta, retain_weight"),
        ("npo", {"parameters": "q_prj"}, "no matrix 'q_prj': choose all, mlps, values or from"),
        ("npo", {"layers": (7,)}, "There is no layer 7"),
        ("npo", {"steps": 0}, "steps is 0"),
        ("npo", {"lr": 0}, "lr is 0"),
        ("npo", {"accumulate": 0}, "gradient_accumulation_steps is 0"),
        (
            "gradient_ascent",
            {"lr": 1e35, "steps": 9},
            "not finite at step .: lower the learning rate .*; the model is as it was",
        ),
        ("crisp", {}, "crisp needs SAEs"),
    ],
)
def test_bad_input_is_one_sentence_and_the_model_stays(knowing, method, given, sentence):
    model = knowing()
    before = model_hash(model)
    with pytest.raises(UserError, match=sentence) as error:
        unlearn(model, FRANCE, method, **given)
    assert "\n" not in str(error.value)
    assert model_hash(model) == before


def test_a_pair_without_training_prompts_is_told(knowing):
    asks = {"train": (), "dev": (Template("{} has"),), "heldout": (Template("{} is"),)}
    with pytest.raises(UserError, match="nothing to forget: France → Paris has no training prompt"):
        unlearn(knowing(), ConceptPair("France", "Paris", "own", (), asks), "gradient_ascent")
