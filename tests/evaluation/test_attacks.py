"""Attacks: they restore the model, and budgets and controls are as documented."""

import importlib
import re

import numpy as np
import pytest
import torch
from small_edits import own_pair
from tiny_models import FAMILIES

from helpers.book.settings import ROOT
from helpers.errors import UserError
from helpers.evaluation.attacks import (
    ATTACKS,
    AttackNotApplicableError,
    attack,
    black_box,
    control_facts,
    gcg,
    quantised,
    rounded,
)
from helpers.evaluation.attacks.component_ablation import direct_effect, target_constraints
from helpers.evaluation.attacks.quantisation import block_weights, nf4_levels
from helpers.evaluation.attacks.registry import RENAMED_ATTACKS
from helpers.evaluation.attacks.relearning import mean_over_steps, relearned
from helpers.evaluation.attacks.stitching import handover_layer
from helpers.evaluation.audit import audit_delta, statement
from helpers.evaluation.battery import N_ASSOCIATED, battery
from helpers.evaluation.eval_prompts import known_neighbours
from helpers.facts import ConceptPair, facts
from helpers.forward.activations import cache_activations
from helpers.forward.prompts import first_token, token_ids
from helpers.forward.scoring import answer_probability
from helpers.methods import Change, Edit, WeightEdit, unlearn
from helpers.methods.controls.logit_suppression import logit_suppression
from helpers.methods.fitting.linearization import linearize
from helpers.methods.snapshots import subtracted
from helpers.models import architecture_of, model_hash
from helpers.models.hooks import register_intervention
from helpers.training.examples import answer_example, collate

