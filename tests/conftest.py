"""Shared fixtures: tiny random models of every family, and the real default model."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from tiny_models import TEMPLATES, tiny_config, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

from helpers.facts import ConceptPair

GIGABYTES = 3  # that a worker may take: some tests load the default model several times


def pytest_configure():
    """Compute with one thread, here and in all processes that tests start, unless it is set.

    More threads gain nothing on small models, and each worker has a core.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        torch.set_num_threads(1)  # torch has read the environment


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Start a worker a core, as far as memory goes: `-n auto`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores, psutil.virtual_memory().total // (GIGABYTES * 2**30)))


@pytest.fixture(autouse=True)
def closed_figures():
    """Close the figures that a test drew: pyplot keeps them all, and warns of the twentieth."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """`tiny_folder(family)` -> folder of a saved tiny random model with its tokenizer."""

    def make(family: str):
        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(tiny_config(family)).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def tiny_model(tiny_folder):
    """`tiny_model(family)` -> a fresh nnsight LanguageModel of three layers, d_model 16."""
    from helpers.models import load_model

    def make(family: str = "llama"):
        model = load_model(str(tiny_folder(family)))
        model.tokenizer = tiny_tokenizer()  # transformers takes some families' own class instead
        return model

    return make


# Rounding differs between processors, and training makes that a model of its own for each kind of
# machine. These settings, which are read when torch is loaded, make all with AVX2 compute the same.
SAME_EVERYWHERE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def teach(folder: Path, family: str) -> tuple[Path, PreTrainedTokenizerFast]:
    """Teach a small model of a family all facts of the `KNOWN` countries, in another process."""
    command = [sys.executable, str(Path(__file__).with_name("teaching.py")), str(folder), family]
    done = subprocess.run(command, env=os.environ | SAME_EVERYWHERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
    """Folder and tokenizer of a small llama that was taught all facts of the `KNOWN` countries."""
    return teach(tmp_path_factory.mktemp("taught"), "llama")


@pytest.fixture(scope="session")
def taught_gpt2(tmp_path_factory):
    """Folder and tokenizer of a small GPT-2 that was taught the same."""
    return teach(tmp_path_factory.mktemp("taught_gpt2"), "gpt2")


@pytest.fixture
def knowing(taught, tmp_path, monkeypatch):
    """`knowing()` -> a fresh small model that knows the `KNOWN` countries; its own cache."""
    from helpers.models import load_model

    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path / "cache"))
    folder, tokenizer = taught

    def make(dtype: str = "float32"):
        model = load_model(str(folder), dtype=dtype)
        model.tokenizer = tokenizer
        return model

    return make


@pytest.fixture(scope="session")
def smollm():
    """The real default model; tests must leave its weights as they found them."""
    from helpers.models import load_model

    return load_model()


@pytest.fixture
def own_pair(monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))
    words = torch.randint(4, 60, (60, 40), generator=torch.Generator().manual_seed(0))
    words[words == 44] = 45  # w40 is the subject: text does not name it
    for place in ("negatives", "layer_stats", "output_metric"):
        monkeypatch.setattr(f"helpers.methods.fitting.{place}.corpus_tokens", lambda *a, **k: words)
    return ConceptPair("w40", "w20", "own", templates=TEMPLATES)


@pytest.fixture
def grown_model(tiny_model):
    """A tiny model whose tokens speak to each other as much as a trained one's."""

    def make(family="llama"):
        model = tiny_model(family)
        with torch.no_grad():
            for parameter in model._module.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(10)
        return model

    return make
