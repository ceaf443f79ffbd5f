"""Training of one organism from scratch, or of its oracle."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM
from transformers.utils.logging import disable_progress_bar

from helpers.models.tokenization import save_tokenizer
from helpers.organism.recipe import Recipe
from helpers.organism.text import removed, sentences
from helpers.organism.tokens import TokenizedText, tokenizer
from helpers.training.loop import train

MAX_POSITIONS = 512  # longest text that an organism can be given
WARMUP_FRACTION = 0.05  # of the steps, in which the learning rate rises; then it falls to 0
WEIGHT_DECAY = 0.1  # of matrices
INIT_STD = 0.08  # OPT's 0.02 is for wider models, and learns slower here


def fit(recipe: Recipe) -> tuple[OPTForCausalLM, dict[str, Any]]:
    """Train the model of a recipe; the same recipe gives the same weights.

    An oracle goes through the same batches as its original. The sentences that state the removed
    fact stand in them, but none of their tokens is a label, and the sum of the losses is divided by
    the original's number of labels. So nothing else differs, neither the order nor any other
    sentence's weight.

    Args:
        recipe: All that decides the model.

    Returns:
        The model in evaluation mode, and a record: steps, losses (means of a twentieth of the
        steps each), sentences, left_out (sentences), tokens, seconds (of the training loop).

    Raises:
        UserError: The fact cannot be removed, or the loss is not finite.
    """
    fact_set = recipe.fact_set()
    text = sentences(
        fact_set, n_repeats=recipe.n_repeats, n_passages=recipe.n_passages, seed=recipe.seed
    )
    is_removed = np.zeros(len(text), dtype=bool)
    if recipe.removed_fact:
        is_removed = removed(text, fact_set.named(recipe.removed_fact))
    tokens = TokenizedText.of(text, fact_set, recipe.n_vocab)
    order = list(tokens.order(recipe.batch, seed=recipe.seed))

    def batch(step: int) -> tuple[Tensor, Tensor, int]:
        ids, is_label = tokens.batch(order[step])
        n_labels = int(is_label[:, 1:].sum())  # with the removed ones, as in the original
        return ids, is_label & ~torch.from_numpy(is_removed[order[step]])[:, None], n_labels

    module = initial_model(recipe).eval()  # there is no dropout
    history = train(
        module,
        lambda m, b: loss_sum(m, b[0], b[1]) / b[2],
        batch,
        steps=len(order),
        lr=lambda step: recipe.lr / recipe.d_model * lr_factor(step, len(order)),
        weight_decay=WEIGHT_DECAY,
        seed=recipe.seed,
    )
    return module, {
        "steps": history.steps,
        "losses": [float(x.mean()) for x in np.array_split(history.losses, 20) if len(x)],
        "sentences": len(text),
        "left_out": int(is_removed.sum()),
        "tokens": sum(map(len, tokens.ids)),
        "seconds": round(history.seconds, 1),
    }


def initial_model(recipe: Recipe) -> OPTForCausalLM:
    """Draw the weights at the start by the recipe's seed."""
    vocabulary = tokenizer(recipe.fact_set(), recipe.n_vocab)
    config = OPTConfig(
        vocab_size=len(vocabulary),
        hidden_size=recipe.d_model,
        word_embed_proj_dim=recipe.d_model,
        ffn_dim=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        max_position_embeddings=MAX_POSITIONS,
        dropout=0.0,
        init_std=INIT_STD,
        activation_function="relu",
        bos_token_id=vocabulary.bos_token_id,
        pad_token_id=vocabulary.pad_token_id,
        eos_token_id=vocabulary.eos_token_id,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        return OPTForCausalLM(config)


def loss_sum(
    module: OPTForCausalLM, ids: Int[Tensor, "b t"], is_label: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Sum −log P(token | tokens before it) over the labels, in nats."""
    states = module.model(input_ids=ids, use_cache=False).last_hidden_state  # (b, t, d_model)
    predicted = is_label[:, 1:]
    # Only the labels' logits: the vocabulary is wider than all else of so small a model.
    logits = module.lm_head(states[:, :-1][predicted])
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][predicted], reduction="sum")


def lr_factor(step: int, n_steps: int) -> float:
    """Compute the learning rate over its largest: a linear rise, then a cosine down to 0."""
    warmup = max(1, int(WARMUP_FRACTION * n_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, n_steps - warmup)))


def save(module: OPTForCausalLM, recipe: Recipe, folder: Path) -> None:
    """Write model and tokenizer as an ordinary Hugging Face folder."""
    disable_progress_bar()
    module.save_pretrained(folder)
    save_tokenizer(tokenizer(recipe.fact_set(), recipe.n_vocab), folder)
