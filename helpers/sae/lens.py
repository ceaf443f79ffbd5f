"""What SAELens writes into `cfg.json`, by all its versions, and what of it is an SAE of ours.

Before version 6 everything stood at the top level, under names that changed; since then what the
SAE was trained on stands in `metadata`. What is read here gives SAELens's own latents and
reconstructions, or is refused.

A hook says where an SAE reads, not whether TransformerLens had folded the model's norms into its
weights; nothing in these files does.
"""

import re
from typing import Annotated

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

from helpers.errors import UserError
from helpers.forward.sites import SITES
from helpers.io.safe_text import visible
from helpers.sae.base import SAEConfig
from helpers.sae.registry import ARCHITECTURES

OURS = "llm_unlearning"  # where our own numbers are kept in the metadata
TO_LENS = {
    "relu": "standard",
    "gated": "gated",
    "topk": "topk",
    "batch_topk": "jumprelu",
    "jumprelu": "jumprelu",
    "matryoshka": "jumprelu",
}
TRANSCODERS = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}  # all it has of these
FROM_LENS = {
    "standard": "relu",
    "gated": "gated",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
}
HOOK = re.compile(r"blocks\.(\d{1,4})\.(.+)")  # TransformerLens's
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
MODULE = re.compile(r"(?:\w+\.)*(?:layers|h)\.(\d{1,4})(?:\.(\w+))?")  # transformers', its output
MODULES = {
    None: "residual",
    "mlp": "mlp",
    "attn": "attention",
    "self_attn": "attention",
    "attention": "attention",
}

