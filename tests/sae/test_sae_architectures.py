"""Each architecture's loss against its paper's formula written out densely."""

import math

import pytest
import torch

from helpers.errors import UserError
from helpers.sae import ARCHITECTURES, SAEConfig, build, selection
from helpers.sae.jumprelu import jump
from helpers.sae.losses import auxk_loss

NUMBERS = {
    "relu": {"l1_coefficient": 0.3},
    "gated": {"l1_coefficient": 0.3},
    "topk": {"k": 3},
    "batch_topk": {"k": 3},
    "jumprelu": {"l0_coefficient": 0.3, "jumprelu_bandwidth": 0.5},
    "matryoshka": {"k": 3, "matryoshka_widths": (4, 16, 32)},
}
X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))


def make(architecture: str, **more):
    """An SAE with every parameter somewhere of its own."""
    sae = build(SAEConfig(architecture, d_in=8, d_sae=32, **NUMBERS[architecture] | more))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in sae.parameters():
            p += 0.3 * torch.randn(p.shape, generator=draw)
        if architecture == "jumprelu":
            sae.log_threshold.copy_(torch.linspace(-1, 0.5, 32))
        sae.normalize_decoder()
    return sae


def by_hand(sae, x, y):
    """(loss, mse) as the papers write them, with plain dense autograd."""
    cfg = sae.cfg
    pre = x @ sae.encoder.T + sae.b_enc
    squared = lambda z, W, b: (y - z @ W - b).pow(2).sum(1).mean()  # noqa: E731
    W, b = sae.W_dec, sae.b_dec
    if cfg.architecture == "relu":
        z = pre.relu()
        mse = squared(z, W, b)
        return mse + cfg.l1_coefficient * z.sum(1).mean(), mse
    if cfg.architecture == "gated":
        magnitude = (x @ (sae.encoder * sae.log_gain.exp()[:, None]).T + sae.b_mag).relu()
        mse = squared(magnitude * (pre > 0), W, b)
        taught = squared(pre.relu(), W.detach(), b.detach())
        return mse + cfg.l1_coefficient * pre.relu().sum(1).mean() + taught, mse
    if cfg.architecture == "topk":
        top = pre.topk(cfg.k, 1)
        mse = squared(torch.zeros_like(pre).scatter(1, top.indices, top.values.relu()), W, b)
        return mse, mse
    kept = pre.relu() * (pre >= pre.flatten().topk(cfg.k * len(x)).values[-1])
    if cfg.architecture == "batch_topk":
        mse = squared(kept, W, b)
        return mse, mse
    nested = [squared(kept[:, :w], W[:w], b) for w in cfg.matryoshka_widths]
    return sum(nested), nested[-1]


