"""Sparse autoencoders: train them, read and write them, find what their latents stand for.

`SAE` is the protocol, `SAEConfig` its numbers, `ARCHITECTURES` all kinds by name, `build` makes a
fresh one. `save_sae` and `load_sae` use SAELens's files.
"""

from helpers.sae.base import SAE, SAEConfig
from helpers.sae.files import load_sae, save_sae
from helpers.sae.registry import ARCHITECTURES, build

__all__ = ["ARCHITECTURES", "SAE", "SAEConfig", "build", "load_sae", "save_sae"]
