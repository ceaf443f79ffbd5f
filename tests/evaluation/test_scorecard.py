"""Scores of an edit: each number against a plain computation, and never of another model."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES

from helpers.errors import UserError
from helpers.evaluation import (
    Metric,
    evaluate,
    known_neighbours,
    model_outputs,
)
from helpers.evaluation.metrics import perplexity as impact
from helpers.evaluation.metrics.fluency import ngram_entropy, openings, repetition
from helpers.evaluation.metrics.perplexity import losses_and_kl, perplexity, perplexity_change
from helpers.facts import ConceptPair, Prompt
from helpers.facts.corpus import chat_tokens, corpus_tokens, python_docs_tokens
from helpers.facts.relations import Template
from helpers.forward.final_states import final_states
from helpers.forward.generation import greedy
from helpers.forward.scoring import answer_probability, answer_rank
from helpers.methods import Change, Edit, WeightEdit, base_model, unlearn
from helpers.methods.deleted_neurons import deletion
from helpers.models import architecture_of, model_hash

JAPAN = ConceptPair("Japan", "Tokyo")
QUICK = {"n_neighbours": 4, "n_tokens": 768}


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """No test finds the answers that another one kept; one thread is fastest on small matrices."""
    monkeypatch.setattr(model_outputs, "_LAST_BASE", {})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def afresh(model, pair, **asked):
    """`evaluate` without what it kept."""
    model_outputs._LAST_BASE.clear()
    return evaluate(model, pair, **asked)


def edit_of(model, delta) -> Edit:
    return Edit("neurons", {}, delta, {}, 0, 0.0, model_hash(model))


def turned(model, layer: int, by: float = 1.5) -> Edit:
    """An edit that takes off `by` times what an MLP writes; in layer 0 it moves every number."""
    mlp = architecture_of(model).layers[layer].mlp
    change = Change(dense=-by * model._module.get_parameter(mlp.out_name).detach())
    return edit_of(model, WeightEdit.of(model._module, {mlp.out_name: change}))


def same(a, b) -> bool:
    """Whether two scorecards say the same."""
    return a.before == pytest.approx(b.before, abs=1e-6, nan_ok=True) and dict(
        a.table().set_index("metric")["value"]
    ) == pytest.approx(dict(b.table().set_index("metric")["value"]), abs=1e-6)


# --- text --------------------------------------------------------------------------------------


def everywhere(model) -> Edit:
    """Noise on an MLP and on the unembedding, which is also the embedding where they are tied."""
    names = {id(p): name for name, p in model._module.named_parameters()}
    arch = architecture_of(model)
    rng = torch.Generator().manual_seed(0)
    changes = {
        name: Change(
            dense=0.3 * torch.randn(model._module.get_parameter(name).shape, generator=rng)
        )
        for name in (names[id(arch.head.weight)], arch.layers[1].mlp.out_name)
    }
    return edit_of(model, WeightEdit.of(model._module, changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_kl_equal_plain_log_softmax(tiny_model, family, monkeypatch):
    monkeypatch.setattr(impact, "LOGIT_ROWS", 16)  # two sequences at a time
    model = tiny_model(family)
    tokens = torch.randint(4, 60, (5, 8), generator=torch.Generator().manual_seed(0))

    def plain() -> torch.Tensor:
        with torch.inference_mode():
            return model._module(tokens).logits.double().log_softmax(-1)[:, :-1]

    def loss(logp) -> np.ndarray:
        return -logp.gather(-1, tokens[:, 1:, None])[..., 0].mean(1).numpy()

    p, before = plain(), final_states(model, tokens)
    with everywhere(model).applied(model):
        q, after = plain(), final_states(model, tokens)
        old, new, kl = losses_and_kl(model, tokens, before, after, partial(base_model, model))
    assert np.allclose(old, loss(p), atol=1e-5)
    assert np.allclose(new, loss(q), atol=1e-5)
    expected = (p.exp() * (p - q)).sum(-1).mean(1)
    assert expected.min() > 1e-3
    assert np.allclose(kl, expected, atol=1e-5)


def test_perplexity_and_its_change_by_hand():
    before, after = np.log([1.0, 2.0, 4.0, 8.0, 16.0]), np.log([2.0, 4.0, 8.0, 16.0, 32.0])
    m = perplexity(before)
    assert m.value == pytest.approx(4)  # the geometric mean
    # t of 4 degrees of freedom at 97.5 % is 2.776; the standard error is log(2) / √2
    assert m.high / 4 == pytest.approx(4 / m.low) == pytest.approx(2 ** (2.7764 / 2**0.5), rel=1e-3)
    change = perplexity_change(before, after)
    # paired: every sequence became twice as perplexing, so there is no spread
    assert (change.value, change.low, change.high, change.n) == pytest.approx((1, 1, 1, 5))
    assert perplexity_change(before, before) == Metric(0, 0, 0, 5)


# --- the scorecard -----------------------------------------------------------------------------


def test_an_unedited_model_has_kept_everything(knowing):
    card = evaluate(knowing(), JAPAN, **QUICK)
    retained = [k for k in card if "neighbours" in k or "same" in k]
    assert len(retained) == 9
    for name in retained:
        assert card[name].value == (0 if name.startswith("change_") else 1)
    for source in ("factbook", "other"):
        assert card[f"kl_{source}"] == Metric(0, 0, 0, 6)
        assert card[f"perplexity_change_{source}"] == Metric(0, 0, 0, 6)
    for name, value in card.before.items():
        assert card[name].value == value
    assert card["paraphrases"].value > 0.5  # the model was taught it
    assert card["rank"].value == 1
    assert card["greedy"].value > 0.8


def test_every_neighbour_that_is_asked_counts(knowing, monkeypatch):
    model = knowing()
    known = known_neighbours(model, JAPAN, n=99)
    weak = {known[0].subject, known[2].subject}

    def forgetful(model, prompts):
        return np.array([0.05 if p.subject in weak else 1.0 for p in prompts])

    monkeypatch.setattr("helpers.evaluation.eval_prompts.answer_probability", forgetful)
    near = known_neighbours(model, JAPAN, n=99, split="heldout")
    assert {p.subject for p in near} == {p.subject for p in known} - weak
    assert known_neighbours(model, JAPAN, n=3, split="heldout") == near[:3]
    assert evaluate(model, JAPAN, n_neighbours=4, parts=("retention",))["neighbours"].n == 4


def test_an_edited_models_numbers_are_a_plain_recomputation(knowing):
    model = knowing()
    groups = {
        "neighbours": known_neighbours(model, JAPAN, n=4, seed=1),
        "same_subject": JAPAN.same_subject(),
        "same_target": JAPAN.same_target(),
    }

    def asked(prompts) -> np.ndarray:
        return np.array([answer_probability(model, [p])[0] for p in prompts])

    def facts() -> dict[str, np.ndarray]:
        """P(answer) of each fact, mean over its completions."""
        return {
            name: np.array(
                [
                    asked(p for p in x.prompts("dev") if p.format == "completion").mean()
                    for x in pairs
                ]
            )
            for name, pairs in groups.items()
        }

    def efficacy() -> dict[str, float]:
        own, paraphrases = JAPAN.prompts("train"), JAPAN.prompts("dev")
        said = [greedy(model, [p], max_new_tokens=8)[0] for p in paraphrases]
        return {
            "own": asked(own).mean(),
            "paraphrases": asked(paraphrases).mean(),
            "reverse": asked(JAPAN.reverse()).mean(),
            "worst_paraphrase": asked(paraphrases).max(),
            "greedy": np.mean(["Tokyo" in text for text in said]),
            "rank": np.median([answer_rank(model, [p])[0] + 1 for p in paraphrases]),
        }

    known, before = facts(), efficacy()
    with turned(model, 0, by=1.0).applied(model):
        card = evaluate(model, JAPAN, split="dev", seed=1, **QUICK)
        left, after = facts(), efficacy()
    assert {k: card[k].value for k in after} == pytest.approx(after, abs=1e-5)
    assert {k: card.before[k] for k in before} == pytest.approx(before, abs=1e-5)
    for name in before:
        assert after[name] != pytest.approx(before[name], rel=0.01), name
    for name in groups:
        sure = known[name] >= 0.1
        ratio = left[name][sure] / known[name][sure]
        assert card[name].n == sure.sum()
        assert card[name].value == pytest.approx(np.minimum(ratio, 1).mean(), abs=1e-4)
        assert card[f"worst_{name}"].value == pytest.approx(ratio.min(), abs=1e-4)
        change = np.abs(ratio - 1)
        assert card[f"change_{name}"].value == pytest.approx(change.mean(), abs=1e-4)
        assert card.units[name] == pytest.approx(np.minimum(ratio, 1), abs=1e-4)
        assert card.units[f"change_{name}"] == pytest.approx(change, abs=1e-4)
        assert np.isnan(card[name].low) == (sure.sum() < 5)
    assert np.ptp(left["neighbours"] / known["neighbours"]) > 1e-3  # not all alike


def test_a_fact_that_rises_does_not_hide_one_that_falls(knowing, monkeypatch):
    model = knowing()
    edit = turned(model, 0, by=1.0)
    facts = known_neighbours(model, JAPAN, n=4)
    states = {"base": np.full(4, 0.2), "edited": np.array([1.0, 0.1, 0.1, 0.2])}

    def by_fact(self, group):
        return states["base" if self.model_hash == start else "edited"]

    start = model_hash(model)
    monkeypatch.setattr(model_outputs.ModelOutputs, "by_fact", by_fact)
    with edit.applied(model):
        card = evaluate(model, JAPAN, n_neighbours=len(facts), parts=["retention"])
    # the ratios are 5, 1/2, 1/2 and 1: their mean would be 1.75
    assert card["neighbours"].value == pytest.approx(0.75)
    assert card["worst_neighbours"].value == pytest.approx(0.5)
    assert card["change_neighbours"].value == pytest.approx(5 / 4)


def test_the_text_part_is_of_held_out_passages_other_text_and_dialogues(knowing):
    model = knowing()
    texts = {
        "factbook": corpus_tokens(model.tokenizer, split="heldout", n_tokens=512, seed=2),
        "other": python_docs_tokens(model.tokenizer, n_tokens=512),
        "chat": chat_tokens(model.tokenizer, n_tokens=512),
    }

    def plain(tokens) -> torch.Tensor:
        with torch.inference_mode():
            return model._module(tokens).logits.log_softmax(-1)[:, :-1]

    before = {name: plain(tokens) for name, tokens in texts.items()}
    with turned(model, 0).applied(model):
        card = evaluate(model, JAPAN, seed=2, n_tokens=512, parts=["model"])
        after = {name: plain(tokens) for name, tokens in texts.items()}
    assert len(card) == 9
    for name, tokens in texts.items():
        p, q = before[name], after[name]
        old, new = (x.gather(-1, tokens[:, 1:, None]).mean().neg().exp().item() for x in (p, q))
        assert card.before[f"perplexity_{name}"] == pytest.approx(old, rel=1e-4)
        assert card[f"perplexity_{name}"].value == pytest.approx(new, rel=1e-4)
        assert card[f"perplexity_change_{name}"].value == pytest.approx(new / old - 1, abs=1e-4)
        by_sequence = [-x.gather(-1, tokens[:, 1:, None])[..., 0].mean(1).numpy() for x in (p, q)]
        units = card.units[f"perplexity_change_{name}"]
        assert units == pytest.approx(by_sequence[1] - by_sequence[0], abs=1e-4)
        kl = (p.exp() * (p - q)).sum(-1).mean().item()
        assert kl > 1e-3
        assert card[f"kl_{name}"].value == pytest.approx(kl, rel=1e-3)


def test_what_is_written_is_measured_before_and_after(knowing):
    """A model that loops repeats itself; both states are continued by plain greedy decoding."""
    model = knowing()
    texts = openings(8, seed=2)
    assert len(set(texts)) == 8 and texts != openings(8, seed=3)

    def plain() -> list[list[str]]:
        return [greedy(model, [t], max_new_tokens=32)[0].split() for t in texts]

    before = plain()
    with turned(model, 0).applied(model):
        card = evaluate(model, JAPAN, seed=2, parts=["generation"])
        after = plain()
    assert after != before
    for name, of in (("entropy", ngram_entropy), ("repetition", repetition)):
        assert card.before[name] == pytest.approx(np.mean([of(t) for t in before]))
        assert card[name].value == pytest.approx(np.mean([of(t) for t in after]))
        assert card[name].low <= card[name].value <= card[name].high and card[name].n == 8


def test_inside_an_edit_it_is_scored_against_the_unedited_weights(knowing):
    """Whether one edit is on, or a second on top of it, `before` is the model without any."""
    model, plain = knowing(), knowing()
    unedited = evaluate(plain, JAPAN, **QUICK)
    start = model_hash(model)
    with unlearn(model, JAPAN, "mean_difference", layers=(1,)).applied(model):
        first = model_hash(model)
        one = afresh(model, JAPAN, **QUICK)
        assert model_hash(model) == first
        with turned(model, 0).applied(model):
            two = afresh(model, JAPAN, **QUICK)
            state = {k: v.clone() for k, v in model._module.state_dict().items()}
        again = evaluate(model, JAPAN, **QUICK)
    assert model_hash(model) == start
    assert one.before == pytest.approx(unedited.before, abs=1e-6)
    assert two.before == pytest.approx(unedited.before, abs=1e-6)
    assert same(one, again)
    assert not same(one, two)
    assert not same(one, unedited)
    plain._module.load_state_dict(state)  # the twice edited weights, as if they were the original
    twice = afresh(plain, JAPAN, **QUICK)
    for name in ("own", "paraphrases", "reverse", "greedy", "rank", "perplexity_other"):
        assert two[name].value == pytest.approx(twice[name].value, abs=1e-5)


def own(train="The capital of {} is", answer=" Berlin", **more) -> ConceptPair:
    """Japan → Tokyo with prompts of one's own, and one that must stay."""
    splits = {
        "train": train,
        "dev": "The city of {} is",
        "heldout": "The national capital of {} is",
    }
    stay = Prompt("The capital of Germany is", subject="Germany", answers=(answer,), relation="own")
    templates = {split: (Template(text),) for split, text in splits.items()}
    more = {"must_stay": (stay,)} | more
    return ConceptPair("Japan", "Tokyo", "own", templates=templates, **more)


