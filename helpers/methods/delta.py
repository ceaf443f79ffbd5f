"""A change of weights: which tensors, by how much, and back again bit by bit.

A change adds to a tensor, and may append rows or columns to it: a few neurons more in one MLP. A
bias that the layer does not have begins as zeros.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from helpers.artifacts import check_finite, content_hash
from helpers.errors import UserError
from helpers.methods.fitting import check_neurons, check_sides, fitted, shapes
from helpers.methods.keeping import owner_of, parameter, set_parameter, touched_hash
from helpers.models import Anatomy
from helpers.words import visible

NEW = "appended"  # tensors of a file: <name>.appended<axis>
PARTS = ("dense", "left", "right", f"{NEW}0", f"{NEW}1")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Change:
    """What is added to one tensor, and what is appended to it.

    Attributes:
        dense: Added: (rows, columns) in the tensor's stored orientation.
        left: Added as a product of lower rank, `left @ right`: (rows, rank).
        right: (rank, columns).
        appended: New rows (axis 0) or columns (axis 1), or new entries of a bias (axis 0).
        axis: Where they are appended.
    """

    dense: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    appended: Tensor | None = None
    axis: int = 0

    @property
    def adds(self) -> bool:
        """Whether it adds to what is there."""
        return self.dense is not None or self.left is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is added."""
        if self.dense is not None:
            return tuple(self.dense.shape)
        return (self.left.shape[0], self.right.shape[1])

    def parts(self) -> dict[str, Tensor]:
        """What it is made of, under the names that a file has for it."""
        found = {"dense": self.dense, "left": self.left, "right": self.right}
        found[f"{NEW}{self.axis}"] = self.appended
        return {part: tensor for part, tensor in found.items() if tensor is not None}

    def check(self, name: str) -> None:
        """Refuse parts that make no change together, and numbers that none can be made of.

        Args:
            name: Of the tensor that it changes, for the sentence.

        Raises:
            UserError: Names the tensor and the part.
        """
        parts, shown = self.parts(), f"The change of '{visible(name)}'"
        named = {f"{name}.{part}": tensor for part, tensor in parts.items()}
        check_floats(named)
        check_finite(named, "The edit")
        if not parts or not all(tensor.numel() for tensor in parts.values()):
            raise UserError(f"{shown} holds no numbers: make the edit again.")
        if (self.left is None) != (self.right is None):
            raise UserError(f"{shown} has one factor of two: give 'left' and 'right'.")
        if self.dense is not None and self.left is not None:
            raise UserError(f"{shown} is given twice: either as 'dense' or as 'left' and 'right'.")
        if self.dense is not None and self.dense.ndim not in (1, 2):
            raise UserError(f"{shown} has {self.dense.ndim} axes: give a matrix or a bias.")
        if self.left is not None and not (
            self.left.ndim == self.right.ndim == 2 and self.left.shape[1] == self.right.shape[0]
        ):
            raise UserError(
                f"{shown} has factors of {tuple(self.left.shape)} and {tuple(self.right.shape)}: "
                "they have to be (rows, rank) and (rank, columns)."
            )
        if self.appended is not None and not (
            self.appended.ndim in (1, 2) and 0 <= self.axis < self.appended.ndim
        ):
            raise UserError(
                f"{shown} appends {tuple(self.appended.shape)} at axis {self.axis}: append rows "
                "(axis 0) or columns (axis 1) of a matrix, or entries (axis 0) of a bias."
            )

    def matrix(self) -> Float[Tensor, "rows columns"]:
        """What is added, as a whole."""
        return self.dense if self.dense is not None else self.left.float() @ self.right.float()

    @property
    def rank(self) -> int:
        """Of what is added: the width of the factors, or a dense change's numerical rank.

        A change that only appends has as many ranks as it appends.
        """
        if self.left is not None:
            return self.left.shape[1]
        if self.dense is not None:
            return _numerical_rank(self.dense)
        return self.appended.shape[self.axis]

    def norm(self) -> float:
        """Frobenius norm of everything new."""
        parts = ([self.matrix()] if self.adds else []) + (
            [self.appended] if self.appended is not None else []
        )
        return float(sum(p.float().square().sum() for p in parts)) ** 0.5

    def factors(self) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank columns"]]:
        """Factors of what is added: its own, or those of its singular value decomposition."""
        if self.dense is None:
            return self.left, self.right
        u, s, v = torch.linalg.svd(self.dense.float(), full_matrices=False)
        keep = max(1, int((s > s[0] * max(self.dense.shape) * torch.finfo(s.dtype).eps).sum()))
        return u[:, :keep] * s[:keep], v[:keep]

    def compressed(self, rank: int, dtype: torch.dtype) -> "Change":
        """The nearest change of that rank (Eckart & Young 1936), stored as `dtype`.

        What is appended keeps its size: it is one row or column a neuron already.
        """
        appended = None if self.appended is None else self.appended.to(dtype)
        if not self.adds or self.matrix().ndim == 1:
            return replace(self, appended=appended)
        u, s, v = torch.linalg.svd(self.matrix().float(), full_matrices=False)
        root = s[:rank].sqrt()  # both factors of one scale: neither leaves float16's range
        left, right = u[:, :rank] * root, root[:, None] * v[:rank]
        return Change(None, left.to(dtype), right.to(dtype).contiguous(), appended, self.axis)


