"""One tensor's part of an edit: what is added to it, and what is appended."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.errors import UserError
from helpers.io.files import check_finite
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible

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


def changes_of(tensors: Mapping[str, Tensor]) -> dict[str, Change]:
    """Name → change, from tensors named as `WeightEdit.tensors` names them; not checked.

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
