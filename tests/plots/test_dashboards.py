"""Dashboards: the right contexts and numbers, and HTML that is whole and loads nothing."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from helpers.errors import UserError
from helpers.forward.harvest import harvest
from helpers.plots.dashboards import Context, Dashboard, dashboards
from helpers.sae import SAEConfig, build


@pytest.fixture
def made(tiny_model, tmp_path):
    """A model, an SAE with three active latents, the activations."""
    model = tiny_model()
    tokens = torch.randint(4, 60, (6, 12), generator=torch.Generator().manual_seed(0))
    shards = harvest(model, tokens, sites=["mlp_in"], layers=[1], folder=tmp_path / "shards")
    cfg = SAEConfig("topk", 16, 12, k=3, site="mlp_in", layer=1, seed=3)
    return model, build(cfg).requires_grad_(False), shards


def test_contexts_are_the_strongest_one_a_sequence(made):
    model, sae, shards = made
    x = torch.from_numpy(np.array(shards["mlp_in", 1], dtype=np.float32))
    z = sae.encode(x)
    latent = int((z > 0).sum(0).argmax())
    board = dashboards(model, sae, shards, [latent], n_contexts=4)[0]
    column = z[:, latent].numpy()
    assert board.active == pytest.approx((column > 0).mean())
    assert board.counts.sum() == (column > 0).sum() and board.n_tokens == len(column)
    by_sequence = {}
    for row, value in enumerate(column):
        sequence, _ = shards.source(row)
        by_sequence[sequence] = max(by_sequence.get(sequence, 0.0), float(value))
    best = sorted((v for v in by_sequence.values() if v > 0), reverse=True)[:4]
    assert [max(c.values) for c in board.contexts] == pytest.approx(best)
    row = int(column.argmax())
    sequence, position = shards.source(row)
    first = board.contexts[0]
    decoded = model.tokenizer.decode([int(shards.tokens[sequence, position])])
    assert first.tokens[first.peak] == decoded
    assert first.values[first.peak] == pytest.approx(float(column[row]))


def test_the_word_at_the_peak_is_whole():
    tokens = ("\n", "The", " Fr", "ance", "'s", " land", ",")
    for peak, word in ((3, "France"), (2, "France"), (5, "land"), (1, "The"), (6, ",")):
        assert Context(tokens, (0.0,) * 7, peak).word == word


class Checker(HTMLParser):
    """Tags must be closed in order, and nothing may be loaded or run."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "img", "iframe")
        assert not {"src", "href", "onclick"} & {name for name, _ in attributes}
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag == "rect"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_tokens_are_escaped_and_the_page_is_whole(tmp_path):
    context = Context(("<b>", " & ", "</script>", "\n"), (0.0, 1.0, 2.0, 0.0), 2)
    board = Dashboard(
        "a <feature>",
        (context,),
        np.linspace(0, 2, 31),
        np.ones(30),
        0.01,
        1000,
        ("<i>", ""),
        ("\n",),
    )
    checker = Checker()
    checker.feed(board._repr_html_())
    checker.close()
    assert not checker.open
    assert "<b> & </script>↵" in checker.text and "a <feature>" in checker.text
    board.save(tmp_path / "feature.html")
    page = (tmp_path / "feature.html").read_text()
    assert page.startswith("<!doctype html>") and board.html() in page
    assert not re.search(r"https?://", page)


def test_a_latent_that_is_never_active_has_an_empty_page(made):
    model, sae, shards = made
    sae.b_enc[5] = -1e3
    board = dashboards(model, sae, shards, [5])[0]
    assert board.active == 0 and board.contexts == () and board.counts.sum() == 0
    checker = Checker()
    checker.feed(board.html())
    assert "0.00%" in checker.text


def test_a_page_is_small(made):
    model, sae, shards = made
    for board in dashboards(model, sae, shards, [0, 1, 2]):
        assert len(board.html().encode()) < 30_000


def test_unknown_latents_and_other_models_are_refused(made, tiny_model):
    model, sae, shards = made
    with pytest.raises(UserError, match="no latent 12"):
        dashboards(model, sae, shards, [12])
    other = tiny_model("gpt2")
    with pytest.raises(UserError, match="another model"):
        dashboards(other, sae, shards, [0])
