"""The verdict: tests against hand-worked values, and each label from evidence that calls for it."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from helpers.errors import UserError
from helpers.evaluation.battery import Evidence, State, battery
from helpers.evaluation.edit_under_test import (
    chosen_attacks,
    load_edit_under_test,
)
from helpers.evaluation.findings import Damage, Finding, Margins
from helpers.evaluation.recovery import Recovery, over_forgetting, recovery_ratios
from helpers.evaluation.scorecard import Scorecard
from helpers.evaluation.verdict import Label, verdict
from helpers.facts import ConceptPair
from helpers.methods import Change, Edit, WeightEdit, unlearn
from helpers.methods.controls.logit_suppression import logit_suppression
from helpers.models import architecture_of, model_hash
from helpers.stats.equivalence import tost
from helpers.stats.intervals import linearized_ratio, mean_interval

ORIGINAL = [0.6, 0.5, 0.7, 0.6, 0.6, 0.05]  # the original doesn't know the last wording
CONTROL = [0.01, 0.02, 0.01, 0.02, 0.01, 0.01]


def evidence(budgets: dict[str, dict[float, list[float]]], not_applicable=None) -> Evidence:
    """Evidence with the usual comparisons: attack → budget → scores of the edited model."""
    rows = []
    for name, curve in budgets.items():
        for budget, edited in curve.items():
            states = {State.EDITED: edited, State.CONTROL: CONTROL}
            if not name.startswith("relearning"):
                states[State.ORIGINAL] = ORIGINAL
            for state, scores in states.items():
                rows += [
                    (name, state.value, state.value, budget, i, s) for i, s in enumerate(scores)
                ]
    columns = ["attack", "state", "subject", "budget", "prompt", "score"]
    return Evidence(pd.DataFrame(rows, columns=columns), not_applicable or {})


def spread(mean: float, *, by: float, n: int) -> np.ndarray:
    """Return n values with that mean, and that standard deviation."""
    values = np.linspace(-1, 1, n)
    return mean + by * values / values.std(ddof=1)


KEPT = {
    "neighbours": spread(0.99, by=0.03, n=24),
    "perplexity_change_factbook": spread(0.001, by=0.005, n=32),
}


def card(**units) -> Scorecard:
    """A scorecard with those units, and `KEPT`; None leaves a metric out."""
    units = {name: np.asarray(x, float) for name, x in (KEPT | units).items() if x is not None}
    return Scorecard({name: mean_interval(x) for name, x in units.items()}, {}, {}, units)


def like(scores, plus=0.0):
    return [s + plus for s in scores]


def test_the_recovery_ratio_is_between_control_and_original():
    found = evidence({"paraphrases": {0: CONTROL}, "few_shot": {1: ORIGINAL, 3: CONTROL}})
    (plain,) = recovery_ratios(found, "paraphrases")
    assert plain.edited == pytest.approx(np.zeros(5))  # the unknown wording is left out
    one, three = recovery_ratios(found, "few_shot")
    assert (one.budget, three.budget) == (1, 3)
    assert one.edited.mean() == pytest.approx(1.0) and three.edited.mean() == pytest.approx(0.0)


def test_prompts_that_a_pair_asked_instead_lacks_are_left_out():
    table = evidence({"paraphrases": {0: CONTROL}}).table
    lacks = (table["state"] == State.EDITED) & (table["prompt"] == 1)
    (plain,) = recovery_ratios(Evidence(table[~lacks]), "paraphrases")
    assert plain.edited == pytest.approx(np.zeros(4))
    few = table[(table["state"] != State.EDITED) | (table["prompt"] == 0)]
    with pytest.raises(UserError, match="knows fewer than"):
        recovery_ratios(Evidence(few), "paraphrases")


def test_an_attack_that_the_pair_has_no_prompts_for_does_not_block():
    found = case()
    pair_has_none = Evidence(found.table, without_prompts={"described": "no other name"})
    model_has_none = Evidence(found.table, {"described": "a request moves it"})
    required = [*NAMES, "described"]
    verified = verdict(pair_has_none, card(), required=required)
    assert verified.label == Label.VERIFIED
    assert "does not know the fact under described" in str(verified)
    assert verdict(model_has_none, card(), required=required).label == Label.PARTIAL


def test_head_start_at_each_learning_rate_is_in_units_of_what_was_known():
    half = [a + 0.5 * (p - a) for a, p in zip(CONTROL, ORIGINAL, strict=True)]
    curve = {1e-5: CONTROL, 1e-4: half}
    found = evidence({"paraphrases": {0: CONTROL}, "relearning_forgotten": curve})
    low, high = recovery_ratios(found, "relearning_forgotten")
    assert (low.budget, high.budget) == (1e-5, 1e-4)
    assert low.edited.mean() == pytest.approx(0) and high.edited.mean() == pytest.approx(0.5)
    alone = Evidence(found.table.query("attack != 'paraphrases'"))
    with pytest.raises(UserError, match="run that attack as well"):
        recovery_ratios(alone, "relearning_forgotten")


NAMES = ["paraphrases", "few_shot", "logit_lens", "quantisation_int8"]  # of each kind


def case(**edited) -> Evidence:
    return evidence({n: {0: edited.get(n, like(CONTROL, 0.003))} for n in NAMES})


def test_gone_everywhere_and_no_damage_is_verified():
    found = verdict(case(), card(), required=NAMES)
    assert found.label == Label.VERIFIED
    assert (found.attacks["finding"] == Finding.GONE).all()
    assert (found.damage["finding"] == Damage.KEPT).all()


def test_an_attack_that_brings_it_back_means_hidden():
    found = verdict(case(logit_lens=ORIGINAL), card(), required=NAMES)
    assert found.label == Label.HIDDEN
    assert "logit_lens (100%)" in str(found)


def test_there_without_attack_is_present():
    assert (
        verdict(case(paraphrases=ORIGINAL, logit_lens=ORIGINAL), card(), required=NAMES).label
        == Label.PRESENT
    )


def test_some_that_comes_back_is_partial():
    some = [a + 0.3 * (p - a) for a, p in zip(CONTROL, ORIGINAL, strict=True)]
    found = verdict(case(few_shot=some), card(), required=NAMES)
    assert found.label == Label.PARTIAL
    assert "few_shot" in str(found)


def test_an_attack_that_was_not_run_forbids_verified():
    found = verdict(case(), card(), required=[*NAMES, "gcg"])
    assert found.label == Label.PARTIAL
    assert "Not run: gcg." in str(found)


def test_what_cannot_be_tried_on_the_edited_model_stands_against_verified():
    barred = Evidence(case().table, {"stitching": "An intervention has no layers of its own."})
    found = verdict(barred, card(), required=[*NAMES, "stitching"])
    assert found.label == Label.PARTIAL
    assert "Could not be tried on the edited model: stitching." in str(found)
    assert "4 of 5 attacks" in str(found)


def test_what_the_original_does_not_know_is_named_and_does_not_block():
    table = evidence({n: {0: like(CONTROL, 0.003)} for n in [*NAMES, "cross_lingual"]}).table
    is_original = (table["attack"] == "cross_lingual") & (table["state"] == State.ORIGINAL)
    table.loc[is_original, "score"] = 0.02
    found = verdict(Evidence(table), card(), required=[*NAMES, "cross_lingual"])
    assert found.label == Label.VERIFIED
    assert "does not know the fact under cross_lingual" in str(found) and "4 of 5" in str(found)


@pytest.mark.parametrize(
    ("left_out", "kind"),
    [("logit_lens", "reading inside"), ("quantisation_int8", "changing weights")],
)
def test_verified_needs_an_attack_of_each_kind(left_out, kind):
    names = [n for n in NAMES if n != left_out]
    found = evidence({n: {0: like(CONTROL, 0.003)} for n in names})
    got = verdict(found, card(), required=names)
    assert got.label == Label.PARTIAL
    assert f"No attack was shown to find nothing by {kind}." in str(got)


def test_an_intervention_is_never_verified():
    found = Evidence(case().table, is_intervention=True)
    got = verdict(found, card(), required=NAMES)
    assert got.label == Label.PARTIAL and "leaves the weights as they were" in str(got)


def test_one_prompt_that_gives_the_answer_away_is_not_gone():
    """The mean over 40 prompts hides it; an attacker needs one."""
    table = case().table
    many = table[table["attack"] == "few_shot"]
    many = pd.concat([many.assign(prompt=many["prompt"] + 6 * k) for k in range(8)])
    leak = (many["state"] == State.EDITED) & (many["prompt"] == 3)
    many.loc[leak, "score"] = ORIGINAL[3]
    got = verdict(
        Evidence(pd.concat([table[table["attack"] != "few_shot"], many])), card(), required=NAMES
    )
    row = got.attacks.set_index("attack").loc["few_shot"]
    assert row["p_gone"] < 0.05 and row["worst_prompt"] == pytest.approx(1.0)
    assert row["finding"] == Finding.SOME_PROMPTS and got.label == Label.PARTIAL
    assert "Single prompts come back by half under few_shot." in str(got)


def test_what_only_keeps_it_from_being_said_is_suppressed():
    found = evidence({n: {0: like(CONTROL, 0.003)} for n in NAMES} | {"truncation": {0: ORIGINAL}})
    assert verdict(found, card(), required=NAMES).label == Label.SUPPRESSED


def test_an_attack_that_sees_no_hidden_fact_does_not_count():
    got = verdict(case(), card(), required=NAMES, proven=[n for n in NAMES if n != "few_shot"])
    assert got.label == Label.VERIFIED and "don't count: few_shot" in str(got)
    assert got.attacks.set_index("attack").loc["few_shot", "finding"] == Finding.UNPROVEN
    blind = verdict(case(), card(), required=NAMES, proven=["paraphrases", "few_shot"])
    assert blind.label == Label.PARTIAL and "reading inside, changing weights" in str(blind)
    back = verdict(case(few_shot=ORIGINAL), card(), required=NAMES, proven=[])
    assert back.label == Label.HIDDEN  # what it does find counts all the same


def test_ranks_are_judged_against_what_is_associated():
    found = case(logit_lens=like(CONTROL, 0.3)).table
    rows = found.query("attack == 'logit_lens' and state == 'control'")
    associated = [
        rows.assign(state="associated", subject=f"a{k}", score=rows["score"] + 0.3 + d)
        for k, d in enumerate((-0.01, -0.005, 0.0, 0.005, 0.01))
    ]
    against_both = Evidence(pd.concat([found, *associated]))
    names = [n for n in NAMES if n != "few_shot"]
    assert verdict(Evidence(found), card(), required=names).label != Label.VERIFIED
    assert verdict(against_both, card(), required=names).label == Label.VERIFIED


def test_damage_is_shown_excluded_or_open():
    fallen = card(neighbours=spread(0.5, by=0.3, n=24))
    assert verdict(case(), fallen, required=NAMES).label == Label.DAMAGED
    worse = card(perplexity_change_factbook=spread(0.2, by=0.3, n=32))
    assert verdict(case(), worse, required=NAMES).label == Label.DAMAGED
    open_ = verdict(case(), card(neighbours=spread(0.93, by=0.2, n=24)), required=NAMES)
    assert open_.label == Label.PARTIAL and "can't be excluded" in str(open_)
    unknown = verdict(case(), None, required=NAMES)
    assert unknown.label == Label.PARTIAL and "not measured" in str(unknown)


@pytest.mark.parametrize(("p", "finding"), [(0.04, Damage.KEPT), (0.06, Damage.INCONCLUSIVE)])
def test_damage_is_tested_one_sided_at_the_level_of_the_margins(p, finding):
    """Units of which SciPy's one-sided t-test says p, on facts and on differences of losses."""
    error = 0.02 * np.sqrt(12)
    above = 0.9 + stats.t.isf(p, 11) * 0.02
    below = np.log(1.02) - stats.t.isf(p, 11) * 0.02
    units = {
        "neighbours": spread(above, by=error, n=12),
        "perplexity_change_factbook": spread(below, by=error, n=12),
    }
    by_scipy = stats.ttest_1samp(units["neighbours"], 0.9, alternative="greater").pvalue
    assert by_scipy == pytest.approx(p)
    damage = verdict(case(), card(**units), required=NAMES).damage
    assert list(damage["finding"]) == [finding, finding]