def _numerical_rank(matrix: Tensor) -> int:
    """As `torch.linalg.matrix_rank` in float32, from the smaller Gram matrix: faster."""
    if matrix.ndim == 1:
        return int(matrix.any())
    a = matrix.double()
    gram = a @ a.T if len(a) <= a.shape[1] else a.T @ a
    squares = torch.linalg.eigvalsh(gram).clamp_min(0)
    least = max(matrix.shape) * torch.finfo(torch.float32).eps
    return int((squares > squares[-1] * least**2).sum())


class WeightDelta:
    """Changes of some of a model's tensors, by their names in its `state_dict`.

    Attributes:
        changes: Name → `Change`.
        touched_hash: Hash of the tensors as they were, so that the delta is never put on others.
        notes: What the method found on the way (which latents, how well they detect); plain data.
    """

    def __init__(
        self, changes: dict[str, Change], touched_hash: str, notes: dict[str, Any] | None = None
    ):
        """Use `WeightDelta.of` to make one for a model at hand.

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
        self.changes, self.touched_hash, self.notes = changes, touched_hash, notes or {}

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
        delta = cls(changes, touched_hash(module, changes), notes)
        fitted(changes, shapes(module, changes))
        for name, change in changes.items():
            _changed(module, name, change)
        return delta

    @property
    def widens(self) -> bool:
        """Whether it appends neurons."""
        return any(c.appended is not None for c in self.changes.values())

    def same_as(self, other: object) -> bool:
        """Whether the other has the same content: one file that was read twice."""
        return (
            isinstance(other, WeightDelta)
            and (other.touched_hash, set(other.changes)) == (self.touched_hash, set(self.changes))
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
        if not anywhere and touched_hash(module, self.changes) != self.touched_hash:
            raise UserError(
                "This edit was made for other weights: load the model that it was made on, and "
                "revert what has been applied to it since."
            )
        fitted(self.changes, shapes(module, self.changes))
        check_neurons(self.changes, parts)

    def add_to(self, module: nn.Module) -> None:
        """Make the changes. What raises here leaves some of them made: `keep` the tensors before.

        Raises:
            UserError: A tensor has another shape, or would hold numbers that are not finite.
        """
        fitted(self.changes, shapes(module, self.changes))
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
        return WeightDelta(changes, self.touched_hash, self.notes)

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
        touched_hash: str,
        notes: dict[str, Any] | None = None,
    ) -> "WeightDelta":
        """The inverse of `tensors`.

        Raises:
            UserError: A name has no known part at its end, or as the class.
        """
        return cls(changes_of(tensors), touched_hash, notes)


def changes_of(tensors: Mapping[str, Tensor]) -> dict[str, Change]:
    """Name → change, from tensors named as `WeightDelta.tensors` names them; not checked.

    Raises:
        UserError: A name has no known part at its end, or rows and columns are appended to one.
    """
    parts: dict[str, dict[str, object]] = {}
    for name, tensor in tensors.items():
        owner, _, part = name.rpartition(".")
        if not owner or part not in PARTS:
            raise UserError(
                f"'{visible(name)}' is no part of an edit: names end in {', '.join(PARTS)}."
            )
        mine = parts.setdefault(owner, {})
        if not part.startswith(NEW):
            mine[part] = tensor
        elif NEW in mine:
            raise UserError(f"'{visible(owner)}' has rows and columns appended: give one of them.")
        else:
            mine |= {NEW: tensor, "axis": int(part.removeprefix(NEW))}
    return {name: Change(**p) for name, p in parts.items()}


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hash of named tensors, whatever their order."""
    return content_hash(*(x for name in sorted(tensors) for x in (name, tensors[name])))


def check_floats(tensors: Mapping[str, Tensor]) -> None:
    """Refuse what is no floating-point tensor of a kind that a model's weights are of.

    Raises:
        UserError: Names the first one and its dtype.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            kinds = ", ".join(_short(d) for d in FLOATS)
            raise UserError(
                f"'{visible(name)}' holds numbers of the kind {_short(tensor.dtype)}: save them as "
                f"one of {kinds}."
            )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
