"""Outputs of one state of a model on all evaluation prompts and texts.

A sweep over edits compares each with the same original, so the original's outputs are kept, and so
are its activations below the edited layers.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.evaluation.eval_prompts import EvalPrompt, efficacy_prompts, retention_prompts
from helpers.evaluation.metrics.fluency import openings
from helpers.facts import ConceptPair
from helpers.facts.corpus import chat_tokens, corpus_tokens, python_docs_tokens
from helpers.forward.final_states import final_states
from helpers.forward.generation import greedy
from helpers.forward.layer_cache import LayerCache, use_layer_cache
from helpers.forward.scoring import answer_scores
from helpers.models import model_hash, text_length

NEW_TOKENS = 8  # generated tokens of an answer
N_TEXTS, TEXT_TOKENS = 8, 32  # generated texts for the metrics of fluency, and their lengths


@dataclass(frozen=True)
class OutputsConfig:
    """Content and size of an evaluation.

    Attributes:
        pair: The fact that was to be forgotten.
        split: The split whose templates are used.
        n_neighbours: Number of known neighbours.
        n_tokens: Tokens of each corpus.
        seed: Draws neighbours and passages.
        parts: Parts of the scorecard (`helpers.evaluation.scorecard.PARTS`).
    """

    pair: ConceptPair
    split: str
    n_neighbours: int
    n_tokens: int
    seed: int
    parts: tuple[str, ...]


@dataclass
class ModelOutputs:
    """Outputs of one state of the model.

    Attributes:
        config: Content and size of the evaluation.
        prompts: The evaluation prompts.
        corpora: Name → tokens of ordinary text, sequences by tokens.
        openings: Beginnings of texts that the model continues.
        model_hash: Hash of the state.
        layer_cache: Activations that the original shares with edits of higher layers; None
            without.
        probability: P(answer) of each prompt.
        rank: Rank of the answer's first token for each prompt; 0 is the likeliest.
        states: Name of a corpus → final hidden states, sequences by tokens by d_model.
        generations: Greedy answers to the paraphrases.
        texts: Words of the greedy continuation of each opening.
    """

    config: OutputsConfig
    prompts: list[EvalPrompt]
    corpora: dict[str, Int[Tensor, "n t"]]
    openings: list[str]
    model_hash: str
    layer_cache: LayerCache | None
    probability: Float[np.ndarray, " n"]
    rank: Int[np.ndarray, " n"]
    states: dict[str, Float[Tensor, "n t d_model"]]
    generations: list[str]
    texts: list[list[str]]

    def rerun(self, model: LanguageModel) -> "ModelOutputs":
        """Compute the outputs of the model's present state on the same prompts and texts."""
        return _compute(
            model, self.config, self.prompts, self.corpora, self.openings, self.layer_cache
        )

    def mask(self, group: str) -> Bool[np.ndarray, " n"]:
        """Mark the prompts of a group."""
        return np.array([prompt.group == group for prompt in self.prompts], dtype=bool)

    def by_fact(self, group: str) -> Float[np.ndarray, " facts"]:
        """Average P(answer) over the prompts of each fact of a group."""
        mask = self.mask(group)
        fact = np.array([prompt.fact for prompt in self.prompts])[mask]
        total = np.bincount(fact, weights=self.probability[mask])
        return total / np.bincount(fact)


_LAST_BASE: dict[tuple, ModelOutputs] = {}  # outputs of the last original, for sweeps over edits


def outputs_of_base(model: LanguageModel, config: OutputsConfig, first_layer: int) -> ModelOutputs:
    """Compute the original's outputs, or return them if they are those of the last call.

    Args:
        model: The original model.
        config: Content and size of the evaluation.
        first_layer: The lowest layer that the edit changes. Activations below it are kept for the
            edited model; 0 keeps none.
    """
    key = (model_hash(model), config, tuple(config.pair.fingerprint()))
    if key not in _LAST_BASE:
        prompts, corpora, texts = _prompts(model, config), _corpora(model, config), []
        if "generation" in config.parts:
            texts = openings(N_TEXTS, seed=config.seed)
        layer_cache = LayerCache(model, first_layer) if first_layer else None
        outputs = _compute(model, config, prompts, corpora, texts, layer_cache)
        _LAST_BASE.clear()
        _LAST_BASE[key] = outputs
        return outputs
    outputs = _LAST_BASE[key]
    # A cache of lower layers serves edits of higher ones, but not the other way round.
    if first_layer and (outputs.layer_cache is None or outputs.layer_cache.layer > first_layer):
        outputs.layer_cache = LayerCache(model, first_layer)
    return outputs


def _prompts(model: LanguageModel, config: OutputsConfig) -> list[EvalPrompt]:
    prompts = []
    if {"efficacy", "greedy"} & set(config.parts):
        prompts += efficacy_prompts(config.pair, config.split)
    if "retention" in config.parts:
        prompts += retention_prompts(
            model,
            config.pair,
            config.split,
            n_neighbours=config.n_neighbours,
            seed=config.seed,
        )
    return prompts


def _corpora(model: LanguageModel, config: OutputsConfig) -> dict[str, Int[Tensor, "n t"]]:
    if "model" not in config.parts:
        return {}
    tokenizer = model.tokenizer
    size = {"seq_len": text_length(model), "n_tokens": config.n_tokens}
    return {
        "factbook": corpus_tokens(tokenizer, split="heldout", seed=config.seed, **size),
        "other": python_docs_tokens(tokenizer, **size),
        "chat": chat_tokens(tokenizer, **size),
    }


def _compute(
    model: LanguageModel,
    config: OutputsConfig,
    prompts: list[EvalPrompt],
    corpora: dict[str, Int[Tensor, "n t"]],
    openings: list[str],
    layer_cache: LayerCache | None,
) -> ModelOutputs:
    """Compute all outputs of the model's present state."""
    with use_layer_cache(model, layer_cache):
        probability, rank = answer_scores(model, [p.prompt for p in prompts])
        states = {name: final_states(model, tokens) for name, tokens in corpora.items()}
    answered = [p.prompt for p in prompts if p.group == "paraphrases"]
    generations, texts = [], []
    if "greedy" in config.parts and answered:
        generations = greedy(model, answered, max_new_tokens=NEW_TOKENS)
    if openings:
        texts = greedy(model, openings, max_new_tokens=TEXT_TOKENS)
    return ModelOutputs(
        config,
        prompts,
        corpora,
        openings,
        model_hash(model),
        layer_cache,
        probability,
        rank,
        states,
        generations,
        [text.split() for text in texts],
    )
