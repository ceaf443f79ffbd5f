"""Sparse autoencoders: train them, read and write them, interpret their latents.

`SAE` is the protocol, `SAEConfig` its configuration, `ARCHITECTURES` all kinds by name. `build`
makes a fresh one, `train` trains several from one harvest. `save_sae` and `load_sae` use SAELens's
files.
"""

from helpers.sae.base import SAE, SAEConfig
from helpers.sae.checkpoints import read_metrics
from helpers.sae.files import load_pretrained, load_sae, save_sae
from helpers.sae.registry import ARCHITECTURES, build
from helpers.sae.trainer import TrainSettings, train

__all__ = [
    "ARCHITECTURES",
    "SAE",
    "SAEConfig",
    "TrainSettings",
    "build",
    "load_pretrained",
    "load_sae",
    "read_metrics",
    "save_sae",
    "train",
]
