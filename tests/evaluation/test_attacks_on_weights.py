"""Attacks that change weights: what they undo, exactly what they change, and bad budgets."""

import numpy as np
import pandas as pd
import pytest
import torch
from small_edits import own_pair
from tiny_models import FAMILIES

from helpers.errors import UserError
from helpers.evaluation.attacks import ATTACKS, control_facts, pruning
from helpers.evaluation.attacks.disjoint_facts import disjoint_recovery, relearn_disjoint
from helpers.evaluation.attacks.mlp_windows import N_STATEMENTS, first_token_probability
from helpers.evaluation.attacks.quantisation import block_weights
from helpers.evaluation.battery import Evidence, State, battery
from helpers.evaluation.recovery import recovery_ratios
from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations
from helpers.forward.prompts import first_token
from helpers.forward.scoring import answer_probability, next_token_logprobs
from helpers.methods import Change, Edit, WeightEdit, unlearn
from helpers.methods.controls.logit_suppression import logit_suppression
from helpers.methods.snapshots import subtracted
from helpers.models import architecture_of, model_hash

KENYA = ConceptPair("Kenya", "Nairobi")


def scores(model, name, **options):
    """Budget → scores; the attack has to leave the model as it was."""
    before = model_hash(model)
    table = ATTACKS[name].function(model, KENYA, seed=0, **options)
    assert model_hash(model) == before
    return {budget: part["score"].to_numpy() for budget, part in table.groupby("budget")}


def detector(model, layer=0) -> Edit:
    """Append a neuron that fires at Kenya's name alone, and writes against its capital."""
    arch, others = architecture_of(model), ["France", "Germany", "Spain", "Egypt", "Peru"]
    mlp, capitals = arch.layers[layer].mlp, {"France": "Paris"}
    pairs = [KENYA, *(ConceptPair(o, capitals.get(o, "Nairobi")) for o in others)]
    prompts = [p for pair in pairs for p in pair.prompts("train") if p.format == "completion"]
    states = cache_activations(
        model, prompts, sites=["mlp_in"], layers=[layer], positions="subject"
    )["mlp_in", layer]
    is_kenya = torch.tensor([p.subject == "Kenya" for p in prompts])
    # A least-squares reading: 1 at Kenya, 0 at the others.
    reads = torch.linalg.lstsq(states, is_kenya.float()[:, None]).solution.T
    token = first_token(model, KENYA.prompts("train")[0], " Nairobi")
    writes = -torch.nn.functional.normalize(arch.head.weight[token].detach(), dim=0)[:, None]
    changes = {
        mlp.in_name: Change(appended=reads),
        mlp.gate_name: Change(appended=10 * reads),
        mlp.out_name: Change(appended=20 * writes, axis=1),
    }
    return Edit("made", {}, WeightEdit.of(model._module, changes), {}, 0, 0.0, "")


def test_truncation_undoes_an_appended_neuron_exactly_and_nothing_else(knowing):
    model = knowing()
    plain = answer_probability(model, KENYA.prompts("heldout"))
    assert np.array_equal(scores(model, "truncation")[0], plain)
    with detector(model).applied(model):
        assert answer_probability(model, KENYA.prompts("heldout")).mean() < plain.mean() / 2
        assert np.array_equal(scores(model, "truncation")[0], plain)
    with logit_suppression(model, KENYA).applied(model):  # no neuron is appended
        edited = answer_probability(model, KENYA.prompts("heldout"))
        assert np.array_equal(scores(model, "truncation")[0], edited)


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_in_one_batch_give_what_each_gives_alone(tiny_model, family):
    model, prompts = tiny_model(family), own_pair().prompts("train")
    arch = architecture_of(model)
    windows = [range(0, 1), range(0, 2), range(1, 2), range(2, 3)]
    together = first_token_probability(model, prompts, windows)
    targets = [first_token(model, p, p.answers[0]) for p in prompts]
    for window, values in zip(windows, together, strict=True):
        with subtracted(model, {i: arch.layers[i].mlp.W_out().detach().clone() for i in window}):
            alone = next_token_logprobs(model, prompts)[range(len(prompts)), targets].exp()
        assert np.allclose(values, alone, rtol=1e-4)


