"""Cache of trained SAEs, which all runs share, by all that they depend on.

An SAE does not depend on the fact, so runs of other facts find it there. A run keeps only numbers
and the key.
"""

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from jaxtyping import Int
from nnsight import LanguageModel
from pydantic import RootModel
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.harvest import harvest
from helpers.forward.shards import Shards
from helpers.io.cache import RECORD, file_lock
from helpers.io.code_version import module_hash
from helpers.io.files import cache_dir, write_json
from helpers.io.hashing import content_hash
from helpers.io.run import Run
from helpers.io.sealed import DamagedError, delete, read_checked
from helpers.models import model_hash
from helpers.sae.base import SAE, SAEConfig
from helpers.sae.checkpoints import CHECKPOINT, METRICS, read_metrics
from helpers.sae.files import CONFIG, WEIGHTS, load_sae
from helpers.sae.registry import architecture, build
from helpers.sae.trainer import TrainSettings, train

log = logging.getLogger(__name__)

KIND = "saes"  # folder of the cache
FILES = (METRICS, f"sae-0/{CONFIG}", f"sae-0/{WEIGHTS}")  # of a finished training
CODE = ("buffer", "init", "losses", "selection", "sparse", "trainer")
"""Modules on which every SAE depends, beside those of its class."""


class _Record(RootModel[dict[str, str]]):
    """Content hashes of the files of a finished training."""


@dataclass(frozen=True)
class StoredSAE:
    """A trained SAE of the cache.

    Attributes:
        sae: The SAE.
        key: Its name in the cache.
        metrics: Metrics of its training, a dictionary per line: step, mse, l0, dead, seconds.
    """

    sae: SAE
    key: str
    metrics: list[dict[str, Any]]


