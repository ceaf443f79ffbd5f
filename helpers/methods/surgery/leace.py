"""LEACE: the least linear change of W_in's inputs after which no linear probe finds the subject."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair
from helpers.facts.corpus import corpus_tokens
from helpers.forward.activations import cache_activations
from helpers.forward.batching import LARGE_BATCH_TOKENS
from helpers.methods.fitting.contrast import contrast, input_matrices
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import architecture_of, text_length, torch_module


@dataclass(frozen=True)
class Eraser:
    """The affine map r(x) = x − left · right · (x − mean).

    Attributes:
        left: Left factor, (width, k).
        right: Right factor, (k, width).
        mean: Mean of the data that it was fitted on, (width,).
    """

    left: Float[Tensor, "width k"]
    right: Float[Tensor, "k width"]
    mean: Float[Tensor, " width"]

    def __call__(self, x: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        """Return the erased data."""
        return x - (x - self.mean) @ self.right.T @ self.left.T


def fit_leace(
    x: Float[Tensor, "n width"],
    z: Float[Tensor, "n k"],
    *,
    svd_tol: float = 0.01,
    precision: torch.dtype = torch.float64,
) -> Eraser:
    """Fit the least-squares concept eraser of Belrose et al. 2023 (theorem 4.2).

    r(x) = x − W⁺ P W (x − E x) with the whitening W = Σ_xx^(−1/2) and P the orthogonal projection
    on the columns of W Σ_xz. Directions in which x does not vary are left alone. The numbers equal
    those of the package concept-erasure with `shrinkage=False`; its default shrinks Σ_xx first.

    Args:
        x: The data, float64 for exactness.
        z: The concept, one column a class or a label.
        svd_tol: Singular values of W Σ_xz below this count as zero (the package's default).
        precision: Dtype of the data before: less variance than its rounding error counts as none.
    """
    mean = x.mean(0)
    centred = x - mean
    sigma_xx = centred.T @ centred / len(x)
    sigma_xz = centred.T @ (z.to(x) - z.to(x).mean(0)) / len(x)
    # Eigenvalues below the rounding error are no variance: invert the others only.
    values, vectors = torch.linalg.eigh(sigma_xx)
    mask = values > values.max() * len(values) * torch.finfo(precision).eps
    root = torch.where(mask, values, 1).sqrt()
    whiten = vectors * torch.where(mask, 1 / root, 0) @ vectors.T
    unwhiten = vectors * torch.where(mask, root, 0) @ vectors.T
    # After whitening, the columns of W Σ_xz span what a linear probe can use: project it out.
    u, s, _ = torch.linalg.svd(whiten @ sigma_xz, full_matrices=False)
    u = u[:, s > svd_tol]
    return Eraser(unwhiten @ u, u.T @ whiten, mean)


@dataclass(frozen=True)
class LEACEHparams(Hyperparameters):
    """Hyperparameters of `leace`.

    Attributes:
        layers: Edited layers; by default 0 to 3 of 30, at the same relative depth in other models,
            tried on France (a development fact), not swept.
        n_subjects: Other subjects with which the subject is compared.
        n_tokens: Tokens of text.
        seq_len: Tokens of a passage of that text.
        svd_tol: Correlations below this count as zero; concept-erasure's default.
    """

    layers: Sequence[int] | None = None
    n_subjects: int = 24
    n_tokens: int = 2048
    seq_len: int = 128
    svd_tol: float = 0.01


@method("leace", family="surgery")
def leace(
    model: LanguageModel, pair: ConceptPair, hparams: LEACEHparams, *, seed: int = 0
) -> WeightEdit:
    """Set W_in ← W_in (I − P), the gate alike, with P of the LEACE eraser of "is it the subject".

    The eraser is fitted on W_in's inputs at the subject's last token (the concept), at other
    subjects' and in text (not the concept). Its constant, W_in P E x, has no place in a matrix
    without a bias and is left out. That shifts all inputs alike, so a linear probe still finds
    nothing.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws subjects and text.

    Raises:
        UserError: There is no such layer, or nothing to compare with.
    """
    arch = architecture_of(model)
    layers = [arch.check_layer(i) for i in hparams.layers or arch.relative_layers(range(4))]
    contrasts = contrast(model, pair, layers=layers, n_subjects=hparams.n_subjects, seed=seed)
    seq_len = text_length(model, hparams.seq_len)
    text = corpus_tokens(model.tokenizer, seq_len=seq_len, n_tokens=hparams.n_tokens, seed=seed)
    sequences = text.tolist()
    text_inputs = cache_activations(
        model,
        sequences,
        sites=["mlp_in"],
        layers=layers,
        positions=[range(1, len(ids)) for ids in sequences],  # the first is an attention sink
        max_tokens=LARGE_BATCH_TOKENS,
    )
    changes = {}
    for i in layers:
        positives = contrasts[i].positives
        x = torch.cat([positives, contrasts[i].negatives, text_inputs["mlp_in", i]]).double()
        z = torch.zeros(len(x), 1, dtype=torch.float64)
        z[: len(positives)] = 1
        z /= z.std(unbiased=False)  # however rare the subject: svd_tol then bounds a correlation
        eraser = fit_leace(x, z, svd_tol=hparams.svd_tol, precision=torch.float32)
        mlp = arch.layers[i].mlp
        for name, weight in input_matrices(mlp):
            changes[name] = low_rank_change(mlp, -(weight.double() @ eraser.left), eraser.right)
    return WeightEdit.of(torch_module(model), changes)
