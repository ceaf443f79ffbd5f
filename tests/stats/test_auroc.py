"""AUROC against hand-worked numbers and against counting all pairs."""

import numpy as np
import pytest
import torch

from helpers.errors import UserError
from helpers.stats.auroc import auroc_by_unit


def test_auroc_by_unit_by_hand():
    positives, negatives = (
        torch.tensor([[1.0, 5], [2, 5]]),
        torch.tensor([[0.0, 5], [1, 5], [3, 5]]),
    )
    # unit 0: pairs won 1>0, 2>0, 2>1 = 3, tied 1=1 = ½, of 6; unit 1: all tied
    assert auroc_by_unit(positives, negatives).tolist() == pytest.approx([3.5 / 6, 0.5])


def test_auroc_is_the_fraction_of_pairs_in_order_with_ties_as_half():
    rng = np.random.default_rng(0)
    for n, m in ((1, 1), (3, 5), (40, 30)):
        a, b = rng.integers(0, 6, n).astype(float), rng.integers(0, 5, m).astype(float)
        pairs = (a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean()
        units = auroc_by_unit(torch.tensor(a)[:, None], torch.tensor(b)[:, None])
        assert units.item() == pytest.approx(pairs)


def test_an_empty_group_is_one_sentence():
    with pytest.raises(UserError, match="one of them is empty"):
        auroc_by_unit(torch.ones(2, 3), torch.ones(0, 3))