Size = Annotated[int, Field(ge=1, lt=2**31)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Numbers(BaseModel):
    """The fields of `SAEConfig` as a file holds them."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    architecture: str
    d_in: Size
    d_sae: Size
    d_out: Annotated[int, Field(ge=0, lt=2**31)] = 0
    k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    sparsity: Amount = 0.0
    bandwidth: Amount = 0.0
    widths: list[Size] = []
    site: str = ""
    target: str = ""
    layer: Annotated[int, Field(ge=-9999, le=9999)] = 0
    model: str = ""
    model_hash: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

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
        """Ours.

        Raises:
            UserError: They do not fit together.
        """
        return SAEConfig(**self.model_dump())


class Activation(BaseModel):
    """Numbers of an activation function; only TopK has one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    k: Size | None = None


class Origin(BaseModel):
    """What an SAE was trained on."""

    model_config = ConfigDict(strict=True, protected_namespaces=())

    sae_lens_version: str | None = None
    model_name: str | None = None
    hook_name: str | None = Field(None, validation_alias=AliasChoices("hook_name", "hook_point"))
    hook_name_out: str | None = None
    hook_head_index: int | None = Field(
        None, validation_alias=AliasChoices("hook_head_index", "hook_point_head_index")
    )


class Metadata(Origin):
    """What version 6 keeps of it, and our own numbers where the SAE is ours."""

    ours: Numbers | None = Field(None, validation_alias=OURS)


class Lens(Origin):
    """A `cfg.json`: what decides the numbers, and where they were trained.

    Fields that decide nothing here are not looked at.
    """

    architecture: str | None = None
    d_in: Size
    d_sae: Size
    d_out: Size | None = None
    k: Size | None = None
    activation: str | None = Field(
        None, validation_alias=AliasChoices("activation_fn_str", "activation_fn")
    )
    activation_fn_kwargs: Activation | None = None
    apply_b_dec_to_input: bool | None = None
    rescale_acts_by_decoder_norm: bool = False
    finetuning_scaling_factor: bool = False
    normalize_activations: str | bool | None = None
    reshape_activations: str | None = None
    metadata: Metadata | None = None

    @property
    def origin(self) -> Origin:
        """Where it says on what the SAE was trained."""
        return self.metadata or self

    @property
    def before_6(self) -> bool:
        """Whether a version before 6 wrote it: those had activation functions by name."""
        version = self.sae_lens_version or self.origin.sae_lens_version or ""
        return not re.match(r"[6-9]|[1-9]\d", version)

    @property
    def kind(self) -> str:
        """SAELens's name of the architecture; old files say by the activation that it is TopK.

        Raises:
            UserError: The activation is none that we have.
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
        """Whether x − b_dec is encoded; so it is in SAELens where nothing is said."""
        if self.kind.endswith("transcoder"):
            return False  # b_dec is of another width there
        return self.apply_b_dec_to_input is not False

    @property
    def by_norm(self) -> bool:
        """Whether TopK chooses by the lengths of what latents write."""
        return self.rescale_acts_by_decoder_norm and self.kind == "topk"

    def config(self) -> SAEConfig:
        """The SAE's numbers.

        Raises:
            UserError: Something is not supported, or contradicts itself; says what, without advice.
        """
        origin, kind = self.origin, self.kind
        if (norm := self.normalize_activations) not in (None, False, "none"):
            told = "" if norm is True else f" ('{visible(norm)}')"
            raise UserError(
                f"it normalises its input{told}, which has to be folded into its weights with "
                "SAELens first"
            )
        if origin.hook_head_index is not None:
            raise UserError("it reads one attention head alone, for which there is no site")
        if self.reshape_activations not in (None, "none", "hook_z"):
            raise UserError(
                f"its reshaping '{visible(self.reshape_activations)}' of activations is not "
                "supported"
            )
        if self.metadata and self.metadata.ours:
            return self._ours(self.metadata.ours.config(), kind)
        if kind not in FROM_LENS:
            raise UserError(
                f"SAELens's architecture '{visible(kind)}' is not known here; known are "
                f"{', '.join(FROM_LENS)}"
            )
        if kind == "topk" and not self._k:
            raise UserError("it is a TopK SAE and does not say how many latents are active ('k')")
        site, target, layer = self._places(kind.endswith("transcoder"))
        return SAEConfig(
            architecture=FROM_LENS[kind],
            d_in=self.d_in,
            d_sae=self.d_sae,
            d_out=self._d_out(kind),
            k=self._k if kind == "topk" else 0,
            site=site,
            target=target,
            layer=layer,
            model=origin.model_name or "",
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

    def _ours(self, cfg: SAEConfig, kind: str) -> SAEConfig:
        """`cfg`, where what SAELens would read says the same."""
        same = (kind_of(cfg), cfg.d_in, cfg.d_sae) == (kind, self.d_in, self.d_sae)
        if not same or (kind == "topk" and cfg.k != self._k):
            raise UserError("its numbers for SAELens contradict our own ones")
        return cfg

    def _places(self, transcoder: bool) -> tuple[str, str, int]:
        """Site, target and layer; nothing where the file names no hook."""
        origin = self.origin
        site, layer = self._place(origin.hook_name)
        if not transcoder:
            return site, "", layer
        if bool(origin.hook_name) != bool(origin.hook_name_out):
            raise UserError("it is a transcoder and names only one of the hooks it goes between")
        target, written = self._place(origin.hook_name_out)
        if written != layer:
            raise UserError(f"it reads layer {layer} and predicts layer {written}")
        return site, target or "mlp", layer

    def _place(self, hook: str | None) -> tuple[str, int]:
        """Site and layer of a hook."""
        if not hook:
            return "", 0
        site, layer = place(hook)
        if site == "heads" and not self.before_6 and self.reshape_activations != "hook_z":
            raise UserError("it reads each attention head by itself, for which there is no site")
        return site, layer


def kind_of(cfg: SAEConfig) -> str:
    """SAELens's name of an architecture; it knows two kinds of transcoders, and we write more."""
    kind = TO_LENS[cfg.architecture]
    return TRANSCODERS.get(kind, f"{kind}_transcoder") if cfg.transcoder else kind


def place(hook: str) -> tuple[str, int]:
    """Site and layer of what TransformerLens or transformers call `hook`.

    Raises:
        UserError: There is no such site here; says so without advice.
    """
    site, layer = None, 0
    if found := HOOK.fullmatch(hook):
        site, layer = HOOKS.get(found[2]), int(found[1]) - (found[2] == "hook_resid_pre")
    elif found := MODULE.fullmatch(hook):
        site, layer = MODULES.get(found[2]), int(found[1])
    if site is None or layer < 0:
        raise UserError(
            f"it reads or predicts '{visible(hook)[:100]}', for which there is no site here; known "
            f"are blocks.<layer>. with {', '.join(HOOKS)}, and a layer, its MLP or its attention "
            "by their names in transformers"
        )
    return site, layer
