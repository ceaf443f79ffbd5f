"""A check that MLPs write to the residual stream without a norm in between."""

from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.models import architecture_of


def require_plain_writes(model: LanguageModel) -> None:
    """Refuse a model that normalises what its MLPs write before it is added.

    Args:
        model: Any model of a known family.

    Raises:
        UserError: A vector that an MLP writes is not the one that is added.
    """
    layers = architecture_of(model).layers
    if any(x.mlp.out_envoy is not x.mlp_write for x in layers):
        raise UserError(
            "This family normalises what its MLPs write, so no given vector can be added to the "
            "residual stream: use rome, which only needs the MLP's own output."
        )
