"""Train several SAEs from one stream of activations; stop and go on exactly where it stopped.

Activations are centred and scaled to mean squared length 1 for the training, whatever site they are
of, so that learning rates and sparsity weights carry over; the SAEs that come back have that folded
into their weights and work in the model's own units. Batches are a function of the seed and the
step, so a training that was resumed goes through the same numbers as one that was not stopped.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from helpers.errors import UserError
from helpers.forward.harvest import Shards
from helpers.io.hashing import content_hash
from helpers.sae.base import SAE, SAEConfig
from helpers.sae.checkpoints import CHECKPOINT, METRICS, read_metrics, resume, write_checkpoint
from helpers.sae.files import load_sae, save_sae
from helpers.sae.pupil import SAETrainer, TrainSettings
from helpers.sae.registry import build
from helpers.sae.stream import Stream

__all__ = ["SAETrainer", "Stream", "TrainSettings", "read_metrics", "train"]


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
    stream = Stream(shards, keys, batch=settings.batch, seed=settings.seed, device=settings.device)
    pupils = [SAETrainer(cfg, stream) for cfg in configs]
    first, lines, spent = resume(folder, identity, pupils)
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
            write_checkpoint(folder, identity, pupils, done, began)
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
