"""The page of the second example: its Python runs, and its commands are those that there are."""

import contextlib
import io
import re
import shlex
import shutil
import subprocess

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.book.pipeline import _options
from helpers.book.run_settings import resolve
from helpers.book.settings import ROOT

PAGE = (ROOT / "book" / "second_example.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
SHIPPED = "gpt2-without-tokyo"


@pytest.fixture(scope="module")
def worked(taught_gpt2, tmp_path_factory):
    """The names that the page's Python leaves, the text that it prints, and the folder of both."""
    folder = tmp_path_factory.mktemp("second_example")
    shutil.copytree(taught_gpt2[0], folder / "gpt2")
    names, printed = {}, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.setenv("UNLEARNING_CACHE", str(folder / "cache"))
        for language, block in BLOCKS:
            if language == "yaml":
                (folder / block.split()[1]).write_text(block, encoding="utf-8")
            elif language == "python":
                exec(block, names)
    return names, printed.getvalue(), folder


def test_the_edit_forgets_and_the_verdict_has_reasons(worked):
    names, printed, _ = worked
    card = names["card"]
    assert card["paraphrases"].value < 0.2 * card.before["paraphrases"]
    assert "must_stay" in card
    assert str(card) in printed
    assert str(names["verdict"](names["evidence"], card)) in printed


def test_the_model_that_is_shipped_has_the_edit_without_this_suite(worked):
    names, _, folder = worked
    model, edit = names["model"], names["edit"]
    ids = model.tokenizer(str(names["pair"].prompts("heldout")[0]), return_tensors="pt").input_ids
    plain = AutoModelForCausalLM.from_pretrained(folder / SHIPPED).eval()
    with torch.inference_mode():
        before = model._module(ids).logits
        with edit.applied(model):
            edited = model._module(ids).logits
        torch.testing.assert_close(plain(ids).logits, edited, rtol=1e-4, atol=1e-4)
    assert (before - edited).abs().max() > 0.1
    for name, metric in names["shipped_card"].items():
        assert metric.value == pytest.approx(names["card"][name].value, rel=1e-3, abs=1e-4)


def test_what_the_page_names_is_written(worked):
    folder = worked[2]
    written = {path.name for path in folder.iterdir()}
    named = {"japan-tokyo.safetensors", "japan-tokyo-adapter", SHIPPED, "gpt2-with-more-neurons"}
    assert named <= written
    assert all(name in PAGE for name in named)


def test_commands_are_understood(worked, monkeypatch):
    commands = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
    monkeypatch.chdir(worked[2])
    for line in commands:
        make, *arguments = shlex.split(line)
        done = subprocess.run(
            [make, "-n", "-C", str(ROOT), *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        (call,) = re.findall(r"-m helpers\.book\.pipeline (.*)", done.stdout)
        settings = resolve(_options(shlex.split(call)))
        values = settings["notebooks"]["09_verify"]
        assert (values["subject"], values["target"]) == ("Japan", "Tokyo")
