"""LoRA: train two thin factors beside a matrix instead of the matrix (Hu et al. 2022).

The factors are a parametrisation of the layer's own weight, so the layers stay the objects that
nnsight and the anatomy hold, and everything that asks the model sees them. `Edit.to_peft`
writes the result as an adapter of peft.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from helpers.errors import UserError


class LoRA(nn.Module):
    """W + left @ right, the left factor zero at first."""

    def __init__(self, weight: Tensor, rank: int, draw: torch.Generator):
        """Factors for one matrix as it is stored."""
        super().__init__()
        rows, columns = weight.shape
        right = (2 * torch.rand(rank, columns, generator=draw) - 1) / math.sqrt(columns)
        self.left = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.right = nn.Parameter(right.to(weight.device))

    def forward(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """The matrix with its change."""
        return weight + (self.left @ self.right).to(weight.dtype)


@contextlib.contextmanager
def lora_adapters(
    module: nn.Module, names: Sequence[str], *, rank: int, seed: int = 0
) -> Iterator[dict[str, LoRA]]:
    """Factors beside the named matrices, for a `with` block; the matrices are then as before.

    Args:
        module: A torch module.
        names: Names of weights; those that are no linear layer's are passed over.
        rank: Width of the factors.
        seed: Draws the right factors.

    Raises:
        UserError: None of them is a linear layer's matrix, or the rank is not positive.
    """
    if rank < 1:
        raise UserError(f"The rank of an adapter is {rank}: choose at least 1.")
    owners = {name: module.get_submodule(name.rpartition(".")[0]) for name in names}
    linear = {
        name: owner
        for name, owner in owners.items()
        if isinstance(owner, nn.Linear | Conv1D) and name.endswith(".weight")
    }
    if not linear:
        raise UserError(
            "There is no linear layer to put an adapter on: choose parameters such as 'mlps', or "
            "rank 0 to train them whole."
        )
    draw = torch.Generator().manual_seed(seed)
    found = {name: LoRA(owner.weight, rank, draw) for name, owner in linear.items()}
    try:
        for name, owner in linear.items():
            parametrize.register_parametrization(owner, "weight", found[name])
        yield found
    finally:
        for owner in linear.values():
            if parametrize.is_parametrized(owner, "weight"):
                parametrize.remove_parametrizations(owner, "weight", leave_parametrized=False)