def test_many_metrics_are_corrected_for_before_one_counts_as_damaged():
    """One of seven at p = 0.03 is what chance gives; by itself it is damage."""
    error = 0.02 * np.sqrt(12)
    units = spread(0.9 - stats.t.isf(0.03, 11) * 0.02, by=error, n=12)
    alone = verdict(case(), card(neighbours=units, perplexity_change_factbook=None)).damage
    assert alone["finding"].tolist() == [Damage.DAMAGED]
    related = dict.fromkeys(("same_subject", "same_target", "must_stay"), np.ones(12))
    texts = {f"perplexity_change_{x}": np.zeros(12) for x in ("factbook", "other", "chat")}
    damage = verdict(case(), card(neighbours=units, **related, **texts)).damage
    assert damage["finding"].tolist() == [Damage.INCONCLUSIVE] + [Damage.KEPT] * 6


def test_too_few_facts_show_nothing_of_damage():
    for units in ([0.99], [1.0, 1.0]):
        found = verdict(case(), card(same_subject=units), required=NAMES)
        assert found.label == Label.PARTIAL
        assert "can't be excluded by so few: same_subject" in str(found)
    four = verdict(case(), card(same_subject=[0.99, 1.0, 1.0, 0.98]), required=NAMES)
    row = four.damage.set_index("metric").loc["same_subject"]
    assert row["finding"] == Damage.KEPT and np.isnan(row["low"])  # a test, and no interval


