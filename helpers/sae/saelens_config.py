"""SAELens's `cfg.json`, as all its versions write it, translated to `SAEConfig`.

Before version 6 everything stood at the top level, under names that changed; since then `metadata`
holds what the SAE was trained on. A file that is read here gives SAELens's own latents and
reconstructions, or is refused.

A hook says which activation an SAE was trained on. Nothing in these files says whether
TransformerLens had folded the model's norms into its weights.
"""

import re
from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from helpers.errors import UserError
from helpers.forward.sites import SITES
from helpers.io.safe_text import visible
from helpers.sae.base import SAEConfig, with_present_names
from helpers.sae.registry import ARCHITECTURES

OWN_METADATA = "llm_unlearning"  # key in the metadata under which our own configuration stands
TO_SAELENS = {
    "relu": "standard",
    "gated": "gated",
    "topk": "topk",
    "batch_topk": "jumprelu",
    "jumprelu": "jumprelu",
    "matryoshka": "jumprelu",
}
TRANSCODERS = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}
"""SAELens's names of the transcoders that it has."""
FROM_SAELENS = {
    "standard": "relu",
    "gated": "gated",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
}
HOOK = re.compile(r"blocks\.(\d{1,4})\.(.+)")  # TransformerLens's name of an activation
HOOKS = {
    "hook_resid_post": "residual",
    "hook_resid_pre": "residual",  # of the block before
    "hook_mlp_out": "mlp",
    "hook_attn_out": "attention",
    "attn.hook_z": "heads",
    "mlp.hook_post": "neurons",
    "mlp.hook_in": "mlp_in",
    "ln2.hook_normalized": "mlp_in",
}
MODULE = re.compile(r"(?:\w+\.)*(?:layers|h)\.(\d{1,4})(?:\.(\w+))?")  # transformers' module
MODULES = {
    None: "residual",
    "mlp": "mlp",
    "attn": "attention",
    "self_attn": "attention",
    "attention": "attention",
}

