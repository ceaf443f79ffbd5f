"""Tests of equivalence and corrections, against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from helpers.errors import UserError
from helpers.stats.equivalence import holm, tost


def test_tost_is_two_one_sided_t_tests():
    x = np.array([0.01, 0.03, -0.02, 0.02, 0.0])
    between, above, below = tost(x, low=-0.1, high=0.1)
    upper = stats.ttest_1samp(x, 0.1, alternative="less").pvalue
    lower = stats.ttest_1samp(x, -0.1, alternative="greater").pvalue
    assert between == pytest.approx(max(upper, lower))
    assert above == pytest.approx(1 - upper) and below == pytest.approx(1 - lower)
    assert tost(np.array([0.2, 0.21, 0.19]), low=-0.1, high=0.1)[1] < 0.01
    assert tost(np.array([-0.5, 0.5, 0.0]), low=-0.1, high=0.1)[0] > 0.3  # no power, no claim
    with pytest.raises(UserError, match="at least 3"):
        tost(np.array([0.0, 0.0]), low=-1, high=1)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]).tolist() == pytest.approx([1.0, 1.0])


def test_a_test_needs_finite_values():
    with pytest.raises(UserError, match="1 of 3 are not"):
        tost(np.array([0.0, np.nan, 0.1]), low=-1, high=1)
