"""Outcomes of predictions: what each rule says of results of either sign, and of too few."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from helpers.book.readings import (
    ISOLATES_KEY,
    NOT_MEASURED,
    RAISES_LOSS,
    REMOVES_SHARED,
    Held,
    difference,
    held_if,
    in_every_case,
    lies_above,
    lies_below,
    tell_gentlest,
    tell_parts,
)
from helpers.book.settings import NOTEBOOKS, ROOT
from helpers.book.sources import notebook_imports, notebook_path
from helpers.evaluation.meta.all_metrics import METRICS
from helpers.evaluation.meta.meta_evaluation import Discrimination, KnownState
from helpers.evaluation.meta.metric_groups import (
    ANSWER_METRICS,
    INSIDE_METRICS,
    discriminates,
    measured_names,
)
from helpers.methods import METHODS
from helpers.stats.intervals import Metric, mean_interval

NAN = math.nan
RESULTS = np.array([0.2, 0.3, 0.25, 0.4, 0.1, 0.35])  # differences, all above zero


def outcomes(values: np.ndarray) -> list[Held]:
    metric = mean_interval(values)
    return [lies_above(metric).held, lies_below(metric).held]


def test_results_of_the_opposite_sign_have_the_opposite_outcome():
    assert outcomes(RESULTS) == [Held.YES, Held.NO]
    assert outcomes(-RESULTS) == [Held.NO, Held.YES]
    assert held_if(0.5 - 0.1).held == Held.YES
    assert held_if(0.1 - 0.5).held == Held.NO


def test_an_interval_across_the_bound_decides_nothing_and_says_so():
    noisy = mean_interval(RESULTS - RESULTS.mean() + 0.01)
    for outcome in (lies_above(noisy), lies_below(noisy)):
        assert str(outcome) == "too few to tell: the interval includes 0"
    assert lies_above(mean_interval(RESULTS), 0.25).reason == "the interval includes 0.25"


def test_a_tie_of_two_numbers_is_a_no_and_a_tie_of_means_is_open():
    assert held_if(0.3 - 0.3).held == Held.NO
    assert lies_above(mean_interval(np.zeros(8))).held == Held.TOO_FEW


def test_every_margin_has_to_be_above_zero():
    assert held_if(0.1, 0.2).held == Held.YES
    assert held_if(0.1, -0.2).held == held_if(True, False).held == Held.NO


@pytest.mark.parametrize(
    "outcome",
    [
        held_if(),
        held_if(0.1, NAN),
        held_if(-0.1, math.inf),  # the level where nothing is associated
        in_every_case([]),
        lies_above(None),
        lies_below(Metric(NAN, NAN, NAN, 0)),
    ],
)
def test_what_was_not_measured_has_no_outcome(outcome):
    assert outcome == NOT_MEASURED
    assert outcome.tell("It is nan", yes="It rose") == "too few to tell: not measured."


@pytest.mark.parametrize("few", [1, 4])
@pytest.mark.parametrize("sign", [1, -1])
def test_few_units_decide_nothing_and_are_counted(few, sign):
    metric = mean_interval(sign * RESULTS[:few])
    for outcome in (lies_above(metric), lies_below(metric), held_if(sign * 0.3, n=few)):
        assert str(outcome) == f"too few to tell: n = {few}"


def test_an_exception_decides_where_few_cases_without_one_do_not():
    assert in_every_case([True] * 5).held == Held.YES
    assert in_every_case([True, False]).held == Held.NO
    assert in_every_case(pd.Series([True] * 4)).reason == "n = 4"


def test_a_difference_of_samples_is_as_uncertain_as_both_together():
    first, second = Metric(3.0, 2.7, 3.4, 9), Metric(1.0, 0.6, 1.3, 7)
    both = difference(first, second)
    assert (both.value, both.n) == (2.0, 7)
    assert both.low == pytest.approx(2 - math.hypot(0.3, 0.3))
    assert both.high == pytest.approx(2 + math.hypot(0.4, 0.4))
    assert difference(second, first).high == pytest.approx(-both.low)
    assert lies_above(difference(first, Metric(1.0, NAN, NAN, 3))).reason == "n = 3"


def test_each_outcome_has_its_own_conclusion():
    sentences = {"measured": "It changed by 1", "yes": "It rose", "no": "It fell"}
    assert held_if(1.0).tell(**sentences) == "yes. It changed by 1. It rose."
    assert held_if(-1.0).tell(**sentences) == "no. It changed by 1. It fell."
    assert held_if(1.0, n=3).tell(**sentences) == "too few to tell: n = 3. It changed by 1."
    assert held_if(-1.0).tell("It changed by 1") == "no. It changed by 1."


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (held_if(1), "yes, 2 of 2 parts: it falls (yes); it stays (yes)."),
        (held_if(-1), "no, 1 of 2 parts: it falls (yes); it stays (no)."),
        (
            held_if(1, n=2),
            "too few to tell, 1 of 2 parts: it falls (yes); it stays (n = 2).",
        ),
    ],
)
def test_parts_are_told_one_by_one(second, told):
    assert tell_parts({"it falls": held_if(1), "it stays": second}) == told


def test_parts_of_which_none_was_measured_are_not_listed():
    assert tell_parts({"a": held_if(NAN), "b": lies_above(None)}) == (
        "too few to tell: not measured."
    )


def test_a_part_that_failed_decides_though_another_is_open():
    assert tell_parts({"a": held_if(NAN), "b": held_if(-1)}).startswith("no, 0 of 2 parts")


def test_metrics_that_distinguish_are_counted_in_one_state():
    rows = [
        ("rank", KnownState.PRESENT, Discrimination.DISCRIMINATES),
        ("rank", KnownState.HIDDEN, Discrimination.INVERTED),
        ("greedy", KnownState.HIDDEN, Discrimination.DISCRIMINATES),
        ("depth", KnownState.HIDDEN, Discrimination.DISCRIMINATES),
    ]
    aucs = pd.DataFrame(
        [(name, state.value, finding.value) for name, state, finding in rows],
        columns=["metric", "state", "finding"],
    )
    assert discriminates(aucs, KnownState.HIDDEN, ANSWER_METRICS) == [False, True]
    assert discriminates(aucs, KnownState.PRESENT, INSIDE_METRICS) == []


def test_predictions_name_methods_and_metrics_that_exist():
    assert set(METHODS) >= ISOLATES_KEY | REMOVES_SHARED | RAISES_LOSS
    assert set(METRICS) >= {*ANSWER_METRICS, *INSIDE_METRICS}


@pytest.mark.parametrize("stem", ["00_model_and_facts", "04_sparse_autoencoders"])
def test_outcomes_do_not_make_a_chapter_depend_on_methods(stem):
    """An edit of a method reruns each chapter that imports it, as these train no edit."""
    modules = [path.relative_to(ROOT) for path in notebook_imports(notebook_path(stem))]
    assert ROOT.joinpath("helpers/book/readings.py").relative_to(ROOT) in modules
    assert [m for m in modules if m.parts[1] in ("methods", "evaluation")] == []


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_every_prediction_is_followed_by_its_outcome(stem):
    cells = json.loads((ROOT / "notebooks" / f"{stem}.ipynb").read_text())["cells"]
    prose, code = (
        "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == kind)
        for kind in ("markdown", "code")
    )
    predictions = prose.split("**Prediction.**")[1:]
    told = [re.split(r"^## ", text, flags=re.MULTILINE)[0] for text in predictions]
    keys = [re.findall(r"^\*\*Prediction held:\*\* \{glue:text\}`(\w+)`$", t, re.M) for t in told]
    assert [len(of_prediction) for of_prediction in keys] == [1] * len(predictions)
    for (key,) in keys:
        assert re.search(rf"\b{key}=", code), f"{key} is not glued"
    assert prose.count("**Prediction held:**") == len(predictions)


def test_the_gentlest_of_none_of_one_and_of_several_methods_is_told_apart():
    retention = pd.Series({"rome": 0.9, "npo": 0.4, "memit": 0.95})
    left = pd.Series({"rome": 0.01, "npo": 0.02, "memit": 0.5})
    assert tell_gentlest(left + 1, retention).startswith("No method leaves under 10%")
    assert tell_gentlest(left[["rome", "memit"]], retention).startswith("Only rome leaves")
    assert "Of the 2 that" in tell_gentlest(left, retention)
    assert "rome has the best retention" in tell_gentlest(left, retention)
    assert "not measured" in tell_gentlest(left, retention * NAN)


def test_a_part_names_the_metrics_that_were_measured():
    aucs = pd.DataFrame({"metric": ["logit lens", "loss"]})
    assert measured_names(aucs, INSIDE_METRICS) == "logit lens"
    both = pd.DataFrame({"metric": ["depth", "logit lens"]})
    assert measured_names(both, INSIDE_METRICS) == "logit lens and depth"
