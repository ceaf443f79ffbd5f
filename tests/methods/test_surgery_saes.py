"""Edits along SAE latents, with a small SAE made by hand."""

import pytest
import torch
from small_edits import own_pair, seen, small_world, weights_after  # noqa: F401

from helpers.errors import UserError
from helpers.methods import unlearn
from helpers.methods.fitting.sae_latents import sae_states, specific_latents
from helpers.methods.surgery.pisces import rewrite_columns
from helpers.models import architecture_of, model_hash
from helpers.sae import SAEConfig, build, save_sae


def planted(model, site: str, folder):
    """An SAE of layer 1 whose latent 5 is what the subject has and others have not."""
    cfg = SAEConfig(
        "topk", k=12, d_in=16, d_sae=12, site=site, layer=1, model_hash=model_hash(model)
    )
    sae = build(cfg)
    inside, outside = sae_states(model, own_pair(), sae, n_subjects=8, seed=0)
    direction = inside.mean(0) - outside.mean(0)
    with torch.no_grad():
        sae.encoder[5] = direction / direction.norm()
        sae.W_dec[5] = direction / direction.norm()
        sae.b_enc[5] = -(outside @ sae.encoder[5]).mean()
    save_sae(sae, folder)
    return sae


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("site", ["mlp_in", "mlp"])
def test_the_latents_direction_is_gone_from_the_weights(tiny_model, tmp_path, family, site):
    model, pair = tiny_model(family), own_pair()
    sae = planted(model, site, tmp_path / "sae")
    made = unlearn(model, pair, "sae_direction", saes=(str(tmp_path / "sae"),))
    (note,) = made.delta.notes["latents"]
    direction = sae.W_dec[note["latents"][0]]
    mlp = architecture_of(model).layers[1].mlp
    after = weights_after(model, made)
    names = [mlp.out_name] if site == "mlp" else [n for n in (mlp.in_name, mlp.gate_name) if n]
    assert set(after) == set(names)
    for weight in after.values():
        weight = seen(mlp, weight)
        left = direction @ weight if site == "mlp" else weight @ direction
        assert left.abs().max() < 1e-6
    control = unlearn(model, pair, "random_latents", saes=(str(tmp_path / "sae"),))
    assert control.delta.notes["latents"][0]["latents"] != note["latents"]
    for name, change in made.delta.changes.items():
        other = control.delta.changes[name]
        assert other.rank == change.rank == 1
        assert torch.allclose(other.matrix().norm(), change.matrix().norm(), rtol=1e-4)


def test_the_subjects_latent_is_the_most_specific(tiny_model, tmp_path):
    model = tiny_model()
    sae = planted(model, "mlp_in", tmp_path / "sae")
    inside, outside = sae_states(model, own_pair(), sae, n_subjects=8, seed=0)
    assert specific_latents(sae, inside, outside, n=1).tolist() == [5]
    assert 5 not in specific_latents(sae, inside, outside, n=3, random=True, seed=1).tolist()
    with pytest.raises(UserError, match="n_latents is 99"):
        specific_latents(sae, inside, outside, n=99)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pisces_moves_a_column_along_the_feature_only(tiny_model, tmp_path, family):
    """v' = decode(z with z_f = −mu·max·sign) + (v − decode(encode(v))), for columns over tau.

    The sign is that of the neuron's activation, so that activation · column writes −z_f.
    """
    model = tiny_model(family)
    sae = planted(model, "mlp", tmp_path / "sae")
    mlp = architecture_of(model).layers[1].mlp
    signs = torch.randn(mlp.W_out().shape[1], generator=torch.Generator().manual_seed(0)).sign()
    change, columns = rewrite_columns(mlp, sae, torch.tensor([5]), signs, tau=0.6, mu=3.0)
    projection = (sae.encoder[5] @ mlp.W_out()).detach()
    over = projection.abs() > 0.6 * projection.abs().max()
    assert columns.tolist() == over.nonzero()[:, 0].tolist()
    difference = seen(mlp, change.matrix())
    assert not difference[:, ~over].any()
    for i in columns.tolist():
        v = mlp.W_out()[:, i].detach()
        z = sae.encode(v[None])[0].detach()
        code = z.clone()
        code[5] = -3.0 * projection.abs().max() * signs[i]
        decode = lambda c: sae.decode(c[None])[0].detach()  # noqa: E731
        expected = decode(code) + (v - decode(z))
        assert torch.allclose(v + difference[:, i], expected, atol=1e-5)


def test_bad_saes_are_told_in_one_sentence(tiny_model, tmp_path):
    model, pair = tiny_model(), own_pair()
    sae = planted(model, "mlp_in", tmp_path / "sae")
    folder = str(tmp_path / "sae")
    with pytest.raises(UserError, match="needs SAEs"):
        unlearn(model, pair, "sae_direction")
    with pytest.raises(UserError, match="autoencoders of mlp"):
        unlearn(model, pair, "pisces", saes=(folder,))
    save_sae(build(sae.cfg.replace(model_hash="0" * 16)), tmp_path / "other")
    with pytest.raises(UserError, match="another model"):
        unlearn(model, pair, "sae_direction", saes=(str(tmp_path / "other"),))
