"""The table of latents that a reader searches."""

import numpy as np
import torch

from helpers.plots.dashboards import Context, Dashboard
from helpers.plots.latent_table import best_latents, latent_table


def test_each_concept_has_its_best_latents_and_no_latent_stands_twice():
    f1 = torch.tensor([[0.2, 0.9, 0.0, 0.5], [0.1, 0.95, 0.3, 0.0]])
    table = best_latents(f1, ["France", "Peru"], k=2)
    found = [tuple(row) for row in table[["latent", "concept"]].to_numpy()]
    assert found == [(3, "France"), (1, "Peru"), (2, "Peru")]


def test_a_latent_that_detects_nothing_is_left_out():
    assert best_latents(torch.zeros(1, 3), ["France"]).empty


def test_contexts_are_lines_with_the_peak_in_quotes():
    tokens = tuple(f" w{i}" for i in range(20))
    contexts = (Context(tokens, (0.0,) * 20, 10), Context(("<b>", "\nx"), (1.0, 0.0), 0))
    boards = [
        Dashboard("", c, np.array([0.0, 2.0]), np.ones(1), 0.01, 9, (" a", "\n"), ())
        for c in (contexts, ())
    ]
    chosen = best_latents(torch.tensor([[0.5, 0.4]]), ["France"])
    table = latent_table(chosen, boards)
    first, second = table["strongest on"][0].split("\n")
    assert first == "… w2 w3 w4 w5 w6 w7 w8 w9 «w10» w11 w12 w13 w14 …"
    assert second == "… «<b>» x …"
    assert table["promotes"][0] == "a ␣"
    assert list(table["highest"]) == ["2.00", "–"]
