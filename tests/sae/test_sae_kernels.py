"""The sparse kernels: the same selection, values and gradients as a dense computation."""

import pytest
import torch

from helpers.sae import selection
from helpers.sae.selection import grouped_topk, select_above, select_batch_topk, select_topk
from helpers.sae.sparse import mean_squared_norm, sparse_decode, sparse_encode

N, D_IN, D_SAE, D_OUT = 50, 12, 64, 10


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(selection, "DIRECT_WIDTH", 8)  # so that the staged selection has stages
    monkeypatch.setattr(selection, "BLOCK_BYTES", 1)  # and the encoder blocks


def numbers(seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    sizes = [(N + 50, D_IN), (D_SAE, D_IN), (D_SAE,), (D_SAE, D_OUT), (D_OUT,)]
    return [torch.randn(*s, generator=draw, dtype=torch.float32) for s in sizes]


def dense_mask(active) -> torch.Tensor:
    mask = torch.zeros(active.n, D_SAE)
    mask[active.bags.long() // active.parts, active.latents.long()] = 1
    return mask


@pytest.mark.parametrize(("width", "k"), [(64, 3), (4096, 32), (1000, 7), (63, 5)])
def test_staged_selection_finds_the_largest(width, k):
    pre = torch.randn(40, width, generator=torch.Generator().manual_seed(1))
    values, where = grouped_topk(pre, k)
    assert torch.equal(values.sort(1, descending=True).values, pre.topk(k, 1).values)
    assert torch.equal(pre.gather(1, where), values)


def test_selections_are_those_of_their_definitions(monkeypatch):
    x, encoder, bias, _, _ = numbers()
    pre = torch.addmm(bias, x, encoder.T)
    top = torch.zeros_like(pre).scatter_(1, pre.topk(4, 1).indices, 1)
    assert torch.equal(dense_mask(select_topk(x, encoder, bias, 4)), top)
    monkeypatch.setattr(selection, "DENSE_FRACTION", 1.0)
    limits = torch.linspace(3, 12, D_SAE)
    active = select_above(x, encoder, bias, limits)
    assert not active.dense
    assert torch.equal(dense_mask(active), (pre > limits).float())
    assert torch.allclose(
        active.hidden_pre, pre[active.bags.long(), active.latents.long()], atol=1e-5
    )
    smallest = pre.flatten().topk(2 * len(x)).values[-1]
    for guess in (0.0, 0.7 * float(smallest), 2 * float(smallest)):  # none, good, too high
        active, least = select_batch_topk(x, encoder, bias, 2, guess)
        assert torch.equal(dense_mask(active), (pre >= smallest).float())
        assert least == pytest.approx(float(smallest), abs=1e-5)
        assert (active.bags.diff() >= 0).all()


@pytest.mark.parametrize("parts", [None, (4, 16, D_SAE)])
def test_sparse_gradients_equal_those_of_autograd_on_a_dense_reference(parts):
    x, *weights = numbers()
    active = select_topk(x, weights[0], weights[1], 5)
    mask = dense_mask(active)
    if parts:
        active = active.split(parts)
        assert torch.equal(dense_mask(active), mask)
    target = torch.randn(len(x), D_OUT, generator=torch.Generator().manual_seed(2))

    def outcome(sparse: bool):
        encoder, bias, decoder, out = (w.clone().requires_grad_() for w in weights)
        if sparse:
            values = sparse_encode(x, encoder, bias, active).relu()
            decoded = sparse_decode(values, decoder, out, active).view(len(x), -1, D_OUT).cumsum(1)
        else:
            z = torch.addmm(bias, x, encoder.T).relu() * mask
            ends = parts or (D_SAE,)
            decoded = torch.stack([z[:, :w] @ decoder[:w] + out for w in ends], 1)
        loss = ((decoded - target[:, None]) ** 3).mean()
        loss.backward()
        return [loss, encoder.grad, bias.grad, decoder.grad, out.grad]

    for got, expected in zip(outcome(True), outcome(False), strict=True):
        assert torch.allclose(
            got, expected, rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max())
        )


def test_too_many_active_latents_are_treated_as_a_matrix(monkeypatch):
    x, encoder, bias, decoder, out = numbers()
    grads = []
    for share in (1e-6, 1.0):  # always dense, never dense
        monkeypatch.setattr(selection, "DENSE_FRACTION", share)
        leaves = [w.clone().requires_grad_() for w in (encoder, bias, decoder, out)]
        active = select_above(x, encoder, bias, 0.5)
        assert active.dense == (share < 1)
        values = sparse_encode(x, leaves[0], leaves[1], active) * active.per_pair(leaves[1])
        sparse_decode(values, leaves[2], leaves[3], active).square().sum().backward()
        grads.append([w.grad for w in leaves] + [active.firing_counts(values.detach()).float()])
    for dense, sparse in zip(*grads, strict=True):
        assert torch.allclose(dense, sparse, rtol=1e-3, atol=1e-2)


def test_the_error_in_place_is_the_error():
    x, encoder, bias, decoder, out = (w.requires_grad_() for w in numbers())
    active = select_topk(x.detach(), encoder.detach(), bias.detach(), 5)
    target = torch.ones(len(x), D_OUT)

    def gradients(error) -> tuple:
        loss = error(sparse_encode(x.detach(), encoder, bias, active))
        return loss, *torch.autograd.grad(loss, [encoder, bias, decoder, out])

    fast = gradients(
        lambda v: mean_squared_norm(sparse_decode(v, decoder, out, active, minus=target))
    )
    slow = gradients(
        lambda v: (sparse_decode(v, decoder, out, active) - target).pow(2).sum(1).mean()
    )
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
