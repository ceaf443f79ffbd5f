"""The sparse kernels: the same selection, values and gradients as a dense computation."""

import pytest
import torch

from helpers.sae import selection
from helpers.sae.kernels import mean_square, read, write
from helpers.sae.selection import pick_above, pick_batch_top, pick_top, top_k

N, D_IN, D_SAE, D_OUT = 50, 12, 64, 10


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(selection, "PLAIN", 8)  # so that the staged selection has stages
    monkeypatch.setattr(selection, "BLOCK_BYTES", 1)  # and the encoder blocks


def numbers(seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    sizes = [(N + 50, D_IN), (D_SAE, D_IN), (D_SAE,), (D_SAE, D_OUT), (D_OUT,)]
    return [torch.randn(*s, generator=draw, dtype=torch.float32) for s in sizes]


def dense_mask(code) -> torch.Tensor:
    mask = torch.zeros(code.n, D_SAE)
    mask[code.bags.long() // code.parts, code.latents.long()] = 1
    return mask


@pytest.mark.parametrize(("width", "k"), [(64, 3), (4096, 32), (1000, 7), (63, 5)])
def test_staged_selection_finds_the_largest(width, k):
    pre = torch.randn(40, width, generator=torch.Generator().manual_seed(1))
    values, where = top_k(pre, k)
    assert torch.equal(values.sort(1, descending=True).values, pre.topk(k, 1).values)
    assert torch.equal(pre.gather(1, where), values)


def test_selections_are_those_of_their_definitions(monkeypatch):
    x, encoder, bias, _, _ = numbers()
    pre = torch.addmm(bias, x, encoder.T)
    top = torch.zeros_like(pre).scatter_(1, pre.topk(4, 1).indices, 1)
    assert torch.equal(dense_mask(pick_top(x, encoder, bias, 4)), top)
    monkeypatch.setattr(selection, "DENSE", 1.0)
    limits = torch.linspace(3, 12, D_SAE)
    code = pick_above(x, encoder, bias, limits)
    assert not code.dense
    assert torch.equal(dense_mask(code), (pre > limits).float())
    assert torch.allclose(code.pre, pre[code.bags.long(), code.latents.long()], atol=1e-5)
    smallest = pre.flatten().topk(2 * len(x)).values[-1]
    for guess in (0.0, 0.7 * float(smallest), 2 * float(smallest)):  # none, good, too high
        code, least = pick_batch_top(x, encoder, bias, 2, guess)
        assert torch.equal(dense_mask(code), (pre >= smallest).float())
        assert least == pytest.approx(float(smallest), abs=1e-5)
        assert (code.bags.diff() >= 0).all()


@pytest.mark.parametrize("parts", [None, (4, 16, D_SAE)])
def test_sparse_gradients_equal_those_of_autograd_on_a_dense_reference(parts):
    x, *weights = numbers()
    code = pick_top(x, weights[0], weights[1], 5)
    mask = dense_mask(code)
    if parts:
        code = code.split(parts)
        assert torch.equal(dense_mask(code), mask)
    target = torch.randn(len(x), D_OUT, generator=torch.Generator().manual_seed(2))

    def outcome(sparse: bool):
        encoder, bias, decoder, out = (w.clone().requires_grad_() for w in weights)
        if sparse:
            values = read(x, encoder, bias, code).relu()
            written = write(values, decoder, out, code).view(len(x), -1, D_OUT).cumsum(1)
        else:
            z = torch.addmm(bias, x, encoder.T).relu() * mask
            ends = parts or (D_SAE,)
            written = torch.stack([z[:, :w] @ decoder[:w] + out for w in ends], 1)
        loss = ((written - target[:, None]) ** 3).mean()
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
        monkeypatch.setattr(selection, "DENSE", share)
        leaves = [w.clone().requires_grad_() for w in (encoder, bias, decoder, out)]
        code = pick_above(x, encoder, bias, 0.5)
        assert code.dense == (share < 1)
        values = read(x, leaves[0], leaves[1], code) * code.per_pair(leaves[1])
        write(values, leaves[2], leaves[3], code).square().sum().backward()
        grads.append([w.grad for w in leaves] + [code.fired(values.detach()).float()])
    for dense, sparse in zip(*grads, strict=True):
        assert torch.allclose(dense, sparse, rtol=1e-3, atol=1e-2)


def test_the_error_in_place_is_the_error():
    x, encoder, bias, decoder, out = (w.requires_grad_() for w in numbers())
    code = pick_top(x.detach(), encoder.detach(), bias.detach(), 5)
    target = torch.ones(len(x), D_OUT)

    def gradients(error) -> tuple:
        loss = error(read(x.detach(), encoder, bias, code))
        return loss, *torch.autograd.grad(loss, [encoder, bias, decoder, out])

    fast = gradients(lambda v: mean_square(write(v, decoder, out, code, minus=target)))
    slow = gradients(lambda v: (write(v, decoder, out, code) - target).pow(2).sum(1).mean())
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