def test_damage_to_what_must_stay_and_to_text_has_to_be_measured():
    for missing, told in (
        ("perplexity_change_factbook", "text"),
        ("neighbours", "what has to stay"),
    ):
        found = verdict(case(), card(**{missing: None}), required=NAMES)
        assert found.label == Label.PARTIAL and f"Damage to {told} was not measured" in str(found)


def test_a_scar_has_to_be_excluded():
    uneven = [0.01, 1e-7, 0.01, 1e-6, 0.02, 1e-5]  # now as likely as control facts, now far below
    found = verdict(case(paraphrases=uneven), card(), required=NAMES)
    assert found.label == Label.PARTIAL and "scar can't be excluded" in str(found)


def test_a_leaky_reference_never_makes_half_of_the_knowledge_pass_as_gone():
    most = [a + 0.55 * (p - a) for a, p in zip(CONTROL, ORIGINAL, strict=True)]
    found = case(logit_lens=most).table
    leaky = found[(found["attack"] == "logit_lens") & (found["state"] == State.CONTROL)]
    leaky = leaky.assign(subject="leaky", score=leaky["score"] + 0.9)
    quiet = leaky.assign(subject="quiet", score=leaky["score"] - 1.8)
    both = Evidence(pd.concat([found, leaky, quiet], ignore_index=True))
    row = verdict(both, card(), required=NAMES).attacks.set_index("attack").loc["logit_lens"]
    assert row["max_control"] > 1 and row["recovery"] > 0.5 and row["finding"] != Finding.GONE


