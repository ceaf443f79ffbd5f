"""One SAE in training: its schedule, its optimiser, its step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.errors import UserError
from helpers.sae.base import SAE, SAEConfig
from helpers.sae.registry import build
from helpers.sae.start import init_from_data
from helpers.sae.stream import Stream


@dataclass(frozen=True)
class TrainSettings:
    """How long and how fast; times are counted in steps of one batch.

    Attributes:
        steps: Steps in all.
        batch: Vectors in a batch.
        lr: Adam's learning rate, at its highest.
        warmup: Steps over which it rises from 0, and sparsity losses with it tenfold.
        decay: Share of the steps, at the end, over which it falls to 0.
        dead_after: A latent is dead that was not active on so many vectors.
        log_every: Steps between two lines of metrics.
        checkpoint_every: Steps between two checkpoints.
        seed: Draws the batches.
        device: Where to train: `cpu` or `cuda`.
    """

    steps: int
    batch: int = 4096
    lr: float = 4e-3
    warmup: int = 10
    decay: float = 0.3
    dead_after: int = 200_000
    log_every: int = 10
    checkpoint_every: int = 100
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self):
        """Check.

        Raises:
            UserError: A number is not positive.
        """
        for name in ("steps", "batch", "lr", "log_every", "checkpoint_every", "dead_after"):
            if getattr(self, name) <= 0:
                raise UserError(f"Training needs {name} above 0, not {getattr(self, name)}.")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup), left)

    def progress(self, step: int) -> float:
        """By what sparsity losses are multiplied."""
        return min(1.0, (step + 1) / max(1, 10 * self.warmup))


class SAETrainer:
    """One SAE in training.

    Attributes:
        sae: In normalised units until `finished`.
        idle: (d_sae,) vectors since each latent was last active.
    """

    def __init__(self, cfg: SAEConfig, stream: Stream):
        """Start from the stream's sample.

        Raises:
            UserError: The SAE's widths are not those of its site.
        """
        self.reads, self.writes = (cfg.site, cfg.layer), (cfg.target or cfg.site, cfg.layer)
        self.stream = stream
        for what, key, width in (("d_in", self.reads, cfg.d_in), ("d_out", self.writes, cfg.d_out)):
            if stream.data[key].shape[1] != width:
                raise UserError(
                    f"{what} is {width}, but site {key[0]} of layer {key[1]} is "
                    f"{stream.data[key].shape[1]} wide."
                )
        self.sae = build(cfg).to(stream.device).train()
        self.sae.check_trainable()
        sample = stream.sample()
        init_from_data(self.sae, sample[self.reads], sample[self.writes])
        self.idle = torch.zeros(cfg.d_sae, dtype=torch.long, device=stream.device)
        self.optimiser = torch.optim.Adam(self.sae.parameters(), fused=True)

    def step(
        self, batch: dict[tuple[str, int], Tensor], settings: TrainSettings, step: int
    ) -> dict[str, float]:
        """One step of gradient descent.

        Returns:
            mse (normalised: the fraction of variance unexplained), l0, dead (a share).

        Raises:
            FloatingPointError: The loss is not finite; the SAE is as it was.
        """
        x, y = batch[self.reads], batch[self.writes]
        dead = (self.idle > settings.dead_after).nonzero()[:, 0]
        losses = self.sae.loss(x, y, dead=dead, progress=settings.progress(step))
        if not losses.total.isfinite():
            raise FloatingPointError
        losses.total.backward()
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate(step)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.sae.normalize_decoder()
        self.idle += len(x)
        self.idle[losses.fired > 0] = 0
        return {
            "mse": losses.mse.item(),
            "l0": losses.fired.sum().item() / len(x),
            "dead": len(dead) / len(self.idle),
        }

    def finished(self) -> SAE:
        """The SAE in the model's own units."""
        stream = self.stream
        self.sae.fold(
            stream.center[self.reads],
            stream.scale[self.reads],
            stream.center[self.writes],
            stream.scale[self.writes],
        )
        return self.sae.cpu().requires_grad_(False).eval()

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        found = {f"sae.{k}": v for k, v in self.sae.state_dict().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            found |= {f"adam.{i}.{k}": v for k, v in state.items()}
        return found | {"idle": self.idle}

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        weights = {k[4:]: v for k, v in tensors.items() if k.startswith("sae.")}
        self.sae.load_state_dict(weights)
        adam = self.optimiser.state_dict()
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, i, key = name.split(".")
                adam["state"].setdefault(int(i), {})[key] = tensor
        self.optimiser.load_state_dict(adam)
        self.idle = tensors["idle"].to(self.stream.device, copy=True)
