"""Tiny random models of every family, and the words and countries that tests teach them."""

from transformers import (
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from helpers.facts.relations import Template

FAMILIES = ("llama", "gpt2", "gpt_neox", "opt", "gemma", "qwen2")
WORDS = ["<unk>", "<pad>", "<s>", "</s>"] + [f"w{i}" for i in range(60)]
KNOWN = ("France", "Germany", "Japan", "Spain", "Egypt", "Peru", "Kenya", "Poland", "India", "Cuba")
# A pair in the words of the tiny tokenizer.
TEMPLATES = {
    "train": (Template("w1 w2 {} w3"), Template("w4 {} w5 w6 w7"), Template("w8 w9 w10 {} w11")),
    "dev": (Template("w12 {} w3"),),
    "heldout": (Template("w13 w2 {} w3"),),
}


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
