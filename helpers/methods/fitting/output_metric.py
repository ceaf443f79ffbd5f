"""The output side of the preservation metric: directions that carry what must stay.

`preservation_metric` weighs a change ΔW by the inputs on which it acts. The same change of W_out's
output may still be harmless or not, depending on its direction. K-FAC approximates the curvature of
a loss by one matrix for the inputs and one for the gradients of the outputs (Martens & Grosse
2015). Two such second moments of gradients protect directions. That of ordinary text is the Fisher
information's, the curvature of the KL divergence. That of known answers of other relations protects
what is said of other subjects, whatever the wording.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair, Prompt, facts, known_facts, subject_span
from helpers.facts.corpus import corpus_tokens
from helpers.facts.relations import RELATIONS
from helpers.forward.scoring import next_token_and_answer
from helpers.io.cache import cached_layers
from helpers.io.code_version import code_hash
from helpers.io.files import read_tensors
from helpers.methods.fitting.constraints import RetainPrompts, preservation_constraints
from helpers.methods.fitting.hparams import PreservationHparams
from helpers.methods.fitting.linearization import BATCH_TOKENS, forward_with_outputs, linearize
from helpers.models import architecture_of, final_norm, model_hash, text_length, unembed

SEQ_LEN = 128  # tokens of a passage of text


def output_metric(
    model: LanguageModel,
    relations: Collection[str],
    hparams: PreservationHparams,
    *,
    layers: Sequence[int],
    n_questions: int,
    question_weight: float,
    n_tokens: int,
    text_weight: float,
    seed: int = 0,
) -> dict[int, Float[Tensor, "d_model d_model"]]:
    """Compute lower Cholesky factors of M_l = 1 + w_q Q_l / mean(Q_l) + w_t T_l / mean(T_l).

    Q is the second moment of the gradients of known answers, T that of text, and the mean is that
    of the eigenvalues.

    Args:
        model: Any model of a known family.
        relations: Relations of what is to be forgotten, whose questions are left out.
        hparams: Gives the least probability of a known answer.
        layers: Layers whose metric is computed.
        n_questions: Questions about facts of other relations that the model knows, one prompt each.
        question_weight: w_q.
        n_tokens: Tokens of text.
        text_weight: w_t.
        seed: Seed that draws questions and text.
    """
    moments = [
        (question_weight, question_moments(model, relations, hparams, layers, n_questions, seed)),
        (text_weight, text_moments(model, layers, n_tokens, seed)),
    ]
    factors = {}
    for i in layers:
        M = torch.eye(architecture_of(model).d_model, dtype=torch.float64)
        for weight, by_layer in moments:
            if i not in by_layer:  # the model knows no other fact
                continue
            M += weight * by_layer[i] / by_layer[i].diagonal().mean()
        factors[i] = torch.linalg.cholesky(M).float()
    return factors


def question_moments(
    model: LanguageModel,
    relations: Collection[str],
    hparams: PreservationHparams,
    layers: Sequence[int],
    n: int,
    seed: int,
) -> dict[int, Float[Tensor, "d_model d_model"]]:
    """Sum g gᵀ over the subject's tokens in known questions, g the answer's gradient.

    g is the gradient of the answer's log-odds. Each question's has norm 1 in each layer, so that
    none counts for more than another. Without such questions the result is empty.
    """
    questions = other_questions(model, relations, n=n, seed=seed)
    if not questions:
        return {}
    key = {
        "model": model_hash(model),
        "questions": [(str(p), *p.answers) for p in questions],
        "min_prob": hparams.min_prob,
        "code": code_hash(__file__),
    }

    def build(missing: Sequence[int]) -> Iterable[tuple[int, dict[str, Tensor]]]:
        predictions = next_token_and_answer(model, questions)
        retained = RetainPrompts(questions)
        constraints = preservation_constraints(model, retained, predictions, hparams)
        spans = {str(p): range(*subject_span(p, model.tokenizer)) for p in questions}
        constraints = [replace(c, edit_positions=tuple(spans[c.name])) for c in constraints]
        linearization = linearize(model, constraints, layers=missing)
        index, n = linearization.constraint_index, len(constraints)
        for i, g in linearization.gradients.items():
            squares = torch.zeros(n).index_add(0, index, g.square().sum(1))
            unit = (g / squares[index, None].sqrt().clamp_min(1e-12)).double()
            yield i, {"G": unit.T @ unit}

    files = cached_layers("question-gradients", key, layers, "moment.safetensors", build)
    return {i: read_tensors(file)[0]["G"] for i, file in files.items()}


def text_moments(
    model: LanguageModel, layers: Sequence[int], n_tokens: int, seed: int
) -> dict[int, Float[Tensor, "d_model d_model"]]:
    """Sum g gᵀ over the positions of text, g the gradient of the text's log-likelihood.

    The next tokens are drawn from the model itself: then it is the Fisher information's factor, and
    not that of the data (Kunstner et al. 2019).
    """
    seq_len = text_length(model, SEQ_LEN)
    key = {
        "model": model_hash(model),
        "n_tokens": n_tokens,
        "seq_len": seq_len,
        "seed": seed,
        "code": code_hash(__file__),
    }

    def build(missing: Sequence[int]) -> Iterable[tuple[int, dict[str, Tensor]]]:
        tokens = corpus_tokens(model.tokenizer, seq_len=seq_len, n_tokens=n_tokens, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        sums = {i: torch.zeros(0) for i in missing}
        for batch in tokens.split(max(1, BATCH_TOKENS // seq_len)):
            for i, g in _likelihood_gradients(model, batch, missing, generator).items():
                product = (g.T @ g).double()
                sums[i] = sums[i] + product if len(sums[i]) else product
        return ((i, {"G": total}) for i, total in sums.items())

    files = cached_layers("text-gradients", key, layers, "moment.safetensors", build)
    return {i: read_tensors(file)[0]["G"] for i, file in files.items()}


def _likelihood_gradients(
    model: LanguageModel,
    tokens: Int[Tensor, "b t"],
    layers: Sequence[int],
    generator: torch.Generator,
) -> dict[int, Float[Tensor, "n d_model"]]:
    """Compute the gradient of Σ log P(drawn next token) at W_out's outputs."""
    with torch.enable_grad():
        _, outputs, final, _ = forward_with_outputs(model, tokens, layers, None, "neurons", {})
        states = final_norm(model, final).reshape(tokens.numel(), -1)
        logprobs = unembed(model, states).float().log_softmax(-1)
        drawn = torch.multinomial(logprobs.detach().exp().cpu(), 1, generator=generator)
        likelihood = logprobs.gather(1, drawn.to(logprobs.device)).sum()
        gradients = torch.autograd.grad(likelihood, [outputs[i] for i in layers])
    return {
        i: g.reshape(tokens.numel(), -1).float().cpu()
        for i, g in zip(layers, gradients, strict=True)
    }


def other_questions(
    model: LanguageModel, relations: Collection[str], *, n: int, seed: int
) -> list[Prompt]:
    """Draw training statements about known facts of the other relations, equally many of each."""
    others = [name for name in RELATIONS if name not in relations]
    rng = np.random.default_rng(seed)
    questions = []
    for name in others:
        by_subject = {f.subject: f for f in facts(name)}
        known = known_facts(model, name).query("known")["subject"].tolist()
        for subject in rng.permutation(known)[: -(-n // len(others))]:
            statements = ConceptPair.of(by_subject[subject]).statements("train")
            questions.append(statements[rng.integers(len(statements))])
    return questions[:n]
