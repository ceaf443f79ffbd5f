"""Second moments of what the MLPs read: how ordinary text weighs every direction of a key.

A closed-form edit ΔW disturbs a text by ‖ΔW k‖² summed over its keys k, that is by tr(ΔW C ΔWᵀ)
with C = E[k kᵀ]. Some hundred thousand tokens are enough (arXiv 2506.04226), so C is computed once
for a model, layer by layer, and kept in the cache.
"""

from collections.abc import Sequence

from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts.corpus import corpus_tokens
from helpers.forward.second_moments import second_moments
from helpers.io.cache import cached_layers
from helpers.io.files import read_tensors
from helpers.models import architecture_of, model_hash, text_length

SEQ_LEN = 128


def key_covariance(
    model: LanguageModel,
    *,
    layers: Sequence[int],
    n_tokens: int = 60_000,
    seed: int = 0,
    site: str = "neurons",
) -> dict[int, Float[Tensor, "width width"]]:
    """E[k kᵀ] over Factbook passages (`train`), uncentred, in float64 on the CPU.

    Every position counts, the first of a sequence too (a state of its own in most models).

    Args:
        model: Any model of a known family.
        layers: Which layers; those that the cache lacks are read in one pass.
        n_tokens: About how many tokens of text.
        seed: Draws the passages.
        site: `neurons` (width d_mlp, what W_out reads) or `mlp_in` (d_model, what W_in reads).

    Raises:
        UserError: There is no such site or layer.
    """
    arch = architecture_of(model)
    layers = [arch.check_layer(i) for i in layers]
    seq_len = text_length(model, SEQ_LEN)
    key = {
        "model": model_hash(model),
        "site": site,
        "n_tokens": n_tokens,
        "seed": seed,
        "seq_len": seq_len,
        "version": 1,
    }

    def build(missing):
        tokens = corpus_tokens(model.tokenizer, seq_len=seq_len, n_tokens=n_tokens, seed=seed)
        sequences = [(row, None) for row in tokens.tolist()]
        sums, count = second_moments(model, sequences, layers=missing, site=site)
        return ((i, {"C": total / count}) for i, total in sums.items())

    files = cached_layers("covariance", key, layers, "moment.safetensors", build)
    return {i: read_tensors(file)[0]["C"] for i, file in files.items()}
