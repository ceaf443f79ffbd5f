"""An edit of weights: which tensors change, by how much, and how they are changed and checked.

A change adds to a tensor, and may append rows or columns to it: a few neurons more in one MLP. A
bias that the layer does not have starts as zeros.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from helpers.errors import UserError
from helpers.io.safe_text import visible
from helpers.methods.appended_neurons import (
    check_both_sides,
    check_neurons,
    parameter_shapes,
    shapes_after,
)
from helpers.methods.change import Change, changes_of, dtype_name, tensors_hash
from helpers.methods.model_change import ModelChange
from helpers.methods.snapshots import edited_tensors_hash, owner_of, parameter, set_parameter
from helpers.models import Architecture, MLPArchitecture


class WeightEdit(ModelChange):
    """Changes of some of a model's tensors, by their names in its `state_dict`.

    Attributes:
        changes: Name → `Change`.
        edited_tensors_hash: Hash of the tensors before the edit, so that it is never applied to
            others.
        notes: Plain data about how it was made, such as the latents that a method chose.
    """

    changes_weights = True

    def __init__(
        self,
        changes: dict[str, Change],
        edited_tensors_hash: str,
        notes: dict[str, Any] | None = None,
    ):
        """Check the changes and keep them; `WeightEdit.of` makes an edit for a model at hand.

        Args:
            changes: Name → `Change`.
            edited_tensors_hash: Hash of the tensors before the edit.
            notes: Plain data about how it was made.

        Raises:
            UserError: Nothing changes, or a change cannot be made: its tensors do not belong
                together, its numbers are not finite, or neurons are appended on one side only.
        """
        norms = []
        for name, change in changes.items():
            change.check(name)
            norms.append(change.norm())
            if not math.isfinite(norms[-1]):
                raise UserError(
                    f"The change of '{visible(name)}' holds numbers too large to reckon with "
                    "(their squares are not finite): make the edit again."
                )
        if not any(norms):
            raise UserError("The edit changes no weight: the model would stay as it was.")
        check_both_sides(changes)
        self.changes = changes
        self.edited_tensors_hash = edited_tensors_hash
        self.notes = notes or {}

    @classmethod
    def of(
        cls,
        module: nn.Module,
        changes: dict[str, Change],
        *,
        notes: dict[str, Any] | None = None,
    ) -> "WeightEdit":
        """Return the edit that makes `changes` to `module` as it is now.

        Args:
            module: The torch module.
            changes: Name → `Change`.
            notes: Plain data about how it was made.

        Raises:
            UserError: Nothing changes, or a change cannot be made: its tensors do not belong
                together, its numbers are not finite, or neurons are appended on one side only; or
                a tensor is not there, has another shape, or would hold numbers that are not finite
                in the model's dtype.
        """
        delta = cls(changes, edited_tensors_hash(module, changes), notes)
        shapes_after(changes, parameter_shapes(module, changes))
        for name, change in changes.items():
            _changed_tensor(module, name, change)
        return delta

    def parameter_names(self) -> Collection[str]:
        """Return the names of the tensors that it changes."""
        return self.changes.keys()

    @property
    def appends_neurons(self) -> bool:
        """Tell whether it appends neurons."""
        return any(c.appended is not None for c in self.changes.values())

    def same_as(self, other: object) -> bool:
        """Tell whether the other has the same content, as one file that was read twice has."""
        return (
            isinstance(other, WeightEdit)
            and (other.edited_tensors_hash, set(other.changes))
            == (self.edited_tensors_hash, set(self.changes))
            and tensors_hash(other.tensors()) == tensors_hash(self.tensors())
        )

    def check_fits(self, module: nn.Module, arch: Architecture, *, check_base: bool = True) -> None:
        """Refuse a model that the changes cannot be made to; nothing is changed.

        Args:
            module: The torch module.
            parts: Its parts.
            check_base: Require the very tensors that the edit was made for.

        Raises:
            UserError: The tensors are not those that the edit was made for, or the neurons that it
                appends are incomplete.
        """
        if check_base and edited_tensors_hash(module, self.changes) != self.edited_tensors_hash:
            raise UserError(
                "This edit was made for other weights: load the model that it was made on, and "
                "revert what has been applied to it since."
            )
        shapes_after(self.changes, parameter_shapes(module, self.changes))
        check_neurons(self.changes, arch)

    def add_to(self, module: nn.Module) -> None:
        """Make the changes; an error leaves some of them made, so take snapshots before.

        Raises:
            UserError: A tensor has another shape, or would hold numbers that are not finite.
        """
        shapes_after(self.changes, parameter_shapes(module, self.changes))
        # Count the outputs of layers without a bias now: they may be wider when its turn comes.
        missing = {n for n in self.changes if parameter(module, n) is None}
        widths = {n: _n_outputs(owner_of(module, n)) for n in missing}
        with torch.no_grad():
            for name, change in self.changes.items():
                new = _changed_tensor(module, name, change, width=widths.get(name))
                weight = parameter(module, name)
                if change.appended is None:
                    weight.copy_(new)
                    continue
                like = weight if weight is not None else owner_of(module, name).weight
                set_parameter(module, name, nn.Parameter(new, requires_grad=like.requires_grad))

    def measures(self, module: nn.Module) -> list[dict[str, object]]:
        """Return a row a tensor: its name, the change's rank, norm, and norm relative to it."""
        rows = []
        for name, change in self.changes.items():
            norm, weight = change.norm(), parameter(module, name)
            weight_norm = float(weight.float().norm()) if weight is not None else 0.0
            relative = norm / weight_norm if weight_norm else float("nan")
            rows.append({"tensor": name, "rank": change.rank, "norm": norm, "relative": relative})
        return rows

    def norm(self) -> float:
        """Return the Frobenius norm over all tensors."""
        return sum(c.norm() ** 2 for c in self.changes.values()) ** 0.5

    def compressed(self, rank: int, dtype: torch.dtype = torch.float16) -> "WeightEdit":
        """Return the same edit with every change cut to `rank` and stored as `dtype`.

        Raises:
            UserError: The rank is not positive.
        """
        if rank < 1:
            raise UserError(f"The rank is {rank}: a compressed edit needs at least rank 1.")
        changes = {n: c.compressed(rank, dtype) for n, c in self.changes.items()}
        return WeightEdit(changes, self.edited_tensors_hash, self.notes)

    def size(self) -> int:
        """Return the bytes of its tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return copies for a file: `<name>.dense`, `.left` and `.right`, `.appended<axis>`.

        Changes may share a factor, and safetensors stores no tensor twice: hence copies.
        """
        return {
            f"{name}.{part}": tensor.contiguous().clone()
            for name, change in self.changes.items()
            for part, tensor in change.parts().items()
        }

    @classmethod
    def from_tensors(
        cls,
        tensors: dict[str, Tensor],
        edited_tensors_hash: str,
        notes: dict[str, Any] | None = None,
    ) -> "WeightEdit":
        """Return the edit whose `tensors` these are.

        Args:
            tensors: Tensors by name, from a file.
            edited_tensors_hash: Hash of the tensors before the edit.
            notes: Plain data about how it was made.

        Raises:
            UserError: A name has no known part at its end, nothing changes, or a change cannot be
                made.
        """
        return cls(changes_of(tensors), edited_tensors_hash, notes)


