"""Methods that remove SAE latents of a text, with a small SAE made by hand."""

import pytest
import torch
from two_languages import bilingual, bilingual_folder, language_request  # noqa: F401

from helpers.errors import UserError
from helpers.forward.activations import cache_activations
from helpers.methods import load_unlearning, unlearn
from helpers.methods.fitting.corpus_latents import CorpusLatentsHparams, latents_of_corpus
from helpers.methods.fitting.retain_budget import RetainBudget
from helpers.models import architecture_of, model_hash
from helpers.sae import SAEConfig, build, save_sae

SMALL = {"n_tokens": 600, "n_budget_tokens": 400, "retain_rise": 0.3, "n_latents": 4}
METHODS = ("sae_clamp_text", "sae_projection_text")


def planted(model, site: str, folder, layer: int = 1):
    """An SAE whose latent 5 is active on language a alone; 7 is active everywhere, the rest never.

    Latent 5 has the direction in which the mean activations of both languages differ.
    """
    request = language_request()
    inside, outside = (
        cache_activations(
            model,
            [d.text for d in list(corpus)[:8]],
            sites=[site],
            layers=[layer],
            positions=[list(range(1, 40))] * 8,
        )[site, layer]
        for corpus in (request.forget, request.retain[0])
    )
    direction = torch.nn.functional.normalize(inside.mean(0) - outside.mean(0), dim=0)
    sae = build(
        SAEConfig("relu", d_in=16, d_sae=12, site=site, layer=layer, model_hash=model_hash(model))
    )
    with torch.no_grad():
        sae.b_enc.fill_(-1e3)
        sae.encoder[5] = sae.W_dec[5] = direction
        sae.b_enc[5] = -(outside @ direction).quantile(0.9)
        sae.b_enc[7] = 1e3
    save_sae(sae, folder)
    return direction


@pytest.mark.parametrize("site", ["mlp_in", "mlp"])
def test_the_selective_latent_is_chosen(bilingual, site, tmp_path):  # noqa: F811
    model = bilingual()
    planted(model, site, tmp_path / "sae")
    hparams = CorpusLatentsHparams(**SMALL, saes=(str(tmp_path / "sae"),), max_retain_frequency=0.4)
    budget = RetainBudget(model, language_request(), hparams)
    (chosen,) = latents_of_corpus(model, budget, hparams, "it")
    assert chosen.latents.tolist() == [5] and chosen.mean_activation[0] > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("site", ["mlp_in", "mlp"])
def test_it_forgets_within_the_budget_and_travels(bilingual, method, site, tmp_path):  # noqa: F811
    model = bilingual()
    planted(model, site, tmp_path / "sae")
    before, given = model_hash(model), {"saes": (str(tmp_path / "sae"),)}
    edit = unlearn(model, language_request(), method, **SMALL | given, max_retain_frequency=0.4)
    assert model_hash(model) == before
    notes = edit.delta.notes
    assert notes["after"]["forget"] > notes["before"]["forget"]
    assert notes["after"]["retain"]["b"] <= 1.3 * notes["before"]["retain"]["b"]
    edit.save(tmp_path / "it.safetensors")
    tokens = torch.tensor([[5, 6, 7, 8, 9]])
    with edit.applied(model):
        changed = model._module(tokens).logits
    with load_unlearning(tmp_path / "it.safetensors").applied(model):
        assert torch.equal(model._module(tokens).logits, changed)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("site", ["mlp_in", "mlp"])
def test_at_strength_one_nothing_is_left_along_the_latent(
    grown_model, family, site, tmp_path, monkeypatch
):
    model = grown_model(family)
    monkeypatch.setattr("helpers.methods.surgery.sae_projection_text.STRENGTHS", torch.ones(1))
    monkeypatch.setattr(RetainBudget, "allows", lambda *args, **how: True)
    direction = planted(model, site, tmp_path / "sae")
    given = {"saes": (str(tmp_path / "sae"),), "max_retain_frequency": 1.0}
    edit = unlearn(model, language_request(), "sae_projection_text", **SMALL | given)
    assert edit.delta.notes["latents"][0]["latents"] == [5]
    mlp = architecture_of(model).layers[1].mlp
    with edit.applied(model):
        weights = [mlp.W_out().T] if site == "mlp" else [mlp.W_in(), mlp.W_gate()]
        for weight in weights:
            if weight is not None:
                assert (weight.detach() @ direction).abs().max() < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_what_it_cannot_use_is_told_in_one_sentence(bilingual, method, tmp_path):  # noqa: F811
    model, request = bilingual(), language_request()
    with pytest.raises(UserError, match=f"{method} needs SAEs"):
        unlearn(model, request, method)
    planted(model, "mlp", tmp_path / "sae")
    folder = str(tmp_path / "sae")
    with pytest.raises(UserError, match="Two SAEs read 'mlp' of layer 1"):
        unlearn(model, request, method, saes=(folder, folder), max_retain_frequency=0.4)
    with pytest.raises(UserError, match=r"at most 0.00% of the retained tokens: train SAEs"):
        unlearn(model, request, method, saes=(folder,), max_retain_frequency=0.0)