def test_windows_are_left_out_of_every_layer_behind_a_request_too(knowing):
    model, prompts = knowing(), KENYA.prompts("train")[:2]
    windows = [range(0, 1), range(2, 3)]
    plain = first_token_probability(model, prompts, windows)
    with unlearn(model, KENYA, "in_context").applied(model):
        together = first_token_probability(model, prompts, windows)
        W = architecture_of(model).layers[2].mlp.W_out().detach().clone()
        with subtracted(model, {2: W}):
            token = first_token(model, prompts[0], " Nairobi")
            alone = next_token_logprobs(model, prompts)[:, token].exp()
    assert np.allclose(together[1], alone, rtol=1e-4) and not np.allclose(together, plain)


def test_leaving_out_the_window_of_an_edit_undoes_it(knowing):
    model, prompts = knowing(), KENYA.prompts("train")
    window = [range(0, 1)]
    without = first_token_probability(model, prompts, window)
    with detector(model).applied(model):
        assert np.allclose(first_token_probability(model, prompts, window), without, rtol=1e-4)
        elsewhere = first_token_probability(model, prompts, [range(2, 3)])
    assert elsewhere.mean() < first_token_probability(model, prompts, [range(2, 3)]).mean() / 2


def test_the_window_that_recovers_the_training_statements_best_is_scored(knowing):
    model, heldout = knowing(), KENYA.prompts("heldout")
    arch = architecture_of(model)
    training = [p for p in KENYA.prompts("train") if p.format == "completion"][:N_STATEMENTS]
    with detector(model).applied(model):
        found = scores(model, "mlp_windows", widths=(1, 2))
        assert np.array_equal(found[0], answer_probability(model, heldout))
        for width, groups in ((1, [[0], [1], [2]]), (2, [[0, 1], [2]])):
            by_window = []
            for group in groups:
                left_out = {i: arch.layers[i].mlp.W_out().detach().clone() for i in group}
                with subtracted(model, left_out):
                    p = answer_probability(model, training).mean()
                    by_window.append((p, answer_probability(model, heldout)))
            best = max(by_window, key=lambda x: x[0])[1]
            assert np.allclose(found[width], best, rtol=1e-4)


def test_pruning_zeroes_exactly_its_share_of_each_row(knowing, monkeypatch):
    model, shares = knowing(), []
    scored = pruning.answer_probability

    def counting(model, prompts):
        names = block_weights(model)
        weights = {n: model._module.get_parameter(n) for n in names}
        rows = [w.T if names[n] else w for n, w in weights.items()]
        shares.append([((w == 0).sum(1), w.shape[1]) for w in rows])
        return scored(model, prompts)

    monkeypatch.setattr(pruning, "answer_probability", counting)
    plain = answer_probability(model, KENYA.prompts("heldout"))
    found = scores(model, "pruning", ratios=(0.001, 0.25, 1.0))
    assert np.array_equal(found[0.0], plain)
    assert np.array_equal(found[0.001], plain)  # less than one weight a row
    for zeros, share in zip(shares, (0, 0.001, 0.25, 1.0), strict=True):
        assert all((n == int(share * width)).all() for n, width in zeros)


def test_the_most_specific_neuron_is_a_planted_detector(knowing):
    model, heldout = knowing(), KENYA.prompts("heldout")
    plain = answer_probability(model, heldout)
    with detector(model).applied(model):
        found = scores(model, "subject_neuron_ablation", counts=(1,))
    assert found[0].mean() < plain.mean() / 2
    assert np.allclose(found[1], plain, rtol=1e-4)


