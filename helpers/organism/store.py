"""Cache of trained organisms and oracles, which all runs share, by their recipes."""

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
    """Train a model, or take it from the cache; `load_model` reads the folder.

    Raises:
        UserError: The fact cannot be removed, or the loss is not finite.
    """
    return organisms([recipe])[0]


def organisms(recipes: Sequence[Recipe], *, workers: int | None = None) -> list[Path]:
    """Train several models side by side, or take them from the cache.

    Each process trains one model on one core: on such small matrices that is faster than one
    process on all cores or than stacked weights (`benchmarks/bench_organism.py`), and no model's
    bits depend on the others.

    Args:
        recipes: Recipes of the models.
        workers: Processes; by default as many as torch may use cores.

    Returns:
        Their folders, which `load_model` reads.

    Raises:
        UserError: A fact cannot be removed, or a loss is not finite.
    """
    missing = [r for r in dict.fromkeys(recipes) if not (cache_dir() / KIND / _name(r)).exists()]
    workers = min(workers or torch.get_num_threads(), len(missing))
    if workers > 1:
        with ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            list(pool.map(_cached, missing))
    return [_cached(r) for r in recipes]


def record(folder: Path) -> dict[str, Any]:
    """Read the record of an organism's training: recipe, steps, losses, tokens, seconds."""
    return read_json(folder / RECORD)


def _name(recipe: Recipe) -> str:
    return content_hash(recipe.key())


def _cached(recipe: Recipe) -> Path:
    def build(folder: Path) -> None:
        module, about = fit(recipe)
        save(module, recipe, folder)
        write_json(folder / RECORD, {"recipe": _plain(recipe), **about})

    return cached_folder(KIND, recipe.key(), build)


def _plain(recipe: Recipe) -> dict[str, Any]:
    """Convert to plain data, with lists for tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()}
