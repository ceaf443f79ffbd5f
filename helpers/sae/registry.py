"""All architectures by name."""

from helpers.errors import UserError
from helpers.sae.base import SAE, SAEConfig
from helpers.sae.batch_topk import BatchTopK
from helpers.sae.gated import Gated
from helpers.sae.jumprelu import JumpReLU
from helpers.sae.matryoshka import Matryoshka
from helpers.sae.relu import ReLU
from helpers.sae.topk import TopK

ARCHITECTURES: dict[str, type[SAE]] = {
    "relu": ReLU,
    "gated": Gated,
    "topk": TopK,
    "batch_topk": BatchTopK,
    "jumprelu": JumpReLU,
    "matryoshka": Matryoshka,
}


def architecture(cfg: SAEConfig) -> type[SAE]:
    """The class of the architecture that `cfg` names.

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
    """A fresh SAE of the architecture that `cfg` names.

    Raises:
        UserError: There is no such architecture, or it needs a number that is not given.
    """
    return architecture(cfg)(cfg)
