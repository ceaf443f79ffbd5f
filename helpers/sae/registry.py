"""Registry of all architectures by name."""

from helpers.errors import UserError
from helpers.sae.base import SAE, SAEConfig
from helpers.sae.batch_topk import BatchTopKSAE
from helpers.sae.gated import GatedSAE
from helpers.sae.jumprelu import JumpReLUSAE
from helpers.sae.matryoshka import MatryoshkaSAE
from helpers.sae.relu import ReLUSAE
from helpers.sae.topk import TopKSAE

ARCHITECTURES: dict[str, type[SAE]] = {
    "relu": ReLUSAE,
    "gated": GatedSAE,
    "topk": TopKSAE,
    "batch_topk": BatchTopKSAE,
    "jumprelu": JumpReLUSAE,
    "matryoshka": MatryoshkaSAE,
}


def architecture(cfg: SAEConfig) -> type[SAE]:
    """Look up the class of the architecture that `cfg` names.

    Raises:
        UserError: There is no such architecture.
    """
    if cfg.architecture not in ARCHITECTURES:
        raise UserError(
            f"There is no SAE architecture '{cfg.architecture}'; choose from "
            f"{', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[cfg.architecture]


def build(cfg: SAEConfig) -> SAE:
    """Make a fresh SAE of the architecture that `cfg` names.

    Raises:
        UserError: There is no such architecture, or it needs a number that is not given.
    """
    return architecture(cfg)(cfg)
