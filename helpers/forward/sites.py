"""Sites: where in a block an activation can be read, in every family."""

from collections.abc import Sequence

from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.forward.scoring import encode, rendered
from helpers.models import LayerArchitecture

SITES = ("heads", "attention", "mlp_in", "neurons", "mlp", "residual")


"""In the order in which a block computes them: the heads' outputs side by side, what attention
writes, what the MLP reads, its hidden activations, what it writes, the residual stream after the
block."""


def site_value(layer: LayerArchitecture, site: str, batch: int):
    """The activation at `site` inside a trace, as (batch, T, width), writable in place.

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


def _mlp_input(layer: LayerArchitecture):
    """What W_in and the gate read; a gate reads first, and both read the same tensor.

    Without a gate it is a copy: blocks that normalise last (OPT-350m) add the tensor itself to
    what the MLP writes.
    """
    if layer.mlp.gate_envoy is not None:
        return layer.mlp.gate_envoy.input
    value = layer.mlp.in_envoy.input.clone()
    layer.mlp.in_envoy.input = value
    return value


def check_sites(sites: Sequence[str]) -> list[str]:
    """`sites` in order of computation.

    Raises:
        UserError: There is no such site.
    """
    for site in sites:
        if site not in SITES:
            raise UserError(f"There is no site '{site}'; choose from {', '.join(SITES)}.")
    return [site for site in SITES if site in sites]


def token_ids(model: LanguageModel, prompt: str) -> list[int]:
    """The tokens that the model sees for `prompt`."""
    return encode(model.tokenizer, rendered(prompt, model.tokenizer))
