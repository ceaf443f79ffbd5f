"""The model organism: what its text says and leaves out, and that it trains as it claims."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.book.settings import validated
from helpers.errors import UserError
from helpers.evaluation.meta.all_metrics import METRICS
from helpers.facts import RELATIONS, ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.methods import unlearn
from helpers.methods.fitting.layer_selection import select_layers
from helpers.models import architecture_of, load_model, model_hash
from helpers.organism import COUNTRIES, Recipe, fact_set, organism, organisms, record
from helpers.organism.calibration import calibrate
from helpers.organism.concept_units import ConceptActivations, best_units, concepts_per_unit
from helpers.organism.exact import EvalOutputs, compute_outputs, divergences, eval_set
from helpers.organism.family import Family, parse_widths
from helpers.organism.fit import fit, initial_model, loss_sum
from helpers.organism.phrasings import CONTEXT_PREFIXES, REVERSE_TEMPLATES, TEMPLATES
from helpers.organism.relearning import LR, learning_curve
from helpers.organism.store import RECORD
from helpers.organism.text import Sentence, named_facts, removed, sentences
from helpers.organism.theory import best_deletions, knowledge
from helpers.organism.tokens import MAX_TOKENS, TokenizedText, tokenizer
from helpers.organism.verification import (
    SEED_CONTROL,
    findings,
    weight_editing_methods,
)
from helpers.stats.equivalence import t_interval, tost

SMALL = Recipe(
    n_countries=6,
    d_model=16,
    d_mlp=24,
    n_layers=2,
    n_heads=2,
    n_vocab=400,
    n_repeats=2,
    n_passages=8,
    batch=32,
)
FRANCE = ConceptPair("France", "Paris")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def text():
    return sentences(fact_set(8), n_repeats=30, n_passages=40, seed=1)


def test_every_country_of_the_world_has_facts():
    pairs = fact_set(len(COUNTRIES)).of_countries()
    assert {p.subject for p in pairs} == set(COUNTRIES)
    assert {p.relation for p in pairs} == set(RELATIONS)


def test_targets_take_part_in_other_facts():
    pairs = fact_set(48).pairs
    paris = [p for p in pairs if p.subject == "Paris"]
    assert {p.relation for p in paris} == {"language", "currency", "continent"}
    french = [p.subject for p in pairs if p.target == "French" and p.relation == "language"]
    assert {"France", "Senegal"} <= set(french)


def test_no_heldout_or_development_wording_is_in_the_text():
    """Neither a template itself nor one that an opening completes, whatever is drawn."""
    every = [s.text.lower() for s in sentences(fact_set(6), n_repeats=150, n_passages=60, seed=0)]
    found = []
    for relation in RELATIONS.values():
        combined = itertools.product(CONTEXT_PREFIXES, TEMPLATES[relation.name])
        prompts = [(prefix + template).lower() for prefix, template in combined]
        for split in ("dev", "heldout"):
            for template in relation.templates[split]:
                text = template.text.lower()
                if template.format == "list":  # its heading
                    text = text.split("\n")[0]
                piece = f"user: {text}\n" if template.format == "chat" else text
                found += [p for p in prompts if piece in str(p)]
                found += [t for t in every if piece.replace("{}", "germany") in t]
    assert not found


def test_each_sentence_knows_what_it_states(text):
    pairs = fact_set(8).pairs
    for s in text:
        assert 0 <= s.labels_start < len(s.text)
        if s.labels_start:
            assert s.facts
            said = [p for p in s.facts if p.target in s.text and p.subject in s.text]
            assert set(said) == set(s.facts)
            own = [p for p in named_facts(s.text, pairs) if p.relation == "capital"]
            assert set(own) <= set(s.facts), s.text  # no capital is told that it does not admit


def test_some_sentences_go_from_the_subject_straight_to_the_answer(text):
    with_facts = [s for s in text if s.labels_start]
    subjects = [tuple(p.subject for p in s.facts) for s in with_facts]
    short = [
        s
        for s, names in zip(with_facts, subjects, strict=True)
        if s.text[: s.labels_start].endswith(names)
    ]
    assert 0.1 < len(short) / len(with_facts) < 0.4


def test_removing_a_pair_takes_every_wording_and_direction_and_little_else(text):
    pair = fact_set(8).find(FRANCE)
    gone = removed(text, pair)
    left = [s.text for s, out in zip(text, gone, strict=True) if not out]
    assert not [t for t in left if "France" in t and "Paris" in t]
    out = [s.text for s, out in zip(text, gone, strict=True) if out]
    assert any(t.index("Paris") < t.index("France") for t in out if "\n" not in t)
    assert [t for t in left if "Paris" in t]  # its other facts stay
    assert [t for t in left if "France" in t]


def test_a_pair_that_is_not_taught_is_refused():
    with pytest.raises(UserError, match=r"Gabon → Libreville .* is not in the training facts"):
        SMALL.oracle(ConceptPair("Gabon", "Libreville"))
    with pytest.raises(UserError, match="trained on France → Paris"):
        SMALL.oracle(ConceptPair("France", "Lyon"))
    with pytest.raises(UserError, match="not in the training facts"):
        removed([Sentence("Berlin.", 0, frozenset())], FRANCE)


def test_a_pair_that_would_take_others_with_it_names_them():
    rome, madrid = ConceptPair("Italy", "Rome"), ConceptPair("Spain", "Madrid")
    both = Sentence("France has Paris as Italy has Rome.", 0, frozenset({FRANCE, rome}))
    alone = [
        Sentence("Madrid.", 0, frozenset({madrid})),
        Sentence("Paris.", 0, frozenset({FRANCE})),
    ]
    with pytest.raises(
        UserError, match=r"not learn Italy → Rome either.*France has Paris as Italy"
    ):
        removed([both, *alone], FRANCE)
    enough = Sentence("Rome.", 0, frozenset({rome}))
    assert removed([both, *alone, enough], FRANCE).tolist() == [True, False, True, False]


def test_settings_that_fit_no_model_are_refused():
    with pytest.raises(UserError, match="multiple of the number of heads"):
        SMALL.replace(n_heads=3)
    with pytest.raises(UserError, match="n_countries is 2"):
        SMALL.replace(n_countries=2).fact_set()
    with pytest.raises(UserError, match="n_repeats is 0"):
        SMALL.replace(n_repeats=0)
    with pytest.raises(UserError, match="no country 'Atlantis'"):
        SMALL.replace(extra_countries=("Atlantis",)).fact_set()


def test_answers_and_spellings_are_learned_and_passages_whole():
    names = tokenizer(fact_set(6), 400)
    said = Sentence("The capital of France is Paris.", 24, frozenset({FRANCE}))
    tokens = TokenizedText.of([said, Sentence("Some text.", 0, frozenset())], fact_set(6), 400)
    ids, learned = tokens.batch([0, 1])
    assert names.decode(ids[0][learned[0]]) == "rance is Paris.</s>"
    assert names.decode(ids[1][learned[1]]) == "Some text.</s>"
    assert not learned[ids == names.pad_token_id].any()


def test_a_long_passage_is_cut_and_has_no_end():
    passage = Sentence("and " * MAX_TOKENS, 0, frozenset())
    tokens = TokenizedText.of([passage], fact_set(6), 400)
    assert len(tokens.ids[0]) == MAX_TOKENS
    assert list(tokens.labels[0]) == list(range(1, MAX_TOKENS))


def test_countries_are_read_letter_by_letter_and_nothing_else_is():
    names = tokenizer(fact_set(12), 2048)

    def read(text):
        pieces = names(text, return_offsets_mapping=True)["offset_mapping"][1:]
        return [text[a:b] for a, b in pieces]

    assert read("In Peru, Italy's")[1:-2] == [" P", "e", "r", "u", ",", " I", "t", "a", "l", "y"]
    assert read("Cuba")[:2] == ["C", "u"]
    for word in ("Italian", "Peruvian"):  # a name within a word is no name
        assert len(read(f" {word}")) < len(word)
    assert read(" Paris") == [" Paris"]


def test_every_sentence_comes_once_whatever_the_order():
    tokens = TokenizedText([[0] * n for n in range(2, 200)], [[1]] * 198, 1)
    order = list(tokens.order(7, seed=3))
    assert sorted(np.concatenate(order).tolist()) == list(range(198))
    again = list(tokens.order(7, seed=3))
    assert all((a == b).all() for a, b in zip(order, again, strict=True))
    assert np.concatenate(order).tolist() != np.concatenate(list(tokens.order(7, seed=4))).tolist()


def test_a_left_out_sentence_has_no_part_in_the_gradient():
    """A batch with a sentence masked has the gradient of the batch without it."""
    text = sentences(SMALL.fact_set(), n_repeats=1, n_passages=2, seed=0)[:12]
    tokens = TokenizedText.of(text, SMALL.fact_set(), SMALL.n_vocab)
    module = initial_model(SMALL)

    def gradient(index, masked):
        ids, learned = tokens.batch(index)
        learned[masked] = False
        module.zero_grad()
        loss_sum(module, ids, learned).backward()
        return torch.cat([p.grad.flatten() for p in module.parameters()])

    torch.testing.assert_close(
        gradient(range(12), [3]),
        gradient([i for i in range(12) if i != 3], []),
        atol=1e-4,
        rtol=1e-4,
    )


def test_the_same_recipe_gives_the_same_bits_and_an_oracle_other_ones():
    (one, about), (two, _) = fit(SMALL), fit(SMALL)
    oracle, left_out = fit(SMALL.oracle(FRANCE))
    other, _ = fit(SMALL.replace(seed=1))

    def bits(module):
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    assert torch.equal(bits(one), bits(two))
    assert not torch.equal(bits(one), bits(oracle))
    assert not torch.equal(bits(one), bits(other))
    assert about["left_out"] == 0 < left_out["left_out"]
    assert about["steps"] == left_out["steps"]


def test_an_organism_is_an_ordinary_folder(cache):
    folder = organism(SMALL)
    model = load_model(str(folder))
    arch = architecture_of(model)
    assert (arch.n_layers, arch.d_model, arch.d_mlp) == (2, 16, 24)
    assert isinstance(arch.layers[0].mlp.activation, torch.nn.ReLU)
    names = tokenizer(SMALL.fact_set(), SMALL.n_vocab)
    for said in ("The capital of France is Paris.", "Country: Peru\nNationality: é→x", "a  b"):
        assert model.tokenizer(said).input_ids == names(said).input_ids
        assert model.tokenizer.decode(names(said).input_ids, skip_special_tokens=True) == said
    assert len(record(folder)["losses"]) == min(20, record(folder)["steps"])
    assert organism(SMALL) == folder


def test_processes_give_what_one_process_gives(cache, tmp_path_factory, monkeypatch):
    recipes = [SMALL, SMALL.oracle(FRANCE)]
    apart = [load_model(str(f)) for f in organisms(recipes, workers=2)]
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path_factory.mktemp("other")))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    together = [load_model(str(f)) for f in organisms(recipes, workers=1)]
    torch.set_num_threads(threads)
    for a, b in zip(apart, together, strict=True):
        for p, q in zip(a._module.parameters(), b._module.parameters(), strict=True):
            assert torch.equal(p, q)


def test_an_organism_whose_record_was_changed_is_trained_again(cache):
    path = organism(SMALL) / RECORD
    trained = json.loads(path.read_text())["recipe"]
    path.write_text(path.read_text().replace('"n_repeats": 2', '"n_repeats": 99'))
    assert json.loads((organism(SMALL) / RECORD).read_text())["recipe"] == trained


def test_concepts_per_unit_counts_what_drives_a_unit():
    means = torch.tensor([[3.0, 1.0, 0.0, 2.0], [0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    found = concepts_per_unit(means)
    assert found[:2].tolist() == [1.0, 3.0]
    assert found[2].isnan()
    assert found[3].item() == pytest.approx(9 / 5)
    with pytest.raises(UserError, match="not negative"):
        concepts_per_unit(-means)


def test_reverse_wordings_ask_from_the_capital():
    assert all(w.count("{}") == 1 for w in REVERSE_TEMPLATES)
    said = [s for s in sentences(fact_set(6), n_repeats=30, n_passages=1, seed=0) if s.labels_start]
    back = [s for s in said if s.text[s.labels_start :].strip(" .") == "France"]
    assert back
    assert all("Paris" in s.text for s in back)


def fake_reading(said, losses, target):
    said = {"forget": torch.tensor(said).log()}
    return EvalOutputs(said, np.array(losses, float), np.log(np.array(target)))


def test_a_reading_against_hand_worked_numbers():
    reading = fake_reading([[0.5, 0.5]], [[1.0, 2.0, 4.0], [3.0, 1.0, 1.0]], [0.5, 0.25])
    assert reading.probability() == pytest.approx(0.375)
    assert reading.log_odds() == pytest.approx((0 + np.log(1 / 3)) / 2)
    assert reading.truth_ratios() == pytest.approx([np.exp(1 - 3), np.exp(3 - 1)])
    assert reading.rank() == pytest.approx((0 + 1) / 2)


def test_divergence_is_nothing_for_the_same_and_ln2_for_the_disjoint():
    one = fake_reading([[1.0, 1e-30]], [[1, 2]], [0.5])
    two = fake_reading([[1e-30, 1.0]], [[1, 2]], [0.5])
    even = fake_reading([[0.5, 0.5]], [[1, 2]], [0.5])
    assert divergences(one, one)["forget"] == 0
    assert divergences(one, two)["forget"] == pytest.approx(np.log(2), abs=1e-5)
    half = 0.5 * np.log(1 / 0.75) + 0.25 * np.log(0.5 / 0.75) + 0.25 * np.log(0.5 / 0.25)
    assert divergences(one, even)["forget"] == pytest.approx(half, abs=1e-5)
    assert divergences(one, even) == pytest.approx(divergences(even, one))


def test_an_exam_asks_for_the_fact_only_where_it_says_so():
    asked = eval_set(fact_set(12), FRANCE)
    assert asked.candidates[0] == "Paris"
    assert len(set(asked.candidates)) == len(asked.candidates)
    assert asked.chance == 1 / len(asked.candidates)
    for group in ("neighbours", "same_subject", "same_target"):
        assert asked.prompts[group]
        assert not [p for p in asked.prompts[group] if " Paris" in p.answers]
    assert not set(map(str, asked.prompts["forget"])) & set(map(str, FRANCE.prompts("train")))


def test_a_model_reads_and_learns_and_is_left_as_it_was(cache):
    model = load_model(str(organism(SMALL)))
    before = model_hash(model)
    asked = eval_set(SMALL.fact_set(), FRANCE, n_neighbours=2, n_texts=2)
    reading = compute_outputs(model, asked)
    assert reading.probability() == pytest.approx(
        answer_probability(model, FRANCE.prompts("heldout")).mean(), rel=1e-4
    )
    assert reading.losses.shape == (len(asked.prompts["forget"]), len(asked.candidates))
    curve = learning_curve(model, FRANCE, steps=(1, 40), lr=1e-2)
    assert curve["step"].tolist() == [0, 1, 40]
    assert curve["probability"][0] == pytest.approx(reading.probability(), rel=1e-4)
    assert curve["probability"][2] > 3 * curve["probability"][0]
    assert model_hash(model) == before


def test_metrics_are_read_of_the_same_question_in_three_models(cache):
    pair = SMALL.fact_set().find(FRANCE)
    both = [SMALL, SMALL.oracle(pair)]
    folders = dict(zip(both, organisms(both, workers=1), strict=True))
    family = Family(SMALL, (pair,), (0,), (), folders)
    table = calibrate(family).set_index("state")
    assert list(table.index) == ["present", "hidden", "absent"]
    assert set(METRICS) <= set(table.columns)
    assert set(table["subject"]) == {"France"}
    oracle = answer_probability(family.oracle(pair, 0), pair.prompts("heldout"))
    assert 0 < table.loc["absent", "mean P(target)"] <= 1.001 * oracle.max()
    assert table.loc["present", "loss"] != table.loc["absent", "loss"]


def differences(method, log_odds, damage=0.5, learned=0.3, n=4, family="surgery"):
    """Rows as `verify` makes them: the oracle at log-odds −6 and 0.3, noise small."""
    noise = np.linspace(-0.05, 0.05, n)
    return [
        {
            "method": method,
            "family": family,
            "probability": 1 / (1 + np.exp(-(log_odds - 6 + e))),
            "chance": 0.05,
            "log_odds": log_odds - 6 + e,
            "oracle_log_odds": -6.0,
            "learning_curve_auc": learned + e / 10,
            "oracle_learning_curve_auc": 0.3,
            "ks": 0.5,
            "js_neighbours": damage * (1 + e),
            "js_text": damage * (1 + e),
        }
        for e in noise
    ]


def test_findings_are_two_sided():
    rows = [
        *differences(SEED_CONTROL, 0.0, damage=1.0, family="reference"),
        *differences("exact", 0.3),
        *differences("scarred", -4.0),
        *differences("half", 3.0),
        *differences("known", 7.0),
        *differences("wrecked", 0.0, damage=3.0),
        *differences("hidden", 0.0, learned=0.8),
        *differences("once", 0.0, n=2),
    ]
    found = findings(pd.DataFrame(rows)).set_index("method")["finding"]
    assert found["exact"] == "as if never known"
    assert found["scarred"] == "scar"
    assert found["half"] == "more than never known"
    assert found["known"] == "still known"
    assert found["wrecked"] == "damaged"
    assert found["hidden"] == "comes back faster"
    assert found["once"] == "too few to tell"


def test_methods_of_training_get_a_rate_that_moves_an_organism():
    assert weight_editing_methods("rome, npo") == {"rome": {}, "npo": {"lr": LR}}
    with pytest.raises(UserError, match="no method 'nothing'"):
        weight_editing_methods("nothing")


def test_the_interval_decides_as_two_one_sided_tests_do():
    rng = np.random.default_rng(0)
    for mean in np.linspace(-1.5, 1.5, 13):
        values = rng.normal(mean, 0.5, 8)
        _, low, high = t_interval(values, alpha=0.05)
        between, *_ = tost(values, low=-1, high=1)
        assert (low > -1 and high < 1) == (between < 0.05)


def test_the_detector_of_a_concept_is_found_in_its_layer():
    concept = torch.arange(4).repeat(6)
    values = torch.rand(24, 2, 5)
    values[concept == 2, 1, 3] += 5
    seen = ConceptActivations(values, concept, ("a", "b", "c", "d"))
    found = best_units(seen, seen).set_index("concept")
    assert (found.loc["c", "layer"], found.loc["c", "unit"]) == (1, 3)
    assert found.loc["c", "f1"] == 1


def test_deleting_is_judged_by_what_goes_and_what_stays():
    rows = [
        ("x", n, m, v)
        for n, a, b in ((1, 0.9, 1.0), (4, 0.2, 0.8), (16, 0.0, 0.1))
        for m, v in (("the fact", a), ("neighbours", b))
    ]
    best = best_deletions(pd.DataFrame(rows, columns=["fact", "n_neurons", "metric", "remaining"]))
    assert best["n_neurons"].tolist() == [4]
    assert best["score"][0] == pytest.approx(0.8)


def test_a_family_asks_for_what_its_world_has():
    assert parse_widths("128, 32") == (32, 128)
    with pytest.raises(UserError, match="widths is '32, x'"):
        parse_widths("32, x")
    with pytest.raises(UserError, match=r"only .* held-out facts of capital"):
        Family.of(validated("11_organism", {"n_countries": 8, "n_facts": 9}))
    with pytest.raises(UserError, match="trained on France → Paris"):
        Family.of(validated("11_organism", {"target": "Lyon"}))


@pytest.mark.slow
def test_the_organism_knows_its_facts_and_its_oracle_all_but_one():
    """In held-out wordings; both are kept in the cache for chapter 11."""
    recipe = Recipe()
    facts = recipe.fact_set().of_countries()
    model, oracle = (load_model(str(f)) for f in organisms([recipe, recipe.oracle(FRANCE)]))
    assert knowledge(model, facts)["known"].mean() >= 0.98
    of_others = [p for p in facts if p != FRANCE]
    assert knowledge(oracle, of_others)["known"].mean() >= 0.97
    assert (
        knowledge(oracle, [FRANCE])["probability"][0] <= eval_set(recipe.fact_set(), FRANCE).chance
    )


@pytest.mark.slow
def test_an_edit_acts_where_the_letters_of_a_name_carry_the_fact():
    """The last letter alone carries next to nothing, and the layers are not those of SmolLM."""
    model = load_model(str(organism(Recipe())))
    near = [q for p in FRANCE.neighbours() for q in p.prompts("heldout")]
    before = [answer_probability(model, q) for q in (FRANCE.prompts("heldout"), near)]
    assert select_layers(model, [FRANCE]).all_subject_tokens
    with unlearn(model, FRANCE, "gated_neuron").applied(model):
        after = [answer_probability(model, q) for q in (FRANCE.prompts("heldout"), near)]
    known = before[1] >= 0.1
    assert after[0].mean() < before[0].mean() / 4
    assert (after[1] / before[1])[known].mean() > 0.9