Size = Annotated[int, Field(ge=1, lt=2**31)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class OwnConfig(BaseModel):
    """The fields of `SAEConfig` as a file holds them; names of older files are accepted."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    architecture: str
    d_in: Size
    d_sae: Size
    d_out: Annotated[int, Field(ge=0, lt=2**31)] = 0
    k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    l1_coefficient: Amount = 0.0
    l0_coefficient: Amount = 0.0
    jumprelu_bandwidth: Amount = 0.0
    matryoshka_widths: list[Size] = []
    site: str = ""
    target: str = ""
    layer: Annotated[int, Field(ge=-9999, le=9999)] = 0
    model: str = ""
    model_hash: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="before")
    @classmethod
    def _present_names(cls, values: Any) -> Any:
        return with_present_names(values) if isinstance(values, dict) else values

    @field_validator("architecture")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ARCHITECTURES:
            raise ValueError(f"should be one of {', '.join(ARCHITECTURES)}")
        return value

    @field_validator("site", "target")
    @classmethod
    def _site(cls, value: str) -> str:
        if value and value not in SITES:
            raise ValueError(f"should be one of {', '.join(SITES)}")
        return value

    def config(self) -> SAEConfig:
        """Convert to an `SAEConfig`.

        Raises:
            UserError: The sizes do not fit together.
        """
        return SAEConfig(**self.model_dump())


class ActivationArguments(BaseModel):
    """Arguments of an activation function; only TopK has one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    k: Size | None = None


class TrainedOn(BaseModel):
    """Model and hooks that an SAE was trained on."""

    model_config = ConfigDict(strict=True, protected_namespaces=())

    sae_lens_version: str | None = None
    model_name: str | None = None
    hook_name: str | None = Field(None, validation_alias=AliasChoices("hook_name", "hook_point"))
    hook_name_out: str | None = None
    hook_head_index: int | None = Field(
        None, validation_alias=AliasChoices("hook_head_index", "hook_point_head_index")
    )


class Metadata(TrainedOn):
    """Metadata of version 6, and our own configuration where the SAE is ours."""

    own: OwnConfig | None = Field(None, validation_alias=OWN_METADATA)


class SAELensConfig(TrainedOn):
    """A `cfg.json`; fields that decide nothing here are ignored."""

    architecture: str | None = None
    d_in: Size
    d_sae: Size
    d_out: Size | None = None
    k: Size | None = None
    activation: str | None = Field(
        None, validation_alias=AliasChoices("activation_fn_str", "activation_fn")
    )
    activation_fn_kwargs: ActivationArguments | None = None
    apply_b_dec_to_input: bool | None = None
    rescale_acts_by_decoder_norm: bool = False
    finetuning_scaling_factor: bool = False
    normalize_activations: str | bool | None = None
    reshape_activations: str | None = None
    metadata: Metadata | None = None

    @property
    def trained_on(self) -> TrainedOn:
        """The part of the file that names model and hooks."""
        return self.metadata or self

    @property
    def before_6(self) -> bool:
        """True if a version before 6 wrote it, which names the activation function."""
        version = self.sae_lens_version or self.trained_on.sae_lens_version or ""
        return not re.match(r"[6-9]|[1-9]\d", version)

    @property
    def kind(self) -> str:
        """SAELens's name of the architecture; in old files the activation alone names TopK.

        Raises:
            UserError: The activation is not supported.
        """
        kind = self.architecture or "standard"
        activation = (self.before_6 and self.activation) or "relu"
        if activation == "topk" and kind in ("standard", "topk"):
            return "topk"
        if activation != "relu":
            raise UserError(
                f"its activation '{visible(activation)}' of a '{visible(kind)}' SAE is not "
                "supported"
            )
        return kind

    @property
    def subtracts_bias(self) -> bool:
        """True if x − b_dec is encoded, which is SAELens's default."""
        if self.kind.endswith("transcoder"):
            return False  # b_dec is of another width there
        return self.apply_b_dec_to_input is not False

    @property
    def selects_by_norm(self) -> bool:
        """True if TopK selects by the norms of the latents' contributions."""
        return self.rescale_acts_by_decoder_norm and self.kind == "topk"

    def config(self) -> SAEConfig:
        """Translate to an `SAEConfig`.

        Raises:
            UserError: Something is not supported, or contradicts itself; says what, without advice.
        """
        kind = self.kind
        self._check_supported()
        if self.metadata and self.metadata.own:
            return self._own(self.metadata.own.config(), kind)
        if kind not in FROM_SAELENS:
            raise UserError(
                f"SAELens's architecture '{visible(kind)}' is not known here; known are "
                f"{', '.join(FROM_SAELENS)}"
            )
        if kind == "topk" and not self._k:
            raise UserError("it is a TopK SAE and does not say how many latents are active ('k')")
        site, target, layer = self._sites(is_transcoder=kind.endswith("transcoder"))
        return SAEConfig(
            architecture=FROM_SAELENS[kind],
            d_in=self.d_in,
            d_sae=self.d_sae,
            d_out=self._d_out(kind),
            k=self._k if kind == "topk" else 0,
            site=site,
            target=target,
            layer=layer,
            model=self.trained_on.model_name or "",
        )

    def _check_supported(self) -> None:
        """Refuse normalisations, single heads and reshapings, which would change the latents."""
        if (norm := self.normalize_activations) not in (None, False, "none"):
            name = "" if norm is True else f" ('{visible(norm)}')"
            raise UserError(
                f"it normalises its input{name}, which has to be folded into its weights with "
                "SAELens first"
            )
        if self.trained_on.hook_head_index is not None:
            raise UserError("it reads one attention head alone, for which there is no site")
        if self.reshape_activations not in (None, "none", "hook_z"):
            raise UserError(
                f"its reshaping '{visible(self.reshape_activations)}' of activations is not "
                "supported"
            )

    @property
    def _k(self) -> int:
        old = self.activation_fn_kwargs.k if self.before_6 and self.activation_fn_kwargs else None
        return old or self.k or 0

    def _d_out(self, kind: str) -> int:
        if not kind.endswith("transcoder"):
            return 0
        if self.d_out is None:
            raise UserError("it is a transcoder and does not say how wide its output is ('d_out')")
        return self.d_out

    def _own(self, cfg: SAEConfig, kind: str) -> SAEConfig:
        """Check our own configuration against the fields for SAELens."""
        same = (saelens_kind(cfg), cfg.d_in, cfg.d_sae) == (kind, self.d_in, self.d_sae)
        if not same or (kind == "topk" and cfg.k != self._k):
            raise UserError("its numbers for SAELens contradict our own ones")
        return cfg

    def _sites(self, *, is_transcoder: bool) -> tuple[str, str, int]:
        """Find site, target and layer; ("", "", 0) where the file names no hook."""
        trained_on = self.trained_on
        site, layer = self._site(trained_on.hook_name)
        if not is_transcoder:
            return site, "", layer
        if bool(trained_on.hook_name) != bool(trained_on.hook_name_out):
            raise UserError("it is a transcoder and names only one of the hooks it goes between")
        target, target_layer = self._site(trained_on.hook_name_out)
        if target_layer != layer:
            raise UserError(f"it reads layer {layer} and predicts layer {target_layer}")
        return site, target or "mlp", layer

    def _site(self, hook: str | None) -> tuple[str, int]:
        """Find site and layer of a hook, or refuse single heads."""
        if not hook:
            return "", 0
        site, layer = site_of_hook(hook)
        if site == "heads" and not self.before_6 and self.reshape_activations != "hook_z":
            raise UserError("it reads each attention head by itself, for which there is no site")
        return site, layer


def saelens_kind(cfg: SAEConfig) -> str:
    """Name an architecture as SAELens does; transcoders that it lacks get a name of its kind."""
    kind = TO_SAELENS[cfg.architecture]
    return TRANSCODERS.get(kind, f"{kind}_transcoder") if cfg.transcoder else kind


def site_of_hook(hook: str) -> tuple[str, int]:
    """Translate a hook of TransformerLens, or a module of transformers, to site and layer.

    Raises:
        UserError: There is no such site here; says so without advice.
    """
    site, layer = None, 0
    if match := HOOK.fullmatch(hook):
        site, layer = HOOKS.get(match[2]), int(match[1]) - (match[2] == "hook_resid_pre")
    elif match := MODULE.fullmatch(hook):
        site, layer = MODULES.get(match[2]), int(match[1])
    if site is None or layer < 0:
        raise UserError(
            f"it reads or predicts '{visible(hook)[:100]}', for which there is no site here; known "
            f"are blocks.<layer>. with {', '.join(HOOKS)}, and a layer, its MLP or its attention "
            "by their names in transformers"
        )
    return site, layer
