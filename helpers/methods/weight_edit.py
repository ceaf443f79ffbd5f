"""A change of weights: which tensors, by how much, and back again bit by bit.

A change adds to a tensor, and may append rows or columns to it: a few neurons more in one MLP. A
bias that the layer does not have begins as zeros.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from helpers.errors import UserError
from helpers.io.safe_text import visible
from helpers.methods.appended_neurons import (
    check_neurons,
    check_sides,
    parameter_shapes,
    shapes_after,
)
from helpers.methods.change import Change, _short, changes_of, tensors_hash
from helpers.methods.snapshots import edited_tensors_hash, owner_of, parameter, set_parameter
from helpers.models import Anatomy, MLPAnatomy


class WeightEdit:
    """Changes of some of a model's tensors, by their names in its `state_dict`.

    Attributes:
        changes: Name → `Change`.
        touched_hash: Hash of the tensors as they were, so that the delta is never put on others.
        notes: What the method found on the way (which latents, how well they detect); plain data.
    """

    def __init__(
        self,
        changes: dict[str, Change],
        edited_tensors_hash: str,
        notes: dict[str, Any] | None = None,
    ):
        """Use `WeightEdit.of` to make one for a model at hand.

        Raises:
            UserError: It changes nothing, or a change is none that can be made: its parts do not
                belong together, its numbers are not finite, neurons are appended on one side only.
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
        check_sides(changes)
        self.changes, self.edited_tensors_hash, self.notes = (
            changes,
            edited_tensors_hash,
            notes or {},
        )

    @classmethod
    def of(
        cls,
        module: nn.Module,
        changes: dict[str, Change],
        *,
        notes: dict[str, Any] | None = None,
    ) -> "WeightDelta":
        """The delta of `changes` to `module` as it is now, with the method's notes.

        Raises:
            UserError: As the class; or a tensor is not there, has another shape, or would hold
                numbers that are not finite in the model's dtype.
        """
        delta = cls(changes, edited_tensors_hash(module, changes), notes)
        shapes_after(changes, parameter_shapes(module, changes))
        for name, change in changes.items():
            _changed(module, name, change)
        return delta

    @property
    def appends_neurons(self) -> bool:
        """Whether it appends neurons."""
        return any(c.appended is not None for c in self.changes.values())

    def same_as(self, other: object) -> bool:
        """Whether the other has the same content: one file that was read twice."""
        return (
            isinstance(other, WeightEdit)
            and (other.edited_tensors_hash, set(other.changes))
            == (self.edited_tensors_hash, set(self.changes))
            and tensors_hash(other.tensors()) == tensors_hash(self.tensors())
        )

    def check_fits(self, module: nn.Module, parts: Anatomy, *, anywhere: bool = False) -> None:
        """Refuse a model that the changes cannot be made to; nothing is changed.

        Args:
            module: The torch module.
            parts: Its parts.
            anywhere: Do not insist on the tensors that the delta was made for.

        Raises:
            UserError: The tensors are not those that the delta was made for, or the neurons that it
                appends are no whole ones.
        """
        if not anywhere and edited_tensors_hash(module, self.changes) != self.edited_tensors_hash:
            raise UserError(
                "This edit was made for other weights: load the model that it was made on, and "
                "revert what has been applied to it since."
            )
        shapes_after(self.changes, parameter_shapes(module, self.changes))
        check_neurons(self.changes, parts)

    def add_to(self, module: nn.Module) -> None:
        """Make the changes. What raises here leaves some of them made: `keep` the tensors before.

        Raises:
            UserError: A tensor has another shape, or would hold numbers that are not finite.
        """
        shapes_after(self.changes, parameter_shapes(module, self.changes))
        absent = {n for n in self.changes if parameter(module, n) is None}
        widths = {n: _n_outputs(owner_of(module, n)) for n in absent}  # before they are wider
        with torch.no_grad():
            for name, change in self.changes.items():
                new = _changed(module, name, change, width=widths.get(name))
                weight = parameter(module, name)
                if change.appended is None:
                    weight.copy_(new)
                    continue
                like = weight if weight is not None else owner_of(module, name).weight
                set_parameter(module, name, nn.Parameter(new, requires_grad=like.requires_grad))

    def measures(self, module: nn.Module) -> list[dict[str, object]]:
        """Rank and Frobenius norm of each change, also relative to the tensor's own norm."""
        rows = []
        for name, change in self.changes.items():
            norm, weight = change.norm(), parameter(module, name)
            own = float(weight.float().norm()) if weight is not None else 0.0
            relative = norm / own if own else float("nan")
            rows.append({"tensor": name, "rank": change.rank, "norm": norm, "relative": relative})
        return rows

    def norm(self) -> float:
        """Frobenius norm over all tensors."""
        return sum(c.norm() ** 2 for c in self.changes.values()) ** 0.5

    def compressed(self, rank: int, dtype: torch.dtype = torch.float16) -> "WeightDelta":
        """The same delta with every change cut to `rank` and stored as `dtype`.

        Raises:
            UserError: The rank is not positive.
        """
        if rank < 1:
            raise UserError(f"The rank is {rank}: a compressed edit needs at least rank 1.")
        changes = {n: c.compressed(rank, dtype) for n, c in self.changes.items()}
        return WeightEdit(changes, self.edited_tensors_hash, self.notes)

    def size(self) -> int:
        """Bytes of the numbers it holds."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Copies for a file: `<name>.dense`, `.left` and `.right`, `.appended<axis>`.

        Copies, since changes may share a factor and safetensors stores no tensor twice.
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
    ) -> "WeightDelta":
        """The inverse of `tensors`.

        Raises:
            UserError: A name has no known part at its end, or as the class.
        """
        return cls(changes_of(tensors), edited_tensors_hash, notes)


def _changed(module: nn.Module, name: str, change: Change, *, width: int | None = None) -> Tensor:
    """What becomes of the named tensor, which stays as it is.

    Args:
        module: The torch module.
        name: Of the tensor.
        change: What is done to it.
        width: Of a bias that is not there; by default as many as the layer has outputs.

    Raises:
        UserError: It would hold numbers that are not finite in its dtype.
    """
    owner, new = owner_of(module, name), parameter(module, name)
    with torch.no_grad():
        if new is None:
            new = owner.weight.new_zeros(_n_outputs(owner) if width is None else width)
        if change.adds:
            new = (new.float() + change.matrix().to(new.device)).to(new.dtype)
        if change.appended is not None:
            new = torch.cat([new, change.appended.to(new)], change.axis)
        if not new.sum(dtype=torch.float32).isfinite() and not new.isfinite().all():
            raise UserError(
                f"With this edit {name} holds numbers that are not finite in {_short(new.dtype)}: "
                "load the model as float32, and make the edit for it."
            )
    return new


def _n_outputs(owner: nn.Module) -> int:
    return owner.nf if isinstance(owner, Conv1D) else owner.weight.shape[0]


def low_rank_change(mlp: MLPAnatomy, left: Tensor, right: Tensor) -> Change:
    """The change `left @ right` of a matrix in the (out, in) sense, as the family stores it."""
    left, right = left.detach().float().cpu(), right.detach().float().cpu()
    if mlp.transposed:
        left, right = right.T, left.T
    return Change(left=left.contiguous(), right=right.contiguous())
