"""The playground: its calls and its panel on a small model, and the notebook itself."""

import json
import re
import warnings
from html import unescape

import nbformat
import papermill
import pytest
import yaml

from helpers.book.panel import Panel
from helpers.book.playground import Playground
from helpers.book.settings import NOTEBOOKS, ROOT
from helpers.errors import UserError
from helpers.evaluation.tradeoff import MINI_ATTACKS
from helpers.forward.scoring import answer_probability
from helpers.methods import METHODS, load_unlearning
from helpers.models import model_hash

NOTEBOOK = ROOT / "notebooks" / "playground.ipynb"
PROMPT = "The national capital of Japan is"
QUICK = {"n_neighbours": 3, "n_tokens": 256}


@pytest.fixture
def playground(knowing) -> Playground:
    return Playground(knowing())


@pytest.fixture
def panel(playground) -> Panel:
    panel = Panel(playground, subject="Japan")
    assert panel.method.value == "gated_neuron"
    panel.method.value = "rome"  # sooner made
    return panel


def sentence(panel: Panel) -> str:
    """The text of the status line."""
    assert "Traceback" not in panel.status.value and not panel.log.outputs
    return unescape(re.sub("<[^>]*>", "", panel.status.value))


def test_an_edit_lowers_the_target_and_the_model_stays_as_it_was(playground):
    base = model_hash(playground.model)
    before = playground.replies(PROMPT)
    assert list(before) == ["original"] and before["original"].target is None
    assert "Tokyo" in before["original"].top[0][0]
    assert before["original"].continuation.split()[0] == "Tokyo"
    playground.make("Japan", "capital", method="rome")
    replies = playground.replies(f" {PROMPT} ")
    assert replies["original"].top == before["original"].top
    assert replies["original"].target > 0.5 > 2 * replies["edited"].target
    assert replies["edited"].top != replies["original"].top
    assert model_hash(playground.model) == base


def test_another_scale_of_the_same_edit_does_not_run_the_method_again(playground, monkeypatch):
    full = playground.make("Japan", "capital", method="rome")
    monkeypatch.delattr("helpers.book.playground.unlearn")
    half = playground.make("Japan", "capital", target="Tokyo", method="rome", scale=0.5)
    assert half.delta.norm() == pytest.approx(full.delta.norm() / 2)
    assert half.delta.notes["scale"] == 0.5 and "scale" not in full.delta.notes
    with pytest.raises(NameError):
        playground.make("France", "capital", method="rome")


def test_a_target_typed_by_hand_is_the_one_to_forget(playground):
    with pytest.warns(UserWarning, match="does not know Japan → Kyoto"):
        edit = playground.make("Japan", "capital", target=" Kyoto ", method="in_context")
    assert edit.pair["target"] == "Kyoto"


def test_methods_that_read_saes_are_offered_with_saes_alone(playground):
    needing = {name for name, entry in METHODS.items() if entry.sae_sites}
    assert needing and not needing & set(playground.methods)
    assert {"gated_neuron", "npo", "in_context", "random_direction"} <= set(playground.methods)


@pytest.mark.parametrize(
    ("changes", "message_part"),
    [
        ({"subject": "Jappan"}, "did you mean Japan"),
        ({"subject": ""}, "has no capital"),
        ({"relation": "friend"}, "no relation 'friend'"),
        ({"method": "romee"}, "no method 'romee'"),
        ({"scale": 0}, "The scale is 0: choose a value from"),
        ({"scale": float("nan")}, "The scale is nan"),
        ({"target": "Japan"}, "the prompt would tell"),
        ({"method": "in_context", "scale": 0.5}, "nothing to scale"),
    ],
)
def test_wrong_values_are_refused_and_the_edit_before_stays(playground, changes, message_part):
    before = playground.make("France", "capital", method="rome")
    values = {"subject": "Japan", "relation": "capital", "method": "rome"} | changes
    with pytest.raises(UserError, match=re.escape(message_part)):
        playground.make(**values)
    assert playground.edit is before and str(playground) == "France → Paris, rome, scale 1"


def test_nothing_is_scored_attacked_or_saved_before_there_is_an_edit(playground, tmp_path):
    for call in (playground.scorecard, playground.short_attacks, lambda: playground.save("x")):
        with pytest.raises(UserError, match="no edit yet"):
            call()
    with pytest.raises(UserError, match="prompt is empty"):
        playground.replies("  ")


def test_a_patch_that_was_saved_loads_and_does_the_same(playground, knowing, tmp_path):
    playground.make("Japan", "capital", method="rome", scale=0.5)
    path = playground.save(tmp_path / "new" / "patch")
    assert path == tmp_path / "new" / "patch.safetensors"
    with pytest.raises(UserError, match="exists already"):
        playground.save(path)
    with pytest.raises(UserError, match="no name for a file"):
        playground.save(tmp_path / ("x" * 400))
    (prompt,) = [p for p in playground.pair.prompts("heldout") if p.text == PROMPT]
    model, edit = knowing(), load_unlearning(path)
    before = answer_probability(model, [prompt])[0]
    with edit.applied(model):
        after = answer_probability(model, [prompt])[0]
    assert after == pytest.approx(playground.replies(PROMPT)["edited"].target, rel=1e-5)
    assert after < before and edit.delta.notes["scale"] == 0.5


