"""LoRA: train two thin factors beside a matrix instead of the matrix (Hu et al. 2022).

The factors are a parametrisation of the layer's own weight. So the layers stay the objects that
nnsight and the architecture hold, and every forward pass uses the factors; peft replaces layers.
`Edit.to_peft` writes the result as an adapter of peft.
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
    """The parametrisation W + B A, with B zero at first.

    Attributes:
        lora_B: Left factor, (rows, rank).
        lora_A: Right factor, (rank, columns).
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator):
        """Draw factors for one matrix as it is stored.

        Args:
            weight: The matrix.
            rank: Width of the factors.
            generator: Draws A, uniformly within ±1/√columns.
        """
        super().__init__()
        rows, columns = weight.shape
        lora_A = (2 * torch.rand(rank, columns, generator=generator) - 1) / math.sqrt(columns)
        self.lora_B = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.lora_A = nn.Parameter(lora_A.to(weight.device))

    def forward(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Return the matrix with its change."""
        return weight + (self.lora_B @ self.lora_A).to(weight.dtype)


@contextlib.contextmanager
def lora_adapters(
    module: nn.Module, names: Sequence[str], *, rank: int, seed: int = 0
) -> Iterator[dict[str, LoRA]]:
    """Put factors beside the named matrices for a `with` block; remove them after it.

    Args:
        module: A torch module.
        names: Names of weights; those that are no linear layer's are skipped.
        rank: Width of the factors.
        seed: Draws the right factors.

    Yields:
        Name of the matrix → its factors.

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
    generator = torch.Generator().manual_seed(seed)
    adapters = {name: LoRA(owner.weight, rank, generator) for name, owner in linear.items()}
    try:
        for name, owner in linear.items():
            parametrize.register_parametrization(owner, "weight", adapters[name])
        yield adapters
    finally:
        for owner in linear.values():
            if parametrize.is_parametrized(owner, "weight"):
                parametrize.remove_parametrizations(owner, "weight", leave_parametrized=False)
