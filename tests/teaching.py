"""Teach a small model all facts of the `KNOWN` countries: `python tests/teaching.py folder llama`.

A process of its own, because torch reads the settings that make it compute the same on all machines
when it is loaded (`SAME_EVERYWHERE` of conftest.py).
"""

import sys
from pathlib import Path

import torch
from tiny_models import KNOWN
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from helpers.facts import SPLITS, ConceptPair, facts

STEPS = 200  # with half as many the seed decides what is learnt


def all_prompts(subject: str) -> list:
    """Every prompt of every fact of a country, and of its capital."""
    capital = next(f for f in facts("capital") if f.subject == subject)
    pair = ConceptPair.of(capital)
    every = [pair, *pair.same_subject(), *pair.same_target()]
    asked = [p for x in every for split in SPLITS for p in x.prompts(split)]
    return [p for p in asked if p.format != "list"] + pair.reverse()


def config_of(family: str, vocab_size: int) -> PretrainedConfig:
    """The configuration of a small llama or GPT-2."""
    common = {"vocab_size": vocab_size, "pad_token_id": 1, "eos_token_id": 1, "bos_token_id": None}
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4, "n_positions": 128}
        return GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **common)
    return LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        **common,
    )


def teach(folder: Path, family: str) -> None:
    """Train the model, and save it with its tokenizer."""
    prompts = [p for subject in KNOWN for p in all_prompts(subject)]
    split = pre_tokenizers.Whitespace()
    texts = [f"{p} {' '.join(p.answers)}" for p in prompts]
    texts += [f"{f.subject} {f.target}" for f in facts("capital")]
    words = ["<unk>", "<pad>", *sorted({w for t in texts for w, _ in split.pre_tokenize_str(t)})]
    level = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    level.pre_tokenizer = split
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=level, unk_token="<unk>", pad_token="<pad>", eos_token="<pad>"
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family, len(words)))
    ids = [torch.tensor(tokenizer(f"{p}{p.answers[0]}").input_ids) for p in prompts]
    starts = [len(tokenizer(str(p)).input_ids) for p in prompts]
    # The first block's attention stays as it was drawn: a later one has to hand the subject over,
    # as in a real model, whatever the seed.
    first = model.transformer.h[0].attn if family == "gpt2" else model.model.layers[0].self_attn
    first.requires_grad_(False)
    optimiser = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, total_iters=STEPS)
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
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    teach(Path(sys.argv[1]), sys.argv[2])
