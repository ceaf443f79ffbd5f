"""All metrics of one model on one fact, each turned so that a larger value means: looks known."""

from collections.abc import Sequence

import numpy as np
import torch
from nnsight import LanguageModel

from helpers.evaluation.attacks.logit_lens import logit_lens
from helpers.evaluation.eval_prompts import names_target
from helpers.evaluation.metrics.fluency import ngram_entropy, repetition
from helpers.evaluation.metrics.memorization import (
    exact_memorisation,
    extraction_strength,
    likeliest_matches,
)
from helpers.evaluation.metrics.mia import (
    gradient_score,
    loss_score,
    min_k_plus_score,
    min_k_score,
    token_statistics,
    zlib_score,
)
from helpers.evaluation.metrics.truth_ratio import truth_ratios
from helpers.facts import ConceptPair
from helpers.forward.generation import greedy
from helpers.forward.scoring import answer_scores
from helpers.models import architecture_of
from helpers.models.tokenization import encode

METRICS = {  # name → description
    "mean P(target)": "mean over held-out statements",
    "largest P(target)": "the largest over held-out statements",
    "rank": "−log₁₀ of the median rank of the target's first token",
    "greedy": "fraction of greedy continuations that name the target",
    "truth ratio": "−log R, mean over three statements; R > 1 where wrong answers are preferred",
    "exact memorisation": "fraction of the answer's tokens that are the likeliest",
    "extraction strength": "1 − fraction of the answer that has to be given",
    "loss": "membership: −mean NLL of the statement with its answer",
    "zlib": "membership: the same by the compressed size",
    "Min-K": "membership: the least likely fifth of the tokens",
    "Min-K++": "membership: the same in standard deviations of the vocabulary",
    "gradient": "membership: −norm of the loss's gradient in a middle layer",
    "logit lens": "rank of the target among answers, mean over the upper half of the layers",
    "depth": "1 − unlearning depth score",
    "no repetition": "1 − fraction of repeated 4-grams in greedy text",
    "entropy": "n-gram entropy of greedy text",
}
N_DISTRACTORS = 4  # other subjects' answers in a truth ratio
N_GENERATIONS = 3  # statements for generation, truth ratio and membership
NEW_TOKENS = 10  # of a generation


def compute_metrics(model: LanguageModel, pair: ConceptPair, *, seed: int = 0) -> dict[str, float]:
    """Compute `METRICS` of the model with its edits, without `depth`, which needs control facts.

    Args:
        model: Any causal model of a known family.
        pair: The fact, of which the held-out statements are used.
        seed: Draws the wrong answers and the candidates of the logit lens.
    """
    statements = pair.statements("heldout")
    probability, rank = answer_scores(model, statements)
    matches = likeliest_matches(model, statements, [p.answers[0] for p in statements])
    wrong = [o.answers[0] for o in pair.comparison_pairs(N_DISTRACTORS, seed=seed)]
    few = statements[:N_GENERATIONS]
    generations = greedy(model, few, max_new_tokens=NEW_TOKENS)
    ranks = logit_lens(model, pair, seed=seed)
    upper = ranks["budget"] >= architecture_of(model).n_layers // 2
    return {
        "mean P(target)": float(probability.mean()),
        "largest P(target)": float(probability.max()),
        "rank": -float(np.log10(np.median(rank) + 1)),
        "greedy": float(np.mean([names_target(pair, text) for text in generations])),
        "truth ratio": -float(np.log(truth_ratios(model, few, wrong)).mean()),
        "exact memorisation": float(np.mean([exact_memorisation(m) for m in matches])),
        "extraction strength": float(np.mean([extraction_strength(m) for m in matches])),
        **membership(model, [f"{p}{p.answers[0]}" for p in few]),
        "logit lens": float(ranks[upper]["score"].mean()),
        "no repetition": 1 - float(np.mean([repetition(t.split()) for t in generations])),
        "entropy": float(np.mean([ngram_entropy(t.split()) for t in generations])),
    }


def membership(model: LanguageModel, texts: Sequence[str]) -> dict[str, float]:
    """Compute membership scores of a few texts of any lengths, means over the texts.

    The gradient is that of the first text, by W_out of the middle layer. The reference score is
    left out: there is no model that was trained without the texts.
    """
    ids = [torch.tensor([encode(model.tokenizer, t)]) for t in texts]
    statistics = [token_statistics(model, tokens) for tokens in ids]
    arch = architecture_of(model)
    middle = arch.layers[arch.n_layers // 2].mlp.out_name
    scores = {
        "loss": [loss_score(s.logprob) for s in statistics],
        "zlib": [zlib_score(s.logprob, [t]) for s, t in zip(statistics, texts, strict=True)],
        "Min-K": [min_k_score(s.logprob) for s in statistics],
        "Min-K++": [min_k_plus_score(s) for s in statistics],
        "gradient": [gradient_score(model, ids[0], parameters=[middle])],
    }
    return {name: float(np.mean(values)) for name, values in scores.items()}
