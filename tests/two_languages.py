"""A small model of two made-up languages, of which one is to be forgotten."""

import pytest
import torch
from tiny_models import tiny_config, tiny_tokenizer
from transformers import AutoModelForCausalLM

from helpers.models import load_model
from helpers.requests import Corpus, TextRequest

N_WORDS = 20  # of each language
STEPS = 150


def documents(language: str, seed: int, n: int = 24, length: int = 40) -> list[str]:
    """Texts in which a word is mostly followed by its successor, in one language or the other."""
    rng = torch.Generator().manual_seed(seed)
    first, step = {"a": (0, 1), "b": (30, 3)}[language]
    texts = []
    for _ in range(n):
        words = [int(torch.randint(N_WORDS, (), generator=rng))]
        for _ in range(length):
            follows = float(torch.rand((), generator=rng)) < 0.8
            other = int(torch.randint(N_WORDS, (), generator=rng))
            words.append((words[-1] + step) % N_WORDS if follows else other)
        texts.append(" ".join(f"w{first + w}" for w in words))
    return texts


def language_request() -> TextRequest:
    """Forget language a, retain b."""

    def corpus(name: str, language: str, seed: int) -> Corpus:
        return Corpus.of_texts(name, documents(language, seed))

    return TextRequest(
        "a",
        "capability",
        corpus("a", "a", 0),
        corpus("a, development", "a", 1),
        (corpus("a, held out", "a", 2),),
        (corpus("b", "b", 3),),
        (corpus("b, held out", "b", 4),),
    )


@pytest.fixture(scope="session")
def bilingual_folder(tmp_path_factory):
    """Folder of a tiny llama that was trained on both languages."""
    tokenizer = tiny_tokenizer()
    texts = documents("a", 10, 60) + documents("b", 11, 60)
    ids = torch.tensor(tokenizer(texts, add_special_tokens=False).input_ids)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config("llama"))
    model.requires_grad_(False)  # the MLPs alone learn: it is in them that methods look
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # logits as large as a trained model's
    mlps = [p for block in model.model.layers for p in block.mlp.parameters()]
    for parameter in mlps:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(mlps, lr=2e-2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are too small for more
    for _ in range(STEPS):
        batch = ids[torch.randint(len(ids), (16,))]
        optimiser.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimiser.step()
    torch.set_num_threads(threads)
    folder = tmp_path_factory.mktemp("bilingual")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def bilingual(bilingual_folder, tmp_path, monkeypatch):
    """`bilingual()` -> a fresh model of both languages; its own cache."""
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path / "cache"))

    def make(dtype: str = "float32"):
        model = load_model(str(bilingual_folder), dtype=dtype)
        model.tokenizer = tiny_tokenizer()
        return model

    return make
