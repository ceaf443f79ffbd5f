"""The change of one tensor in an edit: an added matrix, appended rows or columns, or both."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.errors import UserError
from helpers.io.files import check_finite
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible

APPENDED = "appended"  # names of tensors in a file: <name>.appended<axis>
PARTS = ("dense", "left", "right", f"{APPENDED}0", f"{APPENDED}1")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Change:
    """A matrix that is added to one tensor, and rows or columns that are appended to it.

    Attributes:
        dense: The added matrix (rows, columns) in the tensor's stored orientation, or a bias.
        left: Left factor of an added matrix `left @ right` of low rank: (rows, rank).
        right: Its right factor: (rank, columns).
        appended: New rows (axis 0) or columns (axis 1), or new entries of a bias (axis 0).
        axis: The axis along which they are appended.
    """

    dense: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    appended: Tensor | None = None
    axis: int = 0

    @property
    def is_additive(self) -> bool:
        """Tell whether a matrix is added to the tensor."""
        return self.dense is not None or self.left is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the added matrix."""
        if self.dense is not None:
            return tuple(self.dense.shape)
        return (self.left.shape[0], self.right.shape[1])

    def parts(self) -> dict[str, Tensor]:
        """Return its tensors by the names that they have in a file."""
        tensors = {"dense": self.dense, "left": self.left, "right": self.right}
        tensors[f"{APPENDED}{self.axis}"] = self.appended
        return {part: tensor for part, tensor in tensors.items() if tensor is not None}

    def check(self, name: str) -> None:
        """Refuse tensors that do not belong together, and numbers that no change can have.

        Args:
            name: Name of the tensor that it changes, for the sentence.

        Raises:
            UserError: Names the tensor and the part.
        """
        parts, shown = self.parts(), f"The change of '{visible(name)}'"
        by_name = {f"{name}.{part}": tensor for part, tensor in parts.items()}
        check_floats(by_name)
        check_finite(by_name, "The edit")
        if not parts or not all(tensor.numel() for tensor in parts.values()):
            raise UserError(f"{shown} holds no numbers: make the edit again.")
        self._check_added(shown)
        if self.appended is not None and not (
            self.appended.ndim in (1, 2) and 0 <= self.axis < self.appended.ndim
        ):
            raise UserError(
                f"{shown} appends {tuple(self.appended.shape)} at axis {self.axis}: append rows "
                "(axis 0) or columns (axis 1) of a matrix, or entries (axis 0) of a bias."
            )

    def _check_added(self, shown: str) -> None:
        """Refuse an added matrix that is given twice, by one factor, or in other shapes."""
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

    def matrix(self) -> Float[Tensor, "rows columns"]:
        """Return the added matrix."""
        return self.dense if self.dense is not None else self.left.float() @ self.right.float()

    @property
    def rank(self) -> int:
        """Width of the added matrix's factors, or the numerical rank of a dense one.

        For a change that only appends: the number of appended rows or columns.
        """
        if self.left is not None:
            return self.left.shape[1]
        if self.dense is not None:
            return _numerical_rank(self.dense)
        return self.appended.shape[self.axis]

    def norm(self) -> float:
        """Return the Frobenius norm of the added matrix and of what is appended, together."""
        parts = ([self.matrix()] if self.is_additive else []) + (
            [self.appended] if self.appended is not None else []
        )
        return float(sum(p.float().square().sum() for p in parts)) ** 0.5

    def factors(self) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank columns"]]:
        """Return factors of the added matrix: its own, or those of a singular value decomposition.

        Of the latter, singular values below float32's rounding error are left out.
        """
        if self.dense is None:
            return self.left, self.right
        u, s, v = torch.linalg.svd(self.dense.float(), full_matrices=False)
        rank = max(1, int((s > s[0] * max(self.dense.shape) * torch.finfo(s.dtype).eps).sum()))
        return u[:, :rank] * s[:rank], v[:rank]

    def compressed(self, rank: int, dtype: torch.dtype) -> "Change":
        """Return the nearest change of that rank (Eckart & Young 1936), stored as `dtype`.

        Appended rows and columns keep their number: each is one neuron's already.
        """
        appended = None if self.appended is None else self.appended.to(dtype)
        if not self.is_additive or self.matrix().ndim == 1:
            return replace(self, appended=appended)
        u, s, v = torch.linalg.svd(self.matrix().float(), full_matrices=False)
        root = s[:rank].sqrt()  # both factors of one scale: neither leaves float16's range
        left, right = u[:, :rank] * root, root[:, None] * v[:rank]
        return Change(None, left.to(dtype), right.to(dtype).contiguous(), appended, self.axis)


def _numerical_rank(matrix: Tensor) -> int:
    """Compute the same as `torch.linalg.matrix_rank` in float32, faster.

    The singular values are square roots of the eigenvalues of the smaller Gram matrix, which is
    computed in float64, since squares have half the precision.
    """
    if matrix.ndim == 1:
        return int(matrix.any())
    a = matrix.double()
    gram = a @ a.T if len(a) <= a.shape[1] else a.T @ a
    squares = torch.linalg.eigvalsh(gram).clamp_min(0)
    relative_tolerance = max(matrix.shape) * torch.finfo(torch.float32).eps
    return int((squares > squares[-1] * relative_tolerance**2).sum())


def changes_of(tensors: Mapping[str, Tensor]) -> dict[str, Change]:
    """Return name → change, from tensors named as `WeightEdit.tensors` names them; unchecked.

    Raises:
        UserError: A name does not end in one of `PARTS`, or rows and columns are appended to one.
    """
    parts_by_name: dict[str, dict[str, Any]] = {}
    for full_name, tensor in tensors.items():
        name, _, part = full_name.rpartition(".")
        if not name or part not in PARTS:
            raise UserError(
                f"'{visible(full_name)}' is no part of an edit: names end in {', '.join(PARTS)}."
            )
        parts = parts_by_name.setdefault(name, {})
        if not part.startswith(APPENDED):
            parts[part] = tensor
        elif APPENDED in parts:
            raise UserError(f"'{visible(name)}' has rows and columns appended: give one of them.")
        else:
            parts |= {APPENDED: tensor, "axis": int(part.removeprefix(APPENDED))}
    return {name: Change(**parts) for name, parts in parts_by_name.items()}


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hash named tensors, whatever their order."""
    return content_hash(*(x for name in sorted(tensors) for x in (name, tensors[name])))


def check_floats(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not of a floating-point type of models' weights.

    Raises:
        UserError: Names the first one and its dtype.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            kinds = ", ".join(dtype_name(d) for d in FLOATS)
            raise UserError(
                f"'{visible(name)}' holds numbers of the kind {dtype_name(tensor.dtype)}: save "
                f"them as one of {kinds}."
            )


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without `torch.`."""
    return str(dtype).removeprefix("torch.")
