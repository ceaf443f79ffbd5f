"""The stream of activations that SAEs are trained on."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from helpers.forward.harvest import Shards

SAMPLE = 16_384  # vectors that centre, scale and start are taken from


class Stream:
    """Shuffled batches of normalised activations, the same for the same seed and step.

    Attributes:
        center, scale: Of each (site, layer): x is read as (x − center) · scale.
    """

    def __init__(
        self,
        shards: Shards,
        keys: Sequence[tuple[str, int]],
        *,
        batch: int,
        seed: int = 0,
        device: str = "cpu",
    ):
        """Read a sample and take its mean and scale.

        Raises:
            UserError: A (site, layer) was not harvested, or its file is damaged.
        """
        self.data = {key: shards[key] for key in dict.fromkeys(keys)}
        self.n, self.seed, self.device = len(shards), seed, device
        self.batch = min(batch, self.n)
        self._epoch, self._order = -1, np.empty(0, np.int64)
        self.center: dict[tuple[str, int], Tensor] = {}
        self.scale: dict[tuple[str, int], float] = {}
        rows = np.sort(np.random.default_rng(seed).permutation(self.n)[:SAMPLE])
        for key, values in self.data.items():
            x = torch.from_numpy(values[rows]).double()
            self.center[key] = x.mean(0).float().to(device)
            variance = float((x - x.mean(0)).square().sum(1).mean())
            self.scale[key] = variance**-0.5 if variance > 0 else 1.0
        self._rows = rows

    def _normalised(self, rows: np.ndarray) -> dict[tuple[str, int], Float[Tensor, "n width"]]:
        return {
            key: (torch.from_numpy(values[rows]).to(self.device).float() - self.center[key]).mul_(
                self.scale[key]
            )
            for key, values in self.data.items()
        }

    def sample(self) -> dict[tuple[str, int], Float[Tensor, "n width"]]:
        """The vectors that centre and scale were taken from."""
        return self._normalised(self._rows)

    def at(self, step: int) -> dict[tuple[str, int], Float[Tensor, "batch width"]]:
        """The batch of one step; every vector once before any comes again."""
        epoch, part = divmod(step, self.n // self.batch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.n)
        return self._normalised(np.sort(self._order[part * self.batch : (part + 1) * self.batch]))
