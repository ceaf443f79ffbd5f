"""SAEs as files that SAELens reads: `cfg.json` and `sae_weights.safetensors`.

The metadata of `cfg.json` holds our own configuration, so that a saved SAE loads as what it was; a
folder that SAELens wrote has none and is translated. BatchTopK and Matryoshka are written as
JumpReLU, which they are at inference; SAELens does so too.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from helpers.errors import UserError
from helpers.io.files import check_finite, write_json
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible
from helpers.io.sealed import DamagedError, cause_of, read_checked, read_sealed, write_sealed
from helpers.sae.base import SAE, SAEConfig
from helpers.sae.registry import build
from helpers.sae.saelens_config import OWN_METADATA, SAELensConfig, saelens_kind

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
CONFIG_HASH = "numbers"  # note in the weights' file: hash of the configuration
SCALES = ("scaling_factor", "finetuning_scaling_factor")  # SAELens's names before version 6
LATENT_VECTORS = {
    "relu": ("b_enc",),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "topk": ("b_enc",),
    "batch_topk": ("b_enc", "threshold"),
    "jumprelu": ("b_enc", "threshold"),
    "matryoshka": ("b_enc", "threshold"),
}
"""Tensors of a file with one number per latent."""


def save_sae(sae: SAE, folder: str | Path) -> None:
    """Write an SAE as a folder in SAELens's format.

    Raises:
        UserError: A weight is not finite, or the disk is full.
    """
    folder, cfg = Path(folder), sae.cfg
    tensors = sae.tensors()
    check_finite(tensors, f"The {cfg.architecture} SAE on {cfg.site} {cfg.layer}")
    write_sealed(folder / WEIGHTS, tensors, {CONFIG_HASH: content_hash(cfg.to_dict())})
    kind = saelens_kind(cfg)
    config = {
        "architecture": kind,
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"model_name": cfg.model, OWN_METADATA: cfg.to_dict()},
    }
    if cfg.transcoder:
        config["d_out"] = cfg.d_out
    if kind.startswith("topk"):
        config |= {"k": cfg.k, "rescale_acts_by_decoder_norm": False}
    write_json(folder / CONFIG, config)


def load_sae(folder: str | Path) -> SAE:
    """Read an SAE that `save_sae` or SAELens wrote.

    Latents and reconstruction are those of the program that wrote it.

    Raises:
        DamagedError: A file is missing, damaged, not finite, or something in it is not supported.
    """
    folder = Path(folder)
    try:
        config = read_checked(folder / CONFIG, SAELensConfig)
        tensors, notes = read_sealed(folder / WEIGHTS, allow_unsealed=True)
        sae = _build(config, tensors, notes)
    except UserError as error:
        cause = cause_of(error).removeprefix(f"{visible(folder)}/")
        raise DamagedError(
            f"{visible(folder)} does not hold an SAE that can be read here ({cause})",
            "give another folder, or delete this one and train or save the SAE again",
        ) from None
    return sae.requires_grad_(False).eval()


@torch.no_grad()
def _build(config: SAELensConfig, tensors: dict[str, Tensor], notes: dict[str, str]) -> SAE:
    """Build the SAE; raises `UserError` that says what is wrong, without advice."""
    cfg = config.config()
    hashes = {content_hash(cfg.to_dict()), content_hash(cfg.to_old_dict())}
    if CONFIG_HASH in notes and notes[CONFIG_HASH] not in hashes:
        raise UserError(f"its {CONFIG} is not the one that its weights were saved with")
    scale = _pop_scale(tensors, expected=config.finetuning_scaling_factor)
    _check_shapes(cfg, tensors)  # before anything of these sizes is allocated
    sae = build(cfg)
    sae.set_tensors(tensors)
    if scale is not None:
        if scale.shape != (cfg.d_sae,):
            raise UserError(f"its scaling factor is {_shape(scale)} and should be ({cfg.d_sae},)")
        sae.W_dec *= scale.float()[:, None]
    if config.selects_by_norm:
        sae.fold_W_dec_norm()
    if config.subtracts_bias:
        sae.subtract_from_input(sae.b_dec)
    check_finite(sae.tensors(), "in float32")  # float64 or products may overflow
    return sae


def _pop_scale(tensors: dict[str, Tensor], *, expected: bool) -> Tensor | None:
    """Remove from `tensors` the factor of latents before they are decoded, and return it.

    Old versions wrote a tensor of ones where there was nothing to scale.
    """
    scales = [tensors.pop(name) for name in SCALES if name in tensors]
    scales = [s for s in scales if not torch.allclose(s.float(), torch.ones(()))]
    if len(scales) > 1 or (scales and not expected):
        raise UserError("its weights hold a scaling factor that its numbers do not speak of")
    return scales[0] if scales else None


def _check_shapes(cfg: SAEConfig, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that are missing, of another shape or not supported."""
    shapes = {
        "W_enc": (cfg.d_in, cfg.d_sae),
        "W_dec": (cfg.d_sae, cfg.d_out),
        "b_dec": (cfg.d_out,),
        **dict.fromkeys(LATENT_VECTORS[cfg.architecture], (cfg.d_sae,)),
    }
    if unknown := sorted(set(tensors) - set(shapes)):
        raise UserError(f"its weights hold '{visible(unknown[0])}', which is not supported")
    for name, shape in shapes.items():
        if name not in tensors:
            raise UserError(f"its weights lack '{name}'")
        if tensors[name].shape != shape:
            raise UserError(f"{name} is {_shape(tensors[name])} and should be {shape}")
    if cfg.architecture in ("batch_topk", "matryoshka"):  # one threshold, written once a latent
        low, high = tensors["threshold"].aminmax()
        if low != high:
            raise UserError(f"a {cfg.architecture} SAE has one threshold, and its latents differ")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def load_pretrained(release: str, sae_id: str) -> SAE:
    """Download a published SAE by its names in SAELens's directory, through SAELens.

    Args:
        release: Name of the release, such as `gpt2-small-res-jb`.
        sae_id: Name of the SAE, such as `blocks.8.hook_resid_pre`.

    Raises:
        UserError: SAELens is not installed, or does not know or reach the SAE.
    """
    try:
        import sae_lens  # optional, and not in our environment
    except ImportError:
        raise UserError(
            "Published SAEs are fetched by SAELens, which is not installed: run "
            "'pip install sae-lens' in an environment of its own, save the SAE there with its "
            "save_model, and give that folder to load_sae."
        ) from None
    try:
        published = sae_lens.SAE.from_pretrained(release, sae_id)
    except Exception as error:  # its downloads raise errors of many kinds
        raise UserError(
            f"SAELens has no SAE '{visible(sae_id)}' in release '{visible(release)}', or could not "
            f"fetch it ({visible(error)[:160] or type(error).__name__})."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        published.save_model(folder)
        return load_sae(folder)
