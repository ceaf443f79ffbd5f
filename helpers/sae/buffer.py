"""Buffer of activations that SAEs are trained on."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from helpers.forward.shards import Shards

SAMPLE_SIZE = 16_384  # vectors from which centre, scale and first weights are computed


class ActivationBuffer:
    """Shuffled batches of normalised activations, the same for the same seed and step.

    Attributes:
        activations: (site, layer) → harvested activations, (n, width).
        center: (site, layer) → mean of the sample, (width,).
        scale: (site, layer) → factor: the activations x are normalised to (x − center) · scale.
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
        """Compute mean and scale of a sample.

        Args:
            shards: Harvested activations.
            keys: The (site, layer) that are needed.
            batch: Vectors in a batch.
            seed: Draws the sample and the order.
            device: Device of the batches.

        Raises:
            UserError: A (site, layer) was not harvested, or its file is damaged.
        """
        self.activations = {key: shards[key] for key in dict.fromkeys(keys)}
        self.n, self.seed, self.device = len(shards), seed, device
        self.batch_size = min(batch, self.n)
        self._epoch, self._order = -1, np.empty(0, np.int64)
        self.center: dict[tuple[str, int], Tensor] = {}
        self.scale: dict[tuple[str, int], float] = {}
        # Sorted, since rows of a memory-mapped file are read fastest in their order.
        self._sample_rows = np.sort(np.random.default_rng(seed).permutation(self.n)[:SAMPLE_SIZE])
        for key, values in self.activations.items():
            x = torch.from_numpy(values[self._sample_rows]).double()
            self.center[key] = x.mean(0).float().to(device)
            variance = float((x - x.mean(0)).square().sum(1).mean())
            self.scale[key] = variance**-0.5 if variance > 0 else 1.0

    def _normalised(self, rows: np.ndarray) -> dict[tuple[str, int], Float[Tensor, "n width"]]:
        return {
            key: (torch.from_numpy(values[rows]).to(self.device).float() - self.center[key]).mul_(
                self.scale[key]
            )
            for key, values in self.activations.items()
        }

    def sample(self) -> dict[tuple[str, int], Float[Tensor, "n width"]]:
        """Normalise the sample from which centre and scale were computed."""
        return self._normalised(self._sample_rows)

    def batch(self, step: int) -> dict[tuple[str, int], Float[Tensor, "batch width"]]:
        """Normalise the batch of one step; each vector comes once an epoch."""
        epoch, part = divmod(step, self.n // self.batch_size)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.n)
        rows = self._order[part * self.batch_size : (part + 1) * self.batch_size]
        return self._normalised(np.sort(rows))
