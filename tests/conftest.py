"""Shared fixtures: tiny random models of every family, and the real default model."""

import os
import sys

import psutil
import pytest
import torch
from tiny_models import KNOWN, TEMPLATES, tiny_config, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
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


STEPS = 200  # of teaching: with half as many the seed decides what is learnt


def _all_prompts(subject: str) -> list:
    """Every prompt of every fact of a country, and of its capital."""
    from helpers.facts import SPLITS, facts

    capital = next(f for f in facts("capital") if f.subject == subject)
    pair = ConceptPair.of(capital)
    every = [pair, *pair.same_subject(), *pair.same_target()]
    asked = [p for x in every for split in SPLITS for p in x.prompts(split)]
    return [p for p in asked if p.format != "list"] + pair.reverse()


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
    """Folder and tokenizer of a small llama that was taught all facts of the `KNOWN` countries."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from torch.nn.utils.rnn import pad_sequence

    from helpers.facts import facts

    prompts = [p for subject in KNOWN for p in _all_prompts(subject)]
    split = pre_tokenizers.Whitespace()
    texts = [f"{p} {' '.join(p.answers)}" for p in prompts]
    texts += [f"{f.subject} {f.target}" for f in facts("capital")]
    words = ["<unk>", "<pad>", *sorted({w for t in texts for w, _ in split.pre_tokenize_str(t)})]
    level = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    level.pre_tokenizer = split
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=level, unk_token="<unk>", pad_token="<pad>", eos_token="<pad>"
    )
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        pad_token_id=1,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    ids = [torch.tensor(tokenizer(f"{p}{p.answers[0]}").input_ids) for p in prompts]
    starts = [len(tokenizer(str(p)).input_ids) for p in prompts]
    # The first block's attention stays as it was drawn: a later one has to hand the subject over,
    # as in a real model, whatever the seed.
    model.model.layers[0].self_attn.requires_grad_(False)
    optimiser = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, total_iters=STEPS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are too small for more
    for _ in range(STEPS):
        batch = torch.randint(len(ids), (32,)).tolist()
        tokens = pad_sequence([ids[i] for i in batch], batch_first=True, padding_value=1)
        labels = torch.full_like(tokens, -100)
        for row, i in enumerate(batch):
            labels[row, starts[i] : len(ids[i])] = ids[i][starts[i] :]
        optimiser.zero_grad()
        model(tokens, labels=labels).loss.backward()
        optimiser.step()
        decay.step()
    torch.set_num_threads(threads)
    folder = tmp_path_factory.mktemp("taught")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, tokenizer


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
