"""Trained SAEs that all runs share, kept in the cache by what they depend on.

A fact does not change an SAE, so another fact finds it there. A run keeps only numbers and the key.
"""

import inspect
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.activations import Shards, harvest
from helpers.artifacts import Run, alone, cache_dir, content_hash
from helpers.errors import UserError
from helpers.models import model_hash
from helpers.sae.base import SAE, SAEConfig
from helpers.sae.files import load_sae
from helpers.sae.registry import architecture
from helpers.sae.trainer import TrainSettings, read_metrics, train

KIND = "saes"  # folder of the cache
CODE = ("kernels", "losses", "pupil", "selection", "start", "stream", "trainer")  # and its class


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

    What is missing is harvested in one pass and deleted when all are trained: activations are large
    and an SAE is not trained twice. A training that was stopped goes on where it was.

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
    keys = [_key(c, settings, tokens) for c, settings in jobs]
    folders = [cache_dir() / KIND / key for key in keys]
    with alone(cache_dir() / KIND / content_hash(keys)):
        todo = [i for i, folder in enumerate(folders) if not _done(folder)]
        shards = _harvest(model, tokens, [jobs[i][0] for i in todo]) if todo else None
        for i in todo:
            config, settings = jobs[i]
            train(shards, [config], settings, folder=folders[i], watch=watch)
        if shards is not None:
            shutil.rmtree(shards.folder, ignore_errors=True)
    return [
        Stored(load_sae(folder / "sae-0"), key, read_metrics(folder))
        for key, folder in zip(keys, folders, strict=True)
    ]


def stored_folder(key: str) -> Path:
    """Where a trained SAE lies, by its key.

    Raises:
        UserError: It is no longer in the cache.
    """
    folder = cache_dir() / KIND / key
    if not _done(folder):
        raise UserError(
            f"The SAE {key} is not in the cache: run notebooks/04_sparse_autoencoders.ipynb again, "
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
    return (folder / "sae-0" / "cfg.json").exists()


def _harvest(model: LanguageModel, tokens: Tensor, configs: Sequence[SAEConfig]) -> Shards:
    sites = {s for c in configs for s in (c.site, c.target or c.site)}
    return harvest(model, tokens, sites=sorted(sites), layers=sorted({c.layer for c in configs}))


def _key(cfg: SAEConfig, settings: TrainSettings, tokens: Tensor) -> str:
    here = Path(__file__).parent
    code = [here / f"{name}.py" for name in CODE]
    made_of = [c for c in architecture(cfg).__mro__ if c.__module__.startswith("helpers.")]
    code += [Path(inspect.getsourcefile(c)) for c in made_of]
    return content_hash(cfg.to_dict(), asdict(settings), tokens, *code)
