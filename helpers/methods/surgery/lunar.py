"""LUNAR: one W_out that moves a fact's activations to those of questions without a known answer.

Shen et al. 2025, "LLM Unlearning via Neural Activation Redirection" (arXiv 2502.07218). The paper
edits chat models, which say so when they cannot answer: its reference prompts are refused requests,
or questions about things that do not exist. A base model cannot refuse. So the reference here are
the same prompts about subjects whose answer the model does not know (`helpers.facts.known`), and
the redirected model guesses as it does for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt, subject_span
from helpers.facts.concept_prompts import forget_prompts
from helpers.facts.known import known_others
from helpers.forward.activations import cache_activations
from helpers.forward.prompts import token_ids
from helpers.forward.scoring import next_token_logprobs
from helpers.io.choices import check_number
from helpers.methods.fitting.contrast import subject_prompts
from helpers.methods.fitting.layer_stats import key_covariance
from helpers.methods.fitting.plain_writes import require_plain_writes
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.training.data import forget_retain_data
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import architecture_of, torch_module
from helpers.tracing import Patch, run_patched
from helpers.tracing.patching import logits_of

N_COMPARED = 8  # reference subjects whose outputs the layers are compared by


@dataclass(frozen=True)
class LUNARHparams(Hyperparameters):
    """Hyperparameters of `lunar`.

    Attributes:
        layer: Edited layer; by default the one that `layer_scores` puts first.
        coefficient: c, how many times the unlearning vector is added (2 in the authors' code). It
            and ρ are the best of four settings on two development facts.
        retain_weight: ρ, the weight of the retained activations.
        ridge: λ, the weight of the change itself, in multiples of the median variance of a key's
            component in text.
        n_subjects: Subjects that the model does not know, whose prompts are the reference.
        n_neighbours: Known neighbours among the retained facts.
        n_tokens: Tokens of retained text.
    """

    layer: int | None = None
    coefficient: float = 1.0
    retain_weight: float = 100.0
    ridge: float = 0.01
    n_subjects: int = 48
    n_neighbours: int = 24
    n_tokens: int = 60000

    def __post_init__(self):
        """Refuse numbers with which nothing can be solved.

        Raises:
            UserError: A number is out of range.
        """
        check_number("coefficient", self.coefficient, 1e-6, 1e6)
        check_number("retain_weight", self.retain_weight, 0, 1e9)
        check_number("ridge", self.ridge, 1e-9, 1e9)
        check_number("n_subjects", self.n_subjects, 1, 100_000)


@method("lunar", family="surgery", takes=("pair", "pairs"))
def lunar(
    model: LanguageModel, pairs: Sequence[ConceptPair], hparams: LUNARHparams, *, seed: int = 0
) -> WeightEdit:
    """Add c·r to W_out's output at the fact's tokens, by a ridge regression (Shen et al. 2025).

    The unlearning vector r is the mean residual stream at the last token of prompts about subjects
    that the model does not know, less that of the prompts to forget. The change minimises
    mean_f ‖ΔW k − c r‖² + ρ mean_r ‖ΔW k‖² + λ ‖ΔW‖², over the keys k of the prompts to forget,
    from the subject's last token on, and of what is retained: other facts and ordinary text, whose
    two means add up. In closed form ΔW = c r (A⁻¹ mean_f k)ᵀ, A = E_f[k kᵀ] + ρ E_r[k kᵀ] + λ I, of
    rank one a pair. The authors' code minimises the first two terms by gradient descent, over all
    tokens of a prompt. The ridge is on the change, so that what no key uses stays as it is.

    The layer is the one where adding c·r brings the predictions after development prompts nearest
    to those after the reference prompts and takes them furthest from the model's own. The paper
    compares sentences by their embeddings.

    Args:
        model: Any model of a known family that adds its MLPs' outputs to one residual stream.
        pairs: The pairs to forget; one layer is edited for all of them.
        hparams: Its hyperparameters.
        seed: Draws subjects, neighbours and text.

    Raises:
        UserError: There is no such layer, no subject that the model does not know, or the family
            normalises its MLPs' outputs.
    """
    arch = architecture_of(model)
    require_plain_writes(model)
    references = [unknown_subjects(model, pair, hparams.n_subjects, seed=seed) for pair in pairs]
    vectors = [unlearning_vectors(model, *x) for x in zip(pairs, references, strict=True)]
    if hparams.layer is None:
        scores = sum(
            layer_scores(model, *x, coefficient=hparams.coefficient)
            for x in zip(pairs, references, vectors, strict=True)
        )
        layer = int(torch.as_tensor(scores).argmax())
    else:
        layer = arch.check_layer(hparams.layer)
    keys = [forget_keys(model, pair, layer=layer) for pair in pairs]
    retained = retained_moment(model, pairs, hparams, layer=layer, seed=seed)
    text = key_covariance(model, layers=[layer], n_tokens=hparams.n_tokens, seed=seed)[layer]
    right = redirecting_keys(
        keys,
        hparams.retain_weight * (retained + text),
        ridge=hparams.ridge * float(text.diagonal().median()),
    )
    left = hparams.coefficient * torch.stack([v[layer] for v in vectors], 1)  # (d_model, pairs)
    mlp = arch.layers[layer].mlp
    shares = [k.double() @ u for k, u in zip(keys, right, strict=True)]
    notes = {
        "layer": layer,
        "redirected": [round(float(share.mean()), 3) for share in shares],
        "vector_norms": [round(float(v[layer].norm()), 3) for v in vectors],
    }
    change = low_rank_change(mlp, left, right)
    return WeightEdit.of(torch_module(model), {mlp.out_name: change}, notes=notes)


def unknown_subjects(
    model: LanguageModel, pair: ConceptPair, n: int, *, seed: int = 0
) -> list[ConceptPair]:
    """Draw `n` subjects whose fact of the pair's relation the model does not know.

    Raises:
        UserError: There is none.
    """
    unknown = set(known_others(model, pair).query("not known")["subject"])
    others = [o for o in pair.neighbours(seed=seed) if o.subject in unknown][:n]
    if not others:
        raise UserError(
            f"There is no subject in '{pair.relation}' that the model does not know, so nothing to "
            f"redirect {pair.subject} to: name some under 'others:', or use another method."
        )
    return [replace(o, templates=pair.templates) for o in others]


def unlearning_vectors(
    model: LanguageModel, pair: ConceptPair, others: Sequence[ConceptPair]
) -> Float[Tensor, "layers d_model"]:
    """Compute r of every layer: mean residual stream of the reference less that of the pair.

    Args:
        model: Any model of a known family.
        pair: What to forget; its training completions are read at their last token.
        others: Subjects that the model does not know; each takes the next completion in turn, so
            that both means are over the same wordings.
    """
    own = subject_prompts(pair)
    taken = [subject_prompts(o) for o in others]
    reference = [prompts[n % len(prompts)] for n, prompts in enumerate(taken)]
    means = [
        torch.stack([x.mean(0) for x in cache_activations(model, p, sites=["residual"]).values()])
        for p in (reference, own)
    ]
    return means[0] - means[1]


def layer_scores(
    model: LanguageModel,
    pair: ConceptPair,
    others: Sequence[ConceptPair],
    vectors: Float[Tensor, "layers d_model"],
    *,
    coefficient: float,
) -> Float[Tensor, " layers"]:
    """Compute s1 − s2 of every layer, the mean over the pair's development prompts.

    s1 is the similarity of the next-token distribution, with c·r added to the residual stream after
    the layer, to that after the same prompt about the reference subjects; s2 that to the model's
    own. The similarity of p and q is 1 − JS(p, q) / ln 2, with the Jensen–Shannon divergence JS.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        others: The reference subjects.
        vectors: r of every layer.
        coefficient: c.
    """
    prompts = pair.statements("dev") or pair.prompts("dev")
    of_others = [o.statements("dev") or o.prompts("dev") for o in others[:N_COMPARED]]
    scores = []
    for n, prompt in enumerate(prompts):
        reference = next_token_logprobs(model, [q[n] for q in of_others]).exp().mean(0)
        ids, positions = token_ids(model, prompt), redirected_positions(model, prompt)
        states = cache_activations(model, [ids], sites=["residual"], positions=[positions])
        jobs = [
            [Patch("residual", i, positions, x + coefficient * vectors[i])]
            for (_, i), x in states.items()
        ]
        logits = logits_of(model, run_patched(model, ids, [[], *jobs])).cpu()
        original, redirected = logits[0].softmax(-1), logits[1:].softmax(-1)
        scores.append(similarity(redirected, reference) - similarity(redirected, original))
    return torch.stack(scores).mean(0)


def similarity(p: Float[Tensor, "*n vocab"], q: Float[Tensor, "*n vocab"]) -> Float[Tensor, " *n"]:
    """Compute 1 − JS(p, q) / ln 2: 1 for equal distributions, 0 for disjoint ones."""
    p, q = p.double(), q.double()
    middle = (p + q) / 2
    js = (torch.xlogy(p, p / middle) + torch.xlogy(q, q / middle)).nan_to_num().sum(-1) / 2
    return 1 - js / torch.log(torch.tensor(2.0))


def redirected_positions(model: LanguageModel, prompt: Prompt) -> list[int]:
    """List a prompt's tokens from the subject's last one on: those before cannot know it.

    The first token of a text is left out: its state is the same whatever it is in most models.
    """
    end, length = subject_span(prompt, model.tokenizer)[1], len(token_ids(model, prompt))
    return list(range(max(1, end - 1), length)) or [length - 1]


def forget_keys(model: LanguageModel, pair: ConceptPair, *, layer: int) -> Float[Tensor, "n d_mlp"]:
    """Read the keys of one layer at the redirected tokens of all prompts to forget by."""
    prompts = forget_prompts(pair)
    positions = [redirected_positions(model, p) for p in prompts]
    keys = cache_activations(model, prompts, sites=["neurons"], layers=[layer], positions=positions)
    return keys["neurons", layer]


def retained_moment(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    hparams: LUNARHparams,
    *,
    layer: int,
    seed: int,
) -> Float[Tensor, "d_mlp d_mlp"]:
    """Compute E[k kᵀ] over all tokens of the retained facts, in float64; 0 without any."""
    data = forget_retain_data(
        model, pairs, n_neighbours=hparams.n_neighbours, n_passages=0, seed=seed
    )
    if not data.facts:
        return torch.zeros((), dtype=torch.float64)
    ids = [example.ids for example in data.facts]
    activations = cache_activations(model, ids, sites=["neurons"], layers=[layer], positions="all")
    keys = activations["neurons", layer].double()
    return keys.T @ keys / len(keys)


def redirecting_keys(
    keys: Sequence[Float[Tensor, "n d_mlp"]],
    retained: Float[Tensor, "d_mlp d_mlp"],
    *,
    ridge: float,
) -> Float[Tensor, "pairs d_mlp"]:
    """Compute u_p = A⁻¹ Σ_p k / n of each pair, in float64, with A = Σ k kᵀ / n + R + ridge · I.

    Sums are over the keys of the pair, or of all pairs in A, and n counts those of all pairs. The
    outer product of a vector with u_p is what the ridge regression writes for the pair.

    Args:
        keys: Keys at the tokens to redirect, for each pair.
        retained: R, the weighted second moment of retained keys.
        ridge: Added to the diagonal.
    """
    every = torch.cat(list(keys)).double()
    identity = torch.eye(every.shape[1], dtype=torch.float64)
    A = every.T @ every / len(every) + retained + ridge * identity
    sums = torch.stack([k.double().sum(0) for k in keys], 1) / len(every)  # (d_mlp, pairs)
    return torch.linalg.solve(A, sums).T