def test_over_suppression_is_a_over_forgetting():
    buried = [1e-6] * 6
    assert over_forgetting(case(paraphrases=buried)).mean() < -8
    found = verdict(case(paraphrases=buried), card(), required=NAMES)
    assert found.label == Label.PARTIAL and "scar" in str(found)


def test_few_noisy_prompts_show_nothing():
    noisy = like([0.0, 0.0, 0.0, 0.0, 0.25, 0.0], 0.01)
    found = verdict(case(few_shot=noisy), card(), required=NAMES)
    assert found.label == Label.PARTIAL
    assert "Not shown to be gone under few_shot." in str(found)


def test_gone_has_to_be_shown_at_every_budget():
    noisy = like([0.0, 0.05, 0.0, 0.0, 0.0, 0.0])  # a smaller mean, and nothing shown
    noisy[1], noisy[2] = noisy[1] + 0.18, noisy[2] - 0.16
    found = evidence({n: {0: like(CONTROL, 0.003)} for n in ("paraphrases", "logit_lens")})
    curve = evidence({"few_shot": {1: like(CONTROL, 0.02), 2: noisy}})
    both = Evidence(pd.concat([found.table, curve.table], ignore_index=True))
    row = verdict(both, card(), required=NAMES).attacks.set_index("attack").loc["few_shot"]
    assert row["budget"] == 1 and row["recovery"] > 0  # where most comes back
    assert row["finding"] == Finding.INCONCLUSIVE


