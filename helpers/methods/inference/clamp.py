"""Hooks that set SAE latents to a fixed value where they are active."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from nnsight import LanguageModel
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.io.safe_text import visible
from helpers.methods.fitting.sae_latents import SITES, load_saes_for, sae_states, specific_latents
from helpers.methods.hook_intervention import HookIntervention, Settings, intervention_kind
from helpers.models import architecture_of
from helpers.models.hooks import Hook
from helpers.sae import SAE, SAEConfig, build

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
) -> HookIntervention:
    """The intervention of `sae_clamp` and `dynamic_clamp`; their docstrings say what it does.

    Raises:
        UserError: No SAE is given, one is of another model or site, or it has too few latents.
    """
    settings: dict[str, Any] = {"share": share, "saes": []}
    parts: dict[str, Tensor] = {}
    for number, sae in enumerate(load_saes_for(model, saes, SITES, name)):
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
    return HookIntervention(KIND, settings, parts, {"latents": notes})


class OneSAE(BaseModel):
    """Which latents of one SAE are set to what."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    cfg: SAEConfig
    latents: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    values: list[float]

    @model_validator(mode="after")
    def _consistent(self) -> "OneSAE":
        """Refuse latents that the SAE does not have, and an SAE of another place."""
        if len(self.values) != len(self.latents):
            raise ValueError(f"{len(self.latents)} latents have {len(self.values)} values")
        if len(set(self.latents)) < len(self.latents):
            raise ValueError("a latent is named twice")
        if max(self.latents) >= self.cfg.d_sae:
            raise ValueError(f"there is no latent {max(self.latents)}: it has {self.cfg.d_sae}")
        if self.cfg.site not in SITES or self.cfg.d_out != self.cfg.d_in or self.cfg.transcoder:
            raise ValueError(f"an SAE of one of the sites {', '.join(SITES)} is clamped")
        if self.cfg.layer < 0:
            raise ValueError(f"there is no layer {self.cfg.layer}")
        return self

    def built(self, tensors: Mapping[str, Tensor]) -> SAE:
        """The SAE with its tensors, once their sizes are those that its numbers tell.

        Raises:
            UserError: A tensor is missing, is not one of it, or has another size.
        """
        cfg = self.cfg
        sizes = {"W_enc": (cfg.d_in, cfg.d_sae), "W_dec": (cfg.d_sae, cfg.d_out)}
        for name, size in sizes.items():  # before anything of these sizes is made
            if name not in tensors or tuple(tensors[name].shape) != size:
                raise UserError(f"its '{name}' is not {size}, as the SAE's numbers say")
        sae = build(cfg)
        wanted = {name: tensor.shape for name, tensor in sae.tensors().items()}
        for name in sorted(wanted.keys() | tensors.keys()):
            if name not in wanted or name not in tensors or tensors[name].shape != wanted[name]:
                raise UserError(f"its '{visible(name)}' is not what such an SAE has")
        sae.set_tensors(tensors)
        return sae.requires_grad_(False)


@intervention_kind(KIND)
class Clamping(Settings):
    """The SAEs and from which share of active tokens on they are clamped."""

    share: Annotated[float, Field(ge=0, le=1)]
    saes: Annotated[list[OneSAE], Field(min_length=1)]

    def check_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Build every SAE once.

        Raises:
            UserError: Its tensors are not those of its numbers.
        """
        for one, tensors in zip(self.saes, self._by_sae(parts), strict=True):
            one.built(tensors)

    def hooks(self, model: LanguageModel, parts: Mapping[str, Tensor]) -> list[Hook]:
        """The hooks of every SAE.

        Raises:
            UserError: The model has another width, or no such layer.
        """
        for one in self.saes:
            architecture_of(model).check_layer(one.cfg.layer)
            if one.cfg.d_in != architecture_of(model).d_model:
                raise UserError("This intervention was made for a model of another width.")
        found = []
        for one, tensors in zip(self.saes, self._by_sae(parts), strict=True):
            sae = one.built(tensors).to(model._module.device)
            found += Clamp(sae, one.latents, one.values, self.share).hooks(model)
        return found

    def _by_sae(self, parts: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Each SAE's tensors, which are named by its number and their own name."""
        found: list[dict[str, Tensor]] = [{} for _ in self.saes]
        numbers = {str(i): mine for i, mine in enumerate(found)}
        for name, tensor in parts.items():
            number, _, own = name.partition(".")
            if number not in numbers:
                raise UserError(f"there is no SAE for its '{visible(name)}'")
            numbers[number][own] = tensor
        return found


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

    def hooks(self, model: LanguageModel) -> list[Hook]:
        """What is to be put on the model."""
        layer = architecture_of(model).layers[self.sae.cfg.layer]
        found = [Hook(layer.block._module, self._count, before=True, with_kwargs=True)]
        if self.sae.cfg.site == "mlp":
            write = layer.mlp_write._module
            return [*found, Hook(write, lambda m, a, out: self.clamped(out))]
        readers = [m for m in (layer.mlp.gate_module, layer.mlp.in_module) if m is not None]
        read = lambda m, args: (self._once(args[0]), *args[1:])  # noqa: E731
        return found + [Hook(m, read, before=True) for m in readers]

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
