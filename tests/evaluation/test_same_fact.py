"""One fact under several edits: rows, references, and methods that refuse."""

import numpy as np
import pytest

from helpers.errors import UserError
from helpers.evaluation import same_fact as module
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.plots.edits import same_fact as draw


def test_a_fact_is_measured_under_each_edit_and_the_original(knowing):
    model, france = knowing(), ConceptPair("France", "Paris")
    edits, refused = module.make_edits(model, france, "mean_difference, gated_neuron")
    assert list(edits) == ["mean_difference", "gated_neuron"] and not refused
    table = module.same_fact(model, france, edits)
    assert list(dict.fromkeys(table["edit"])) == [module.ORIGINAL, *edits]
    p = table.pivot(index="edit", columns="condition", values="p")
    prompts = france.prompts("heldout")
    assert p.loc[module.ORIGINAL, module.NAMED] == pytest.approx(
        answer_probability(model, prompts).mean()
    )
    with edits["mean_difference"].applied(model):
        named = answer_probability(model, prompts).mean()
    assert p.loc["mean_difference", module.NAMED] == pytest.approx(named)
    cut = "cut to the stated width"
    # appended neurons are cut off, and the fact is back; existing columns are not
    assert p.loc["gated_neuron", cut] == pytest.approx(p.loc[module.ORIGINAL, module.NAMED])
    assert p.loc["gated_neuron", module.NAMED] < 0.7 * p.loc["gated_neuron", cut]
    assert p.loc["mean_difference", cut] == pytest.approx(named)
    assert (table["worst"] >= table["p"] - 1e-9).all() and (table["n"] > 0).all()
    figure = draw(table, level=0.01)
    (axis,) = figure.axes
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == [module.ORIGINAL, *edits, "other associations"]
    assert [t.get_text() for t in axis.get_yticklabels()] == list(dict.fromkeys(table["condition"]))


def test_without_associations_there_is_no_level(knowing):
    model, france = knowing(), ConceptPair("France", "Paris")
    table = module.same_fact(model, france, {})
    labels = draw(table, level=np.inf).axes[0].get_legend().get_texts()
    assert [text.get_text() for text in labels] == [module.ORIGINAL]


def test_a_refusal_is_told(monkeypatch):
    def unlearn(model, pair, name, *, seed):
        if name == "rome":
            raise UserError("There is nothing to take away.")
        return name

    monkeypatch.setattr(module, "unlearn", unlearn)
    edits, refused = module.make_edits(None, ConceptPair("Kenya", "Nairobi"), "rome, memit")
    assert edits == {"memit": "memit"}
    assert refused == ["rome (There is nothing to take away.)"]