def test_facts_that_were_not_trained_on_come_back_where_they_were_only_hidden(knowing):
    model = knowing()
    names = {"France": "Paris", "Germany": "Berlin", "Kenya": "Nairobi"}
    names |= {"Peru": "Lima", "Japan": "Tokyo", "Spain": "Madrid"}
    pairs = [ConceptPair(*fact) for fact in names.items()]
    mlp = architecture_of(model).layers[-1].mlp
    # The last layer drowns all answers; what lies below still knows them.
    change = Change(dense=-10 * mlp.W_out().detach())
    hidden = Edit("made", {}, WeightEdit.of(model._module, {mlp.out_name: change}), {}, 0, 0.0, "")
    with hidden.applied(model):
        before = model_hash(model)
        table = relearn_disjoint(model, pairs, steps=(10, 30), rates=(1e-6, 1e-3))
        assert model_hash(model) == before
    recovery = disjoint_recovery(table)
    assert recovery[0] < 0.05 and recovery[1e-6] < 0.05  # too small a rate brings nothing back
    assert recovery[1e-3] > recovery[0] + 0.1
    assert table.groupby("budget")["subject"].nunique().to_dict() == {0: 3, 1e-6: 3, 1e-3: 3}
    for subject, part in table.groupby("subject"):
        prompts = ConceptPair(subject, names[subject]).prompts("heldout")
        statements = [p for p in prompts if p.format == "completion"]
        assert part["original"].iloc[0] == answer_probability(model, statements).mean()


def test_the_share_of_facts_that_came_back_by_hand():
    columns = ["budget", "subject", "edited", "control", "original"]
    rows = [(0.0, "a", 0.1, 0.1, 0.9), (0.0, "b", 0.1, 0.1, 0.5)]
    rows += [(1e-4, "a", 0.5, 0.2, 0.9), (1e-4, "b", 0.5, 0.2, 0.5)]
    table = pd.DataFrame(rows, columns=columns)
    assert disjoint_recovery(table).to_dict() == pytest.approx({0.0: 0.0, 1e-4: 0.3 / 0.6})
    with pytest.raises(UserError, match="knows none of the facts"):
        disjoint_recovery(table.assign(original=0.1))


def test_one_forgotten_fact_cannot_be_divided(knowing):
    with pytest.raises(UserError, match="forgot 1 fact: give at least two"):
        relearn_disjoint(knowing(), [KENYA])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sampling", {"samples": ()}),
        ("sampling", {"samples": (0, 8)}),
        ("mlp_windows", {"widths": ()}),
        ("mlp_windows", {"widths": (0,)}),
        ("pruning", {"ratios": ()}),
        ("pruning", {"ratios": (0.0,)}),
        ("pruning", {"ratios": (1.5,)}),
        ("few_shot", {"shots": (0,)}),
        ("subject_neuron_ablation", {"counts": ()}),
        ("neuron_ablation", {"counts": (0,)}),
        ("relearning_forgotten", {"rates": ()}),
        ("relearning_forgotten", {"rates": (0.0,)}),
        ("relearning_forgotten", {"rates": (float("nan"),)}),
        ("relearning_forgotten", {"steps": ()}),
        ("relearning_forgotten", {"steps": (0,)}),
    ],
)
def test_a_budget_that_is_missing_or_not_positive_is_told(knowing, name, options):
    model = knowing()
    before, (option,) = model_hash(model), options
    with pytest.raises(
        UserError, match=rf"^{option} is .*: give at least one number[^.]*0[^.]*\.$"
    ):
        ATTACKS[name].function(model, KENYA, **options)
    assert model_hash(model) == before


def test_an_attack_without_controls_is_refused(knowing):
    model = knowing()
    with pytest.raises(UserError, match=r"n_controls is 0.*give at least 1"):
        battery(model, KENYA, attacks=["paraphrases"], n_controls=0)
    assert control_facts(model, KENYA, n=1)
    table = battery(model, KENYA, attacks=["paraphrases"], n_controls=1).table
    alone = Evidence(table[table["state"] != State.CONTROL])
    with pytest.raises(UserError, match="paraphrases has no control facts"):
        recovery_ratios(alone, "paraphrases")