def trained_saes(
    model: LanguageModel,
    tokens: Int[Tensor, "sequences t"],
    jobs: Sequence[tuple[SAEConfig, TrainSettings]],
    *,
    watch: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[StoredSAE]:
    """Train SAEs on a text, one after the other, or take them from the cache.

    Missing activations are harvested in one pass. They are large and an SAE is not trained twice,
    so the last process that reads the harvest deletes it. A training that was stopped goes on where
    it was, one that another process has begun is waited for, and a damaged SAE is trained again.

    Args:
        model: Any model of a known family.
        tokens: The text.
        jobs: Configuration and training settings of each SAE.
        watch: Called with the lines of metrics of the SAE in training.

    Raises:
        UserError: There is no such site or layer, the sizes do not fit, the disk is full, or a
            loss is not finite.
    """
    fingerprint = model_hash(model)
    jobs = [(c.replace(model_hash=fingerprint), settings) for c, settings in jobs]
    shards, saes = None, []
    for config, settings in jobs:
        key = _key(config, settings, tokens)
        with file_lock(cache_dir() / KIND / key):
            stored = _stored(key, config, settings)
            if stored is None:
                if shards is None:  # for all jobs: a later process finds the same harvest
                    shards = _harvest(model, tokens, [c for c, _ in jobs])
                _train(shards, key, config, settings, watch)
                stored = _stored(key, config, settings)
            saes.append(cast(StoredSAE, stored))
    if shards is not None and shards.reading:
        shards.reading.release()
    return saes


def stored_folder(key: str) -> Path:
    """Find the folder of a trained SAE, by its key.

    Raises:
        UserError: It is not in the cache, or its files have changed since its training.
    """
    folder, fault = cache_dir() / KIND / key, ""
    if not _done(folder):
        fault = "is not in the cache"
    elif (folder / RECORD).exists():
        try:
            _check_record(folder)
        except DamagedError as error:
            fault = f"is damaged in the cache ({error.cause})"
    if fault:
        raise UserError(
            f"The SAE {key} {fault}: run notebooks/04_sparse_autoencoders.ipynb again, "
            "which trains it."
        )
    return folder / "sae-0"


def sae_folders(run: Run, folders: str, *, step: str) -> list[str]:
    """List folders of SAEs: the given ones, or those that a step of the run trained.

    Args:
        run: The run.
        folders: Folders separated by commas; empty for those of the step.
        step: The step, the first SAE of whose every site and layer counts; none if it has not run.

    Raises:
        UserError: An SAE is no longer in the cache.
    """
    given = [f.strip() for f in folders.split(",") if f.strip()]
    if given or not run.path("saes.json", step=step).exists():
        return given
    rows = reversed(run.load("saes", step=step))
    first = {(row["site"], row["layer"]): row["key"] for row in rows}
    return [str(stored_folder(key)) for key in first.values()]


def stored_sae(key: str) -> SAE:
    """Load a trained SAE by its key; raises `UserError` if it is not in the cache or damaged."""
    return load_sae(stored_folder(key))


def _done(folder: Path) -> bool:
    """Check whether a training was finished in this folder."""
    return (folder / "sae-0" / CONFIG).exists() or (folder / RECORD).exists()


def _stored(key: str, config: SAEConfig, settings: TrainSettings) -> StoredSAE | None:
    """Load an SAE of the cache; a damaged one is deleted, with a line in the log."""
    folder = cache_dir() / KIND / key
    if not _done(folder):
        delete(folder / "sae-0" if folder.is_dir() else folder)  # half of an SAE
        return None
    try:
        if (folder / RECORD).exists():
            _check_record(folder)
        stored = StoredSAE(load_sae(folder / "sae-0"), key, read_metrics(folder))
        steps = [line["step"] for line in stored.metrics]
        if steps != _logged(settings) or stored.sae.cfg != build(config).cfg:
            raise DamagedError("it is another SAE than its key names")
    except DamagedError as error:
        log.warning("The SAE %s of the cache is trained again: %s.", key, error.cause)
        delete(folder)
        return None
    if not (folder / RECORD).exists():
        write_json(folder / RECORD, _hashes(folder))
    return stored


def _logged(settings: TrainSettings) -> list[int]:
    """List the steps of a finished training's lines of metrics."""
    steps = range(settings.log_every, settings.steps, settings.log_every)
    return [*steps, settings.steps]


def _check_record(folder: Path) -> None:
    """Compare the files with their hashes at the end of the training.

    Raises:
        DamagedError: One is missing or has changed.
    """
    recorded = read_checked(folder / RECORD, _Record).root
    for name, present in _hashes(folder).items():
        if present != recorded.get(name):
            raise DamagedError(f"{name} is missing or damaged")


def _hashes(folder: Path) -> dict[str, str]:
    paths = {name: folder / name for name in FILES}
    return {name: content_hash(path) if path.is_file() else "" for name, path in paths.items()}


def _train(
    shards: Shards,
    key: str,
    config: SAEConfig,
    settings: TrainSettings,
    watch: Callable[[list[dict[str, Any]]], None] | None,
) -> None:
    """Train an SAE; start anew where the checkpoint is damaged, with a line in the log."""
    folder = cache_dir() / KIND / key
    try:
        train(shards, [config], settings, folder=folder, watch=watch)
    except DamagedError as error:
        log.warning("The training of the SAE %s starts anew: %s.", key, error.cause)
        delete(folder / CHECKPOINT)
        train(shards, [config], settings, folder=folder, watch=watch)


def _harvest(model: LanguageModel, tokens: Tensor, configs: Sequence[SAEConfig]) -> Shards:
    sites = {s for c in configs for s in (c.site, c.target or c.site)}
    return harvest(model, tokens, sites=sorted(sites), layers=sorted({c.layer for c in configs}))


def _key(cfg: SAEConfig, settings: TrainSettings, tokens: Tensor) -> str:
    """Hash all that an SAE depends on; the code without comments, docstrings and layout."""
    modules = [Path(__file__).with_name(f"{name}.py") for name in CODE]
    classes = [c for c in architecture(cfg).__mro__ if c.__module__.startswith("helpers.")]
    modules += [Path(inspect.getfile(c)) for c in classes]
    code = [module_hash(module) for module in modules]
    return content_hash(cfg.to_dict(), asdict(settings), tokens, code)
