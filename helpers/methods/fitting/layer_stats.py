"""Second moments of the MLPs' inputs in ordinary text (ROME's and MEMIT's `mom2`).

A closed-form edit ΔW disturbs a text by ‖ΔW k‖² summed over its keys k, which is proportional to
tr(ΔW C ΔWᵀ) with C = E[k kᵀ]. A hundred thousand tokens are enough (arXiv 2506.04226), so C is
computed once for a model, layer by layer, and kept in the cache.
"""

from collections.abc import Iterable, Sequence

from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts.corpus import corpus_tokens
from helpers.forward.second_moments import second_moments
from helpers.io.cache import cached_layers
from helpers.io.files import read_tensors
from helpers.models import architecture_of, model_hash, text_length

SEQ_LEN = 128  # tokens of a passage of text


def key_covariance(
    model: LanguageModel,
    *,
    layers: Sequence[int],
    n_tokens: int = 60_000,
    seed: int = 0,
    site: str = "neurons",
) -> dict[int, Float[Tensor, "width width"]]:
    """Estimate E[k kᵀ] over Factbook passages (`train`), uncentred, in float64 on the CPU.

    Every position counts, including the first of a sequence, which has a state of its own in most
    models.

    Args:
        model: Any model of a known family.
        layers: Layers to read; those that the cache lacks are read in one pass.
        n_tokens: Approximate number of tokens of text.
        seed: Seed that draws the passages.
        site: `neurons` (input of W_out, width d_mlp) or `mlp_in` (input of W_in, width d_model).

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

    def build(missing: Sequence[int]) -> Iterable[tuple[int, dict[str, Tensor]]]:
        tokens = corpus_tokens(model.tokenizer, seq_len=seq_len, n_tokens=n_tokens, seed=seed)
        sequences = [(row, None) for row in tokens.tolist()]
        sums, count = second_moments(model, sequences, layers=missing, site=site)
        return ((i, {"C": total / count}) for i, total in sums.items())

    files = cached_layers("covariance", key, layers, "moment.safetensors", build)
    return {i: read_tensors(file)[0]["C"] for i, file in files.items()}
