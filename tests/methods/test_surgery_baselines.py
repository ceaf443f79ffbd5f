"""Each baseline edit against the property that defines it."""

from dataclasses import replace

import pytest
import torch
from concept_erasure import LeaceEraser
from small_edits import own_pair, seen, small_world, weights_after  # noqa: F401
from tiny_models import FAMILIES

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.forward.activations import cache_activations
from helpers.forward.prompts import position_of, token_ids
from helpers.forward.scoring import next_token_logprobs
from helpers.methods import Change, Edit, WeightEdit, unlearn
from helpers.methods.equivalence import intervened_logits, max_logit_diff
from helpers.methods.fitting.contrast import contrast, subject_prompts
from helpers.methods.fitting.layer_stats import key_covariance
from helpers.methods.fitting.v_star import UpperLayers, VStarHparams, compute_v_star
from helpers.methods.surgery import alphaedit, knowledge_neurons, leace, memit, needle, rome
from helpers.models import architecture_of, model_hash
from helpers.tracing import Patch, run_patched
from helpers.tracing.patching import logits_of

PROMPT = Prompt("w1 w2 w3 w4 w5", subject="w3", answers=(" w9",))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["keys", "values"])
def test_projected_direction_has_no_component_left(tiny_model, family, form):
    model, pair = tiny_model(family), own_pair()
    unlearning = unlearn(model, pair, "mean_difference", form=form, layers=(1,))
    mlp = architecture_of(model).layers[1].mlp
    site, position = ("mlp_in", "subject") if form == "keys" else ("neurons", "last")
    found = contrast(model, pair, layers=[1], site=site, position=position)[1].difference()
    after = weights_after(model, unlearning)
    assert set(after) == (
        {n for n in (mlp.in_name, mlp.gate_name) if n} if form == "keys" else {mlp.out_name}
    )
    direction = found if form == "keys" else mlp.W_out() @ found
    direction = direction / direction.norm()
    for weight in after.values():
        weight = seen(mlp, weight)
        left = weight @ direction if form == "keys" else direction @ weight
        assert left.abs().max() < 1e-6


def probe_accuracy(x: torch.Tensor, z: torch.Tensor) -> float:
    """Share of training points that the best least-squares probe with an intercept gets right."""
    said = probe(x, z)
    return float(((said > z.mean()) == (z > 0.5)).double().mean())


