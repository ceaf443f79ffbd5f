"""Round the weights: an edit smaller than a rounding step is undone by quantisation.

Zhang et al. 2024 ("Catastrophic Failure of LLM Unlearning via Quantization") got most of what six
methods had unlearned back with 4 bits. The rounding is emulated: weights go to the nearest
representable number and stay floats, so that it runs on any processor.
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
from helpers.evaluation.attacks.registry import attack, curve
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.methods.snapshots import preserved_parameters
from helpers.models import architecture_of

GROUP = 64  # weights that share a scale in int4 and NF4
NF4_OFFSET = 0.9677083  # the outermost quantile of NF4, as in its reference implementation


def nf4_levels() -> Float[Tensor, "16"]:
    """The 16 values of NormalFloat-4, from −1 to 1 (Dettmers et al. 2023, QLoRA, appendix E).

    Quantiles of the normal distribution, 8 above zero and 7 below, zero itself exact, divided by
    the largest.
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
    """`rounding` of every `GROUP` weights of a row divided by their largest; the last is short."""
    n, width = rows.shape
    padded = nn.functional.pad(rows, (0, -width % GROUP)).view(-1, GROUP)
    scale = padded.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return (rounding(padded / scale) * scale).view(n, -1)[:, :width]


def _int4(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    return _grouped(rows, lambda x: (x * 7).round() / 7)


def _nf4(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    levels = nf4_levels().to(rows)
    between = ((levels[1:] + levels[:-1]) / 2).tolist()

    def nearest(x: Tensor) -> Tensor:
        index = torch.zeros_like(x, dtype=torch.uint8)
        for border in between:  # faster than a search in a sorted list of 15
            index += x > border
        return levels[index.int()]

    return _grouped(rows, nearest)


SCHEMES = {"int8": _int8, "int4": _int4, "nf4": _nf4}
"""int8: one scale a row (absmax); int4: one a group of 64, values −7 to 7; NF4: one a group of 64.
A row is what makes one output."""


def rounded(
    weight: Float[Tensor, "d_out d_in"], scheme: str = "int8"
) -> Float[Tensor, "d_out d_in"]:
    """The weight with every number at the nearest one that `scheme` can hold.

    Args:
        weight: One output a row.
        scheme: One of `SCHEMES`.

    Raises:
        UserError: There is no such scheme.
    """
    if scheme not in SCHEMES:
        raise UserError(f"There is no rounding '{scheme}'; choose from {', '.join(SCHEMES)}.")
    return SCHEMES[scheme](weight.float()).to(weight.dtype)


@contextlib.contextmanager
def quantised(model: LanguageModel, scheme: str = "int8") -> Iterator[LanguageModel]:
    """The model as it is, edits included, with rounded blocks; bit-exactly restored after.

    All weights of linear layers in the blocks are rounded; embeddings, norms, biases and the
    unembedding are not, as quantisation for inference leaves them.

    Args:
        model: Any model of a known family.
        scheme: One of `SCHEMES`.

    Raises:
        UserError: There is no such scheme.
    """
    module = model._module
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
    """Names of the linear weights of all blocks → whether they are stored (in, out)."""
    blocks = {id(layer.block._module) for layer in architecture_of(model).layers}
    found = {}
    for base, block in model._module.named_modules():
        if id(block) in blocks:
            for name, part in block.named_modules():
                if isinstance(part, nn.Linear | Conv1D):
                    found[f"{base}.{name}.weight"] = isinstance(part, Conv1D)
    return found


BITS = {"int8": 8, "int4": 4, "nf4": 4}


def _rounded(scheme: str) -> Callable[..., pd.DataFrame]:
    def rounded_and_asked(
        model: LanguageModel, pair: ConceptPair, *, seed: int = 0, split: str = "heldout"
    ) -> pd.DataFrame:
        """P(target) on paraphrases after rounding the model as it is."""
        with quantised(model, scheme):
            return curve({BITS[scheme]: answer_probability(model, pair.prompts(split))})

    return rounded_and_asked


attack("quantisation_int8", budget="bits", costly=True)(_rounded("int8"))
attack("quantisation_int4", budget="bits", costly=True)(_rounded("int4"))
attack("quantisation_nf4", budget="bits", costly=True)(_rounded("nf4"))
