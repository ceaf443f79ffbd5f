"""Negatives: which positions are read, to whom they belong, and in which order."""

import sys
from types import SimpleNamespace

import pytest
import torch

from helpers.facts import ConceptPair
from helpers.facts.comparison import compared_facts
from helpers.facts.relations import SPLITS, Template
from helpers.forward.activations import cache_activations
from helpers.methods.fitting import negatives
from helpers.methods.fitting.negatives import MaskedSequences, mentions, relation_sequences
from helpers.models import architecture_of


class Letters:
    """Just enough of a model to tokenise: a token a character."""

    class tokenizer:  # noqa: N801
        chat_template = None
        bos_token = None

        def __call__(self, text, **_):
            own = {"input_ids": [ord(c) for c in text], "sequence_ids": lambda _: [0] * len(text)}
            return type("Out", (), own)

    tokenizer = tokenizer()
    _module = SimpleNamespace(  # reads texts of any length
        config=SimpleNamespace(get_text_config=lambda: None),
        get_input_embeddings=lambda: SimpleNamespace(weight=torch.empty(sys.maxunicode + 1, 0)),
    )


def test_mentions_end_where_the_name_ends():
    assert mentions([1, 2, 3, 1, 2], (1, 2)) == [2, 5]
    assert mentions([1], (1, 2)) == []


def test_every_distinct_prefix_counts_once_and_all_countries_are_there():
    capitals = compared_facts(ConceptPair("Germany", "Berlin"))
    sequences = relation_sequences(Letters, capitals, n_prompts_per_subject=5)
    prefixes = [ids[: p + 1] for ids, at in sequences.positions for p in at]
    assert len(prefixes) == len(set(prefixes))
    assert {"France", "Japan", "Chad"} <= set(sequences.subjects)


def test_a_pairs_own_is_its_prompts_from_the_subject_on_and_every_mention():
    capitals = compared_facts(ConceptPair("Germany", "Berlin"))
    sequences = relation_sequences(Letters, capitals, n_prompts_per_subject=5)
    belonging = sequences.belonging_to(Letters, [ConceptPair("Germany", "Berlin")])
    all_ids = [ids for ids, _ in sequences.positions]
    subject_of = dict(zip(all_ids, sequences.subjects, strict=True))
    for ids, at in belonging:
        text = "".join(map(chr, ids))
        start = text.rfind("Germany")
        assert start >= 0
        for p in at:
            inside = any(e - 8 <= p < e for e in mentions(ids, [ord(c) for c in "Germany"]))
            assert inside or (subject_of[ids] == "Germany" and p >= start)
    excluded = {(ids, p) for ids, at in belonging for p in at}
    for ids, at in sequences.positions:  # nothing that ends in the name is left among the others
        for end in mentions(ids, [ord(c) for c in "Germany"]):
            assert end - 1 not in at or (ids, end - 1) in excluded


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_inputs_stand_in_the_order_of_their_positions(tiny_model, monkeypatch, tmp_path, family):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))
    model = tiny_model(family)
    positions = [((5, 9, 7, 8, 30), [1, 4]), ((6, 7), [0, 1]), ((11, 12, 13, 14), [3])]
    sequences = MaskedSequences(positions, ("", "", ""))
    files = negatives._cached_inputs(model, sequences, [0, 2])
    mlp = architecture_of(model).layers[2].mlp
    module = mlp.gate_module or mlp.in_module
    expected, inputs = [], []
    hook = module.register_forward_pre_hook(lambda m, x: inputs.append(x[0].view(-1, 16)))
    for ids, at in positions:
        inputs.clear()
        with torch.inference_mode():
            model._module(torch.tensor([ids]))
        expected.append(inputs[0][at])
    hook.remove()
    cached = negatives.read_tensors(files[2])[0]["x"].float()
    torch.testing.assert_close(cached, torch.cat(expected), rtol=2e-3, atol=2e-3)
    assert negatives._cached_inputs(model, sequences, [2])[2] == files[2]


def test_a_name_that_begins_a_text_is_told_apart_by_itself(tiny_model):
    templates = (
        Template("{} w9 w8"),
        Template("{} w7 w8"),
        Template("w9 {} w8"),
        Template("w7 w9 {}"),
    )

    def sizes(name, **options):
        pair = ConceptPair(name, "w20", "own", templates=dict.fromkeys(SPLITS, templates))
        [variants] = negatives.subject_inputs(tiny_model(), [pair], layers=[1], **options)
        return [len(group[1]) for group in variants]

    assert sizes("w40 w41") == sizes("w40 w41", include_subject_initial=True) == [2, 2]
    assert sizes("w40") == [2, 2]
    assert sizes("w40", include_subject_initial=True) == [1, 1, 2]  # the tokens after it


def test_of_a_single_first_token_the_next_one_is_read(tiny_model):
    model = tiny_model()
    pair = ConceptPair("w40", "w20", "own", templates=dict.fromkeys(SPLITS, (Template("{} w9"),)))
    [[inputs]] = negatives.subject_inputs(model, [pair], layers=[1], include_subject_initial=True)
    ids = model.tokenizer("w40 w9").input_ids
    expected = cache_activations(model, [ids], sites=["mlp_in"], layers=[1], positions=[[1]])
    torch.testing.assert_close(inputs[1], expected["mlp_in", 1])
