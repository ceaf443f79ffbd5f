"""Round the weights: quantisation undoes an edit that is smaller than a rounding step.

Zhang et al. 2024 ("Catastrophic Failure of LLM Unlearning via Quantization") recovered most of the
forgotten text of six methods by rounding to 4 bits. The rounding is emulated: weights are set to
the nearest representable number and stay floats, so that it runs on any processor.
"""

import contextlib
from collections.abc import Callable, Iterator

import pandas as pd
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import AttackKind, attack, score_table
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.methods.snapshots import preserved_parameters
from helpers.models import architecture_of, torch_module

GROUP = 64  # weights that share a scale in int4 and NF4
NF4_OFFSET = 0.9677083  # the outermost quantile of NF4, as in its reference implementation


def nf4_levels() -> Float[Tensor, "16"]:
    """Compute the 16 values of NormalFloat-4, from −1 to 1.

    Dettmers et al. 2023, "QLoRA", appendix E. They are quantiles of the normal distribution, 8
    above zero, 7 below, and zero itself, divided by the largest.
    """
    above = torch.linspace(NF4_OFFSET, 0.5, 9, dtype=torch.float64)[:-1]
    below = torch.linspace(NF4_OFFSET, 0.5, 8, dtype=torch.float64)[:-1]
    zero = torch.zeros(1, dtype=torch.float64)
    values = torch.cat([torch.special.ndtri(above), zero, -torch.special.ndtri(below)])
    return (values / values.max()).sort().values.float()


def _int8(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    scale = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny) / 127
    return (rows / scale).round() * scale


def _grouped(
    rows: Float[Tensor, "rows width"], rounding: Callable[[Tensor], Tensor]
) -> Float[Tensor, "rows width"]:
    """Round groups of `GROUP` weights of a row by their own scale; the last group may be short."""
    n, width = rows.shape
    padded = nn.functional.pad(rows, (0, -width % GROUP)).view(-1, GROUP)
    scale = padded.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return (rounding(padded / scale) * scale).view(n, -1)[:, :width]


def _int4(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    return _grouped(rows, lambda x: (x * 7).round() / 7)


def _nf4(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    levels = nf4_levels().to(rows)
    borders = ((levels[1:] + levels[:-1]) / 2).tolist()

    def nearest(x: Tensor) -> Tensor:
        index = torch.zeros_like(x, dtype=torch.uint8)
        for border in borders:  # 15 comparisons are faster than a binary search
            index += x > border
        return levels[index.int()]

    return _grouped(rows, nearest)


SCHEMES = {"int8": _int8, "int4": _int4, "nf4": _nf4}
"""Name → rounding of a matrix with one output a row. int8 has one scale a row (absmax); int4, with
values −7 to 7, and NF4 have one scale a group of 64 weights."""


def rounded(
    weight: Float[Tensor, "d_out d_in"], scheme: str = "int8"
) -> Float[Tensor, "d_out d_in"]:
    """Round every weight to the nearest number that `scheme` can represent.

    Args:
        weight: The matrix, one output a row.
        scheme: One of `SCHEMES`.

    Raises:
        UserError: There is no such scheme.
    """
    if scheme not in SCHEMES:
        raise UserError(f"There is no rounding '{scheme}'; choose from {', '.join(SCHEMES)}.")
    return SCHEMES[scheme](weight.float()).to(weight.dtype)


@contextlib.contextmanager
def quantised(model: LanguageModel, scheme: str = "int8") -> Iterator[LanguageModel]:
    """Round the blocks of a model, edits included; restore it bit by bit at the end.

    All weights of linear layers in the blocks are rounded. Embeddings, norms, biases and the
    unembedding are not, as usual in quantisation for inference.

    Args:
        model: Any model of a known family.
        scheme: One of `SCHEMES`.

    Raises:
        UserError: There is no such scheme.
    """
    module = torch_module(model)
    names = block_weights(model)
    rounded(torch.zeros(1, 1), scheme)  # refuse before anything changes
    with preserved_parameters(module, names):
        with torch.no_grad():
            for name, transposed in names.items():
                weight = module.get_parameter(name)
                new = rounded(weight.T if transposed else weight, scheme)
                weight.copy_(new.T if transposed else new)
        yield model


def block_weights(model: LanguageModel) -> dict[str, bool]:
    """List the linear weights of all blocks: name → whether it is stored as (in, out)."""
    blocks = {id(layer.block._module) for layer in architecture_of(model).layers}
    transposed = {}
    for base, block in torch_module(model).named_modules():
        if id(block) in blocks:
            for name, part in block.named_modules():
                if isinstance(part, nn.Linear | Conv1D):
                    transposed[f"{base}.{name}.weight"] = isinstance(part, Conv1D)
    return transposed


BITS = {"int8": 8, "int4": 4, "nf4": 4}


def _quantisation(scheme: str) -> Callable[..., pd.DataFrame]:
    def quantise_and_score(
        model: LanguageModel, pair: ConceptPair, *, seed: int = 0
    ) -> pd.DataFrame:
        """Score the paraphrases after rounding the model."""
        with quantised(model, scheme):
            return score_table({BITS[scheme]: answer_probability(model, pair.prompts("heldout"))})

    return quantise_and_score


attack("quantisation_int8", budget="bits", expensive=True, kind=AttackKind.WEIGHTS)(
    _quantisation("int8")
)
attack("quantisation_int4", budget="bits", expensive=True, kind=AttackKind.WEIGHTS)(
    _quantisation("int4")
)
attack("quantisation_nf4", budget="bits", expensive=True, kind=AttackKind.WEIGHTS)(
    _quantisation("nf4")
)