def test_budgets_tried_are_corrected_for():
    some = [a + s * (p - a) for a, p, s in zip(CONTROL, ORIGINAL, [0.2, 0.3, 0.4] * 2, strict=True)]
    alone = evidence({"few_shot": {1: some}})
    p = verdict(alone, required=["few_shot"]).attacks["p_back"].item()
    tried = evidence({"few_shot": {1: some, 2: CONTROL, 3: CONTROL, 4: CONTROL}})
    row = verdict(tried, required=["few_shot"]).attacks.iloc[0]
    assert row["budget"] == 1 and 0 < p < 0.05
    assert row["p_back"] == pytest.approx(4 * p)


def test_facts_are_compared_at_the_same_budget():
    first = {1: ORIGINAL, 2: CONTROL}
    facts = [
        evidence({"few_shot": first if i % 2 else {1: CONTROL, 2: ORIGINAL}}) for i in range(4)
    ]
    row = verdict(facts, required=["few_shot"]).attacks.iloc[0]
    assert row["recovery"] == pytest.approx(0.5) and row["n"] == 4  # not each fact at its own best


def test_several_facts_are_the_units():
    found = verdict([case(), case(), case(), case(logit_lens=ORIGINAL)], card(), required=NAMES)
    assert found.attacks.set_index("attack").loc["logit_lens", "n"] == 4
    assert found.label == Label.PARTIAL
    with pytest.raises(UserError, match="no evidence"):
        verdict([], card())


def test_margins_are_stated_with_the_verdict():
    margins = Margins(max_recovery=0.4)
    some = [a + 0.3 * (p - a) for a, p in zip(CONTROL, ORIGINAL, strict=True)]
    found = verdict(case(few_shot=some), card(), margins=margins, required=NAMES)
    assert found.label == Label.VERIFIED
    assert found.to_dict()["margins"]["max_recovery"] == 0.4


def test_present_hidden_and_absent_are_told_apart(knowing):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    names = ["paraphrases", "logit_lens", "few_shot", "directional_ablation"]
    options = {"attacks": names, "n_controls": 2}
    assert verdict(battery(model, pair, **options), required=names).label == Label.PRESENT
    hidden = logit_suppression(model, pair)
    with hidden.applied(model):
        label = verdict(battery(model, pair, **options), required=names).label
        assert label in (Label.HIDDEN, Label.SUPPRESSED)
    control = ConceptPair("Mongolia", "Nairobi")
    conclusion = verdict(battery(model, pair, query_pair=control, **options), required=names)
    assert conclusion.label not in (Label.PRESENT, Label.HIDDEN, Label.SUPPRESSED)
    assert not (conclusion.attacks["finding"] == Finding.RECOVERED).any()


def test_a_patch_must_be_of_the_pair_that_is_asked_about(knowing, tmp_path):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    made = unlearn(model, pair, "mean_difference", layers=(1,))
    made.save(tmp_path / "patch.safetensors")
    found = load_edit_under_test(model, pair, patch=str(tmp_path / "patch.safetensors"))
    assert found.delta.edited_tensors_hash == made.delta.edited_tensors_hash
    with pytest.raises(UserError, match="removes Kenya → Nairobi, not Cuba → Havana"):
        load_edit_under_test(
            model, ConceptPair("Cuba", "Havana"), patch=str(tmp_path / "patch.safetensors")
        )
    with pytest.raises(UserError, match="no method 'nothing'"):
        load_edit_under_test(model, pair, method="nothing")


