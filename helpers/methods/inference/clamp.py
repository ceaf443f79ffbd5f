"""The intervention of `sae_clamp` and `dynamic_clamp`: SAE latents set to fixed values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from nnsight import LanguageModel
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.io.choices import check_number
from helpers.io.safe_text import visible
from helpers.methods.fitting.sae_latents import SITES, load_saes_for, sae_states, specific_latents
from helpers.methods.hook_intervention import HookIntervention, Settings, intervention_kind
from helpers.methods.registry import Hyperparameters
from helpers.models import architecture_of, torch_module
from helpers.models.hooks import Hook
from helpers.sae import SAE, SAEConfig, build

KIND = "clamp"


@dataclass(frozen=True)
class ClampHparams(Hyperparameters):
    """Hyperparameters of `sae_clamp`, which `dynamic_clamp` has too.

    Attributes:
        saes: Folders of SAEs of the sites `mlp_in` or `mlp`.
        n_latents: Latents of each SAE.
        strength: Latents are set to minus this many of their mean activations; 0 is ablation to
            zero.
        n_subjects: Other subjects with which the subject is compared.
    """

    saes: tuple[str, ...] = ()
    n_latents: int = 3
    strength: float = 4.0
    n_subjects: int = 24


def clamping(
    model: LanguageModel,
    pair: ConceptPair,
    name: str,
    hparams: ClampHparams,
    *,
    min_active_fraction: float,
    seed: int,
) -> HookIntervention:
    """Build the intervention of `sae_clamp` and `dynamic_clamp`.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        name: Name of the method, for error sentences.
        hparams: What both methods have.
        min_active_fraction: Latents are set once more than this fraction of a text's tokens so far
            had an active one.
        seed: Draws the subjects to compare with.

    Raises:
        UserError: No SAE is given, one is of another model or site, or a number is out of range.
    """
    check_number("strength", hparams.strength, 0, 1e4)
    n_latents, n_subjects = hparams.n_latents, hparams.n_subjects
    entries: list[dict[str, Any]] = []
    parts: dict[str, Tensor] = {}
    for number, sae in enumerate(load_saes_for(model, hparams.saes, SITES, name)):
        positives, negatives = sae_states(model, pair, sae, n_subjects=n_subjects, seed=seed)
        latents = specific_latents(sae, positives, negatives, n=n_latents)
        with torch.no_grad():
            mean_activation = sae.encode(positives)[:, latents].mean(0)
        entries.append(
            {
                "cfg": sae.cfg.to_dict(),
                "latents": latents.tolist(),
                "values": (-hparams.strength * mean_activation).tolist(),
            }
        )
        parts |= {f"{number}.{k}": v.detach().cpu() for k, v in sae.tensors().items()}
    notes = [
        {"layer": e["cfg"]["layer"], "site": e["cfg"]["site"], "latents": e["latents"]}
        for e in entries
    ]
    settings = {"min_active_fraction": min_active_fraction, "saes": entries}
    return HookIntervention(KIND, settings, parts, {"latents": notes})


class ClampedSAE(BaseModel):
    """One SAE's configuration, its clamped latents, and their values."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    cfg: SAEConfig
    latents: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    values: list[float]

    @model_validator(mode="after")
    def _consistent(self) -> "ClampedSAE":
        """Refuse latents that the SAE does not have, and an SAE of another site."""
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
        """Build the SAE with its tensors, if they have the sizes of its configuration.

        Args:
            tensors: The SAE's tensors by name.

        Raises:
            UserError: A tensor is missing, is none of the SAE's, or has another size.
        """
        cfg = self.cfg
        sizes = {"W_enc": (cfg.d_in, cfg.d_sae), "W_dec": (cfg.d_sae, cfg.d_out)}
        for name, size in sizes.items():  # before memory for such sizes is allocated
            if name not in tensors or tuple(tensors[name].shape) != size:
                raise UserError(f"its '{name}' is not {size}, as the SAE's numbers say")
        sae = build(cfg)
        shapes = {name: tensor.shape for name, tensor in sae.tensors().items()}
        for name in sorted(shapes.keys() | tensors.keys()):
            if name not in shapes or name not in tensors or tensors[name].shape != shapes[name]:
                raise UserError(f"its '{visible(name)}' is not what such an SAE has")
        sae.set_tensors(tensors)
        return sae.requires_grad_(False)


