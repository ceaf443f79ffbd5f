"""Load a causal language model, and know where its family keeps its MLPs."""

from helpers.models.architecture import (
    REFERENCE_DEPTH,
    Architecture,
    LayerArchitecture,
    MLPArchitecture,
    architecture_of,
    body_of,
    final_norm,
    torch_module,
    unembed,
)
from helpers.models.context import check_length, padding, text_length
from helpers.models.fingerprint import model_hash
from helpers.models.loading import DTYPES, load_model
from helpers.models.sources import DEFAULT
from helpers.models.strict_loading import context_length

__all__ = [
    "DEFAULT",
    "DTYPES",
    "REFERENCE_DEPTH",
    "Architecture",
    "LayerArchitecture",
    "MLPArchitecture",
    "architecture_of",
    "body_of",
    "check_length",
    "context_length",
    "final_norm",
    "load_model",
    "model_hash",
    "padding",
    "text_length",
    "torch_module",
    "unembed",
]
