"""Tune training and inference-time methods, with the same few runs for each of them.

    python -m helpers.evaluation.tuning [--facts 2] [--rounds 4] [--saes FOLDER ...] [--record FILE]

Each method is run with two values of two of its hyperparameters, up to four runs a fact, on
development facts and prompts. The setting with the best mean score is chosen, the harmonic mean of
two-sided forgetting and the worst group's retention (`helpers.evaluation.tradeoff_summary`). Every
run is recorded at once, so a search that was stopped resumes where it was. The record is kept in
`profiles/`, and defaults follow it.
"""

import argparse
import itertools
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.evaluation_pairs import known_pairs
from helpers.evaluation.method_choice import editing_methods
from helpers.evaluation.tradeoff import EvalConfig, tradeoff
from helpers.evaluation.tradeoff_summary import SCORE
from helpers.facts import ConceptPair
from helpers.io.code_version import REPOSITORY
from helpers.io.files import read_json, write_json
from helpers.io.manifest import git_commit, versions
from helpers.methods import METHODS
from helpers.methods.inference.in_context import REQUESTS
from helpers.models import DEFAULT, load_model, model_hash

log = logging.getLogger(__name__)

RECORD = REPOSITORY / "profiles" / "tuned_hyperparameters.json"
CONFIG = EvalConfig("dev", 6)
RATES, ADAPTER_RATES = (1e-4, 4e-4), (2e-3, 8e-3)
ROUNDS = (0, 3, 2, 1)  # indices of settings in the order of their runs: opposite corners first
NUMBERS = ("forgetting", "retention", "score", "norm", "seconds")  # recorded of every run

# Names that recorded numbers had until 2026-11.
RENAMED_NUMBERS = {"forgotten": "forgetting", "kept": "retention", "balance": "score"}
# The score of records that do not say which one they have.
FORMER_SCORE = "harmonic mean of 1 − P(target) after / before and the mean retention over groups"
GRID: dict[str, dict[str, tuple]] = {
    "gradient_ascent": {"lr": RATES, "early_stop_ratio": (0.02, 0.2)},
    "gradient_difference": {"lr": RATES, "retain_weight": (1.0, 5.0)},
    "kl_minimisation": {"lr": RATES, "retain_weight": (1.0, 10.0)},
    "npo": {"lr": RATES, "beta": (0.1, 1.0)},
    "simnpo": {"lr": RATES, "forget_weight": (0.125, 1.0)},
    "idk": {"lr": RATES, "retain_weight": (1.0, 5.0)},
    "idk_dpo": {"lr": RATES, "beta": (0.1, 1.0)},
    "rmu": {"lr": (1e-3, 4e-3), "steering_coeff": (1.0, 4.0)},
    "undial": {"lr": RATES, "retain_weight": (0.0, 1.0)},
    "weighted_ascent": {"lr": RATES, "retain_weight": (1.0, 5.0)},
    "elm": {"lr": ADAPTER_RATES, "eta": (10.0, 100.0)},
    "crisp": {"lr": ADAPTER_RATES, "beta": (0.5, 0.99)},
    "task_vector": {"lr": (2e-5, 1e-4), "alpha": (2.0, 5.0)},
    "sae_clamp": {"strength": (1.0, 4.0), "n_latents": (1, 3)},
    "dynamic_clamp": {"strength": (1.0, 4.0), "min_active_fraction": (0.05, 0.2)},
    "who_is": {"lr": (5e-4, 2e-3), "alpha": (2.0, 5.0)},
    "in_context": {"request": REQUESTS},
}
"""Method → hyperparameter → values to try; every method has four settings."""


def settings_of(name: str) -> list[dict[str, Any]]:
    """List all combinations of a method's grid."""
    grid = GRID[name]
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def search(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    methods: Mapping[str, Mapping[str, Any]],
    record: str | Path,
    *,
    rounds: int = 4,
) -> pd.DataFrame:
    """Run the settings of every method on every fact, except those in the record.

    Args:
        model: The original model.
        pairs: Development facts.
        methods: Method → hyperparameters that are not searched (`saes`).
        record: A JSON file, written after every run.
        rounds: Number of settings a method, opposite corners of its grid first.

    Returns:
        One row a run: method, subject, target, settings, `NUMBERS`, refused.

    Raises:
        UserError: The record is of another model, or has another score.
    """
    path, stamp = Path(record), model_hash(model)
    content: dict[str, Any] = (
        _current_names(read_json(path))
        if path.exists()
        else {"model_hash": stamp, "score": SCORE, "runs": []}
    )
    if content["model_hash"] != stamp:
        raise UserError(f"{path} is of another model: name another file with --record.")
    if content["score"] != SCORE:  # runs of two definitions cannot be compared
        raise UserError(f"{path} has scores of an older kind: name another file with --record.")
    done = {_key(r["method"], r["subject"], r["settings"]) for r in content["runs"]}
    planned = [
        (name, pair, settings_of(name)[i])
        for pair in pairs
        for i in ROUNDS[:rounds]
        for name in methods
    ]
    todo = [run for run in planned if _key(run[0], run[1].subject, run[2]) not in done]
    for number, (name, pair, settings) in enumerate(todo):
        start = time.perf_counter()
        row = _run(model, pair, name, methods[name], settings)
        content["runs"].append(row)
        write_json(path, content)
        numbers = {k: row[k] for k in NUMBERS if k in row}
        seconds = time.perf_counter() - start
        log.info(
            "%d of %d: %s %s %s in %.0f s", number + 1, len(todo), name, settings, numbers, seconds
        )
    keys = {_key(name, pair.subject, settings) for name, pair, settings in planned}
    runs = [r for r in content["runs"] if _key(r["method"], r["subject"], r["settings"]) in keys]
    return pd.DataFrame(runs)


