"""Shared fixtures: tiny random models of every family, and the real default model."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

FAMILIES = ("llama", "gpt2", "gpt_neox", "opt", "gemma", "qwen2")
WORDS = ["<unk>", "<pad>", "<s>", "</s>"] + [f"w{i}" for i in range(60)]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over `w0 ... w59`."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )


def tiny_config(family: str):
    common = {"vocab_size": len(WORDS), "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1}
    llama_like = dict(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **common,
    )
    return {
        "llama": lambda: LlamaConfig(**llama_like),
        "qwen2": lambda: Qwen2Config(**llama_like),
        "gemma": lambda: GemmaConfig(**llama_like, head_dim=4),
        "gpt2": lambda: GPT2Config(n_embd=16, n_layer=3, n_head=4, n_positions=64, **common),
        "gpt_neox": lambda: GPTNeoXConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=64,
            **common,
        ),
        "opt": lambda: OPTConfig(
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=64,
            **common,
        ),
    }[family]()


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


@pytest.fixture(scope="session")
def smollm():
    """The real default model; tests must leave its weights as they found them."""
    from helpers.models import load_model

    return load_model()
