"""Units with keys from SAEs, with a small SAE made by hand."""

import pytest
import torch

from helpers.errors import UserError
from helpers.forward.scoring import answer_probability
from helpers.methods import unlearn
from helpers.methods.fitting.hparams import UnitEditHparams
from helpers.methods.fitting.latents_needed import n_latents_needed
from helpers.methods.fitting.negatives import negative_inputs, subject_inputs
from helpers.methods.fitting.sae_keys import (
    SELECTION_RULES,
    orthogonal_matching_pursuit,
    rank_encoder_rows,
)
from helpers.methods.fitting.units import contrastive_sets, discriminant
from helpers.models import model_hash
from helpers.plots.latents import describe_latents
from helpers.sae import SAEConfig, build, save_sae
from helpers.stats.auroc import auroc_by_unit

SETTINGS = {"target_prob": 0.02, "max_fpr": 0.1, "step_sizes": (0.2,) * 12}


@pytest.fixture
def planted(grown_model, own_pair, tmp_path):
    """A model, a contrastive set of its layer 1, and an SAE whose latent 5 detects the subject."""
    model = grown_model()
    ((_, negatives),) = negative_inputs(model, [own_pair], UnitEditHparams(), layers=[1])
    inputs = subject_inputs(model, [own_pair], layers=[1])
    data = next(contrastive_sets(inputs, negatives, 1))
    cfg = SAEConfig(
        "topk", d_in=16, d_sae=12, k=4, site="mlp_in", layer=1, model_hash=model_hash(model)
    )
    sae = build(cfg)
    with torch.no_grad():
        best = discriminant(data.mean_difference(), data.cov, shrinkage=0.01)
        sae.encoder[5] = best / best.norm()
    save_sae(sae, tmp_path / "sae")
    return model, data, sae, tmp_path / "sae"


def test_the_subjects_latent_is_found(planted):
    _, data, sae, _ = planted
    settings = {"n": 3, "shrinkage": 0.01, "seed": 0}
    rows, latents = rank_encoder_rows(sae, data, select="selective", **settings)
    assert latents[0] == 5
    assert auroc_by_unit(data.positives @ rows[5:6].T, data.negatives @ rows[5:6].T)[0] > 0.99
    drawn = rank_encoder_rows(sae, data, select="random", **settings)[1]
    assert len(set(drawn.tolist())) == 3
    other, _ = rank_encoder_rows(sae, data, select="untrained", **settings)
    assert other.shape == rows.shape and not torch.allclose(other, rows)
    with pytest.raises(UserError, match="no selection rule 'best'"):
        rank_encoder_rows(sae, data, select="best", **settings)


def test_every_row_of_a_pursuit_does_best_beside_those_before():
    """Every next row is the most alike, under Σ, to what a discriminant in the others leaves."""
    draw = torch.Generator().manual_seed(0)
    rows, gap = torch.randn(12, 6, generator=draw), torch.randn(6, generator=draw)
    half = torch.randn(6, 6, generator=draw).double()
    cov = half @ half.T + torch.eye(6)

    def residual(chosen):  # of what a discriminant can reach, after these rows
        r = rows[chosen].double()
        w = torch.linalg.solve(r @ cov @ r.T, r @ gap.double())
        return gap.double() - cov @ r.T @ w

    order = orthogonal_matching_pursuit(rows, gap, cov, n=40, shrinkage=0.0).tolist()
    assert len(order) == len(set(order)) == 6
    for k in range(6):
        rest = residual(order[:k])
        cosines = (rows.double() @ rest).abs() / (rows.double() @ cov * rows).sum(1).sqrt()
        cosines[order[:k]] = 0
        assert cosines.argmax() == order[k]
    assert residual(order).norm() < 1e-4 * gap.norm()  # six dimensions hold it all


def test_with_one_latent_the_key_is_its_encoder_row(planted, own_pair):
    model, _, sae, folder = planted
    settings = SETTINGS | {"n_latents": 1, "max_latents": 1}
    u = unlearn(model, own_pair, "sae_pair", saes=(str(folder),), **settings)
    gate = next(n for n in u.delta.changes if n.endswith("gate_proj.weight"))
    key = u.delta.changes[gate].appended[0]
    (note,) = u.delta.notes["latents"]
    row = sae.encoder[note["latents"][0]]
    assert torch.cosine_similarity(key, row, dim=0).abs() > 0.9999


def test_a_key_takes_latents_until_the_unit_detects_its_prompts(planted, own_pair):
    """Latents drawn at random need more of them than the one that was planted."""
    model, _, _, folder = planted
    used = {}
    for select in SELECTION_RULES:
        settings = SETTINGS | {"n_latents": 1, "max_latents": 12, "select": select}
        u = unlearn(model, own_pair, "sae_pair", saes=(str(folder),), **settings)
        recall = u.delta.notes["recall"]["1"]
        for share, note in zip(recall, u.delta.notes["latents"], strict=True):
            n = len(note["latents"])
            assert n in (1, 2, 4, 8, 12) and (share == 1 or n == 12)
            used.setdefault(select, []).append(n)
    assert used["selective"][0] == 1 < used["random"][0]

    needed = n_latents_needed(
        model,
        [own_pair],
        [str(folder)],
        hparams=UnitEditHparams(max_fpr=0.1),
        max_latents=12,
        min_activation=0.5,
    )
    for select, n_latents in needed.groupby("select")["n_latents"]:
        assert n_latents.tolist() == used[select]


def test_the_answer_comes_down(planted, own_pair):
    model, _, _, folder = planted
    prompts = own_pair.prompts("train")
    before = answer_probability(model, prompts)
    settings = SETTINGS | {"target_prob": 0.7 * float(before.min())}
    u = unlearn(model, own_pair, "sae_pair", saes=(str(folder),), n_latents=12, **settings)
    with u.applied(model):
        after = answer_probability(model, prompts)
    assert after.mean() < 0.9 * before.mean()


def test_its_latents_are_named_in_words(planted, own_pair, monkeypatch):
    model, _, _, folder = planted
    u = unlearn(model, own_pair, "sae_pair", saes=(str(folder),), n_latents=4, **SETTINGS)
    words = torch.randint(4, 60, (8, 16), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("helpers.plots.latents.corpus_tokens", lambda *a, **k: words)
    table = describe_latents(model, u, [str(folder)], n=2)
    assert len(table) == 2 and set(table["subject"]) == {"w40"}
    (note,) = u.delta.notes["latents"]
    heaviest = note["latents"][max(range(4), key=lambda j: abs(note["weights"][j]))]
    assert table["latent"][0] == heaviest and abs(table["weight"][0]) == 1
    assert all(w.startswith(("w", "nothing")) for w in table["strongest on"])


def test_bad_saes_are_refused(planted, own_pair, grown_model, tmp_path):
    model, _, sae, folder = planted
    with pytest.raises(UserError, match="needs SAEs"):
        unlearn(model, own_pair, "sae_pair")
    with pytest.raises(UserError, match="Two SAEs are of layer 1"):
        unlearn(model, own_pair, "sae_pair", saes=(str(folder), str(folder)))
    for change, sentence in (
        ({"site": "mlp"}, "reads 'mlp'"),
        ({"model_hash": "0" * 16}, "another model"),
        ({"layer": 7}, "no layer 7"),
    ):
        other = build(sae.cfg.replace(**change))
        save_sae(other, tmp_path / "other")
        with pytest.raises(UserError, match=sentence):
            unlearn(model, own_pair, "sae_pair", saes=(str(tmp_path / "other"),))
