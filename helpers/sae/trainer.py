"""Train several SAEs from one stream of activations; stop and go on exactly where it stopped.

Activations are centred and scaled to mean squared length 1 for the training, whatever site they are
of, so that learning rates and sparsity weights carry over; the SAEs that come back have that folded
into their weights and work in the model's own units. Batches are a function of the seed and the
step, so a training that was resumed goes through the same numbers as one that was not stopped.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from helpers.activations import Shards
from helpers.artifacts import atomic_path, content_hash, read_tensors, write_tensors
from helpers.errors import UserError
from helpers.sae.base import SAE, SAEConfig
from helpers.sae.files import load_sae, save_sae
from helpers.sae.registry import build
from helpers.sae.start import start_from

log = logging.getLogger(__name__)

SAMPLE = 16_384  # vectors that centre, scale and start are taken from
CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"


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


class Stream:
    """Shuffled batches of normalised activations, the same for the same seed and step.

    Attributes:
        center, scale: Of each (site, layer): x is read as (x − center) · scale.
    """

    def __init__(
        self, shards: Shards, keys: Sequence[tuple[str, int]], *, batch: int, seed: int = 0
    ):
        """Read a sample and take its mean and scale.

        Raises:
            UserError: A (site, layer) was not harvested, or its file is damaged.
        """
        self.data = {key: shards[key] for key in dict.fromkeys(keys)}
        self.n, self.seed = len(shards), seed
        self.batch = min(batch, self.n)
        self._epoch, self._order = -1, np.empty(0, np.int64)
        self.center: dict[tuple[str, int], Tensor] = {}
        self.scale: dict[tuple[str, int], float] = {}
        rows = np.sort(np.random.default_rng(seed).permutation(self.n)[:SAMPLE])
        for key, values in self.data.items():
            x = torch.from_numpy(values[rows]).double()
            self.center[key] = x.mean(0).float()
            variance = float((x - x.mean(0)).square().sum(1).mean())
            self.scale[key] = variance**-0.5 if variance > 0 else 1.0
        self._rows = rows

    def _normalised(self, rows: np.ndarray) -> dict[tuple[str, int], Float[Tensor, "n width"]]:
        return {
            key: (torch.from_numpy(values[rows]).float() - self.center[key]).mul_(self.scale[key])
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


class Pupil:
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
        self.sae = build(cfg).train()
        self.sae.check_trainable()
        sample = stream.sample()
        start_from(self.sae, sample[self.reads], sample[self.writes])
        self.idle = torch.zeros(cfg.d_sae, dtype=torch.long)
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
        self.sae.unit_decoder()
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
        return self.sae.requires_grad_(False).eval()

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
        self.idle = tensors["idle"].clone()


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
        shards: Activations of every site and layer that the SAEs read or write.
        configs: One for each SAE.
        settings: How.
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
    identity = content_hash(
        [c.to_dict() for c in configs], asdict(settings), shards.model_hash, shards.rows
    )
    folder = Path(folder) if folder is not None else None
    if folder and all((folder / f"sae-{i}" / "cfg.json").exists() for i in range(len(configs))):
        saes = [load_sae(folder / f"sae-{i}") for i in range(len(configs))]
        if [s.cfg for s in saes] == configs:
            return saes
        raise UserError(f"{folder} holds another training: name another folder or delete it.")
    keys = [k for c in configs for k in ((c.site, c.layer), (c.target or c.site, c.layer))]
    stream = Stream(shards, keys, batch=settings.batch, seed=settings.seed)
    pupils = [Pupil(cfg, stream) for cfg in configs]
    first, lines, spent = _resume(folder, identity, pupils)
    began = time.perf_counter() - spent
    recent: list[list[dict[str, float]]] = [[] for _ in pupils]
    for step in range(first, settings.steps):
        batch = stream.at(step)
        for i, pupil in enumerate(pupils):
            try:
                recent[i].append(pupil.step(batch, settings, step))
            except FloatingPointError:
                raise UserError(_not_finite(step, configs[i], folder)) from None
        done = step + 1
        if done % settings.log_every == 0 or done == settings.steps:
            new = [_line(i, c, recent[i], done, settings, began) for i, c in enumerate(configs)]
            recent = [[] for _ in pupils]
            lines += new
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / METRICS).open("a") as file:
                    file.writelines(json.dumps(line) + "\n" for line in new)
            if watch:
                watch(lines)
        if folder and done % settings.checkpoint_every == 0 and done < settings.steps:
            _checkpoint(folder, identity, pupils, done, began)
    saes = [pupil.finished() for pupil in pupils]
    if folder:
        for i, sae in enumerate(saes):
            save_sae(sae, folder / f"sae-{i}")
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return saes


def _for_shards(cfg: SAEConfig, shards: Shards) -> SAEConfig:
    if cfg.model_hash and cfg.model_hash != shards.model_hash:
        raise UserError(
            "These activations are of another model than the SAE's config names: harvest from that "
            "model, or leave model_hash empty."
        )
    return build(cfg.but(model_hash=shards.model_hash)).cfg  # with what the architecture fills in


def _resume(
    folder: Path | None, identity: str, pupils: list[Pupil]
) -> tuple[int, list[dict[str, Any]], float]:
    """First step, metrics so far and seconds spent, of a training that was stopped."""
    if folder is None or not (folder / CHECKPOINT).exists():
        if folder:
            (folder / METRICS).unlink(missing_ok=True)
        return 0, [], 0.0
    tensors, notes = read_tensors(folder / CHECKPOINT)
    if notes.get("identity") != identity:
        raise UserError(f"{folder} holds another training: name another folder or delete it.")
    for i, pupil in enumerate(pupils):
        mine = f"{i}."
        pupil.set_state({k[len(mine) :]: v for k, v in tensors.items() if k.startswith(mine)})
    step = int(notes["step"])
    lines = read_metrics(folder)
    lines = [line for line in lines if line["step"] <= step]
    with atomic_path(folder / METRICS) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log.info("Training goes on at step %d.", step)
    return step, lines, float(notes["seconds"])


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a training's `metrics.jsonl`; a line that was cut off by a kill is left out."""
    path = Path(folder) / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _checkpoint(folder: Path, identity: str, pupils: list[Pupil], step: int, began: float) -> None:
    tensors = {f"{i}.{k}": v for i, pupil in enumerate(pupils) for k, v in pupil.state().items()}
    if not all(t.isfinite().all() for t in tensors.values()):
        return  # the next step tells it, and the checkpoint before this one stays
    notes = {
        "identity": identity,
        "step": str(step),
        "seconds": f"{time.perf_counter() - began:.3f}",
    }
    write_tensors(folder / CHECKPOINT, tensors, notes)


def _line(
    index: int,
    cfg: SAEConfig,
    recent: list[dict[str, float]],
    step: int,
    settings: TrainSettings,
    began: float,
) -> dict[str, Any]:
    means = {k: float(np.mean([r[k] for r in recent])) for k in recent[0]} if recent else {}
    return {
        "step": step,
        "sae": index,
        "architecture": cfg.architecture,
        "site": cfg.site,
        "layer": cfg.layer,
        "d_sae": cfg.d_sae,
        **means,
        "lr": settings.rate(step - 1),
        "seconds": round(time.perf_counter() - began, 3),
    }


def _not_finite(step: int, cfg: SAEConfig, folder: Path | None) -> str:
    kept = ""
    if folder and (folder / CHECKPOINT).exists():
        kept = f" The last good checkpoint is kept in {folder}."
    return (
        f"The loss of the {cfg.architecture} SAE on {cfg.site} {cfg.layer} was not finite at step "
        f"{step}: train it with a lower learning rate or a longer warm-up.{kept}"
    )