PUBLISHED_NF4 = (  # QLoRA, appendix E
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def widened(model) -> Edit:
    """An edit that appends a neuron to the first MLP."""
    mlp = architecture_of(model).layers[0].mlp
    row, column = torch.full((1, 16), 0.1), torch.full((16, 1), 0.1)
    changes = {mlp.in_name: Change(appended=row), mlp.out_name: Change(appended=column, axis=1)}
    if mlp.gate_name:
        changes[mlp.gate_name] = Change(appended=row)
    return Edit("made", {}, WeightEdit.of(model._module, changes), {}, 0, 0.0, "")


def test_nf4_levels_are_the_published_ones():
    assert np.allclose(nf4_levels().numpy(), PUBLISHED_NF4, atol=1e-6)


def test_rounding_by_hand():
    row = torch.tensor([[127.0, 0.4, -63.6, 2.5], [0.0, 0.0, 0.0, 0.0]])
    assert rounded(row, "int8").tolist() == [[127.0, 0.0, -64.0, 2.0], [0.0, 0.0, 0.0, 0.0]]
    row = torch.tensor([[7.0, 0.4, -3.6, 2.0]])
    assert torch.allclose(rounded(row, "int4"), torch.tensor([[7.0, 0.0, -4.0, 2.0]]))
    row = torch.tensor([[2.0, 0.4, -1.2]])  # over 2: 1, 0.2, -0.6
    nearest = [1.0, 0.16093020141124725, -0.5250730514526367]
    assert torch.allclose(rounded(row, "nf4"), 2 * torch.tensor([nearest]))


@pytest.mark.parametrize("scheme", ["int4", "nf4"])
def test_groups_have_scales_of_their_own_and_the_last_may_be_short(scheme):
    row = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
    row[0, :64] *= 1000
    got = rounded(row, scheme)
    assert torch.equal(got[:, 64:], rounded(row[:, 64:], scheme))
    assert got[0, 64:].abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_rounded_and_come_back(tiny_model, family):
    model = tiny_model(family)
    before = model_hash(model)
    kept = {n: p.clone() for n, p in model._module.named_parameters()}
    names = block_weights(model)
    arch = architecture_of(model)
    assert {layer.mlp.out_name for layer in arch.layers} <= set(names)
    assert len(names) % arch.n_layers == 0
    with quantised(model, "int8"):
        for name, weight in model._module.named_parameters():
            if name not in names:
                assert torch.equal(weight, kept[name])
                continue
            seen = kept[name].T if names[name] else kept[name]
            now = weight.T if names[name] else weight
            step = seen.abs().amax(1, keepdim=True) / 127
            ratio = now / step
            assert torch.allclose(ratio, ratio.round(), atol=1e-3)
            assert ((now - seen).abs() <= step / 2 + 1e-7).all()
    assert model_hash(model) == before


def test_a_widened_model_is_rounded_too(tiny_model):
    model = tiny_model("llama")
    edit, before = widened(model), model_hash(model)
    with edit.applied(model):
        wide = model_hash(model)
        with quantised(model, "int4"):
            assert architecture_of(model).layers[0].mlp.W_out().shape[1] == 25
            assert model_hash(model) != wide
        assert model_hash(model) == wide
    assert model_hash(model) == before


def test_an_unknown_rounding_is_told(tiny_model):
    model = tiny_model()
    with pytest.raises(UserError, match="no rounding 'int3'"), quantised(model, "int3"):
        pass


def test_control_facts_are_unknown_and_share_the_target(knowing):
    model = knowing()
    pair = ConceptPair("Kenya", "Nairobi")
    controls = control_facts(model, pair, n=3)
    assert len({c.subject for c in controls}) == 3
    for control in controls:
        assert (control.target, control.answers) == ("Nairobi", (" Nairobi",))
        statements = [p for p in control.prompts("train") if p.format == "completion"]
        assert answer_probability(model, statements).mean() < 0.1
        own = next(o for o in pair.neighbours() if o.subject == control.subject)
        statements = [p for p in own.prompts("train") if p.format == "completion"]
        assert answer_probability(model, statements[:4]).mean() < 0.1
    with pytest.raises(UserError, match="ask for fewer"):
        control_facts(model, pair, n=40, n_candidates=10)


@pytest.mark.parametrize("name", list(ATTACKS))
def test_an_attack_leaves_an_edited_model_as_it_was(knowing, name):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    edit = unlearn(model, pair, "mean_difference", layers=(1,))
    small = {"gcg": {"rounds": 2}, "neuron_ablation": {"counts": (1, 4)}}
    small |= {"directional_ablation": {"counts": (1, 4)}}
    small |= {n: {"steps": (1, 2), "rates": (1e-4,)} for n, a in ATTACKS.items() if a.fine_tunes}
    with edit.applied(model), widened_in(model):
        before = model_hash(model)
        table = ATTACKS[name].function(model, pair, seed=0, **small.get(name, {}))
        assert model_hash(model) == before
    assert list(table.columns) == ["budget", "prompt", "score"]
    assert table["score"].between(0, 1).all()
    assert table.groupby("budget")["prompt"].nunique().nunique() == 1
    assert not any(p.requires_grad or p.grad is not None for p in model._module.parameters())


def test_a_new_attack_is_one_file(knowing, monkeypatch, tmp_path):
    """The attack of CONTRIBUTING.md, run by the battery."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    source = re.search(r"```python\n([^`]*?@attack\(.*?)```", text, re.DOTALL)[1]
    (tmp_path / "shouting.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ATTACKS, "shouting", None)  # restored afterwards
    del ATTACKS["shouting"]
    importlib.import_module("shouting")
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    evidence = battery(model, pair, attacks=["shouting"], n_controls=2, seed=0)
    n_statements = sum(p.format == "completion" for p in pair.prompts("heldout"))
    edited = evidence.table.query("state == 'edited'")
    assert edited.groupby("budget")["prompt"].nunique().to_dict() == {
        1: n_statements,
        4: n_statements,
    }
    assert edited["score"].between(0, 1).all()


def widened_in(model):
    """The llama of `knowing` with a neuron more."""
    mlp = architecture_of(model).layers[0].mlp
    row, column = torch.full((1, 32), 0.01), torch.full((32, 1), 0.01)
    names = (mlp.in_name, mlp.gate_name)
    changes = {n: Change(appended=row) for n in names}
    changes[mlp.out_name] = Change(appended=column, axis=1)
    made = Edit("made", {}, WeightEdit.of(model._module, changes), {}, 0, 0.0, "")
    return made.applied(model)


def test_stitching_recovers_what_the_lower_layers_still_represent(knowing, monkeypatch):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    layer = handover_layer(model, "capital")
    assert 0 <= layer < architecture_of(model).n_layers
    monkeypatch.setattr("helpers.evaluation.attacks.stitching.handover_layer", lambda *_, **__: 1)
    prompts = pair.prompts("heldout")
    plain, before = answer_probability(model, prompts), model_hash(model)

    def attacked():
        return ATTACKS["stitching"].function(model, pair)["score"].to_numpy()

    assert np.array_equal(attacked(), plain)
    with logit_suppression(model, pair).applied(model):  # it changes the last layer alone
        assert answer_probability(model, prompts).mean() < plain.mean() / 2
        assert np.array_equal(attacked(), plain)
    with unlearn(model, pair, "mean_difference", layers=(0,)).applied(model):
        edited = answer_probability(model, prompts)
        assert not np.allclose(edited, plain)
        assert np.array_equal(attacked(), edited)
        with unlearn(model, pair, "mean_difference", layers=(1,)).applied(model):
            assert not np.allclose(answer_probability(model, prompts), edited)
            assert np.array_equal(attacked(), edited)
    assert model_hash(model) == before
    remove = register_intervention(model._module, "changed", [])
    with pytest.raises(AttackNotApplicableError, match="intervention"):
        attacked()
    remove()


def test_where_nothing_is_known_nothing_is_handed_over(tiny_model, monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))
    with pytest.raises(AttackNotApplicableError, match="knows no fact"):
        handover_layer(tiny_model(), "capital")


def test_relearning_goes_back_to_what_is_taught(knowing):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    hidden = logit_suppression(model, pair)
    prompts = pair.prompts("train")

    def batch(step):
        return collate([answer_example(model, p, p.answers[0]) for p in prompts])

    heldout = pair.prompts("heldout")
    with hidden.applied(model):
        before = answer_probability(model, heldout).mean()
        curve = relearned(model, heldout, batch, steps=(2, 20), lr=3e-3)
        means = mean_over_steps(model, heldout, batch, (2, 20), (1e-6, 3e-3))
    assert list(curve) == [2, 20] and curve[20].mean() > before + 0.3
    assert np.array_equal(means[3e-3], (curve[2] + curve[20]) / 2)
    assert means[1e-6].mean() < before + 0.05  # too small a rate brings nothing back


def test_relearning_never_sees_what_is_asked(knowing, monkeypatch):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    seen = []
    monkeypatch.setattr(
        "helpers.evaluation.attacks.relearning.train",
        lambda module, loss, batch, **how: seen.extend(
            tuple(row.tolist()) for step in range(30) for row in batch(step).ids
        ),
    )
    ATTACKS["relearning_forgotten"].function(model, pair, steps=(1,), rates=(1e-4,))
    own = {tuple(answer_example(model, p, " Nairobi").ids) for p in pair.prompts("train")}
    stripped = [tuple(t for t in row if t) for row in seen]
    about = {row for row in stripped if row in own}
    assert len(about) == 2  # two of the forgotten fact's own prompts, again and again
    held = {tuple(answer_example(model, p, " Nairobi").ids) for p in pair.prompts("heldout")}
    assert not held & set(stripped)
    seen.clear()
    ATTACKS["relearning_neighbours"].function(model, pair, steps=(1,), rates=(1e-4,))
    kenya = model.tokenizer("Kenya").input_ids[-1]
    assert seen and not any(kenya in row for row in seen)


def test_direct_effects_are_the_change_of_log_odds_when_a_neuron_is_ablated(tiny_model):
    model, pair = tiny_model(), own_pair()
    constraints = target_constraints(model, pair)
    last = architecture_of(model).n_layers - 1
    t = linearize(model, constraints, layers=[last])
    W = architecture_of(model).layers[last].mlp.W_out().detach().clone()
    effects = direct_effect(t, last, W, torch.eye(W.shape[1]))
    small, most = 0.1, int(effects.abs().argmax())  # first order: a tenth of the neuron
    removed = torch.zeros_like(W)
    removed[:, most] = small * W[:, most]
    with subtracted(model, {last: removed}):
        after = linearize(model, constraints, layers=[last]).logodds.mean()
    assert float(t.logodds.mean() - after) == pytest.approx(small * float(effects[most]), rel=0.1)


def test_ablation_finds_a_planted_suppressor(knowing):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    before = answer_probability(model, pair.prompts("heldout")).mean()
    hidden = logit_suppression(model, pair)
    with hidden.applied(model):
        table = ATTACKS["directional_ablation"].function(model, pair, counts=(1, 4, 16))
    means = table.groupby("budget")["score"].mean()
    assert means[0] < 0.1 * before
    assert means.max() > 0.5 * before


def test_proposed_swaps_are_those_that_raise_the_answer_most_to_first_order(knowing):
    """Against finite differences: a small step from a token's embedding to another's."""
    model, pair, small = knowing(), ConceptPair("Kenya", "Nairobi"), 0.003
    rows = [(token_ids(model, p), first_token(model, p, " Nairobi")) for p in pair.prompts("train")]
    rows = rows[:3]
    allowed = torch.arange(2, len(model.tokenizer))
    table = model._module.get_input_embeddings().weight.detach()
    with logit_suppression(model, pair).applied(model), torch.no_grad():
        found = allowed[torch.arange(6) * 7]
        proposed = gcg._proposals(model, found, rows, allowed)
        for place in (0, 3, 5):
            raised = torch.zeros(len(allowed))
            for ids, token in rows:
                begin = 1 if ids[0] == model.tokenizer.bos_token_id else 0
                whole = torch.tensor([*ids[:begin], *found.tolist(), *ids[begin:]])
                inputs = table[whole].repeat(len(allowed), 1, 1)
                inputs[:, begin + place] += small * (table[allowed] - table[found[place]])
                raised += (
                    model._module(inputs_embeds=inputs).logits[:, -1].log_softmax(-1)[:, token]
                )
            gain = raised - raised[allowed == found[place]]
            chosen = gain[torch.searchsorted(allowed, proposed[place, :8])]
            assert chosen.mean() > 0.9 * gain.topk(8).values.mean() > 0


def test_prefilled_and_foreign_prompts_are_about_the_subject_and_differ_by_what_they_say(
    knowing, monkeypatch
):
    model, pair, seen = knowing(), ConceptPair("Kenya", "Nairobi"), []

    def recording(model, prompts, *, why_none):
        seen.append(list(prompts))
        return np.zeros(len(prompts))

    monkeypatch.setattr(black_box, "probability_of_prompts", recording)
    for name in ("prefill", "cross_lingual"):
        ATTACKS[name].function(model, pair)
    prefilled, foreign = seen
    ways = [str(p) for p in pair.prompts("heldout") if p.format == "completion"]
    assert {str(p) for p in prefilled} == {
        f"{a}{w}{b}" for w in ways for a, b in black_box.PREFILLS
    }
    assert len(foreign) == 10 and len({str(p) for p in foreign}) == 10
    for prompt in (*prefilled, *foreign):
        assert (
            "Kenya" in prompt.text
            and "Nairobi" not in prompt.text
            and prompt.answers == (" Nairobi",)
        )


def test_hiding_lowers_the_answer_and_nothing_before_the_last_layer(knowing):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    hidden = logit_suppression(model, pair)
    assert set(hidden.delta.changes) == {architecture_of(model).layers[-1].mlp.out_name}
    with hidden.applied(model):
        assert answer_probability(model, pair.prompts("train")).mean() <= 0.005


def test_the_audit_names_the_subject_that_an_edit_responds_to(knowing):
    model, names = knowing(), ["France", "Germany", "Kenya", "Spain", "Egypt", "Peru"]
    capitals = {f.subject: f for f in facts("capital")}
    prompts = [statement(ConceptPair.of(capitals[n])) for n in names]
    found = cache_activations(model, prompts, sites=["neurons"], layers=[1], positions="subject")
    keys = found["neurons", 1]  # (6, d_mlp)
    reads = torch.linalg.pinv(keys)[:, 2]  # 1 at Kenya's key, 0 at the others'
    change = Change(dense=torch.outer(torch.ones(32), reads))
    delta = WeightEdit.of(model._module, {architecture_of(model).layers[1].mlp.out_name: change})
    edit = Edit("made", {}, delta, {}, 0, 0.0, "")
    before = model_hash(model)
    audit = audit_delta(model, edit, subjects=names)
    assert model_hash(model) == before
    assert audit.guess[0] == "Kenya" and audit.margin > 100
    assert audit.subjects["response"].is_monotonic_decreasing
    assert set(audit.answers["relation"]) >= {"capital", "currency"}
    with pytest.raises(UserError, match="at least two"):
        audit_delta(model, edit, subjects=["Kenya"])


def test_an_attack_without_a_hold_says_so(tiny_model):
    with pytest.raises(AttackNotApplicableError, match="reverse"):
        ATTACKS["reverse"].function(tiny_model(), own_pair())


def test_nothing_is_read_inside_a_text_that_a_request_makes_longer(knowing):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    inside = ["logit_lens", "probe", "gcg", "neuron_ablation", "directional_ablation"]
    with unlearn(model, pair, "in_context").applied(model):
        found = battery(model, pair, attacks=["paraphrases", *inside], n_controls=2)
    assert list(found.not_applicable) == inside and set(found.table["attack"]) == {"paraphrases"}
    assert all("request" in why for why in found.not_applicable.values())
    assert not found.without_prompts


def test_the_battery_runs_all_three_models_and_resumes(knowing, monkeypatch):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    hidden = logit_suppression(model, pair)
    names = ["paraphrases", "logit_lens", "relearning_forgotten"]
    options = {"relearning_forgotten": {"steps": (1, 2), "rates": (1e-4, 1e-3)}}
    with hidden.applied(model):
        found = battery(model, pair, attacks=names, options=options, n_controls=2)
    counts = found.table.groupby(["attack", "state"])["subject"].nunique()
    unranked = {"control": 2, "edited": 1, "original": 1}
    assert counts["paraphrases"].to_dict() == unranked | {"associated": N_ASSOCIATED}
    assert counts["relearning_forgotten"].to_dict() == {"control": 2, "edited": 1}
    means = found.table.query("attack == 'paraphrases'").groupby("state")["score"].mean()
    assert means["original"] > 0.3 and means["edited"] < 0.05
    for name in (
        "black_box.answer_probability",
        "logit_lens.cache_activations",
        "relearning.train",
    ):
        monkeypatch.setattr(f"helpers.evaluation.attacks.{name}", None)
    with hidden.applied(model):
        again = battery(model, pair, attacks=names, options=options, n_controls=2)
    assert again.table.equals(found.table)
    with pytest.raises(UserError, match="no attack 'nothing'"):
        battery(model, pair, attacks=["nothing"])


def test_attacks_keep_their_old_names(knowing):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    for old, name in RENAMED_ATTACKS.items():
        assert ATTACKS[old] is ATTACKS[name] and old in ATTACKS and old not in list(ATTACKS)
    options = {"n_absent": 2, "options": {"trigger": {"rounds": 1}}}
    old = battery(model, pair, attacks=["paraphrases", "trigger"], **options)
    new = battery(
        model, pair, attacks=["paraphrases", "gcg"], n_controls=2, options={"gcg": {"rounds": 1}}
    )
    assert old.table.equals(new.table)
    with pytest.raises(KeyError):
        ATTACKS["nothing"]
    with pytest.raises(ValueError, match="two attacks 'lens'"):
        attack("lens", budget="none")(lambda model, pair, *, seed: None)


def test_no_attack_takes_a_model_without_numbers_for_one_that_forgot(knowing, monkeypatch):
    """Of a model that answers NaN every score is NaN; none is 0, which would read as gone."""
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    near, layer = known_neighbours(model, pair, n=4), handover_layer(model, "capital")
    assert near and 0 <= layer < 3
    place = "helpers.evaluation"  # these two are asked of the original, which has numbers
    monkeypatch.setattr(f"{place}.attacks.relearning.known_neighbours", lambda *_, **__: near)
    monkeypatch.setattr(f"{place}.metrics.linear_probe.known_neighbours", lambda *_, **__: near)
    monkeypatch.setattr(f"{place}.attacks.stitching.handover_layer", lambda *_, **__: layer)
    small = {n: {"steps": (1, 2), "rates": (1e-4,)} for n, a in ATTACKS.items() if a.fine_tunes}
    small |= {"gcg": {"rounds": 2}, "neuron_ablation": {"counts": (1, 4)}}
    small |= {"directional_ablation": {"counts": (1, 4)}}
    with torch.no_grad():
        architecture_of(model).layers[0].mlp.W_out()[0, 0] = torch.nan
    for name, entry in ATTACKS.items():
        table = entry.function(model, pair, seed=0, **small.get(name, {}))
        assert len(table) and table["score"].isna().all(), name
