"""Schematics: legible on a phone, with any names, and no text over another."""

import itertools

import matplotlib.pyplot as plt
import pytest

from helpers.plots import schematics
from helpers.plots.base import use_style

PHONE = 342  # pixels of a phone's text column
LEAST = 9  # pixels of type there
NAMES = {
    "as in the book": ("France", "Paris", "Germany", "Berlin"),
    "very long": ("Democratic Republic of the Congo", "Sri Jayawardenepura Kotte") * 2,
    "wide": ("MMMMMMMMMMMMMMMM",) * 4,
    "other scripts": ("مصر", "القاهرة", "日本", "東京"),
    "with markup": ("$x_{", r"\frac{1}{", "a\nb", "%$&#"),
}
PICTURES = {
    "mlp_as_memory": 2,
    "activation_patching": 4,
    "rank_one_update": 2,
    "appended_neuron": 2,
    "removal_under_attack": 2,
    "stitching": 2,
    "three_zeros": 2,
}


@pytest.fixture(params=PICTURES)
def drawn(request):
    """A function of names that draws one of the pictures in the book's style."""
    with plt.rc_context():
        use_style()
        draw, n_names = getattr(schematics, request.param), PICTURES[request.param]
        yield lambda *names: draw(*names[:n_names])
    plt.close("all")


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_words_cover_neither_each_other_nor_the_edge(drawn, names):
    figure = drawn(*names)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    edge = figure.bbox.padded(1)
    assert all(edge.contains(*corner) for box in boxes for corner in (box.min, box.max))
    overlapping = [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert not overlapping


def test_type_is_legible_on_a_phone(drawn):
    figure = drawn(*NAMES["as in the book"])
    shown = PHONE / (96 * figure.get_tightbbox().padded(0.1).width)  # scale of the page's pixels
    sizes = [text.get_fontsize() * 96 / 72 * shown for text in figure.axes[0].texts]
    assert min(sizes) >= LEAST


def test_a_picture_names_the_fact_of_the_run(drawn):
    figure = drawn("Japan", "Tokyo", "Peru", "Lima")
    written = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "Japan" in written and "Tokyo" in written
    assert "France" not in written and "Paris" not in written
