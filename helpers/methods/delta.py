"""A change of weights: which tensors, by how much, and back again bit by bit.

A change adds to a tensor, and may append rows or columns to it: a few neurons more in one MLP. A
bias that the layer does not have begins as zeros.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from helpers.artifacts import content_hash
from helpers.errors import UserError

NEW = "appended"  # tensors of a file: <name>.appended<axis>


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


@dataclass(frozen=True)
class Kept:
    """A parameter as it was: the object itself (None where there was none) and its data."""

    parameter: nn.Parameter | None
    data: Tensor | None


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
        """Use `WeightDelta.of` to make one for a model at hand."""
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
            UserError: It changes nothing, a tensor is not there or has another shape.
        """
        _check_shapes(module, changes)
        if not any(change.norm() for change in changes.values()):
            raise UserError("The edit changes no weight: the model would stay as it was.")
        return cls(changes, touched_hash(module, changes), notes)

    @property
    def widens(self) -> bool:
        """Whether it appends neurons."""
        return any(c.appended is not None for c in self.changes.values())

    def add_to(self, module: nn.Module, *, anywhere: bool = False) -> dict[str, Kept]:
        """Make the changes; returns what `put_back` needs to undo them.

        Args:
            module: The torch module.
            anywhere: Do not insist on the tensors that the delta was made for.

        Raises:
            UserError: The tensors are not those that the delta was made for.
        """
        if not anywhere and touched_hash(module, self.changes) != self.touched_hash:
            raise UserError(
                "This edit was made for other weights: load the model that it was made on, and "
                "revert what has been applied to it since."
            )
        _check_shapes(module, self.changes)
        before = keep(module, self.changes)
        widths = {n.rpartition(".")[0]: _n_outputs(_owner(module, n)) for n in self.changes}
        with torch.no_grad():
            for name, change in self.changes.items():
                weight = _found(module, name)
                if change.adds:
                    weight.copy_(weight.float() + change.matrix().to(weight.device))
                if change.appended is not None:
                    like = weight if weight is not None else _owner(module, name).weight
                    old = weight if weight is not None else _absent_bias(module, name, widths)
                    new = torch.cat([old, change.appended.to(like)], change.axis)
                    _put(module, name, nn.Parameter(new, requires_grad=like.requires_grad))
        return before

    def measures(self, module: nn.Module) -> list[dict[str, object]]:
        """Rank and Frobenius norm of each change, also relative to the tensor's own norm."""
        rows = []
        for name, change in self.changes.items():
            norm, weight = change.norm(), _found(module, name)
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
        found = {}
        for name, change in self.changes.items():
            for part in ("dense", "left", "right"):
                if getattr(change, part) is not None:
                    found[f"{name}.{part}"] = getattr(change, part).contiguous().clone()
            if change.appended is not None:
                found[f"{name}.{NEW}{change.axis}"] = change.appended.contiguous().clone()
        return found

    @classmethod
    def from_tensors(
        cls,
        tensors: dict[str, Tensor],
        touched_hash: str,
        notes: dict[str, Any] | None = None,
    ) -> "WeightDelta":
        """The inverse of `tensors`."""
        parts: dict[str, dict[str, object]] = {}
        for name, tensor in tensors.items():
            owner, part = name.rsplit(".", 1)
            mine = parts.setdefault(owner, {})
            if part.startswith(NEW):
                mine |= {"appended": tensor, "axis": int(part.removeprefix(NEW))}
            else:
                mine[part] = tensor
        return cls({name: Change(**p) for name, p in parts.items()}, touched_hash, notes)


def keep(module: nn.Module, names: Iterable[str]) -> dict[str, Kept]:
    """The named parameters as they are now."""
    found = {name: _found(module, name) for name in names}
    return {n: Kept(p, None if p is None else p.detach().clone()) for n, p in found.items()}


def put_back(module: nn.Module, kept: dict[str, Kept]) -> None:
    """The parameters as they were when `keep` saw them: the same objects, bit by bit."""
    with torch.no_grad():
        for name, before in kept.items():
            if before.parameter is not None:
                before.parameter.copy_(before.data)
            if _found(module, name) is not before.parameter:
                _put(module, name, before.parameter)


@contextlib.contextmanager
def restored(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Kept]]:
    """The named parameters are put back bit by bit when the block ends; gives them as they were."""
    before = keep(module, names)
    try:
        yield before
    finally:
        put_back(module, before)


def touched_hash(module: nn.Module, names: Iterable[str]) -> str:
    """Hash of the named tensors as they are now."""
    found = ((name, _found(module, name)) for name in sorted(names))
    return content_hash(*(x for n, p in found for x in (n, "absent" if p is None else p)))


def _check_shapes(module: nn.Module, changes: dict[str, Change]) -> None:
    for name, change in changes.items():
        weight = _found(module, name)
        if change.adds and (weight is None or change.matrix().shape != weight.shape):
            raise UserError(
                f"The change of {name} is {tuple(change.matrix().shape)} and the tensor is "
                f"{tuple(weight.shape) if weight is not None else 'not there'}: it was made for "
                "another model."
            )
        if change.appended is not None and weight is not None:
            ours, theirs = list(change.appended.shape), list(weight.shape)
            if len(ours) == len(theirs):
                ours[change.axis] = theirs[change.axis]
            if ours != theirs:
                raise UserError(
                    f"What is appended to {name} is {tuple(change.appended.shape)} and the tensor "
                    f"{tuple(theirs)}: it was made for another model."
                )


def _owner(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name.rpartition(".")[0])


def _found(module: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter; None for a bias that its layer does without."""
    try:
        owner = _owner(module, name)
        return owner._parameters[name.rpartition(".")[2]]
    except (AttributeError, KeyError):
        raise UserError(f"The model has no tensor {name}: the edit is for another model.") from None


def _absent_bias(module: nn.Module, name: str, widths: dict[str, int]) -> Tensor:
    owner = name.rpartition(".")[0]
    return _owner(module, name).weight.new_zeros(widths[owner])


def _n_outputs(owner: nn.Module) -> int:
    return owner.nf if isinstance(owner, Conv1D) else owner.weight.shape[0]


def _put(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    """Set a parameter object, and the sizes that its layer remembers."""
    owner = _owner(module, name)
    owner._parameters[name.rpartition(".")[2]] = parameter
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape
    elif isinstance(owner, Conv1D):
        owner.nx, owner.nf = owner.weight.shape
