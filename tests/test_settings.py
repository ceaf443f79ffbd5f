"""Parameters are checked before a kernel starts, and each notebook lists exactly its own."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from helpers.errors import UserError
from helpers.settings import NOTEBOOKS, ROOT, from_notebook, load_profile, slug, validated

STEM = "01_keys_and_values"


def test_there_is_a_notebook_for_every_model_of_settings():
    assert {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_a_parameters_cell_lists_the_models_fields(stem):
    cells = json.loads((ROOT / "notebooks" / f"{stem}.ipynb").read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    lines = [line for line in "".join(tagged[0]["source"]).splitlines() if line.strip()]
    found = {}
    for line in lines:
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"(\w+): (\w+) = ([^#]+?)  # (\S.*)", line)
        assert match, f"not 'name: type = default  # help': {line}"
        found[match[1]] = match[2], match[3]
    fields = NOTEBOOKS[stem].model_fields
    assert list(found) == list(fields)
    for name, (kind, default) in found.items():
        assert kind == fields[name].annotation.__name__, name
        assert yaml.safe_load(default) == fields[name].default, name


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_every_field_says_what_it_is_in_a_type_that_papermill_understands(stem):
    for name, field in NOTEBOOKS[stem].model_fields.items():
        assert field.annotation in (str, int, float, bool), name
        assert field.description and "#" not in field.description, name


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"n_subjcts": 5}, "did you mean n_subjects"),
        ({"n_subjects": "many"}, "'n_subjects' is 'many'"),
        ({"n_subjects": 1}, "n_subjects"),
        ({"n_subjects": 4.5}, "n_subjects"),
        ({"subject": ""}, "subject"),
        ({"seed": -1}, "seed"),
        ({"subject": None}, "subject"),
    ],
)
def test_a_wrong_parameter_is_one_sentence(values, told):
    with pytest.raises(UserError) as error:
        validated(STEM, values)
    text = str(error.value)
    assert told in text and STEM in text and text.endswith(".") and "\n" not in text


def test_text_from_a_command_line_becomes_numbers():
    assert validated(STEM, {"n_subjects": "8", "seed": "3"}).n_subjects == 8


def test_an_unknown_notebook_is_told():
    with pytest.raises(UserError, match="no notebook '99_x'"):
        validated("99_x", {})


def test_a_notebook_reads_its_own_variables():
    namespace = {"subject": "Japan", "target": "Tokyo", "other": 1, "In": ["", "subject = 1"]}
    settings = from_notebook(STEM, namespace)
    assert (settings.subject, settings.target, settings.n_subjects) == ("Japan", "Tokyo", 60)


def test_a_parameter_that_papermill_injects_but_the_notebook_does_not_have_is_an_error():
    namespace = {"n_subjcts": 5, "In": ["", "# Parameters\nn_subjcts = 5\n"]}
    with pytest.raises(UserError, match="did you mean n_subjects"):
        from_notebook(STEM, namespace)


@pytest.mark.parametrize("name", ["smoke", "default", "full"])
def test_the_profiles_that_are_here_load(name):
    profile = load_profile(name, {"subject": "Japan"})
    assert profile.name == name and list(profile.notebooks) == list(NOTEBOOKS)
    assert {v["subject"] for v in profile.notebooks.values()} == {"Japan"}
    assert {v["profile"] for v in profile.notebooks.values()} == {name}


def test_the_users_values_go_over_the_profiles(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"common:\n  seed: 1\n{STEM}:\n  seed: 2\n  n_subjects: 5\n")
    profile = load_profile(str(path))
    assert [profile.notebooks[s]["seed"] for s in ("00_model_and_facts", STEM)] == [1, 2]
    profile = load_profile(str(path), {"seed": "3", "n_subjects": "7"})
    assert {v["seed"] for v in profile.notebooks.values()} == {3}
    assert profile.notebooks[STEM]["n_subjects"] == 7
    assert "n_subjects" not in profile.notebooks["00_model_and_facts"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("common: [", "not valid YAML"),
        ("- a\n- b\n", "mapping"),
        ("just text", "mapping"),
        ("common: 3\n", "mapping"),
        ("comon:\n  seed: 1\n", "did you mean common"),
        (f"{STEM}:\n  n_subject: 1\n", "did you mean n_subjects"),
        ("common:\n  n_subjects: 9\n", "n_subjects"),  # not every notebook has it
        ("common:\n  seed: one\n", "seed"),
    ],
)
def test_a_malformed_profile_is_one_sentence(tmp_path, content, told):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        load_profile(str(path))
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_misspelt_profile_lists_those_that_are():
    with pytest.raises(UserError, match=r"no profile 'smoek'.*default, full, smoke"):
        load_profile("smoek")


def test_run_folders_of_different_facts_differ():
    france, japan = (validated(STEM, {"subject": s}).run_folder() for s in ("France", "Japan"))
    assert france != japan and france.is_relative_to(ROOT / "runs")
    assert validated(STEM, {"run": "runs/mine"}).run_folder() == ROOT / "runs" / "mine"


def test_run_folders_of_different_models_and_pair_files_differ(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"subject: {name}")
    given = [
        {},
        {"model": "gpt2"},
        {"relation": "currency"},
        {"pair_file": f"{tmp_path}/one.yaml"},
        {"pair_file": f"{tmp_path}/two.yaml"},
    ]
    folders = [validated(STEM, values).run_folder() for values in given]
    assert folders[0] == ROOT / "runs" / "lab-france-paris" and len(set(folders)) == len(given)
    (tmp_path / "one.yaml").write_text("subject: another")
    assert validated(STEM, given[3]).run_folder() not in folders


def test_slugs_are_plain_names():
    assert slug("Côte d'Ivoire / 1") == "c-te-d-ivoire-1"
    assert slug("日本") == "x"


def test_settings_are_checked_without_torch():
    code = "import helpers.pipeline, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
