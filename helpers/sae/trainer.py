"""Training of several SAEs on one buffer of activations; resumes exactly where it stopped.

For the training, activations of every site are centred and scaled to mean squared norm 1, so that
learning rates and sparsity coefficients carry over. The SAEs that come back have that folded into
their weights and work in the model's own units. Batches are a function of the seed and the step, so
a resumed training computes the same numbers as one that was not stopped.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.shards import Shards
from helpers.io.hashing import content_hash
from helpers.sae.base import SAE, SAEConfig
from helpers.sae.buffer import ActivationBuffer
from helpers.sae.checkpoints import CHECKPOINT, METRICS, read_progress, write_checkpoint
from helpers.sae.files import load_sae, save_sae
from helpers.sae.init import init_from_data
from helpers.sae.registry import build


@dataclass(frozen=True)
class TrainSettings:
    """Length and speed of a training, in steps of one batch.

    Attributes:
        steps: Number of steps.
        batch: Vectors in a batch.
        lr: Adam's learning rate, at its highest.
        warmup: Steps over which it rises from 0, and sparsity losses with it tenfold.
        decay: Fraction of the steps, at the end, over which it falls to 0.
        dead_feature_window: A latent counts as dead after this many vectors without an activation.
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
    dead_feature_window: int = 200_000
    log_every: int = 10
    checkpoint_every: int = 100
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self):
        """Refuse numbers that no training can have.

        Raises:
            UserError: A number is not positive.
        """
        positive = ("steps", "batch", "lr", "log_every", "checkpoint_every", "dead_feature_window")
        for name in positive:
            if getattr(self, name) <= 0:
                raise UserError(f"Training needs {name} above 0, not {getattr(self, name)}.")

    def lr_at(self, step: int) -> float:
        """Compute the learning rate of a step, counted from 0: a rise, a plateau, a fall."""
        fall = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup), fall)

    def sparsity_warmup(self, step: int) -> float:
        """Compute the factor of sparsity losses at a step."""
        return min(1.0, (step + 1) / max(1, 10 * self.warmup))