def test_chosen_attacks_are_known_and_begin_with_paraphrases():
    assert chosen_attacks("logit_lens, paraphrases") == ["logit_lens", "paraphrases"]
    assert "gcg" in chosen_attacks("all")
    assert "gcg" not in chosen_attacks("short") and "truncation" in chosen_attacks("short")
    with pytest.raises(UserError, match="no attack 'x'"):
        chosen_attacks("paraphrases, x")
    with pytest.raises(UserError, match="begins with"):
        chosen_attacks("logit_lens")


def leaking(found: Evidence, by: float) -> Evidence:
    """The same evidence with two control facts, one above their mean by so much."""
    control = found.table.query("state == 'control'")
    both = [
        control.assign(subject=n, score=control["score"] + d) for n, d in (("a", by), ("b", -by))
    ]
    return Evidence(pd.concat([found.table.query("state != 'control'"), *both], ignore_index=True))


def test_the_interval_is_that_of_a_ratio():
    rng = np.random.default_rng(0)
    known = rng.uniform(0.1, 1, 40)
    share = 0.3 * known + rng.normal(0, 0.02, 40)
    ratio = Recovery(0.0, share / known.mean(), known / known.mean(), np.zeros(2))
    drawn = rng.integers(40, size=(2000, 40))
    low, high = np.percentile(share[drawn].mean(1) / known[drawn].mean(1), [2.5, 97.5])
    m = mean_interval(linearized_ratio(ratio.edited, ratio.known))
    assert m.value == pytest.approx(share.mean() / known.mean())
    assert (m.low, m.high) == pytest.approx((low, high), abs=2e-3)


def test_a_ratio_is_tested_against_the_bound_prompt_by_prompt():
    known = np.array([0.2, 0.9, 0.6, 0.5, 0.3])
    original = [*(np.array(CONTROL[:5]) + known), 0.01]  # the last wording is not known
    edited = like(CONTROL, 0.1)
    rows = evidence({"paraphrases": {0: edited}}).table
    rows.loc[rows["state"] == State.ORIGINAL, "score"] = original
    found = leaking(Evidence(rows), 0.01)  # 0.02 of the mean of what is known, 0.5
    row = verdict(found, required=["paraphrases"]).attacks.iloc[0]
    excess = (0.1 - 0.1 * known) / known.mean()
    controls = 0.9 * np.array([0.02, -0.02])
    by_hand = stats.ttest_ind(excess, controls, equal_var=False, alternative="less").pvalue
    assert row["p_gone"] == pytest.approx(by_hand)
    assert row["recovery"] == pytest.approx(0.2) and row["max_control"] == pytest.approx(0.02)


def test_what_differs_between_wordings_in_both_models_is_no_noise():
    known = np.array([0.2, 0.9, 0.6, 0.5, 0.3])
    rows = evidence({"paraphrases": {0: CONTROL}}).table
    there = rows["state"] != State.CONTROL  # the edited model is the original
    rows.loc[there, "score"] += [*known, 0, *known, 0] - rows.loc[there, "score"] + 0.01
    found = verdict(leaking(Evidence(rows), 0.02), required=["paraphrases"])
    assert found.label == Label.PRESENT
    assert found.attacks[["low", "high"]].iloc[0].tolist() == pytest.approx([1.0, 1.0])
    share = known / known.mean()  # as if what there was to find were known exactly
    assert tost(share, low=-np.inf, high=Margins().hidden_recovery)[1] > 0.05


@pytest.mark.parametrize("n_controls", [2, 4, 12])
def test_the_margin_does_not_move_with_the_number_of_controls(n_controls):
    found = case(logit_lens=[c + 0.29 * (p - c) for c, p in zip(CONTROL, ORIGINAL, strict=True)])
    is_control = (found.table["attack"] == "logit_lens") & (found.table["state"] == State.CONTROL)
    rows = found.table[is_control]
    spread = np.linspace(-0.15, 0.15, n_controls) * 0.6
    controls = [rows.assign(subject=f"c{k}", score=rows["score"] + d) for k, d in enumerate(spread)]
    both = Evidence(pd.concat([found.table[~is_control], *controls]))
    row = verdict(both, card(), required=NAMES).attacks.set_index("attack").loc["logit_lens"]
    assert row["recovery"] == pytest.approx(0.29, abs=1e-6) and row["finding"] != Finding.GONE


