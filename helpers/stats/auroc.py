"""Area under the ROC curve (AUROC): how well a score tells two groups apart.

It is the probability that a random member of the first group scores higher than one of the second,
ties counting one half: U / (n · m) of Mann & Whitney 1947.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.errors import UserError


def auroc_by_unit(
    positives: Float[Tensor, "n *units"],  # noqa: F821 (jaxtyping)
    negatives: Float[Tensor, "m *units"],  # noqa: F821 (jaxtyping)
) -> Float[Tensor, "*units"]:
    """Return the AUROC of every unit by itself, in float32.

    Raises:
        UserError: A group is empty.
    """
    _check_groups(positives, negatives)
    n, m = len(positives), len(negatives)
    # Sorted negatives turn the n · m comparisons of a unit into n binary searches.
    ordered = negatives.flatten(1).T.contiguous().sort(dim=1).values  # (units, m)
    queries = positives.flatten(1).T.contiguous()  # (units, n)
    below = torch.searchsorted(ordered, queries)  # negatives below each positive
    below_or_equal = torch.searchsorted(ordered, queries, right=True)
    return ((below + below_or_equal).sum(1) / (2 * n * m)).float().view(positives.shape[1:])


def _check_groups(positives, negatives) -> None:
    if not len(positives) or not len(negatives):
        raise UserError("An AUROC compares two groups, and one of them is empty.")
