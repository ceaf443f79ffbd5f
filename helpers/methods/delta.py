"""A change of weights: which tensors, by how much, and back again bit by bit."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from helpers.artifacts import content_hash
from helpers.errors import UserError


@dataclass(frozen=True)
class Change:
    """What is added to one tensor: `dense`, or the product `left @ right` of lower rank.

    Attributes:
        dense: (rows, columns) in the tensor's stored orientation.
        left: (rows, rank).
        right: (rank, columns).
    """

    dense: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None

    def matrix(self) -> Float[Tensor, "rows columns"]:
        """The change as a whole."""
        return self.dense if self.dense is not None else self.left @ self.right

    @property
    def rank(self) -> int:
        """The width of the factors; for a dense change its numerical rank."""
        if self.dense is None:
            return self.left.shape[1]
        return int(torch.linalg.matrix_rank(self.dense.float()))

    def factors(self) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank columns"]]:
        """Factors of the change: its own, or those of its singular value decomposition."""
        if self.dense is None:
            return self.left, self.right
        u, s, v = torch.linalg.svd(self.dense.float(), full_matrices=False)
        keep = max(1, int((s > s[0] * max(self.dense.shape) * torch.finfo(s.dtype).eps).sum()))
        return u[:, :keep] * s[:keep], v[:keep]


class WeightDelta:
    """Changes of some of a model's tensors, by their names in its `state_dict`.

    Attributes:
        changes: Name → `Change`.
        touched_hash: Hash of the tensors as they were, so that the delta is never put on others.
    """

    def __init__(self, changes: dict[str, Change], touched_hash: str):
        """Use `WeightDelta.of` to make one for a model at hand."""
        self.changes, self.touched_hash = changes, touched_hash

    @classmethod
    def of(cls, module: nn.Module, changes: dict[str, Change]) -> "WeightDelta":
        """The delta of `changes` to `module` as it is now.

        Raises:
            UserError: It changes nothing, a tensor is not there or has another shape.
        """
        for name, change in changes.items():
            weight = _parameter(module, name)
            if change.matrix().shape != weight.shape:
                raise UserError(
                    f"The change of {name} is {tuple(change.matrix().shape)} and the tensor is "
                    f"{tuple(weight.shape)}: it was made for another model."
                )
        if not any(change.matrix().any() for change in changes.values()):
            raise UserError("The edit changes no weight: the model would stay as it was.")
        return cls(changes, touched_hash(module, changes))

    def add_to(self, module: nn.Module) -> dict[str, Tensor]:
        """Add the changes; returns copies of the tensors as they were.

        Raises:
            UserError: The tensors are not those that the delta was made for.
        """
        if touched_hash(module, self.changes) != self.touched_hash:
            raise UserError(
                "This edit was made for other weights: load the model that it was made on, and "
                "revert what has been applied to it since."
            )
        originals = {}
        with torch.no_grad():
            for name, change in self.changes.items():
                weight = _parameter(module, name)
                originals[name] = weight.detach().clone()
                weight.copy_(weight.float() + change.matrix().to(weight.device))
        return originals

    def measures(self, module: nn.Module) -> list[dict[str, object]]:
        """Rank and Frobenius norm of each change, also relative to the tensor's own norm."""
        rows = []
        for name, change in self.changes.items():
            norm = float(change.matrix().norm())
            weight = float(_parameter(module, name).float().norm())
            rows.append(
                {"tensor": name, "rank": change.rank, "norm": norm, "relative": norm / weight}
            )
        return rows

    def size(self) -> int:
        """Bytes of the numbers it holds."""
        tensors = (t for c in self.changes.values() for t in (c.dense, c.left, c.right))
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def tensors(self) -> dict[str, Tensor]:
        """Copies for a file: `<name>.dense`, or `<name>.left` and `<name>.right`.

        Copies, since changes may share a factor and safetensors stores no tensor twice.
        """
        return {
            f"{name}.{part}": tensor.contiguous().clone()
            for name, change in self.changes.items()
            for part, tensor in vars(change).items()
            if tensor is not None
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], touched_hash: str) -> "WeightDelta":
        """The inverse of `tensors`."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            owner, part = name.rsplit(".", 1)
            parts.setdefault(owner, {})[part] = tensor
        return cls({name: Change(**p) for name, p in parts.items()}, touched_hash)


def touched_hash(module: nn.Module, names) -> str:
    """Hash of the named tensors as they are now."""
    return content_hash(*(x for n in sorted(names) for x in (n, _parameter(module, n))))


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    try:
        return module.get_parameter(name)
    except AttributeError:
        raise UserError(f"The model has no tensor {name}: the edit is for another model.") from None
