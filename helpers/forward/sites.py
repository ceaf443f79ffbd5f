"""Sites: where in a block an activation can be read or changed, in every family.

| site | activation | elsewhere called |
| --- | --- | --- |
| `heads` | the heads' outputs side by side, (b, t, n_heads · d_head) | `attn.hook_z` |
| `attention` | the write of attention to the residual stream | `hook_attn_out` |
| `mlp_in` | the input of W_in and the gate | `hook_mlp_in` |
| `neurons` | hidden activations of the MLP, the input of W_out | `mlp.hook_post` |
| `mlp` | the write of the MLP to the residual stream | `hook_mlp_out` |
| `residual` | the residual stream after the block | `hook_resid_post` |
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from helpers.errors import UserError
from helpers.models import LayerArchitecture

SITES = ("heads", "attention", "mlp_in", "neurons", "mlp", "residual")
"""In the order in which a block computes them."""


def site_value(layer: LayerArchitecture, site: str, batch: int) -> Float[Tensor, "b t width"]:
    """Return the activation at `site` inside a trace; it is a view that can be written in place.

    OPT flattens batch and time inside its blocks; the view undoes that.
    """
    value = {
        "heads": lambda: layer.attention.input,
        "attention": lambda: layer.attention_write.output,
        "mlp_in": lambda: _mlp_input(layer),
        "neurons": lambda: layer.mlp.out_envoy.input,
        "mlp": lambda: layer.mlp_write.output,
        "residual": lambda: layer.block.output,
    }[site]()
    return value.view(batch, -1, value.shape[-1])


def _mlp_input(layer: LayerArchitecture) -> Tensor:
    """Return the tensor that W_in and the gate read; a gate reads it first.

    Without a gate it is a copy: blocks that normalise last (OPT-350m) add the tensor itself to
    what the MLP writes, and a change of it would change the residual stream too.
    """
    if layer.mlp.gate_envoy is not None:
        return layer.mlp.gate_envoy.input
    value = layer.mlp.in_envoy.input.clone()
    layer.mlp.in_envoy.input = value
    return value


def check_sites(sites: Sequence[str]) -> list[str]:
    """Return `sites` in order of computation.

    Raises:
        UserError: There is no such site.
    """
    for site in sites:
        if site not in SITES:
            raise UserError(f"There is no site '{site}'; choose from {', '.join(SITES)}.")
    return [site for site in SITES if site in sites]
