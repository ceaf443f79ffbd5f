"""Kernel ridge regression: the minimum-norm update, its ridge, and its refusals."""

import pytest
import torch
from small_constraints import constraints_of

from helpers.errors import UserError
from helpers.methods.fitting import kernel_ridge as module
from helpers.methods.fitting.kernel_ridge import (
    WhitenedRows,
    fit_kernel_ridge,
    min_norm_update,
)
from helpers.methods.fitting.linear_model import Linearization


def random_linearization(n=4, rows=9, d=5, width=7):
    torch.manual_seed(1)
    constraint_index = torch.arange(rows) % n
    keys = {i: torch.randn(rows, width) for i in (0, 3)}
    gradients = {i: torch.randn(rows, d) for i in (0, 3)}
    return Linearization(torch.zeros(n), constraint_index, keys, gradients)


@pytest.mark.parametrize("two_sided", [False, True])
def test_the_update_reaches_its_target_with_the_least_norm(two_sided):
    linearization = random_linearization()
    constraints = constraints_of() + constraints_of()[:1]
    factors = {i: torch.tril(torch.randn(7, 7)) + 4 * torch.eye(7) for i in (0, 3)}
    output_factors = {i: torch.eye(5) for i in (0, 3)}
    if two_sided:
        output_factors = {i: torch.tril(torch.randn(5, 5)) + 4 * torch.eye(5) for i in (0, 3)}
    target = torch.tensor([-1.0, 0.5, 0.0, -2.0])
    used = output_factors if two_sided else None
    update = min_norm_update(
        [WhitenedRows.of(linearization, factors, used)],
        target,
        factors,
        ridge=0.0,
        constraints=constraints,
        output_factors=used,
    )
    # the same by the minimum-norm solution of one big system, in the coordinates Mᵀ Δ L of the
    # factors M and L, in which the metric is the identity
    rows = []
    for n in range(4):
        row = []
        for i in (0, 3):
            own = linearization.constraint_index == n
            keys, gradients = linearization.keys[i][own], linearization.gradients[i][own]
            white = torch.linalg.solve_triangular(factors[i], keys.T, upper=False)
            gradients = torch.linalg.solve_triangular(output_factors[i], gradients.T, upper=False)
            row.append((gradients @ white.T).flatten())
        rows.append(torch.cat(row))
    least = torch.linalg.pinv(torch.stack(rows)) @ target
    whitened = torch.cat([(output_factors[i].T @ update[i] @ factors[i]).flatten() for i in (0, 3)])
    torch.testing.assert_close(whitened, least, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.stack(rows) @ whitened, target, rtol=1e-3, atol=1e-4)


def test_parts_and_blocks_give_the_update_of_the_whole(monkeypatch):
    whole, factors = random_linearization(), {i: torch.eye(7) for i in (0, 3)}
    rows = WhitenedRows.of(whole, factors)
    monkeypatch.setattr(module, "BLOCK", 2)
    first, last = whole.first(3), whole.constraint_index == 3
    rest = Linearization(
        torch.zeros(1),
        torch.zeros(int(last.sum()), dtype=torch.long),
        {i: k[last] for i, k in whole.keys.items()},
        {i: g[last] for i, g in whole.gradients.items()},
    )
    parts = [WhitenedRows.of(part, factors) for part in (first, rest)]
    given = {"ridge": 0.1, "constraints": constraints_of() + constraints_of()[:1]}
    target = torch.tensor([-1.0, 0.5, 0.0, -2.0])
    in_parts = min_norm_update(parts, target, factors, **given)
    in_blocks = WhitenedRows.of(whole, factors).own_kernel
    torch.testing.assert_close(in_blocks, rows.kernel_with(rows), rtol=1e-4, atol=1e-5)
    for i, update in min_norm_update([rows], target, factors, **given).items():
        torch.testing.assert_close(in_parts[i], update, rtol=1e-4, atol=1e-5)


def test_a_ridge_of_its_own_lets_a_constraint_miss_its_target():
    root = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    kernel, target = root @ root.T, torch.tensor([1.0, -2.0, 0.5]).double()
    ridge = torch.tensor([0.01, 0.5, 0.01]).double()
    alpha = fit_kernel_ridge(kernel, target, ridge=ridge, constraints=constraints_of())
    expected = torch.linalg.solve(kernel + torch.diag(ridge * kernel.diagonal()), target)
    torch.testing.assert_close(alpha, expected)
    missed = (kernel @ alpha - target).abs()
    assert missed[1] > 5 * missed[[0, 2]].max()


def test_coinciding_prompts_are_named():
    kernel = torch.tensor([[1.0, 0.2, 1.0], [0.2, 1.0, 0.2], [1.0, 0.2, 1.0]]).double()
    constraints = constraints_of()
    with pytest.raises(UserError) as error:
        fit_kernel_ridge(kernel, torch.ones(3).double(), ridge=0.0, constraints=constraints)
    assert constraints[0].name in str(error.value) and constraints[2].name in str(error.value)
    assert constraints[1].name not in str(error.value)
