"""Parameters are checked before a kernel starts, and each notebook lists exactly its own."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from helpers.book.profiles import load_profile
from helpers.book.registered import attack_names, method_names, renamed_attacks
from helpers.book.settings import NOTEBOOKS, ROOT, from_notebook, slug, validated
from helpers.errors import UserError

STEM = "01_keys_and_values"


def test_there_is_a_notebook_for_every_model_of_settings():
    stems = {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")}
    assert stems - {"playground"} == set(NOTEBOOKS)  # that one is for JupyterLab alone


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_a_parameters_cell_lists_the_models_fields(stem):
    cells = json.loads((ROOT / "notebooks" / f"{stem}.ipynb").read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    lines = [line for line in "".join(tagged[0]["source"]).splitlines() if line.strip()]
    listed = {}
    for line in lines:
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"(\w+): (\w+) = ([^#]+?)  # (\S.*)", line)
        assert match, f"not 'name: type = default  # help': {line}"
        listed[match[1]] = match[2], match[3]
    fields = NOTEBOOKS[stem].model_fields
    assert list(listed) == list(fields)
    for name, (kind, default) in listed.items():
        assert kind == fields[name].annotation.__name__, name
        assert yaml.safe_load(default) == fields[name].default, name


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_every_field_says_what_it_is_in_a_type_that_papermill_understands(stem):
    for name, field in NOTEBOOKS[stem].model_fields.items():
        assert field.annotation in (str, int, float, bool), name
        assert field.description and "#" not in field.description, name


@pytest.mark.parametrize(
    ("values", "message_part"),
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
def test_a_wrong_parameter_is_one_sentence(values, message_part):
    with pytest.raises(UserError) as error:
        validated(STEM, values)
    text = str(error.value)
    assert message_part in text and STEM in text and text.endswith(".") and "\n" not in text


NAN_SCALES = "0.5, nan"


@pytest.mark.parametrize(
    ("stem", "values", "message_part"),
    [
        ("06_edit_mlps", {"methods": "roem"}, "no method 'roem'; did you mean rome"),
        ("06_edit_mlps", {"methods": "rome,"}, "no method ''"),
        ("07_training_methods", {"methods": "npo, roem"}, "no method 'roem'"),
        ("07_training_methods", {"shown": "x"}, "no method 'x'"),
        ("07_training_methods", {"shown": "rmu, rome"}, "'rome' is not looked into here"),
        ("07_training_methods", {"shown": "crisp"}, "'crisp' is not looked into here"),
        ("07_training_methods", {"edits": "x"}, "no method 'x'"),
        ("08_evaluate", {"method": "roem"}, "did you mean rome"),
        ("08_evaluate", {"method": "all"}, "no method 'all'"),
        ("09_verify", {"method": "sae_pair"}, "needs SAEs"),
        ("09_verify", {"attacks": "logit_len"}, "no attack 'logit_len'; did you mean logit_lens"),
        ("09_verify", {"attacks": "logit_lens"}, "'paraphrases': add it"),
        ("09_verify", {"hidden_attacks": "paraphrases, len"}, "no attack 'len'"),
        ("04_sparse_autoencoders", {"site": "mpl"}, "no site 'mpl'; did you mean mlp"),
        ("00_model_and_facts", {"dtype": "float"}, "no dtype 'float'; did you mean float32"),
        ("06_edit_mlps", {"scales": "a,b"}, "positive numbers"),
        ("06_edit_mlps", {"scales": NAN_SCALES}, "positive numbers"),
        ("06_edit_mlps", {"scales": "-1"}, "positive numbers"),
        ("06_edit_mlps", {"scales": "0"}, "positive numbers"),
        ("06_edit_mlps", {"scales": ""}, "positive numbers"),
        ("06_edit_mlps", {"scales": "1e400"}, "positive numbers"),
        ("06_edit_mlps", {"scales": "9" * 5000}, "positive numbers"),
        ("11_organism", {"widths": "x"}, "whole numbers"),
        ("11_organism", {"widths": "-1"}, "whole numbers"),
        ("11_organism", {"widths": "²"}, "whole numbers"),
        ("11_organism", {"widths": "1.5"}, "whole numbers"),
        ("14_benchmarks", {"n_people": 3, "n_forgotten": 3}, "have to stay"),
        ("14_benchmarks", {"n_people": 241}, "less than or equal to 240"),
        ("14_benchmarks", {"methods": "rome"}, "does not forget text here"),
        ("09_verify", {"relearning_steps": "99999999999999"}, "at most 100,000,000"),
        ("09_verify", {"relearning_steps": "0"}, "whole numbers"),
        ("09_verify", {"relearning_rates": "0"}, "positive learning rates"),
        ("09_verify", {"relearning_rates": ""}, "positive learning rates"),
        ("04_sparse_autoencoders", {"lr": float("inf")}, "finite"),
        ("04_sparse_autoencoders", {"lr": "1e400"}, "finite"),
        ("04_sparse_autoencoders", {"lr": "nan"}, "lr"),
        ("04_sparse_autoencoders", {"n_tokens": 10**15}, "at most 100,000,000"),
        (STEM, {"seed": 2**70}, "seed"),
        (STEM, {"seed": True}, "'seed' is True: give a number"),
        ("00_model_and_facts", {"n_shown": True}, "give a number"),
        ("04_sparse_autoencoders", {"lr": True}, "give a number"),
        (STEM, {"target": 1984}, "'-r target'"),
        (STEM, {"target": 1.5}, "'-r target'"),
        (STEM, {"target": True}, "yes or no"),
        ("06_edit_mlps", {"scales": True}, "yes or no"),
        (STEM, {"model": ""}, "model"),
        (STEM, {"subject": "x" * 200_000}, "at most 4,096 characters"),
        (STEM, {"subject": "\ud83d"}, "subject"),
        (STEM, {"subject": ["\x1b[2J"]}, "subject"),
        (STEM, {"n\x1b[2J": 1}, r"no parameter 'n\x1b[2J'"),
        (STEM, {3: 1}, "no parameter '3'"),
    ],
)
def test_what_a_chapter_would_refuse_later_is_refused_at_once(stem, values, message_part):
    for check in (validated, from_papermill):
        with pytest.raises(UserError) as error:
            check(stem, values)
        text = str(error.value)
        assert message_part in text and stem in text and text.endswith(".") and len(text) < 1500
        assert text.isprintable()


def from_papermill(stem, values):
    """As papermill alone hands the values over: in a cell of the notebook."""
    named = {k: v for k, v in values.items() if isinstance(k, str) and k.isidentifier()}
    if named != values:
        return validated(stem, values)  # it cannot write such a cell
    cell = "# Parameters\n" + "\n".join(f"{name} = 0" for name in named)
    return from_notebook(stem, named | {"In": ["", cell]})


@pytest.mark.parametrize(
    ("stem", "values"),
    [
        ("07_training_methods", {"methods": "rome"}),  # for chapter 06, by SET for both
        ("06_edit_mlps", {"methods": "npo, rome", "scales": "0.25,.5, 1e-1"}),
        ("06_edit_mlps", {"methods": " all "}),
        ("06_edit_mlps", {"scales": 1}),  # papermill's reading of "1"
        ("09_verify", {"attacks": "paraphrases,lens", "relearning_steps": 4}),
        ("09_verify", {"relearning_rates": "1e-6, 5e-4, .001"}),
        ("11_organism", {"widths": ""}),
        ("11_organism", {"widths": 32}),
        (STEM, {"target": "1984", "seed": 2**63 - 1}),
    ],
)
def test_what_a_chapter_takes_is_taken(stem, values):
    validated(stem, values)


def test_the_names_are_those_of_the_registers():
    from helpers.book import value_checks
    from helpers.evaluation.attacks.registry import ATTACKS, RENAMED_ATTACKS
    from helpers.evaluation.meta.hidden_models import Hiding
    from helpers.methods import METHODS
    from helpers.models import DTYPES
    from helpers.tracing import SITES

    families = {m.name: m.family for m in method_names()}
    assert families == {name: method.family for name, method in METHODS.items()}
    needing = {name for name, m in METHODS.items() if "saes" in m.hyperparameters()}
    assert {m.name for m in method_names() if m.needs_saes} == needing
    assert set(attack_names()) == set(ATTACKS)
    assert renamed_attacks() == RENAMED_ATTACKS and set(renamed_attacks().values()) < set(ATTACKS)
    assert set(value_checks.SITES) == set(SITES) and set(value_checks.DTYPES) == set(DTYPES)
    assert set(value_checks.HIDINGS) == set(Hiding)


def test_parameters_keep_their_old_names(tmp_path):
    assert validated("09_verify", {"n_absent": 2}).n_controls == 2
    old = {"attacks": "paraphrases, lens, cut_neurons"}
    assert validated("09_verify", old).attacks == "paraphrases, logit_lens, neuron_ablation"
    assert (
        from_notebook("11_organism", {"rounds": 7, "In": ["# Parameters\nrounds = 7"]}).n_repeats
        == 7
    )
    path = tmp_path / "mine.yaml"
    path.write_text("06_edit_mlps:\n  shares: 0.25\n")
    profile = load_profile(str(path), {"most_neurons": "9"})
    assert profile.notebooks["06_edit_mlps"]["scales"] == "0.25"
    assert profile.notebooks["03_deleting_neurons"]["max_neurons"] == 9


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
    ("content", "message_part"),
    [
        ("common: [", "not valid YAML"),
        ("- a\n- b\n", "mapping"),
        ("just text", "mapping"),
        ("common: 3\n", "mapping"),
        ("comon:\n  seed: 1\n", "did you mean common"),
        (f"{STEM}:\n  n_subject: 1\n", "did you mean n_subjects"),
        ("common:\n  n_subjects: 9\n", "n_subjects"),  # not every notebook has it
        ("common:\n  seed: one\n", "seed"),
        ("common:\n  seed: true\n", "give a number"),
        ("common:\n  subject: NO\n", "put it in quotes"),
        ("common:\n  3: x\n", "no parameter '3'"),
        ("common: {}\ncommon: {}\n", "given twice"),
        ("common:\n  seed: 1\n  seed: 2\n", "given twice"),
        ("common: &a {}\n", "anchor"),
        ("common:\n  subject: 2024-13-45\n", "not valid YAML"),
        ("common: " + "[" * 3000, "nested"),
        ("common: []\n", "mapping"),
        ("common:\n  pair_file: pair.yaml\n", "There is no file"),
        ("common:\n  model: ../../x\n", "There is no file or folder"),
        ("09_verify:\n  patch: missing\n", "give an edit that save() wrote"),
        ("09_verify:\n  checkpoint: ./missing\n", "There is no file or folder"),
        ("09_verify:\n  patch: mine.yaml\n  checkpoint: gpt2\n", "leave one of the two away"),
        ("06_edit_mlps:\n  saes: missing\n", "There is no folder"),
    ],
)
def test_a_malformed_profile_is_one_sentence(tmp_path, content, message_part):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        load_profile(str(path))
    assert message_part in str(error.value) and "\n" not in str(error.value)


def test_paths_in_a_profile_count_from_its_folder(tmp_path):
    for name in ("model", "sae"):
        (tmp_path / name).mkdir()
    (tmp_path / "edit").touch()
    path = tmp_path / "mine.yaml"
    path.write_text("common:\n  model: model\n  saes: sae, ./sae\n09_verify:\n  patch: edit\n")
    with pytest.raises(UserError, match="no parameter 'saes'"):  # not every notebook has it
        load_profile(str(path))
    path.write_text("common:\n  model: model\n06_edit_mlps:\n  saes: sae, ./sae\n")
    values = load_profile(str(path)).notebooks["06_edit_mlps"]
    assert values["model"] == f"{tmp_path}/model"
    assert values["saes"] == f"{tmp_path}/sae,{tmp_path}/sae"
    path.write_text("09_verify:\n  checkpoint: model\n  retrained: gpt2\n")
    values = load_profile(str(path)).notebooks["09_verify"]
    assert (values["checkpoint"], values["retrained"]) == (f"{tmp_path}/model", "gpt2")
    path.write_text("common:\n  model: gpt2\n")
    assert load_profile(str(path)).notebooks[STEM]["model"] == "gpt2"


def test_a_profile_that_is_no_text_is_one_sentence(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("common: {subject: Côte}".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        load_profile(str(path))
    for name in ("x" * 5000, "a\0b.yaml", "\x1b[2J"):
        with pytest.raises(UserError, match="There is no profile") as error:
            load_profile(name)
        assert len(str(error.value)) < 500 and str(error.value).isprintable()


def test_a_misspelt_profile_lists_those_that_are():
    with pytest.raises(UserError, match=r"no profile 'smoek'.*default, full, leaderboard, smoke"):
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
    code = "import helpers.book.pipeline, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