def test_the_buttons_make_query_score_and_save(panel, tmp_path, monkeypatch):
    scorecard = panel.playground.scorecard
    monkeypatch.setattr(panel.playground, "scorecard", lambda: scorecard(**QUICK))
    panel.query.click()
    assert "there is no edit yet" in sentence(panel)
    assert "Tokyo" in panel.original.value and panel.edited.value == ""
    panel.make.click()
    assert "Japan → Tokyo, rome, scale 1" in sentence(panel)
    assert "P(target)" in panel.original.value and "Edited: Japan" in panel.edited.value
    assert panel.original.value.split("<table")[1] != panel.edited.value.split("<table")[1]
    panel.prompt.value = "The national capital of France is"
    panel.query.click()
    assert "Paris" in panel.edited.value and "Both" in sentence(panel)
    panel.score.click()
    assert "neighbours" in panel.card.value and "paraphrases" in panel.card.value
    panel.path.value = str(tmp_path / "it's")
    panel.save.click()
    assert "make verify PATCH=" in sentence(panel)
    assert load_unlearning(tmp_path / "it's.safetensors").method == "rome"
    panel.subject.value = "France"
    panel.make.click()
    assert panel.card.value == "" and "France" in panel.prompt.placeholder
    assert panel.path.placeholder == "france-paris-rome.safetensors"


def test_short_attacks_move_the_bar_and_name_what_they_find(panel):
    seen = []
    panel.progress.observe(lambda change: seen.append(change["new"]), "description")
    panel.make.click()
    panel.attack.click()
    assert "short attacks on Japan" in sentence(panel), sentence(panel)
    assert [name for name in seen if name] == [*MINI_ATTACKS, "done"]
    assert panel.progress.value == panel.progress.max == len(MINI_ATTACKS)
    for name in MINI_ATTACKS:
        assert name in panel.findings.value
    assert "the fact is: <b>" in panel.findings.value


@pytest.mark.parametrize(
    ("field", "value", "message_part"),
    [
        ("subject", "<b>Jappan", "The Factbook has no capital for '<b>Jappan'"),
        ("scale", -1.0, "The scale is -1.0: choose"),
        ("target", "Japan", "Subject and target are both"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_in_the_panel(panel, field, value, message_part):
    getattr(panel, field).value = value
    panel.make.click()
    assert sentence(panel).startswith(f"Not done: {message_part}")
    assert "<b>Jappan" not in panel.status.value
    assert panel.playground.edit is None and not panel.make.disabled
    panel.attack.click()
    assert sentence(panel) == "Not done: There is no edit yet: make one first."


def test_a_fact_that_the_model_does_not_know_is_said_once_and_edited(panel):
    panel.target.value, panel.method.value = "Kyoto", "in_context"
    for n_sentences in (1, 0):  # the second click runs no method, so there is nothing to warn of
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            panel.make.click()
        assert "is made" in sentence(panel)
        assert sentence(panel).count("does not know Japan → Kyoto") == n_sentences


@pytest.mark.parametrize(
    ("error", "message_part"), [(KeyboardInterrupt, "interrupted"), (RuntimeError, "code itself")]
)
def test_after_an_interruption_or_an_error_the_buttons_work_again(
    panel, monkeypatch, error, message_part
):
    def fail():
        raise error

    monkeypatch.setattr(panel.playground, "scorecard", fail)
    panel.score.click()
    assert message_part in sentence(panel)
    assert not panel.score.disabled and not panel.make.disabled
    panel.query.click()
    assert "replied" in sentence(panel)


def test_the_notebook_is_no_chapter():
    assert NOTEBOOK.stem not in NOTEBOOKS
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    assert NOTEBOOK.stem not in json.dumps(contents)


@pytest.mark.slow
def test_the_notebook_runs_and_its_buttons_work(taught, tmp_path):
    notebook = nbformat.read(NOTEBOOK, 4)
    clicks = "panel.method.value = 'rome'\npanel.make.click()\nprint(panel.status.value)"
    notebook.cells.append(nbformat.v4.new_code_cell(clicks))
    nbformat.write(notebook, tmp_path / "in.ipynb")
    values = {"model": str(taught[0]), "subject": "Japan"}
    done = papermill.execute_notebook(
        tmp_path / "in.ipynb", tmp_path / "out.ipynb", values, cwd=tmp_path, progress_bar=False
    )
    shown = [o for cell in done.cells for o in cell.get("outputs", [])]
    assert any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in shown)
    assert "(Japan → Tokyo, rome, scale 1) is made" in shown[-1]["text"]