@pytest.mark.parametrize("share", [1e-9, 1.0], ids=["dense", "sparse"])
@pytest.mark.parametrize("transcodes", [False, True], ids=["sae", "transcoder"])
@pytest.mark.parametrize("architecture", [a for a in NUMBERS if a != "jumprelu"])
def test_loss_and_gradients_are_the_papers(architecture, transcodes, share, monkeypatch):
    monkeypatch.setattr(selection, "DENSE_FRACTION", share)
    sae = make(architecture, d_out=6 if transcodes else 8, site="mlp_in", target="mlp")
    y = Y if transcodes else X
    got = sae.loss(X, y)
    got.total.backward()
    grads = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    loss, mse = by_hand(sae, X, y)
    loss.backward()
    assert got.total.item() == pytest.approx(loss.item(), rel=1e-5)
    assert got.mse.item() == pytest.approx(mse.item(), rel=1e-5)
    for name, p in sae.named_parameters():
        assert torch.allclose(grads[name], p.grad, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("share", [1e-9, 1.0], ids=["dense", "sparse"])
def test_jumprelus_loss_and_straight_through_gradients(share, monkeypatch):
    """Values by hand; the threshold's gradient by the paper's equations 11 and 12, pair by pair."""
    monkeypatch.setattr(selection, "DENSE_FRACTION", share)
    sae = make("jumprelu")
    got = sae.loss(X, X)
    got.total.backward()
    with torch.no_grad():
        pre, theta = sae.hidden_pre(X), sae.threshold
        z = pre * (pre > theta)
        error = z @ sae.W_dec + sae.b_dec - X
        mse = error.pow(2).sum(1).mean()
        assert got.mse.item() == pytest.approx(mse.item(), rel=1e-5)
        l0 = (pre > theta).sum(1).float().mean()
        assert got.total.item() == pytest.approx((mse + 0.3 * l0).item(), rel=1e-5)
        near = ((pre - theta).abs() < 0.25).float() / 0.5
        to_z = 2 * error @ sae.W_dec.T / len(X)
        to_theta = (-(theta * to_z + 0.3 / len(X)) * near).sum(0)
        to_pre = to_z * (pre > theta)
    assert torch.allclose(sae.log_threshold.grad, to_theta * theta, rtol=1e-3, atol=1e-5)
    assert torch.allclose(sae.encoder.grad, to_pre.T @ X, rtol=1e-3, atol=1e-4)


def test_jump_at_three_points():
    theta = torch.tensor([1.0, 1.0, 1.0], requires_grad=True)
    value, active = jump(torch.tensor([0.8, 1.2, 3.0]), theta, 1.0)
    assert value.tolist() == pytest.approx([0, 1.2, 3.0])
    (2 * value.sum() + active.sum()).backward()
    assert theta.grad.tolist() == [-3, -3, 0]  # -(θ·2 + 1)/ε within ε/2 of θ, else nothing


def test_dead_latents_learn_what_the_others_leave_over():
    sae = make("topk")
    dead = torch.arange(6)
    error = torch.randn(40, 8, generator=torch.Generator().manual_seed(5), requires_grad=True)
    loss = auxk_loss(sae, X, error, dead)
    pre = X @ sae.encoder[:6].T + sae.b_enc[:6]
    top = pre.topk(4, 1)  # half of d_out
    z = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    by_hand = (error - z @ sae.W_dec[:6]).pow(2).sum() / error.pow(2).sum() / 32
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    loss.backward()
    assert error.grad is None  # the live latents take no part
    assert sae.encoder.grad[6:].abs().sum() == 0 < sae.encoder.grad[:6].abs().sum()
    assert auxk_loss(sae, X, error, dead[:0]) == 0


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_the_output_is_the_latents_decoded(architecture):
    sae = make(architecture)
    if architecture in ("batch_topk", "matryoshka"):
        sae.threshold.fill_(1.0)
    z = sae.eval().encode(X)
    assert torch.allclose(sae(X), z @ sae.W_dec + sae.b_dec, atol=1e-5)


def test_batch_topks_threshold_follows_the_smallest_kept(monkeypatch):
    sae = make("batch_topk").train()
    sae.loss(X, X)
    smallest = sae.hidden_pre(X).flatten().topk(3 * len(X)).values[-1].item()
    assert sae.threshold.item() == pytest.approx(smallest, rel=1e-5)
    sae.loss(2 * X, 2 * X)
    second = sae.hidden_pre(2 * X).flatten().topk(3 * len(X)).values[-1].item()
    assert sae.threshold.item() == pytest.approx(0.99 * smallest + 0.01 * second, rel=1e-5)
    sae.eval()
    assert (sae.encode(X) != 0).sum(1).float().mean().item() == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_folding_the_training_units_changes_no_reconstruction(architecture):
    sae = make(architecture, d_out=6, site="mlp_in", target="mlp").eval()
    if architecture in ("batch_topk", "matryoshka"):
        sae.threshold.fill_(1.0)
    center, target = torch.linspace(-1, 1, 8), torch.linspace(2, 3, 6)
    before = sae((X - center) * 0.7) / 5 + target
    active = sae.encode((X - center) * 0.7) > 0
    with torch.no_grad():
        sae.fold_normalization(center, 0.7, target, 5.0)
    assert torch.allclose(sae(X), before, atol=1e-5)
    assert torch.equal(sae.encode(X) > 0, active)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(32))


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"architecture": "topk", "k": 65}, "k is 65, but the dictionary has only 64"),
        ({"architecture": "topk"}, "needs k"),
        ({"architecture": "topp", "k": 3}, "no SAE architecture 'topp'; choose from relu"),
        ({"architecture": "topk", "k": 3, "d_sae": 0}, "d_sae of at least 1"),
        (
            {"architecture": "matryoshka", "k": 3, "matryoshka_widths": [8, 32]},
            "end at the dictionary's 64",
        ),
    ],
)
def test_impossible_sizes_are_told_in_one_sentence(numbers, sentence):
    with pytest.raises(UserError, match=sentence):
        build(SAEConfig(**{"d_in": 8, "d_sae": 64} | numbers))


def test_thresholds_start_at_the_papers():
    sae = build(SAEConfig("jumprelu", d_in=8, d_sae=4, l0_coefficient=1.0))
    assert sae.threshold.tolist() == pytest.approx([0.001] * 4)
    assert sae.cfg.jumprelu_bandwidth == 0.03
    assert math.isclose(sae.W_dec[0].norm().item(), 1, rel_tol=1e-6)