OTHERS = {
    "pair": lambda: (JAPAN, {}, ConceptPair("Spain", "Madrid"), {}),
    "relation": lambda: (JAPAN, {}, ConceptPair("Japan", "Japanese", "language"), {}),
    "split": lambda: (JAPAN, {"split": "dev"}, JAPAN, {"split": "heldout"}),
    "seed": lambda: (JAPAN, {"seed": 0}, JAPAN, {"seed": 1}),
    "neighbours": lambda: (JAPAN, {"n_neighbours": 4}, JAPAN, {"n_neighbours": 2}),
    "tokens": lambda: (JAPAN, {"n_tokens": 512}, JAPAN, {"n_tokens": 256}),
    "parts": lambda: (JAPAN, {"parts": ["efficacy"]}, JAPAN, {"parts": ["retention"]}),
    "aliases": lambda: (own(), {}, own(aliases=("Rome", "Madrid")), {}),
    "own prompts": lambda: (own(), {}, own(train="I have been to {} and its capital,"), {}),
    "must stay": lambda: (own(), {}, own(must_stay=(Prompt("Q", answers=(" Madrid",)),)), {}),
    "its answer": lambda: (own(), {}, own(answer=" Madrid"), {}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_kept_answers_are_never_those_of_another_question(knowing, other):
    model = knowing()
    first, asked_first, second, asked_second = OTHERS[other]()
    with turned(model, 0).applied(model):
        evaluate(model, first, **QUICK | asked_first)
        got = evaluate(model, second, **QUICK | asked_second)
        assert same(got, afresh(model, second, **QUICK | asked_second))
        assert not same(got, afresh(model, first, **QUICK | asked_first))


def test_kept_answers_are_never_those_of_another_model(knowing):
    model, other = knowing(), knowing()
    with torch.no_grad():  # no edit of ours: this is another model
        architecture_of(other).layers[1].mlp.W_out().mul_(0.5)
    card, another = evaluate(model, JAPAN, **QUICK), evaluate(other, JAPAN, **QUICK)
    assert another.before["paraphrases"] == another["paraphrases"].value
    assert another["paraphrases"].value != card["paraphrases"].value
    assert another["same_subject"].value == another["neighbours"].value == 1
    with turned(other, 2).applied(other):
        got = evaluate(other, JAPAN, **QUICK)
        evaluate(model, JAPAN, **QUICK)
        assert same(got, evaluate(other, JAPAN, **QUICK))
    assert got.before == another.before


def test_the_original_is_asked_once_for_many_edits(knowing, monkeypatch):
    """What makes a sweep over edits bearable: 'kept answers' are kept."""
    model, asked = knowing(), []
    compute = model_outputs._compute

    def counted(model, *options):
        asked.append(model_hash(model))
        return compute(model, *options)

    monkeypatch.setattr(model_outputs, "_compute", counted)
    for layer in range(3):
        with turned(model, layer).applied(model):
            evaluate(model, JAPAN, **QUICK)
    assert asked.count(model_hash(model)) == 1
    assert len(asked) == len(set(asked)) == 4


def test_facts_that_the_model_never_knew_are_left_out(knowing):
    model = knowing()
    with torch.no_grad():
        model._module.get_input_embeddings().weight.zero_()
    card = evaluate(model, JAPAN, parts=["efficacy", "retention"])
    assert set(card) == {"own", "paraphrases", "reverse", "worst_paraphrase", "rank"}


def test_a_pair_of_ones_own_keeps_what_it_says_must_stay(knowing):
    model = knowing()
    pair = own()
    stay = answer_probability(model, pair.must_stay)[0]
    with turned(model, 0).applied(model):
        card = evaluate(model, pair, parts=["efficacy", "retention"])
        left = answer_probability(model, pair.must_stay)[0]
    assert card["must_stay"].value == pytest.approx(left / stay, abs=1e-5)
    assert card["must_stay"].n == card["own"].n == 1
    assert not {"neighbours", "reverse"} & set(card)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            {"parts": ["efficiency"]},
            "no part 'efficiency'; choose from efficacy, greedy, retention",
        ),
        ({"split": "test"}, "no split 'test'; choose from train, dev, heldout"),
        ({"split": "test", "parts": ["model"]}, "no split 'test'"),
    ],
)
def test_bad_input_is_told_in_one_sentence(knowing, asked, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        evaluate(knowing(), JAPAN, **asked)
    assert "\n" not in str(caught.value)


def test_a_scorecard_is_read_as_mapping_table_text_and_plain_data(knowing):
    model = knowing()
    with edit_of(model, deletion(model, [(1, 3)])).applied(model):
        card = evaluate(model, JAPAN, seed=3, n_neighbours=4, parts=["efficacy", "retention"])
    table = card.table()
    assert list(table.columns) == ["metric", "before", "value", "low", "high", "n"]
    assert list(table["metric"]) == list(card)
    assert len(table) == len(card)
    assert table.set_index("metric")["value"].to_dict() == {k: m.value for k, m in card.items()}
    assert set(table.dropna(subset="before")["metric"]) == set(card.before)
    lines = str(card).splitlines()
    assert len(lines) == len(card) + 1
    assert f"{card['own'].value:.4f}" in lines[1]
    assert "NaN" not in str(card)
    assert card._repr_html_().count("<tr") == len(card) + 1

    plain = json.loads(json.dumps(card.to_dict()))
    rows = plain.pop("metrics")
    assert plain == {
        "subject": "Japan",
        "target": "Tokyo",
        "relation": "capital",
        "split": "heldout",
        "seed": 3,
    }
    assert {r["metric"]: (r["value"], r["n"]) for r in rows} == {
        k: (m.value, m.n) for k, m in card.items()
    }


def test_an_edit_is_evaluated_from_what_is_kept_below_it(knowing, monkeypatch):
    """The scorecard is the same to the last bit, for edits of any layer, in any order."""
    model = knowing()
    shared, seen = {}, []
    for layer in (2, 1, 2, 0):
        with turned(model, layer).applied(model):
            shared[layer] = evaluate(model, JAPAN, **QUICK)
            lower = next(iter(model_outputs._LAST_BASE.values())).layer_cache
            seen.append((lower.layer, lower.skipped > 0))
    # the original shares with the first; what reaches deeper is kept anew; layer 0 shares nothing
    assert seen == [(2, True), (1, False), (1, True), (1, True)]
    monkeypatch.setattr("helpers.evaluation.scorecard._first_edited_layer", lambda model: 0)
    for layer, card in shared.items():
        with turned(model, layer).applied(model):
            assert afresh(model, JAPAN, **QUICK).table().equals(card.table())
