"""A check that the MLP of a layer writes to the residual stream without a norm in between."""

from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.models import architecture_of


def require_plain_write(model: LanguageModel, layer: int) -> None:
    """Refuse a layer whose MLP's output is normalised before it is added to the residual stream.

    Args:
        model: Any model of a known family.
        layer: The layer whose MLP an edit writes with.

    Raises:
        UserError: A norm stands in between, so a vector that is written is not the one added.
    """
    mlp_layer = architecture_of(model).layers[layer]
    if mlp_layer.mlp.out_envoy is not mlp_layer.mlp_write:
        raise UserError(
            "This family normalises what its MLPs write, so no given vector can be added to the "
            "residual stream: use rome, which only needs the MLP's own output."
        )