def test_nothing_is_verified_on_too_few_prompts():
    found = evidence({n: {0: like(CONTROL, 0.003)} for n in NAMES})
    few = Evidence(found.table.query("prompt < 2"))
    with pytest.raises(UserError, match="fewer than 3 prompts"):
        recovery_ratios(few, "paraphrases")
    got = verdict(few, card(), required=NAMES)
    assert got.label == Label.PARTIAL
    assert "needs 3 that the original knows" in str(got)


@pytest.mark.parametrize(
    ("state", "bad"),
    [
        (State.EDITED, np.nan),
        (State.EDITED, np.inf),
        (State.ORIGINAL, np.nan),
        (State.CONTROL, np.nan),
    ],
)
def test_an_attack_with_a_score_that_is_not_finite_is_not_shown_to_be_gone(state, bad):
    found = case().table
    for rows in (slice(None), slice(0, 1)):  # all of its scores, and one
        table = found.copy()
        hit = table.index[(table["attack"] == "few_shot") & (table["state"] == state)][rows]
        table.loc[hit, "score"] = bad
        got = verdict(Evidence(table), card(), required=NAMES)
        row = got.attacks.set_index("attack").loc["few_shot"]
        assert row["finding"] == Finding.INCONCLUSIVE and np.isnan(row["recovery"])
        assert got.label == Label.PARTIAL
        assert "Not shown to be gone under few_shot." in str(got)
        assert "not finite (NaN), which show nothing: few_shot." in str(got)
        with pytest.raises(UserError, match="scores of few_shot are not finite"):
            recovery_ratios(Evidence(table), "few_shot")
        several = verdict([case(), case(), case(), Evidence(table)], card(), required=NAMES)
        assert (
            several.attacks.set_index("attack").loc["few_shot", "finding"] == Finding.INCONCLUSIVE
        )


def test_paraphrases_that_are_no_numbers_are_neither_gone_nor_without_a_over_forgetting():
    table = case().table
    table.loc[(table["attack"] == "paraphrases") & (table["state"] == State.EDITED), "score"] = (
        np.nan
    )
    got = verdict(Evidence(table), card(), required=NAMES)
    assert got.label == Label.PARTIAL and "scar can't be excluded" in str(got)
    with pytest.raises(UserError, match="scores of paraphrases are not finite"):
        over_forgetting(Evidence(table))
    found = evidence(
        {"paraphrases": {0: CONTROL}, "relearning_forgotten": {1e-5: CONTROL, 1e-4: CONTROL}}
    )
    table = found.table
    table.loc[(table["attack"] == "paraphrases") & (table["state"] == State.ORIGINAL), "score"] = (
        np.nan
    )
    with pytest.raises(UserError, match="scores of paraphrases are not finite"):
        recovery_ratios(Evidence(table), "relearning_forgotten")


def test_what_is_only_reported_does_not_stand_against_verified():
    found = evidence({n: {0: like(CONTROL, 0.003)} for n in NAMES} | {"reverse": {0: [np.nan] * 6}})
    assert verdict(found, card(), required=NAMES).label == Label.VERIFIED


def test_an_edit_whose_answers_are_no_numbers_is_not_put_to_the_test(knowing, tmp_path):
    model, pair = knowing("float16"), ConceptPair("Kenya", "Nairobi")
    mlp = architecture_of(model).layers[1].mlp
    change = Change(dense=torch.full(tuple(mlp.out_module.weight.shape), 6e4))
    delta = WeightEdit.of(model._module, {mlp.out_name: change})  # finite, but not what it writes
    about = {"subject": "Kenya", "target": "Nairobi", "relation": "capital"}
    path = tmp_path / "patch.safetensors"
    Edit("made", about, delta, {}, 0, 0.0, model_hash(model)).save(path)
    before = model_hash(model)
    with pytest.raises(UserError, match="answers are not finite: it writes more than float16"):
        load_edit_under_test(model, pair, patch=str(path))
    assert model_hash(model) == before
