"""Quality of an SAE: against hand-worked numbers, plain forward passes, and exact baselines."""

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES

from helpers.errors import UserError
from helpers.forward.scoring import token_nll
from helpers.models import architecture_of
from helpers.sae import SAEConfig, build
from helpers.sae.quality import (
    loss_recovered,
    max_cosine_similarity,
    pca_fvu,
    random_dictionary_fvu,
    ratio,
    reconstruction,
)
from helpers.sae.splice import patched_ce_loss


def small_sae(d_in: int = 16, d_sae: int = 24, k: int = 4, **numbers):
    return build(SAEConfig("topk", d_in, d_sae, k=k, **numbers)).requires_grad_(False)


def text(n: int = 3, t: int = 7) -> torch.Tensor:
    return torch.randint(4, 60, (n, t), generator=torch.Generator().manual_seed(1))


def test_reconstruction_of_a_hand_made_sae():
    sae = small_sae(2, 3, 1)
    sae.set_tensors(
        {
            "W_enc": torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]]),
            "b_enc": torch.tensor([0.0, 0.0, -9.0]),
            "W_dec": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
            "b_dec": torch.zeros(2),
        }
    )
    x = torch.tensor([[2.0, 1.0], [0.0, 3.0], [4.0, 0.0]])  # rebuilt: (2, 0), (0, 3), (4, 0)
    got = reconstruction(sae, x, groups=np.array([0, 0, 1]))
    variance = (x - x.mean(0)).pow(2).sum().item()
    assert got.fvu.value == pytest.approx(1 / variance)
    assert got.fvu.n == 2 and got.n == 3
    assert got.l0.value == pytest.approx(1)
    assert got.feature_density == pytest.approx([2 / 3, 1 / 3, 0])
    assert got.dead == pytest.approx(1 / 3)


def test_a_perfect_sae_leaves_nothing_unexplained_and_a_constant_one_everything():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    sae = small_sae(4, 8, 8)
    eye = torch.cat([torch.eye(4), -torch.eye(4)])
    perfect = {"W_enc": eye.T, "b_enc": torch.zeros(8), "W_dec": eye, "b_dec": torch.zeros(4)}
    sae.set_tensors(perfect)
    assert reconstruction(sae, x).fvu.value == pytest.approx(0, abs=1e-12)
    sae.set_tensors(perfect | {"b_enc": torch.full((8,), -99.0), "b_dec": x.mean(0)})
    got = reconstruction(sae, x)
    assert got.fvu.value == pytest.approx(1, rel=1e-5)
    assert got.dead == 1 and got.l0.value == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["mlp_in", "mlp", "residual"])