def probe(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """What the best least-squares probe with an intercept says on its own training data."""
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    return x @ (torch.linalg.pinv(x, rtol=1e-9) @ z)


def test_no_linear_probe_finds_the_concept_after_leace():
    generator = torch.Generator().manual_seed(0)
    z = (torch.arange(400) % 2).double()[:, None]
    x = torch.randn(400, 12, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(12, 12, generator=generator, dtype=torch.float64) + z * 3
    eraser = leace.fit_leace(x, z)
    assert probe_accuracy(x, z) > 0.95
    erased = eraser(x)
    covariance = (erased - erased.mean(0)).T @ (z - z.mean(0)) / len(x)
    assert covariance.abs().max() < 1e-12  # no linear probe can beat a constant (theorem 3.1)
    assert torch.allclose(probe(erased, z), z.mean().expand_as(z))  # so it says the mean
    assert torch.allclose(eraser(erased), erased)  # what is gone stays gone
    smallest = (x - erased).pow(2).sum()
    difference = x[z[:, 0] == 1].mean(0) - x[z[:, 0] == 0].mean(0)
    unit = difference / difference.norm()
    assert smallest < ((x - x.mean(0)) @ unit).pow(2).sum()  # the plain projection changes more


@pytest.mark.parametrize(("n", "width"), [(400, 12), (40, 64)])
def test_leace_equals_the_reference_implementation(n, width):
    """The same erased data as the authors' package gives, also when width > n."""
    generator = torch.Generator().manual_seed(n)
    z = (torch.arange(n) % 4 == 0).long()
    x = torch.randn(n, width, generator=generator, dtype=torch.float64) + z[:, None]
    theirs = LeaceEraser.fit(x, z, shrinkage=False)
    assert torch.allclose(leace.fit_leace(x, z[:, None])(x), theirs(x), atol=1e-10)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_leace_in_the_weights_reads_erased_inputs(tiny_model, family):
    model, pair = tiny_model(family), own_pair()
    mlp = architecture_of(model).layers[1].mlp
    after = weights_after(model, unlearn(model, pair, "leace", layers=(1,)))
    found = contrast(model, pair, layers=[1])[1]
    text = leace.corpus_tokens().tolist()
    positions = [range(1, len(row)) for row in text]
    ordinary = cache_activations(model, text, sites=["mlp_in"], layers=[1], positions=positions)
    x = torch.cat([found.positives, found.negatives, *ordinary.values()]).double()
    z = (torch.arange(len(x)) < len(found.positives)).double()
    names = [n for n in (mlp.in_name, mlp.gate_name) if n]
    assert set(after) == set(names)
    for name in names:
        old, new = (seen(mlp, w).double() for w in (model._module.get_parameter(name), after[name]))
        covariance = [((x @ w.T) - (x @ w.T).mean(0)).T @ (z - z.mean()) for w in (old, new)]
        assert covariance[1].norm() < 1e-4 * covariance[0].norm()
        assert torch.linalg.matrix_rank(new - old, atol=1e-5) == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("position", ["last", "subject"])
def test_attributions_sum_to_the_change_of_probability(tiny_model, family, position):
    """Completeness: Σ_i attribution_i = P(h) − P(units of that layer and token at zero)."""
    model = tiny_model(family)
    got = knowledge_neurons.integrated_gradients(
        model, PROMPT, layers=range(3), steps=40, position=position
    )
    ids = model.tokenizer(str(PROMPT)).input_ids
    at = {"last": 4, "subject": 2}[position]
    zero = torch.zeros(1, 24 if family != "gpt2" else 64)
    for layer in range(3):
        zero = torch.zeros(1, architecture_of(model).d_mlp)
        jobs = [[], [Patch("neurons", layer, [at], zero)]]
        p = logits_of(model, run_patched(model, ids, jobs)).softmax(-1)
        answer = model.tokenizer(" w9").input_ids[-1]
        assert torch.allclose(got[layer].sum(), p[0, answer] - p[1, answer], atol=2e-6)


def test_neurons_are_chosen_by_share_and_the_net_widens():
    attributions = torch.zeros(4, 1, 5)
    attributions[:, 0, 0] = 1.0
    attributions[:, 0, 1] = torch.tensor([0.5, 0.5, 0.5, 0.1])
    attributions[0, 0, 2] = 0.9
    chosen = knowledge_neurons.choose_neurons(
        attributions, attribution_threshold=0.2, sharing_threshold=0.7
    )
    assert chosen[0].tolist() == [True, True, False, False, False]
    strict = knowledge_neurons.choose_neurons(
        attributions, attribution_threshold=0.2, sharing_threshold=1.0
    )
    assert strict[0].tolist() == [True, True, False, False, False]  # one alone was too few


def test_knowledge_neurons_zeroes_whole_columns(tiny_model):
    model, pair = tiny_model(), own_pair()
    after = weights_after(model, unlearn(model, pair, "knowledge_neurons"))
    for name, weight in after.items():
        before = model._module.get_parameter(name)
        changed = (weight != before).any(0)
        assert changed.any() and not weight[:, changed].any()


def test_needle_finds_the_column_that_was_planted(tiny_model):
    """A column that writes the target, driven by the prompts, is the concept vector."""
    model, pair = tiny_model(), own_pair()
    arch = architecture_of(model)
    prompts = subject_prompts(pair)
    driven = cache_activations(model, prompts, sites=["neurons"], layers=[1])["neurons", 1].mean(0)
    neuron = int(driven.argmax())
    token = model.tokenizer(" w20").input_ids[-1]
    with torch.no_grad():
        head = arch.head.weight
        arch.layers[1].mlp.W_out()[:, neuron] = 300 * (head[token] - head.mean(0))
    assert needle.concept_vector(model, pair) == (1, neuron)
    delta = unlearn(model, pair, "needle", noise=0.5).delta
    (change,) = delta.changes.values()
    touched = change.matrix().any(0).nonzero()[:, 0].tolist()
    assert touched == [neuron]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_value_found_takes_away_what_the_subject_adds_to_the_target(tiny_model, family):
    model, pair = tiny_model(family), own_pair()
    with torch.no_grad():
        architecture_of(model).norm.weight.mul_(20)  # else all words are about as likely
    prompts = subject_prompts(pair)
    others = [subject_prompts(o) for o in pair.neighbours()[:8]]
    rest = torch.stack([next_token_logprobs(model, p).exp() for p in others]).mean(0).log()
    words = [f"w{i}" for i in range(40, 60)]
    ids = [model.tokenizer(w).input_ids[-1] for w in words]
    adds = (next_token_logprobs(model, prompts) - rest)[:, ids].relu()  # of each word
    best = int(adds.mean(0).argmax())
    pair, token = replace(pair, target=words[best]), ids[best]
    before = model_hash(model)
    free = VStarHparams(
        kl_factor=0.0, v_weight_decay=0.0, clamp_norm_factor=200.0
    )  # random MLPs write next to nothing
    found = compute_v_star(model, pair, layer=1, hparams=free)
    assert model_hash(model) == before
    mlp, left, written = architecture_of(model).layers[1].mlp, [], []
    for row, prompt in zip(rest, prompts, strict=True):
        place = position_of(model, prompt, "subject")

        def add(module, args, output, place=place):
            flat = output.reshape(-1, output.shape[-1]).clone()
            written.append(flat[place].norm())
            flat[place] += found
            return flat.reshape(output.shape)

        handle = mlp.out_module.register_forward_hook(add)
        logits = model._module(torch.tensor([token_ids(model, prompt)])).logits[0, -1]
        handle.remove()
        left.append((logits.log_softmax(-1)[token] - row[token]).relu())
    assert torch.stack(left).mean() < 0.9 * adds[:, best].mean()
    assert 0 < found.norm() <= 200.1 * torch.stack(written).mean()
    with pytest.raises(UserError, match="no likelier with w3 than without"):
        compute_v_star(model, replace(pair, target=words[int(adds.mean(0).argmin())]), layer=1)


WORDS = [f"w{i}" for i in range(40, 60)]


def with_and_without_the_subject(model, pair):
    """The pair's prompts, P(each of `WORDS`) after them, and its mean over other subjects.

    The final norm is scaled up first: else all words are about as likely.
    """
    with torch.no_grad():
        architecture_of(model).norm.weight.mul_(20)
    ids = [model.tokenizer(w).input_ids[-1] for w in WORDS]
    prompts = subject_prompts(pair)
    own, *others = (
        next_token_logprobs(model, p).exp()[:, ids]
        for p in (prompts, *map(subject_prompts, pair.neighbours()[:8]))
    )
    return prompts, own, torch.stack(others).mean(0)


@pytest.mark.parametrize(
    ("hparams", "site", "factor"),
    [(rome.ROMEHparams, "mlp", 3.0), (memit.MEMITHparams, "residual", 0.75)],
)
def test_the_value_is_clamped_to_what_the_papers_measure_it_by(tiny_model, hparams, site, factor):
    """ROME: δ up to 3 of the MLP's outputs; MEMIT, AlphaEdit: 0.75 of the residual stream."""
    model, pair = tiny_model(), own_pair()
    prompts, own, rest = with_and_without_the_subject(model, pair)
    best = WORDS[int((own / rest).mean(0).argmax())]
    far = hparams(v_lr=100.0, v_num_grad_steps=1, kl_factor=0.0, v_weight_decay=0.0)
    delta = compute_v_star(model, replace(pair, target=best), layer=1, hparams=far)
    activations = cache_activations(model, prompts, sites=[site], layers=[1], positions="subject")
    limit = factor * activations[site, 1].norm(dim=-1).mean()
    assert float(delta.norm()) == pytest.approx(float(limit), rel=1e-4)


def test_the_value_takes_away_aliases_too(tiny_model):
    """What counts is the sum over the names, so a second name does not stay as it was."""
    model, pair = tiny_model(), own_pair()
    prompts, own, rest = with_and_without_the_subject(model, pair)
    first, second = (WORDS[i] for i in (own - rest).mean(0).topk(2).indices.tolist())
    id_of_second = model.tokenizer(second).input_ids[-1]
    free = VStarHparams(kl_factor=0.0, v_weight_decay=0.0, clamp_norm_factor=200.0)
    left = {}
    for names in ((first,), (first, second)):
        named = replace(pair, target=first, aliases=names[1:])
        delta = compute_v_star(model, named, layer=1, hparams=free)
        upper = UpperLayers(model, prompts, 1)
        with torch.no_grad():
            left[names] = float(upper.logprobs(delta).exp()[:, id_of_second].mean())
    assert left[first, second] < 0.9 * left[(first,)]


@pytest.mark.parametrize("family", FAMILIES)
def test_rome_maps_the_subjects_key_to_the_value(tiny_model, family, monkeypatch):
    model, pair = tiny_model(family), own_pair()
    delta = torch.randn(16, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(rome, "compute_v_star", lambda *a, **k: delta)
    keys = cache_activations(
        model, subject_prompts(pair), sites=["neurons"], layers=[1], positions="subject"
    )
    k = keys["neurons", 1].mean(0).double()
    mlp = architecture_of(model).layers[1].mlp
    v = mlp.W_out().double() @ k
    unlearning = unlearn(model, pair, "rome", layer=1)
    after = seen(mlp, weights_after(model, unlearning)[mlp.out_name])
    assert torch.allclose(after.double() @ k, v + delta, atol=1e-5)
    (change,) = unlearning.delta.changes.values()
    assert change.rank == 1
    # of all W with W k = v*, it has the smallest tr(ΔW C ΔWᵀ); a plain rank one has more
    C = key_covariance(model, layers=[1])[1]
    dW = seen(mlp, change.matrix()).double()
    plain = torch.outer(delta.double(), k / (k @ k))
    assert torch.einsum("ij,jk,ik->", dW, C, dW) < torch.einsum("ij,jk,ik->", plain, C, plain)


def test_memit_solves_its_normal_equations():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    C, K = A.T @ A / 40, torch.randn(3, 8, generator=generator, dtype=torch.float64)
    R = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    change = R @ memit.least_squares(C, K, mom2_update_weight=2.0, ridge=1e-3)
    ridged = C + 1e-3 * C.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    assert torch.allclose(change @ (2.0 * ridged + K.T @ K), R @ K, atol=1e-12)


@pytest.mark.parametrize("n_facts", [1, 3])
def test_memit_with_a_weak_penalty_reaches_every_value(tiny_model, monkeypatch, n_facts):
    """Layer by layer the residual stream comes to h + δ of each fact, in one edit."""
    model, pair = tiny_model(), own_pair()
    pairs = [pair, *pair.neighbours(n_facts - 1)]
    generator = torch.Generator().manual_seed(1)
    deltas = {p: 0.05 * torch.randn(16, generator=generator) for p in pairs}
    monkeypatch.setattr(memit, "compute_v_star", lambda _, p, **k: deltas[p])
    prompts = [prompt for p in pairs for prompt in subject_prompts(p)]
    wanted = torch.stack([deltas[p] for p in pairs for _ in subject_prompts(p)])

    def residual():
        return cache_activations(
            model, prompts, sites=["residual"], layers=[2], positions="subject"
        )["residual", 2]

    before, weights = residual(), model_hash(model)
    unlearning = unlearn(model, pairs, "memit", layers=(1, 2), weight=1e-9)
    assert model_hash(model) == weights
    with unlearning.applied(model):
        moved = residual() - before
    assert len(unlearning.delta.changes) == 2
    assert torch.allclose(moved, wanted, atol=2e-3)


def test_alphaedit_leaves_preserved_keys_alone():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    keys = keys @ torch.randn(4, 10, generator=generator, dtype=torch.float64)  # 4 of 10 directions
    basis = alphaedit.null_space(keys.T @ keys / 30, 1e-6)
    assert basis.shape == (10, 6)
    K = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    R = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    change = R @ alphaedit.projected_keys(basis, K, L2=0.5)
    assert torch.allclose(change @ keys.T, torch.zeros(5, 30, dtype=torch.float64), atol=1e-10)
    P = basis @ basis.T  # the paper's own equation
    expected = torch.linalg.solve(P @ K.T @ K + 0.5 * torch.eye(10), P @ K.T @ R.T).T
    assert torch.allclose(change, expected, atol=1e-10)
    with pytest.raises(UserError, match="raise it"):
        alphaedit.null_space(torch.eye(3), 0.5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("like", ["knowledge_neurons", "needle"])
@pytest.mark.parametrize("control", ["random_direction", "random_rows"])
def test_controls_have_equal_rank_and_norm(tiny_model, family, like, control):
    model, pair = tiny_model(family), own_pair()
    model_delta = unlearn(model, pair, like).delta
    random = unlearn(model, pair, control, like=like).delta
    assert set(random.changes) == set(model_delta.changes)
    for tensor, change in model_delta.changes.items():
        other = random.changes[tensor]
        assert other.rank == change.rank
        assert torch.allclose(other.matrix().norm(), change.matrix().norm(), rtol=1e-4)
        assert not torch.allclose(other.matrix(), change.matrix())


def test_appended_neurons_have_a_control_of_their_own_size(knowing):
    model, pair = knowing(), ConceptPair("France", "Paris")
    like = unlearn(model, pair, "gated_neuron").delta
    random = unlearn(model, pair, "random_direction", like="gated_neuron").delta
    assert set(random.changes) == set(like.changes)
    for tensor, change in like.changes.items():
        other = random.changes[tensor].appended
        assert other.shape == change.appended.shape
        assert torch.allclose(other.norm(), change.appended.norm(), rtol=1e-5)
        aligned = torch.cosine_similarity(other.flatten(), change.appended.flatten(), dim=0)
        assert tensor.endswith("bias") or not change.appended.any() or aligned < 0.9
    with pytest.raises(UserError, match="appends neurons"):
        unlearn(model, pair, "random_rows", like="gated_neuron")


def test_bad_input_is_told_in_one_sentence(tiny_model):
    model, pair = tiny_model(), own_pair()
    for name, bad, words in (
        ("mean_difference", {"form": "rows"}, "no form 'rows'"),
        ("mean_difference", {"layers": (9,)}, "no layer 9"),
        ("knowledge_neurons", {"threshold": 2.0}, "threshold is 2"),
        ("memit", {"weight": -1.0}, "weight is -1"),
        ("random_rows", {"like": "nothing"}, "no method 'nothing'"),
    ):
        with pytest.raises(UserError, match=words):
            unlearn(model, pair, name, **bad)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["neurons", "mean_difference", "leace", "knowledge_neurons"])
def test_folded_edit_equals_the_intervention(tiny_model, family, name):
    """The edit as weights, and computed beside the unedited model by nnsight: the same logits."""
    model, pair = tiny_model(family), own_pair()
    how = {"layers": (0, 1)} if name in ("mean_difference", "leace") else {}
    unlearning = unlearn(model, pair, name, **(how or {"n": 9} if name == "neurons" else how))
    ids = model.tokenizer(str(PROMPT)).input_ids
    with torch.inference_mode():
        before = model._module(torch.tensor([ids])).logits[0]
    assert not torch.allclose(intervened_logits(model, unlearning.delta, ids), before, atol=1e-4)
    assert max_logit_diff(model, unlearning, [PROMPT, "w7 w8"]) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_appended_neurons_equal_the_intervention(tiny_model, family):
    model = tiny_model(family)
    mlp = architecture_of(model).layers[1].mlp
    draw = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(2, 16, generator=draw) for _ in range(2))
    axis = 1 if mlp.transposed else 0
    changes = {mlp.out_name: Change(appended=columns if axis else columns.T, axis=1 - axis)}
    for name in (n for n in (mlp.in_name, mlp.gate_name) if n):
        changes[name] = Change(appended=rows.T if axis else rows, axis=axis)
        changes[name.replace("weight", "bias")] = Change(appended=torch.tensor([0.3, -0.2]))
    unlearning = Edit("made", {}, WeightEdit.of(model._module, changes), {}, 0, 0.0, "")
    ids = model.tokenizer(str(PROMPT)).input_ids
    with torch.inference_mode():
        before = model._module(torch.tensor([ids])).logits[0]
    assert not torch.allclose(intervened_logits(model, unlearning.delta, ids), before, atol=1e-2)
    assert max_logit_diff(model, unlearning, [PROMPT]) < 1e-4