@intervention_kind(KIND)
class Clamping(Settings):
    """Settings of a clamp: the SAEs, and the fraction of active tokens above which it acts.

    Attributes:
        min_active_fraction: The fraction, between 0 and 1; called `share` until 2026-11.
        saes: The SAEs.
    """

    min_active_fraction: Annotated[
        float, Field(ge=0, le=1, validation_alias=AliasChoices("min_active_fraction", "share"))
    ]
    saes: Annotated[list[ClampedSAE], Field(min_length=1)]

    def check_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Build every SAE once.

        Raises:
            UserError: Its tensors do not fit its configuration.
        """
        for clamped_sae, tensors in zip(self.saes, self._tensors_by_sae(parts), strict=True):
            clamped_sae.built(tensors)

    def hooks(self, model: LanguageModel, parts: Mapping[str, Tensor]) -> list[Hook]:
        """Return the hooks of every SAE.

        Raises:
            UserError: The model has another width, or no such layer.
        """
        arch = architecture_of(model)
        for clamped_sae in self.saes:
            arch.check_layer(clamped_sae.cfg.layer)
            if clamped_sae.cfg.d_in != arch.d_model:
                raise UserError("This intervention was made for a model of another width.")
        hooks = []
        for clamped_sae, tensors in zip(self.saes, self._tensors_by_sae(parts), strict=True):
            sae = clamped_sae.built(tensors).to(torch_module(model).device)
            clamp = Clamp(sae, clamped_sae.latents, clamped_sae.values, self.min_active_fraction)
            hooks += clamp.hooks(model)
        return hooks

    def _tensors_by_sae(self, parts: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Sort tensors named `<number of the SAE>.<name>` by SAE.

        Raises:
            UserError: There is no SAE of that number.
        """
        by_sae: list[dict[str, Tensor]] = [{} for _ in self.saes]
        by_number = {str(i): tensors for i, tensors in enumerate(by_sae)}
        for full_name, tensor in parts.items():
            number, _, name = full_name.partition(".")
            if number not in by_number:
                raise UserError(f"there is no SAE for its '{visible(full_name)}'")
            by_number[number][name] = tensor
        return by_sae


class Clamp:
    """Activations with chosen latents set where they are active: x + Σ (value_f − z_f) d_f.

    The SAE's error is kept. The first token of a sequence is left as it is: SAEs are not trained on
    it.
    """

    def __init__(
        self, sae: SAE, latents: Sequence[int], values: Sequence[float], min_active_fraction: float
    ):
        """Prepare the clamp of one SAE.

        Args:
            sae: The SAE.
            latents: The clamped latents.
            values: The value that each is set to.
            min_active_fraction: Latents are set once more than this fraction of a text's tokens so
                far had an active one.
        """
        self.sae, self.latents = sae, list(latents)
        self.min_active_fraction = min_active_fraction
        self.values = torch.tensor(list(values), device=sae.W_dec.device)
        self._last: tuple[Tensor, Tensor] | None = None  # input and output of the last call
        self._batch_size = 1

    def hooks(self, model: LanguageModel) -> list[Hook]:
        """Return the hooks for a model."""
        layer = architecture_of(model).layers[self.sae.cfg.layer]
        block = layer.block._module
        hooks = [Hook(block, self._note_batch_size, before=True, with_kwargs=True)]
        if self.sae.cfg.site == "mlp":
            mlp_output = layer.mlp_write._module
            return [*hooks, Hook(mlp_output, lambda m, args, output: self.clamped(output))]
        input_modules = [m for m in (layer.mlp.gate_module, layer.mlp.in_module) if m is not None]

        def clamp_input(module, args):
            return (self._clamped_once(args[0]), *args[1:])

        return hooks + [Hook(m, clamp_input, before=True) for m in input_modules]

    def _note_batch_size(self, block, args, kwargs) -> None:
        """Note how many sequences there are: OPT flattens batch and time inside its blocks."""
        self._batch_size = len(args[0] if args else kwargs["hidden_states"])

    def _clamped_once(self, x: Tensor) -> Tensor:
        """Clamp an input that gate and W_in share, once for both."""
        if self._last is None or self._last[0] is not x:
            self._last = (x, self.clamped(x))
            return self._last[1]
        output, self._last = self._last[1], None
        return output

    def clamped(self, x: Float[Tensor, "*bt d_model"]) -> Float[Tensor, "*bt d_model"]:
        """Return activations with the latents set; gradients pass as if nothing had been added."""
        return x + self._change(x.detach())

    @torch.no_grad()
    def _change(self, x: Float[Tensor, "*bt d_model"]) -> Float[Tensor, "*bt d_model"]:
        """Compute Σ (value_f − z_f) d_f at tokens with active latents, 0 elsewhere."""
        shape, x = x.shape, x.view(self._batch_size, -1, x.shape[-1])
        z = self.sae.encode(x.flatten(0, 1).float())[:, self.latents].unflatten(0, x.shape[:2])
        active: Bool[Tensor, "b t f"] = z > 0
        active[:, 0] = False
        if self.min_active_fraction > 0:
            # The first token never counts, so the fraction is of the tokens after it.
            n_active = active.any(-1).float().cumsum(1)
            n_tokens = torch.arange(x.shape[1], device=x.device).clamp_min(1)
            active &= (n_active / n_tokens > self.min_active_fraction)[..., None]
        change = torch.where(active, self.values - z, 0.0) @ self.sae.W_dec[self.latents]
        return change.to(x.dtype).view(shape)
