"""Trained SAEs that all runs share, kept in the cache by what they depend on.

A fact does not change an SAE, so another fact finds it there. A run keeps only numbers and the key.
"""

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from nnsight import LanguageModel
from pydantic import RootModel
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.harvest import Shards, harvest
from helpers.io.cache import RECORD, alone
from helpers.io.files import cache_dir, write_json
from helpers.io.hashing import content_hash
from helpers.io.run import Run
from helpers.io.sealed import DamagedError, delete, read_checked
from helpers.models import model_hash
from helpers.sae.base import SAE, SAEConfig
from helpers.sae.checkpoints import CHECKPOINT, METRICS
from helpers.sae.files import CONFIG, WEIGHTS, load_sae
from helpers.sae.registry import architecture, build
from helpers.sae.trainer import TrainSettings, read_metrics, train

log = logging.getLogger(__name__)

KIND = "saes"  # folder of the cache
FILES = (METRICS, f"sae-0/{CONFIG}", f"sae-0/{WEIGHTS}")  # of a training that is done
CODE = ("kernels", "losses", "pupil", "selection", "start", "stream", "trainer")  # and its class


class _Record(RootModel[dict[str, str]]):
    """Content hashes of the files of a training that is done."""


@dataclass(frozen=True)
class Stored:
    """A trained SAE and where it lies.

    Attributes:
        sae: The SAE.
        key: Its name in the cache.
        metrics: Lines of its training: step, mse, l0, dead, seconds.
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
) -> list[Stored]:
    """Train SAEs on a text, one after the other, or take them from the cache.

    What is missing is harvested in one pass; activations are large and an SAE is not trained twice,
    so the last who reads the harvest deletes it. A training that was stopped goes on where it was,
    one that another process has begun is waited for, and an SAE that is damaged is trained again.

    Args:
        model: Any model of a known family.
        tokens: The text.
        jobs: For each SAE what it is (site and layer say what it reads) and how it is trained.
        watch: Called with the lines of metrics of the SAE in training.

    Raises:
        UserError: As `harvest` and `train`.
    """
    stamp = model_hash(model)
    jobs = [(c.but(model_hash=stamp), settings) for c, settings in jobs]
    shards, found = None, []
    for config, settings in jobs:
        key = _key(config, settings, tokens)
        with alone(cache_dir() / KIND / key):
            stored = _stored(key, config, settings)
            if stored is None:
                if shards is None:  # of all jobs: who goes on later finds the same harvest
                    shards = _harvest(model, tokens, [c for c, _ in jobs])
                _train(shards, key, config, settings, watch)
                stored = _stored(key, config, settings)
            found.append(stored)
    if shards is not None and shards.reading:
        shards.reading.end()
    return found


def stored_folder(key: str) -> Path:
    """Where a trained SAE lies, by its key.

    Raises:
        UserError: It is not in the cache, or not as it was trained.
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


def folders_of(run: Run, given: str, *, step: str) -> list[str]:
    """Folders of SAEs: those that are given by commas, or those that `step` of the run trained.

    Of each site and layer the first that it trained; none where it has not run.

    Raises:
        UserError: One is no longer in the cache.
    """
    folders = [f.strip() for f in given.split(",") if f.strip()]
    if folders or not run.path("saes.json", step=step).exists():
        return folders
    rows = reversed(run.load("saes", step=step))
    first = {(row["site"], row["layer"]): row["key"] for row in rows}
    return [str(stored_folder(key)) for key in first.values()]


def stored_sae(key: str) -> SAE:
    """A trained SAE by its key; raises as `stored_folder`."""
    return load_sae(stored_folder(key))


def _done(folder: Path) -> bool:
    """Whether a training came to its end here."""
    return (folder / "sae-0" / CONFIG).exists() or (folder / RECORD).exists()


def _stored(key: str, config: SAEConfig, settings: TrainSettings) -> Stored | None:
    """What is in the cache; what is damaged there is deleted, with a line in the log."""
    folder = cache_dir() / KIND / key
    if not _done(folder):
        delete(folder / "sae-0" if folder.is_dir() else folder)  # half of an SAE
        return None
    try:
        if (folder / RECORD).exists():
            _check_record(folder)
        stored = Stored(load_sae(folder / "sae-0"), key, read_metrics(folder))
        steps = [line["step"] for line in stored.metrics]
        if steps != _logged(settings) or stored.sae.cfg != build(config).cfg:
            raise DamagedError("it is not what was asked for")
    except DamagedError as error:
        log.warning("The SAE %s of the cache is trained again: %s.", key, error.cause)
        delete(folder)
        return None
    if not (folder / RECORD).exists():
        write_json(folder / RECORD, _hashes(folder))
    return stored


def _logged(settings: TrainSettings) -> list[int]:
    """Steps of a whole training's lines of metrics."""
    every = range(settings.log_every, settings.steps, settings.log_every)
    return [*every, settings.steps]


def _check_record(folder: Path) -> None:
    """Compare the files with what they were when the training ended.

    Raises:
        DamagedError: One is missing or another.
    """
    recorded = read_checked(folder / RECORD, _Record).root
    for name, found in _hashes(folder).items():
        if found != recorded.get(name):
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
    """Train an SAE; from the start where the checkpoint is damaged, with a line in the log."""
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
    here = Path(__file__).parent
    code = [here / f"{name}.py" for name in CODE]
    made_of = [c for c in architecture(cfg).__mro__ if c.__module__.startswith("helpers.")]
    code += [Path(inspect.getsourcefile(c)) for c in made_of]
    return content_hash(cfg.to_dict(), asdict(settings), tokens, *code)