def _run(
    model: LanguageModel,
    pair: ConceptPair,
    name: str,
    fixed: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Run one setting of a method on one fact."""
    methods = {name: {**fixed, **settings}}
    row = tradeoff(model, [pair], methods, scales={name: [1.0]}, config=CONFIG).iloc[0]
    numbers = {k: float(row[k]) for k in NUMBERS if row.get(k) == row.get(k, np.nan)}
    return {
        "method": name,
        "subject": pair.subject,
        "target": pair.target,
        "settings": settings,
        **numbers,
        "refused": row["refused"],
    }


def chosen(runs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Choose for each method the setting with the best mean score over facts; a refusal counts 0.

    Of settings with the same score, such as 0, the one with the most retention is chosen.

    Args:
        runs: From `search`: method, settings, score, retention.
    """
    settings = {}
    for name, part in runs.groupby("method", sort=False):
        part = part.assign(key=[_key("", "", s) for s in part["settings"]])
        columns = ["score", "retention"]
        means = part.fillna(dict.fromkeys(columns, 0.0)).groupby("key", sort=False)
        best = means[columns].mean().sort_values(columns).index[-1]
        settings[str(name)] = dict(part[part["key"] == best]["settings"].iloc[0])
    return settings


def tuned(record: str | Path = RECORD) -> dict[str, Any]:
    """Read the committed record of the search: `chosen`, `runs`, `score`, and their provenance."""
    return _current_names(read_json(record))


def _current_names(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with today's names of hyperparameters and numbers."""

    def renamed(name: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return METHODS[name].hparams.current_names(settings) if name in METHODS else settings

    by_method = {
        part: {name: renamed(name, settings) for name, settings in record[part].items()}
        for part in ("chosen", "defaults")
        if part in record
    }
    runs = [
        {RENAMED_NUMBERS.get(name, name): value for name, value in run.items()}
        | {"settings": renamed(run["method"], run["settings"])}
        for run in record["runs"]
    ]
    config = record.get("config", record.get("sizes"))
    score = record.get("score", FORMER_SCORE)
    return record | by_method | {"runs": runs, "config": config, "score": score}


def _key(name: str, subject: str, settings: Mapping[str, Any]) -> str:
    return f"{name}|{subject}|{sorted(settings.items())}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m helpers.evaluation.tuning")
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--facts", type=int, default=2, help="development facts")
    parser.add_argument("--rounds", type=int, default=4, help="settings a method, 1 to 4")
    parser.add_argument("--saes", nargs="*", default=[], help="folders of SAEs")
    parser.add_argument("--methods", default=",".join(GRID), help="names, by commas")
    parser.add_argument("--record", default=str(REPOSITORY / "runs" / "tuning.json"))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    try:
        model = load_model(options.model)
        pairs = known_pairs(model, "capital", "dev", n=options.facts)
        families = ("training", "inference")
        methods = editing_methods(options.methods, options.saes, families=families)
        methods = {name: fixed for name, fixed in methods.items() if name in GRID}
        runs = search(model, pairs, methods, options.record, rounds=options.rounds)
        content = read_json(options.record) | {
            "runs": runs.replace({np.nan: None}).to_dict("records"),
            "chosen": chosen(runs),
            "facts": [str(p) for p in pairs],
            "config": vars(CONFIG),
            "defaults": {n: _plain(METHODS[n].hyperparameters()) for n in methods},
            "commit": git_commit(),
            "versions": versions(),
        }
        write_json(options.record, content)
    except UserError as error:
        log.error("%s", error)
        return 1
    return 0


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


if __name__ == "__main__":
    sys.exit(main())