def test_splicing_the_identity_changes_nothing(tiny_model, family, site):
    model = tiny_model(family)
    tokens = text()
    got = patched_ce_loss(model, tokens, {"same": lambda x: x}, layer=1, site=site, first=0)
    assert np.allclose(got["original"], token_nll(model, tokens).mean(1).numpy(), atol=1e-5)
    assert np.allclose(got["same"], got["original"], atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_splicing_a_zero_mlp_equals_zeroed_weights(tiny_model, family):
    model = tiny_model(family)
    tokens = text()
    zero = {"zero": torch.zeros_like}
    got = patched_ce_loss(model, tokens, zero, layer=1, site="mlp", first=0)["zero"]
    module = architecture_of(model).layers[1].mlp.out_module
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert np.allclose(got, token_nll(model, tokens).mean(1).numpy(), atol=1e-5)


def test_the_first_positions_are_left_alone(tiny_model):
    model = tiny_model()
    seen = []

    def kept(x):
        seen.append(x.clone())
        return torch.zeros_like(x)

    all_first = patched_ce_loss(model, text(), {"x": kept}, layer=0, site="mlp_in", first=7)
    assert np.allclose(all_first["x"], all_first["original"], atol=1e-6)
    assert seen[0].shape == (21, 16)


def test_a_transcoder_is_spliced_from_its_input_to_its_output(tiny_model):
    """One that computes what the MLP computes costs nothing."""
    model = tiny_model("llama")
    mlp = architecture_of(model).layers[1].mlp

    def same(x):
        hidden = torch.nn.functional.silu(x @ mlp.W_gate().T) * (x @ mlp.W_in().T)
        return hidden @ mlp.W_out().T

    got = patched_ce_loss(
        model, text(), {"same": same}, layer=1, site="mlp_in", target="mlp", first=0
    )
    assert np.allclose(got["same"], got["original"], atol=1e-6)


def test_loss_recovered_is_one_for_the_identity_and_compares_with_both_ablations(tiny_model):
    model = tiny_model()
    sae = small_sae(16, 32, 32, site="mlp", layer=1)
    eye = torch.cat([torch.eye(16), -torch.eye(16)])
    sae.set_tensors(
        {"W_enc": eye.T, "b_enc": torch.zeros(32), "W_dec": eye, "b_dec": torch.zeros(16)}
    )
    table = loss_recovered(model, sae, text(), mean=torch.ones(16)).set_index("reference")
    assert table["value"].to_numpy() == pytest.approx([1, 1], abs=1e-4)
    assert (table["n"] == 3).all()
    gone = patched_ce_loss(
        model, text(), {"one": torch.ones_like, "none": torch.zeros_like}, layer=1, site="mlp"
    )
    assert table.loc["mean", "ablated"] == pytest.approx(gone["one"].mean())
    assert table.loc["zero", "ablated"] == pytest.approx(gone["none"].mean())


def test_matches_find_permuted_latents_and_only_these():
    a, b = small_sae(seed=0), small_sae(seed=1)
    unrelated = max_cosine_similarity(a, b)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    b.W_dec.copy_(a.W_dec[order])
    assert max_cosine_similarity(a, b) == pytest.approx(np.ones(24), abs=1e-6)
    assert unrelated.max() < 0.95
    with pytest.raises(UserError, match="no latents in common"):
        max_cosine_similarity(a, small_sae(8))


def test_principal_components_leave_the_small_eigenvalues():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 5, generator=draw) * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    values = torch.linalg.eigvalsh(torch.cov(x.T.double())).flip(0)
    expected = [float(values[r:].sum() / values.sum()) for r in (0, 1, 3, 5)]
    assert pca_fvu(x, x, [0, 1, 3, 5]) == pytest.approx(expected, abs=1e-6)


def test_a_random_dictionary_is_a_least_squares_fit():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    full = random_dictionary_fvu(x, x, d_sae=64, k=3)
    assert full == pytest.approx(0, abs=1e-3)  # three directions span the space
    one = random_dictionary_fvu(x, x, d_sae=1, k=1)
    row = torch.nn.functional.normalize(
        torch.randn(1, 3, generator=torch.Generator().manual_seed(0)), dim=1
    )
    rest = x - x.mean(0)
    left = rest - (rest @ row.T) * row
    assert one == pytest.approx(float(left.pow(2).sum() / rest.pow(2).sum()), abs=1e-4)
    with pytest.raises(UserError, match="cannot write with 4"):
        random_dictionary_fvu(x, x, d_sae=64, k=4)


def test_ratio_is_of_sums_not_a_mean_of_ratios():
    got = ratio(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.ones(5))
    assert (got.value, got.n) == (3.0, 5)
    assert (got.low, got.high) == pytest.approx((3 - 2.776 / 2**0.5, 3 + 2.776 / 2**0.5), abs=1e-3)
    uneven = ratio(np.array([1.0, 6.0]), np.array([1.0, 2.0]))
    assert uneven.value == pytest.approx(7 / 3)  # not (1 + 3) / 2
    assert np.isnan(uneven.low)


def test_vectors_of_another_width_are_refused():
    with pytest.raises(UserError, match="8 wide and the SAE reads 16"):
        reconstruction(small_sae(), torch.zeros(2, 8))
    with pytest.raises(UserError, match="no vectors"):
        reconstruction(small_sae(), torch.zeros(0, 16))
