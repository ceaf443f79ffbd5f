"""SAEs as files that SAELens reads: `cfg.json` and `sae_weights.safetensors`.

Our own numbers travel in the metadata of `cfg.json`, so that a saved SAE comes back as what it
was; a folder that SAELens wrote has none and is translated. BatchTopK and Matryoshka are written as
the JumpReLU SAEs that they are at inference, as SAELens does it too.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

from helpers.artifacts import read_json, read_tensors, write_json, write_tensors
from helpers.errors import UserError
from helpers.sae.base import SAE, SAEConfig
from helpers.sae.registry import build

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
OURS = "llm_unlearning"  # where our own numbers are kept in the metadata
TO_SAELENS = {
    "relu": "standard",
    "gated": "gated",
    "topk": "topk",
    "batch_topk": "jumprelu",
    "jumprelu": "jumprelu",
    "matryoshka": "jumprelu",
}
TRANSCODERS = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}  # all it has of these
FROM_SAELENS = {
    "standard": "relu",
    "gated": "gated",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
}
HOOK = re.compile(r"blocks\.(\d+)\.hook_(mlp_out|resid_post|resid_pre|attn_out)$")
SITES = {
    "mlp_out": "mlp",
    "resid_post": "residual",
    "resid_pre": "residual",
    "attn_out": "attention",
}


def save_sae(sae: SAE, folder: str | Path) -> None:
    """Write an SAE as a folder in SAELens's format."""
    folder, cfg = Path(folder), sae.cfg
    write_tensors(folder / WEIGHTS, sae.tensors())
    kind = TO_SAELENS[cfg.architecture]
    if cfg.transcoder:
        kind = TRANSCODERS.get(kind, f"{kind}_transcoder")
    config = {
        "architecture": kind,
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"model_name": cfg.model, OURS: cfg.to_dict()},
    }
    if cfg.transcoder:
        config["d_out"] = cfg.d_out
    if kind.startswith("topk"):
        config |= {"k": cfg.k, "rescale_acts_by_decoder_norm": False}
    write_json(folder / CONFIG, config)


def load_sae(folder: str | Path) -> SAE:
    """Read an SAE that `save_sae` or SAELens wrote.

    Raises:
        UserError: A file is missing, damaged, or of an architecture that is not known here.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    tensors, _ = read_tensors(folder / WEIGHTS)
    try:
        ours = (config.get("metadata") or {}).get(OURS)
        sae = build(SAEConfig.from_dict(ours) if ours else _translated(config))
        sae.set_tensors(tensors)
        if config.get("rescale_acts_by_decoder_norm"):
            sae.fold_norms()
        if (
            config.get("apply_b_dec_to_input") and not sae.cfg.transcoder
        ):  # x - b_dec is read there: fold it into b_enc
            sae.shift(sae.b_dec)
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} does not hold an SAE of the kind that its {CONFIG} names ({error}): save "
            "it again."
        ) from error
    return sae.requires_grad_(False).eval()


def _translated(config: dict[str, Any]) -> SAEConfig:
    """Our numbers for an SAE that SAELens wrote."""
    kind = config["architecture"]
    if kind not in FROM_SAELENS:
        raise UserError(
            f"SAELens's architecture '{kind}' is not known here; known are "
            f"{', '.join(FROM_SAELENS)}."
        )
    if config.get("normalize_activations", "none") != "none":
        raise UserError(
            f"This SAE normalises its input ('{config['normalize_activations']}'): fold that into "
            "its weights with SAELens and save it again."
        )
    metadata = config.get("metadata") or {}
    hook = HOOK.search(metadata.get("hook_name") or "")
    layer = int(hook[1]) - (hook[2] == "resid_pre") if hook else 0
    site = SITES[hook[2]] if hook else ""
    return SAEConfig(
        architecture=FROM_SAELENS[kind],
        d_in=config["d_in"],
        d_sae=config["d_sae"],
        d_out=config.get("d_out") or 0,
        k=int(config.get("k") or 0),
        site="mlp_in" if kind.endswith("transcoder") else site,
        target="mlp" if kind.endswith("transcoder") else "",
        layer=layer,
        model=metadata.get("model_name") or "",
    )


def load_pretrained(release: str, sae_id: str) -> SAE:
    """A published SAE by its names in SAELens's directory, through SAELens itself.

    Args:
        release: Such as `gpt2-small-res-jb`.
        sae_id: Such as `blocks.8.hook_resid_pre`.

    Raises:
        UserError: SAELens is not installed, or does not know or reach the SAE.
    """
    try:
        import sae_lens
    except ImportError:
        raise UserError(
            "Published SAEs are fetched by SAELens, which is not installed: run "
            "'pip install sae-lens' in an environment of its own, save the SAE there with its "
            "save_model, and give that folder to load_sae."
        ) from None
    try:
        published = sae_lens.SAE.from_pretrained(release, sae_id)
    except Exception as error:  # whatever its downloads raise
        raise UserError(
            f"SAELens has no SAE '{sae_id}' in release '{release}', or could not fetch it "
            f"({str(error).splitlines()[0][:160] if str(error) else type(error).__name__})."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        published.save_model(folder)
        return load_sae(folder)
