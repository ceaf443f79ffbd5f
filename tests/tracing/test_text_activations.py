"""Firings in running text: activations, mentions and precision against plain computations."""

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES

from helpers.errors import UserError
from helpers.models import architecture_of
from helpers.tracing.text_activations import CONTEXT, TextActivations, precision, text_activations

NEURONS = [(2, 5), (0, 3), (2, 1), (-3, 7)]  # (layer, neuron), in no order
TEXTS = ["w1 w2 w3", "w4 w5 w6 w7 w8 w9 w10", "w11", "w3 w12"]


def plain_activations(model, text: str, neurons) -> np.ndarray:
    """What the output matrices are given, one text at a time, by hooks of torch."""
    seen = {}
    layers = architecture_of(model).layers
    hooks = [
        layer.mlp.out_module.register_forward_pre_hook(
            lambda _, given, i=i: seen.update({i: given[0].flatten(0, -2)})
        )
        for i, layer in enumerate(layers)
    ]
    with torch.inference_mode():
        model._module(torch.tensor([model.tokenizer(text).input_ids]))
    for hook in hooks:
        hook.remove()
    return torch.stack([seen[at % len(layers)][:, i] for at, i in neurons], -1).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_a_plain_capture_at_every_position_but_the_first(tiny_model, family):
    model = tiny_model(family)
    expected = np.concatenate([plain_activations(model, t, NEURONS)[1:] for t in TEXTS])
    found = text_activations(model, TEXTS, NEURONS)
    assert found.activations.shape == (2 + 6 + 0 + 1, 4)
    assert np.allclose(found.activations, expected, atol=1e-6)
    assert [token for token, _ in found.contexts] == [w for t in TEXTS for w in t.split()[1:]]
    assert not found.mentions.any()


def test_long_texts_are_read_up_to_max_tokens(tiny_model):
    model = tiny_model()
    text = " ".join(f"w{i}" for i in range(40))
    found = text_activations(model, [text, "w1 w2"], NEURONS, max_tokens=30)
    assert len(found.contexts) == len(found.mentions) == len(found.activations) == 29 + 1
    whole = plain_activations(model, text, NEURONS)
    assert np.allclose(found.activations[:29], whole[1:30], atol=1e-6)
    token, before = found.contexts[28]
    assert (token, before) == ("w29", text[: text.index("w29")][-CONTEXT:])
    assert found.contexts[29] == ("w2", "w1 ")


def test_mentions_are_all_tokens_of_a_name_in_any_form_that_begins_a_word(tiny_model):
    texts = ["w5 w1 w12 w2 w3 xw1 w4", "w1 w9 w1 w9. w2 w4"]
    found = text_activations(tiny_model(), texts, [(0, 0)], names=["w1", "w2 w3", "w9."])
    mentioned = {i for i, hit in enumerate(found.mentions) if hit}
    tokens = [token for token, _ in found.contexts]
    assert tokens == [*texts[0].split()[1:], *texts[1].split()[1:]]
    # w12 begins with the name w1, xw1 does not; "w2 w3" is two tokens; "w9." means a full stop
    assert [tokens[i] for i in sorted(mentioned)] == ["w1", "w12", "w2", "w3", "w1", "w9."]


def test_parts_of_a_word_of_the_real_tokenizer_are_mentions(smollm):
    text = "Of all the Frenchmen in France, nobody left Saint-Denis for Paris."
    found = text_activations(smollm, [text], [(0, 0)], names=["France", "Saint-Denis"])
    hit = [token for (token, _), yes in zip(found.contexts, found.mentions, strict=True) if yes]
    assert hit[0].strip() == "France"
    assert "".join(hit[1:]).strip() == "Saint-Denis"
    assert len(hit) > 3


def test_precision_by_hand():
    found = TextActivations(
        # a neuron that counts upward, one downward, one that never reaches its threshold
        activations=np.array([[2.0, -1, 0], [1, -3, 0], [3, 5, 0], [0.5, -2, 0]]),
        mentions=np.array([True, False, False, True]),
        contexts=[("w", "")] * 4,
    )
    share, count = precision(found, np.array([1.0, -2.0, 9.0]))
    # 2, 1 and 3 reach 1: one is a mention of three; -3 and -2 reach -2: one of two
    assert count.tolist() == [3, 2, 0]
    assert share[:2].tolist() == pytest.approx([1 / 3, 1 / 2])
    assert np.isnan(share[2])


@pytest.mark.parametrize(
    ("neurons", "sentence"),
    [
        ([(3, 0)], "no layer 3: this model has layers 0 to 2"),
        ([(0, 24)], "no neuron 24: this MLP has 0 to 23"),
        ([(0, -1)], "no neuron -1"),
    ],
)
def test_bad_input_is_told_in_one_sentence(tiny_model, neurons, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        text_activations(tiny_model(), TEXTS, neurons)
    assert "\n" not in str(caught.value)