def _changed_tensor(
    module: nn.Module, name: str, change: Change, *, width: int | None = None
) -> Tensor:
    """Return the named tensor with its change; the module stays as it is.

    Args:
        module: The torch module.
        name: Name of the tensor.
        change: The change.
        width: Length of a bias that is not there; by default the number of the layer's outputs.

    Raises:
        UserError: The result would hold numbers that are not finite in its dtype.
    """
    owner, new = owner_of(module, name), parameter(module, name)
    with torch.no_grad():
        if new is None:
            new = owner.weight.new_zeros(_n_outputs(owner) if width is None else width)
        if change.is_additive:  # in float32: half precision would round the sum twice
            new = (new.float() + change.matrix().to(new.device)).to(new.dtype)
        if change.appended is not None:
            new = torch.cat([new, change.appended.to(new)], change.axis)
        # The sum is finite for nearly all tensors, and costs less than to look at each number.
        if not new.sum(dtype=torch.float32).isfinite() and not new.isfinite().all():
            raise UserError(
                f"With this edit {name} holds numbers that are not finite in "
                f"{dtype_name(new.dtype)}: load the model as float32, and make the edit for it."
            )
    return new


def _n_outputs(owner: nn.Module) -> int:
    """Return the number of a linear layer's outputs."""
    return owner.nf if isinstance(owner, Conv1D) else owner.weight.shape[0]


def dense_changes(
    arch: Architecture, delta: Mapping[int, Float[Tensor, "d_model d_mlp"]]
) -> dict[str, Change]:
    """Return the changes of W_out, layer → added matrix, in the memory layout of the weights."""
    mlps = {i: arch.layers[i].mlp for i in delta}
    return {
        mlp.out_name: Change(dense=delta[i].T.contiguous() if mlp.transposed else delta[i])
        for i, mlp in mlps.items()
    }


def low_rank_change(mlp: MLPArchitecture, left: Tensor, right: Tensor) -> Change:
    """Return the change `left @ right` of an MLP's matrix, as the family stores the matrix.

    Args:
        mlp: The MLP; tells whether its matrices are stored transposed.
        left: Left factor, (outputs, rank).
        right: Right factor, (rank, inputs).
    """
    left, right = left.detach().float().cpu(), right.detach().float().cpu()
    if mlp.transposed:
        left, right = right.T, left.T
    return Change(left=left.contiguous(), right=right.contiguous())
