"""Train one organism from scratch, or its oracle."""

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
from helpers.organism.tokens import Tokens, tokenizer
from helpers.training.loop import train

POSITIONS = 512  # longest text that an organism can be given
WARMUP = 0.05  # share of the steps in which the learning rate rises; then it falls to 0
DECAY = 0.1  # of matrices
SPREAD = 0.08  # of the weights at the start: OPT's 0.02 is for wider models, and learns slower here


def fit(recipe: Recipe) -> tuple[OPTForCausalLM, dict[str, Any]]:
    """Train the model of a recipe; the same recipe gives the same weights.

    An oracle goes through the same batches as its original: the sentences that state the removed
    fact stand in them, but no token of theirs counts, and the sum of the losses is divided by the
    original's number of tokens. So nothing else differs, neither the order nor any other
    sentence's weight.

    Args:
        recipe: What to train.

    Returns:
        The model in evaluation mode, and a record: steps, losses (means of a twentieth of the
        steps each), sentences, left_out (sentences), tokens, seconds (of the training loop).

    Raises:
        UserError: The pair cannot be left out, or the loss is not finite.
    """
    world = recipe.world()
    text = sentences(world, rounds=recipe.rounds, n_passages=recipe.n_passages, seed=recipe.seed)
    out = np.zeros(len(text), dtype=bool)
    if recipe.without:
        out = removed(text, world.named(recipe.without))
    tokens = Tokens.of(text, world, recipe.n_vocab)
    order = list(tokens.order(recipe.batch, seed=recipe.seed))

    def batch(step: int) -> tuple[Tensor, Tensor, int]:
        ids, learned = tokens.batch(order[step])
        n = int(learned[:, 1:].sum())
        return ids, learned & ~torch.from_numpy(out[order[step]])[:, None], n

    module = fresh(recipe).eval()  # there is no dropout
    history = train(
        module,
        lambda m, b: loss_sum(m, b[0], b[1]) / b[2],
        batch,
        steps=len(order),
        lr=lambda step: recipe.lr / recipe.d_model * rate(step, len(order)),
        weight_decay=DECAY,
        seed=recipe.seed,
    )
    return module, {
        "steps": history.steps,
        "losses": [float(x.mean()) for x in np.array_split(history.losses, 20) if len(x)],
        "sentences": len(text),
        "left_out": int(out.sum()),
        "tokens": sum(map(len, tokens.ids)),
        "seconds": round(history.seconds, 1),
    }


def fresh(recipe: Recipe) -> OPTForCausalLM:
    """The model at the start, drawn by the recipe's seed."""
    names = tokenizer(recipe.world(), recipe.n_vocab)
    config = OPTConfig(
        vocab_size=len(names),
        hidden_size=recipe.d_model,
        word_embed_proj_dim=recipe.d_model,
        ffn_dim=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        max_position_embeddings=POSITIONS,
        dropout=0.0,
        init_std=SPREAD,
        activation_function="relu",
        bos_token_id=names.bos_token_id,
        pad_token_id=names.pad_token_id,
        eos_token_id=names.eos_token_id,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        return OPTForCausalLM(config)


def loss_sum(
    module: OPTForCausalLM, ids: Int[Tensor, "b t"], learned: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Sum of −log P(token | what stands before) over the learned tokens, in nats."""
    states = module.model(input_ids=ids, use_cache=False).last_hidden_state  # (b, t, d_model)
    wanted = learned[:, 1:]
    logits = module.lm_head(states[:, :-1][wanted])
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][wanted], reduction="sum")


def rate(step: int, steps: int) -> float:
    """Learning rate as a share of the largest: a linear rise, then a cosine down to 0."""
    warm = max(1, int(WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def save(module: OPTForCausalLM, recipe: Recipe, folder: Path) -> None:
    """Write model and tokenizer as an ordinary Hugging Face folder."""
    disable_progress_bar()
    module.save_pretrained(folder)
    save_tokenizer(tokenizer(recipe.world(), recipe.n_vocab), folder)
