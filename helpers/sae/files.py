"""SAEs as files that SAELens reads: `cfg.json` and `sae_weights.safetensors`.

Our own numbers travel in the metadata of `cfg.json`, so that a saved SAE comes back as what it
was; a folder that SAELens wrote has none and is translated.
"""

from pathlib import Path
from typing import Any

from helpers.artifacts import read_json, read_tensors, write_json, write_tensors
from helpers.errors import UserError
from helpers.sae.base import SAE, SAEConfig
from helpers.sae.registry import build

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
OURS = "llm_unlearning"  # where our own numbers are kept in the metadata
TO_SAELENS = {"topk": "topk"}
FROM_SAELENS = {"topk": "topk"}


def save_sae(sae: SAE, folder: str | Path) -> None:
    """Write an SAE as a folder in SAELens's format."""
    folder, cfg = Path(folder), sae.cfg
    write_tensors(folder / WEIGHTS, sae.tensors())
    config = {
        "architecture": TO_SAELENS[cfg.architecture],
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"model_name": cfg.model, OURS: cfg.to_dict()},
    }
    if config["architecture"] == "topk":
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
        if config.get("apply_b_dec_to_input"):  # x - b_dec is read there: fold it into b_enc
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
    return SAEConfig(
        architecture=FROM_SAELENS[kind],
        d_in=config["d_in"],
        d_sae=config["d_sae"],
        k=config.get("k", 0),
        model=(config.get("metadata") or {}).get("model_name") or "",
    )
