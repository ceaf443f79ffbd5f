"""Hooks that set SAE latents to a fixed value where they are active."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods.intervention import Intervention, installer
from helpers.methods.surgery.sae_direction import SITES, load_fitting, sae_states, specific_latents
from helpers.models import anatomy

KIND = "clamp"


def clamping(
    model: LanguageModel,
    pair: ConceptPair,
    name: str,
    *,
    saes: Sequence[str],
    n_latents: int,
    strength: float,
    share: float,
    n_subjects: int,
    seed: int,
) -> Intervention:
    """The intervention of `sae_clamp` and `dynamic_clamp`; their docstrings say what it does.

    Raises:
        UserError: No SAE is given, one is of another model or site, or it has too few latents.
    """
    settings: dict[str, Any] = {"share": share, "saes": []}
    parts: dict[str, Tensor] = {}
    for number, sae in enumerate(load_fitting(model, saes, SITES, name)):
        inside, outside = sae_states(model, pair, sae, n_subjects=n_subjects, seed=seed)
        latents = specific_latents(sae, inside, outside, n=n_latents)
        with torch.no_grad():
            usual = sae.encode(inside)[:, latents].mean(0)
        settings["saes"].append(
            {
                "cfg": sae.cfg.to_dict(),
                "latents": latents.tolist(),
                "values": (-strength * usual).tolist(),
            }
        )
        parts |= {f"{number}.{k}": v.detach().cpu() for k, v in sae.tensors().items()}
    notes = [
        {"layer": s["cfg"]["layer"], "site": s["cfg"]["site"], "latents": s["latents"]}
        for s in settings["saes"]
    ]
    return Intervention(KIND, settings, parts, {"latents": notes})


@installer(KIND)
def install(model: LanguageModel, settings: dict[str, Any], parts: dict[str, Tensor]) -> list:
    """Put the hooks of every SAE on."""
    from helpers.sae import SAEConfig, build

    handles = []
    for number, one in enumerate(settings["saes"]):
        cfg = SAEConfig.from_dict(one["cfg"])
        if cfg.d_in != anatomy(model).d_model:
            raise UserError("This intervention was made for a model of another width.")
        sae = build(cfg)
        mine = f"{number}."
        sae.set_tensors({k[len(mine) :]: v for k, v in parts.items() if k.startswith(mine)})
        sae.requires_grad_(False).to(model._module.device)
        clamp = Clamp(sae, one["latents"], one["values"], settings["share"])
        handles += clamp.put(model)
    return handles


class Clamp:
    """x + Σ (value_f − z_f) d_f over chosen latents f where they are active.

    What the SAE does not explain stays. The first token of a sequence is left alone: SAEs are not
    trained on it.
    """

    def __init__(self, sae, latents: Sequence[int], values: Sequence[float], share: float):
        """For one SAE.

        Args:
            sae: The SAE.
            latents: Which.
            values: What each is set to.
            share: Only from where on the share of tokens so far with an active latent is over it.
        """
        self.sae, self.latents, self.share = sae, list(latents), share
        self.values = torch.tensor(list(values), device=sae.W_dec.device)
        self._seen: tuple[Any, Tensor] | None = None
        self._batch = 1

    def put(self, model: LanguageModel) -> list:
        """Hooks on the model; returns their handles."""
        layer = anatomy(model).layers[self.sae.cfg.layer]
        block = layer.block._module
        handles = [block.register_forward_pre_hook(self._count, with_kwargs=True)]
        if self.sae.cfg.site == "mlp":
            write = layer.mlp_write._module
            return [*handles, write.register_forward_hook(lambda m, a, out: self.clamped(out))]
        readers = [m for m in (layer.mlp.gate_module, layer.mlp.in_module) if m is not None]
        return handles + [
            m.register_forward_pre_hook(lambda m, args: (self._once(args[0]), *args[1:]))
            for m in readers
        ]

    def _count(self, block, args, kwargs) -> None:
        """How many sequences there are: OPT flattens batch and time inside its blocks."""
        self._batch = len(args[0] if args else kwargs["hidden_states"])

    def _once(self, x: Tensor) -> Tensor:
        """Gate and W_in read the same tensor: it is encoded for the first of them."""
        if self._seen is None or self._seen[0] is not x:
            self._seen = (x, self.clamped(x))
            return self._seen[1]
        out, self._seen = self._seen[1], None
        return out

    def clamped(self, x: Float[Tensor, "*bt d_model"]) -> Float[Tensor, "*bt d_model"]:
        """The activations with the latents set; a gradient passes as if nothing had been added."""
        return x + self._change(x.detach())

    @torch.no_grad()
    def _change(self, x: Float[Tensor, "*bt d_model"]) -> Float[Tensor, "*bt d_model"]:
        shape, x = x.shape, x.view(self._batch, -1, x.shape[-1])
        z = self.sae.encode(x.flatten(0, 1).float())[:, self.latents].unflatten(0, x.shape[:2])
        active: Bool[Tensor, "b t f"] = z > 0
        active[:, 0] = False
        if self.share > 0:
            so_far = active.any(-1).float().cumsum(1)
            tokens = torch.arange(x.shape[1], device=x.device).clamp_min(1)
            active &= (so_far / tokens > self.share)[..., None]
        change = torch.where(active, self.values - z, 0.0) @ self.sae.W_dec[self.latents]
        return change.to(x.dtype).view(shape)