class SAETrainer:
    """One SAE in training: its weights, its optimizer, its dead latents.

    Attributes:
        sae: The SAE, in normalised units until `finalize`.
        num_tokens_since_fired: (d_sae,) vectors since each latent was last active.
    """

    def __init__(self, cfg: SAEConfig, buffer: ActivationBuffer):
        """Initialise an SAE from the buffer's sample.

        Args:
            cfg: Its configuration.
            buffer: Holds its site and its target.

        Raises:
            UserError: The SAE's widths are not those of its sites.
        """
        self.input_key = cfg.site, cfg.layer
        self.target_key = cfg.target or cfg.site, cfg.layer
        self.buffer = buffer
        widths = (("d_in", self.input_key, cfg.d_in), ("d_out", self.target_key, cfg.d_out))
        for name, key, width in widths:
            if buffer.activations[key].shape[1] != width:
                raise UserError(
                    f"{name} is {width}, but site {key[0]} of layer {key[1]} is "
                    f"{buffer.activations[key].shape[1]} wide."
                )
        self.sae = build(cfg).to(buffer.device).train()
        self.sae.check_trainable()
        sample = buffer.sample()
        init_from_data(self.sae, sample[self.input_key], sample[self.target_key])
        self.num_tokens_since_fired = torch.zeros(cfg.d_sae, dtype=torch.long, device=buffer.device)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), fused=True)

    def step(
        self, batch: dict[tuple[str, int], Tensor], settings: TrainSettings, step: int
    ) -> dict[str, float]:
        """Take one step of gradient descent.

        Args:
            batch: (site, layer) → vectors, of the buffer.
            settings: Length and speed of the training.
            step: Index of the step, from 0.

        Returns:
            mse (normalised: the fraction of variance unexplained), l0, dead (a fraction).

        Raises:
            FloatingPointError: The loss is not finite; the SAE is unchanged.
        """
        x, y = batch[self.input_key], batch[self.target_key]
        dead = (self.num_tokens_since_fired > settings.dead_feature_window).nonzero()[:, 0]
        losses = self.sae.loss(x, y, dead=dead, sparsity_warmup=settings.sparsity_warmup(step))
        if not losses.total.isfinite():
            raise FloatingPointError
        losses.total.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr_at(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        # Rows of norm 1: else latents could shrink to lower a sparsity loss.
        self.sae.normalize_decoder()
        self.num_tokens_since_fired += len(x)
        self.num_tokens_since_fired[losses.firing_counts > 0] = 0
        return {
            "mse": losses.mse.item(),
            "l0": losses.firing_counts.sum().item() / len(x),
            "dead": len(dead) / len(self.num_tokens_since_fired),
        }

    def finalize(self) -> SAE:
        """Fold the normalisation into the weights and return the SAE, on the CPU."""
        buffer = self.buffer
        self.sae.fold_normalization(
            buffer.center[self.input_key],
            buffer.scale[self.input_key],
            buffer.center[self.target_key],
            buffer.scale[self.target_key],
        )
        return self.sae.cpu().requires_grad_(False).eval()

    def state(self) -> dict[str, Tensor]:
        """Collect all that the next step depends on."""
        state = {f"sae.{k}": v for k, v in self.sae.state_dict().items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"adam.{i}.{k}": v for k, v in moments.items()}
        return state | {"num_tokens_since_fired": self.num_tokens_since_fired}

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Go back to a state that `state` collected."""
        weights = {k.removeprefix("sae."): v for k, v in state.items() if k.startswith("sae.")}
        self.sae.load_state_dict(weights)
        adam = self.optimizer.state_dict()
        for name, tensor in state.items():
            if name.startswith("adam."):
                _, i, key = name.split(".")
                adam["state"].setdefault(int(i), {})[key] = tensor
        self.optimizer.load_state_dict(adam)
        fired = state["num_tokens_since_fired"]
        self.num_tokens_since_fired = fired.to(self.buffer.device, copy=True)


def train(
    shards: Shards,
    configs: Sequence[SAEConfig],
    settings: TrainSettings,
    *,
    folder: str | Path | None = None,
    watch: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[SAE]:
    """Train SAEs side by side, each step on the same vectors.

    Args:
        shards: Activations of every site and layer of the SAEs.
        configs: One for each SAE.
        settings: Length and speed of the training.
        folder: Where checkpoints, metrics (`metrics.jsonl`: a line per SAE and `log_every` steps)
            and the finished SAEs (`sae-0`, ...) go. A training that was stopped there goes on,
            one that was finished there is read. Without it nothing is written.
        watch: Called with all lines of metrics so far whenever there are new ones.

    Returns:
        The SAEs in the model's own units, in evaluation mode.

    Raises:
        UserError: Sizes or shards do not fit, the folder holds another training, a file in it is
            damaged, or a loss is not finite (the last good checkpoint stays).
    """
    if not configs:
        raise UserError("There is no SAE to train: give at least one SAEConfig.")
    configs = [_for_shards(cfg, shards) for cfg in configs]
    folder = Path(folder) if folder is not None else None
    if folder and (finished := _finished(folder, configs)):
        return finished
    keys = [k for c in configs for k in ((c.site, c.layer), (c.target or c.site, c.layer))]
    buffer = ActivationBuffer(
        shards, keys, batch=settings.batch, seed=settings.seed, device=settings.device
    )
    trainers = [SAETrainer(cfg, buffer) for cfg in configs]
    _run(trainers, configs, settings, folder, watch, _identity(configs, settings, shards))
    saes = [trainer.finalize() for trainer in trainers]
    if folder:
        for i, sae in enumerate(saes):
            save_sae(sae, folder / f"sae-{i}")
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return saes


def _for_shards(cfg: SAEConfig, shards: Shards) -> SAEConfig:
    """Complete a configuration: with the model's hash and the defaults of its architecture."""
    if cfg.model_hash and cfg.model_hash != shards.model_hash:
        raise UserError(
            "These activations are of another model than the SAE's config names: harvest from that "
            "model, or leave model_hash empty."
        )
    return build(cfg.replace(model_hash=shards.model_hash)).cfg


def _identity(configs: Sequence[SAEConfig], settings: TrainSettings, shards: Shards) -> str:
    numbers = [c.to_dict() for c in configs]
    return content_hash(numbers, asdict(settings), shards.model_hash, shards.rows)


def _finished(folder: Path, configs: Sequence[SAEConfig]) -> list[SAE]:
    """Read the SAEs of a finished training; none if it is not finished."""
    if not all((folder / f"sae-{i}" / "cfg.json").exists() for i in range(len(configs))):
        return []
    saes = [load_sae(folder / f"sae-{i}") for i in range(len(configs))]
    if [s.cfg for s in saes] != list(configs):
        raise UserError(f"{folder} holds another training: name another folder or delete it.")
    return saes


def _run(
    trainers: Sequence[SAETrainer],
    configs: Sequence[SAEConfig],
    settings: TrainSettings,
    folder: Path | None,
    watch: Callable[[list[dict[str, Any]]], None] | None,
    identity: str,
) -> None:
    """Take all steps, or those after the last checkpoint; write metrics and checkpoints."""
    progress = read_progress(folder, identity)
    for trainer, state in zip(trainers, progress.states, strict=False):
        trainer.set_state(state)
    lines, began = progress.lines, time.perf_counter() - progress.seconds
    recent: list[list[dict[str, float]]] = [[] for _ in trainers]  # since the last line
    for step in range(progress.step, settings.steps):
        batch = trainers[0].buffer.batch(step)
        for trainer, cfg, metrics in zip(trainers, configs, recent, strict=True):
            try:
                metrics.append(trainer.step(batch, settings, step))
            except FloatingPointError:
                raise UserError(_not_finite(step, cfg, folder)) from None
        done = step + 1
        if done % settings.log_every == 0 or done == settings.steps:
            new = [_line(i, c, recent[i], done, settings, began) for i, c in enumerate(configs)]
            recent = [[] for _ in trainers]
            lines += new
            if folder:
                _append(folder, new)
            if watch:
                watch(lines)
        if folder and done % settings.checkpoint_every == 0 and done < settings.steps:
            write_checkpoint(folder, identity, [t.state() for t in trainers], done, began)


def _append(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / METRICS).open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def _line(
    index: int,
    cfg: SAEConfig,
    recent: Sequence[dict[str, float]],
    step: int,
    settings: TrainSettings,
    began: float,
) -> dict[str, Any]:
    """Average the metrics since the last line."""
    means = {k: float(np.mean([r[k] for r in recent])) for k in recent[0]} if recent else {}
    return {
        "step": step,
        "sae": index,
        "architecture": cfg.architecture,
        "site": cfg.site,
        "layer": cfg.layer,
        "d_sae": cfg.d_sae,
        **means,
        "lr": settings.lr_at(step - 1),
        "seconds": round(time.perf_counter() - began, 3),
    }


def _not_finite(step: int, cfg: SAEConfig, folder: Path | None) -> str:
    advice = "train it with a lower learning rate or a longer warm-up."
    if folder and (folder / CHECKPOINT).exists():
        advice += f" The last good checkpoint is kept in {folder}."
    return (
        f"The loss of the {cfg.architecture} SAE on {cfg.site} {cfg.layer} was not finite at step "
        f"{step}: {advice}"
    )
