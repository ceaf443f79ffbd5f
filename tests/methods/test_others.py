"""A pair with prompts and other subjects of a user's own: nothing comes from the Factbook."""

import pytest
from tiny_models import KNOWN

from helpers.errors import UserError
from helpers.evaluation import known_neighbours
from helpers.evaluation.attacks import ATTACKS, AttackNotApplicableError, control_facts
from helpers.evaluation.attacks.stitching import handover_layer
from helpers.evaluation.battery import battery
from helpers.evaluation.evaluation_pairs import evaluation_pairs
from helpers.evaluation.metrics.lm_eval import FORGET, factbook_items
from helpers.facts import RELATIONS, SPLITS, ConceptPair, facts
from helpers.facts.known import known_others
from helpers.forward.scoring import answer_probability
from helpers.methods import unlearn
from helpers.methods.fitting.constraints import retain_prompts
from helpers.methods.fitting.layer_selection import subject_patching_effect
from helpers.methods.fitting.negatives import relation_sequences

TEMPLATES = {  # statements of the relation alone, as a user would write them
    split: tuple(t for t in RELATIONS["capital"].templates[split] if t.format == "completion")[:4]
    for split in SPLITS
}
UNKNOWN = ("Chad", "Mali", "Nepal", "Fiji")


def own(*subjects: str) -> ConceptPair:
    """France -> Paris as a relation of one's own, with countries under `others`."""
    targets = {f.subject: f.target for f in facts("capital")}
    others = tuple(ConceptPair(s, targets[s], "own", (), TEMPLATES) for s in subjects)
    return ConceptPair("France", "Paris", "own", (), TEMPLATES, others=others)


@pytest.fixture
def pair() -> ConceptPair:
    return own(*KNOWN[1:], *UNKNOWN)


def test_evaluation_compares_with_the_users_other_subjects(knowing, pair):
    model = knowing()
    known = set(known_others(model, pair).query("known")["subject"])
    assert len(known) >= 6 and not known & set(UNKNOWN)
    neighbours = known_neighbours(model, pair, n=99, split="heldout")
    assert {p.subject for p in neighbours} <= known
    assert {p.relation for p in neighbours} == {"own"}
    assert {c.subject for c in control_facts(model, pair, n=2)} <= set(UNKNOWN)
    reported = evaluation_pairs(model, pair, n=3)
    assert {p.subject for p in reported} <= known and len(reported) == 3
    choices = {c for item in factbook_items(pair, n=1)[FORGET] for c in item.choices}
    assert choices <= {"Paris", *(o.target for o in pair.others)}


def test_an_edit_is_placed_and_bounded_by_the_users_other_subjects(knowing, pair):
    model = knowing()
    effects = subject_patching_effect(model, "own", others=pair.others)
    assert set(effects["subject"]) <= {o.subject for o in pair.others} and len(effects)
    assert handover_layer(model, "capital", others=pair.others) >= 0
    sequences = relation_sequences(model, pair.others, n_prompts_per_subject=2)
    assert set(sequences.subjects) == {o.subject for o in pair.others}
    groups = retain_prompts(model, [pair], n_neighbours=9, top_k=3, seed=0)
    subjects = {p.subject for group in groups for p in group.prompts if p.relation == "own"}
    assert len(subjects - {"France"}) >= 6


@pytest.mark.parametrize("method", ["rome", "mean_difference", "gated_neuron"])
def test_methods_that_compare_forget_a_pair_of_ones_own(knowing, pair, method):
    model = knowing()
    prompts = pair.prompts("train")
    before = answer_probability(model, prompts).mean()
    with unlearn(model, pair, method).applied(model):
        assert answer_probability(model, prompts).mean() < before / 2


def test_without_others_a_comparison_is_refused(knowing):
    with pytest.raises(UserError, match="name some with other targets under 'others:'"):
        unlearn(knowing(), own(), "mean_difference")


def test_attacks_that_compare_take_a_pair_of_ones_own(knowing, pair):
    names = ["few_shot", "logit_lens", "stitching", "probe", "relearning_neighbours"]
    model = knowing()
    options = {"relearning_neighbours": {"steps": (1,), "rates": (1e-4,)}}
    with unlearn(model, pair, "rome").applied(model):
        evidence = battery(model, pair, attacks=names, options=options, n_controls=2)
    assert not evidence.not_applicable and not evidence.without_prompts
    assert set(evidence.table["attack"]) == set(names)


def test_an_attack_says_what_a_pair_without_others_lacks(knowing):
    with pytest.raises(AttackNotApplicableError, match="name some that the model knows under"):
        ATTACKS["stitching"].function(knowing(), own())
