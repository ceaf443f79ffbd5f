"""Trained organisms and oracles that all runs share, kept in the cache by their recipes."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from helpers.io.cache import cached_folder
from helpers.io.files import cache_dir, read_json, write_json
from helpers.io.hashing import content_hash
from helpers.organism.fit import fit, save
from helpers.organism.recipe import Recipe

KIND = "organisms"  # folder of the cache
RECORD = "organism.json"


def organism(recipe: Recipe) -> Path:
    """The folder of a trained model, from the cache or trained now; `load_model` reads it.

    Raises:
        UserError: As `organisms`.
    """
    return organisms([recipe])[0]


def organisms(recipes: Sequence[Recipe], *, workers: int | None = None) -> list[Path]:
    """Folders of several trained models; what the cache lacks is trained side by side.

    Each process trains one model on one core: on such small matrices that is faster than one
    process on all cores or than stacked weights (`benchmarks/bench_organism.py`), and no model's
    bits depend on what is trained beside it.

    Args:
        recipes: What to train.
        workers: Processes; by default as many as torch may use cores.

    Raises:
        UserError: A pair cannot be left out, or a training ran away.
    """
    todo = [r for r in dict.fromkeys(recipes) if not (cache_dir() / KIND / _name(r)).exists()]
    workers = min(workers or torch.get_num_threads(), len(todo))
    if workers > 1:
        with ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            list(pool.map(_made, todo))
    return [_made(r) for r in recipes]


def record(folder: Path) -> dict[str, Any]:
    """How the organism in `folder` was trained: its recipe, steps, losses, tokens, seconds."""
    return read_json(folder / RECORD)


def _name(recipe: Recipe) -> str:
    return content_hash(recipe.key())


def _made(recipe: Recipe) -> Path:
    def build(folder: Path) -> None:
        module, about = fit(recipe)
        save(module, recipe, folder)
        write_json(folder / RECORD, {"recipe": _plain(recipe), **about})

    return cached_folder(KIND, recipe.key(), build)


def _plain(recipe: Recipe) -> dict[str, Any]:
    """As JSON gives it back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()}
