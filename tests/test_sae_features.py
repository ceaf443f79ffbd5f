"""Detection of concepts by single units, and what latents do: against plain reference code."""

import numpy as np
import pytest
import torch
from conftest import FAMILIES

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.sae.detection import both_signs, choose_and_judge, f1_at, score_units
from helpers.sae.sightings import Sightings, read, sightings
from helpers.tracing import capture, selectivity


def plain_f1(values: np.ndarray, inside: np.ndarray) -> float:
    """The best F1 over every threshold that leaves something out."""
    best = 0.0
    for threshold in np.unique(values)[1:]:
        told = values >= threshold
        best = max(best, 2 * (told & inside).sum() / (told.sum() + inside.sum()))
    return best


@pytest.mark.parametrize("levels", [1, 3, 1000], ids=["constant", "many ties", "few ties"])
def test_scores_equal_plain_ones_for_every_unit_and_concept(levels):
    draw = torch.Generator().manual_seed(0)
    values = torch.randint(levels, (40, 7), generator=draw).float()
    inside = torch.zeros(3, 40)
    for concept in range(3):
        inside[concept, torch.randperm(40, generator=draw)[: 2 + 5 * concept]] = 1
    got = score_units(values, inside)
    for c in range(3):
        members = inside[c].bool()
        assert torch.allclose(got.auroc[c], selectivity(values[members], values[~members]))
        for u in range(7):
            expected = plain_f1(values[:, u].numpy(), members.numpy())
            assert got.f1[c, u].item() == pytest.approx(expected, abs=1e-6)
            if expected:
                told = (values[:, u] >= got.threshold[c, u]).float()
                assert f1_at(told, inside[c]).item() == pytest.approx(expected, abs=1e-6)


def test_units_are_chosen_on_training_data_and_judged_on_held_out():
    """Unit 0 is right by luck on training data, unit 1 on held-out data: the luck must show."""
    inside = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    train = torch.tensor([[2.0, 0.0], [2.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    held = train.flip(1)
    got = choose_and_judge(score_units(train, inside), held, inside).iloc[0]
    assert (got["unit"], got["train_auroc"], got["auroc"]) == (0, 1.0, 0.5)
    assert (got["f1_unit"], got["train_f1"], got["f1"]) == (0, 1.0, 0.0)
    only = choose_and_judge(score_units(train, inside), held, inside, candidates=np.array([1]))
    assert (only.iloc[0]["unit"], only.iloc[0]["auroc"]) == (1, 1.0)


def test_a_unit_that_is_low_on_the_concept_counts_with_its_sign_turned():
    inside = torch.tensor([[1.0, 0.0, 0.0]])
    values = torch.tensor([[-1.0], [0.0], [3.0]])
    assert score_units(both_signs(values), inside).auroc.tolist() == [[0.0, 1.0]]


def test_a_concept_without_sightings_is_told():
    with pytest.raises(UserError, match="missing for a concept"):
        score_units(torch.zeros(3, 2), torch.zeros(1, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_sightings_are_read_as_captured(tiny_model, family):
    model = tiny_model(family)
    prompts = [Prompt("w1 w2 w3 w4", subject="w3"), Prompt("w5 w3", subject="w3")]
    ids = tuple(tuple(model.tokenizer(p).input_ids) for p in prompts)
    seen = Sightings(
        ("w3",),
        ids,
        np.array([0, 1, 1]),
        np.array([2, 1, 0]),
        np.array([0, 0, -1]),
        np.array(["template", "template", "passage"]),
    )
    got = read(model, seen, sites={"mlp_in": [1], "neurons": [0, 2]})
    assert set(got) == {("mlp_in", 1), ("neurons", 0), ("neurons", 2)}
    for (site, layer), values in got.items():
        expected = capture(model, prompts, sites=[site], layers=[layer], position="subject")
        assert torch.allclose(values[:2], expected[site][:, 0], atol=1e-5)
    assert seen.inside().tolist() == [[1, 1, 0]]


def test_passages_are_cut_at_the_name_and_longer_names_are_not_mistaken(smollm):
    pairs = [ConceptPair(s, t) for s, t in (("Guinea", "Conakry"), ("Niger", "Niamey"))]
    prompts = {p.subject: p.prompts("train")[:2] for p in pairs}
    prompts["Equatorial Guinea"] = []
    prompts["Nigeria"] = []
    seen = sightings(smollm.tokenizer, prompts, split="train", n_mentions=5)
    assert (seen.concept == -1).sum() > 10
    for i in range(len(seen)):
        text = seen.text(smollm.tokenizer, i)
        if seen.concept[i] < 0:
            continue
        name = seen.names[seen.concept[i]]
        assert text.endswith(name)
        if name == "Guinea":
            assert not text.endswith("Equatorial Guinea")
    again = sightings(smollm.tokenizer, prompts, split="train", n_mentions=5)
    assert again.ids == seen.ids and (again.position == seen.position).all()
    held = sightings(smollm.tokenizer, prompts, split="heldout", n_mentions=5)
    assert not set(held.ids[4:]) & set(seen.ids[4:])
