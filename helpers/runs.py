"""What a run is made with: its settings as resolved, its name, and whether they can work at all.

Everything that can be wrong with the input is found here, before a kernel starts.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import yaml

from helpers.artifacts import atomic_path, content_hash
from helpers.errors import UserError
from helpers.settings import ROOT, Common, load_profile, slug

SETTINGS = "settings.yaml"  # in the run folder
RESERVED = {"run": "--name", "profile": "--profile"}  # parameters that have their own option


def resolve(options: argparse.Namespace) -> dict[str, Any]:
    """All settings of the run that the command line asks for, checked as far as is cheap.

    Returns:
        The content of `settings.yaml`: `name`, `profile`, `pair` (content of the user's pair
        file or None), `notebooks` (parameters by stem).

    Raises:
        UserError: Something in it is unknown, misspelt, mistyped or contradictory.
    """
    overrides = dict(_assignment(text) for text in options.set)
    pair = None
    if overrides.get("pair_file"):
        path = Path(overrides["pair_file"]).expanduser().resolve()
        for name in ("subject", "target", "relation"):
            if name in overrides:
                raise UserError(f"{path} says what {name} is: leave {name} away, or the file.")
        overrides["pair_file"] = str(path)
        pair = _pair(path)
    if overrides.get("patch"):
        patch = Path(overrides["patch"]).expanduser().resolve()
        if not patch.is_file():
            raise UserError(f"There is no file {patch}; give an edit that save() wrote.")
        overrides["patch"] = str(patch)
    if (model := Path(overrides.get("model", "")).expanduser()).exists() and "model" in overrides:
        overrides["model"] = str(model.resolve())  # notebooks run in a folder of their own
    if folders := overrides.get("saes"):
        paths = [Path(f.strip()).expanduser().resolve() for f in folders.split(",") if f.strip()]
        if missing := [p for p in paths if not p.is_dir()]:
            raise UserError(f"There is no folder {missing[0]}; give those of trained SAEs.")
        overrides["saes"] = ",".join(map(str, paths))
    load_profile(options.profile, overrides)  # first what the user said, in the user's words
    if pair:
        overrides |= {k: str(pair[k]) for k in ("subject", "target", "relation") if pair.get(k)}
    profile = load_profile(options.profile, overrides)
    name = options.name or _run_name(options, overrides)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise UserError(f"'{name}' is no name for a run: use letters, digits, '-', '_' and '.'.")
    folder = Path(options.runs).resolve() / name
    run = os.path.relpath(folder, ROOT) if folder.is_relative_to(ROOT) else str(folder)
    notebooks = {stem: values | {"run": run} for stem, values in profile.notebooks.items()}
    return {"name": name, "profile": profile.name, "pair": pair, "notebooks": notebooks}


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UserError(f"'{text}' sets nothing: write name=value.")
    if name in RESERVED:
        raise UserError(f"'{name}' is not set like this: use {RESERVED[name]}.")
    return name, value


def _pair(path: Path) -> dict[str, Any]:
    from helpers.facts import ConceptPair

    ConceptPair.from_file(path)  # says what is wrong with it
    return yaml.safe_load(path.read_text())


def _run_name(options: argparse.Namespace, overrides: dict[str, str]) -> str:
    """The profile's name, and what differs from it: runs of other settings get other folders."""
    asked, plain = load_profile(options.profile, overrides), load_profile(options.profile)
    differing = {
        key: values[key]
        for stem, values in asked.notebooks.items()
        for key in values
        if values[key] != plain.notebooks[stem][key]
    }
    parts = [plain.name]
    for key in sorted(differing, key=lambda k: (k not in ("subject", "target"), k)):
        value = str(differing[key])
        label = Path(value).stem if key in ("pair_file", "model", "patch") else value
        ascii_label = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
        text = slug(ascii_label)[:40]
        if label != value or not label.isascii():
            text += f"-{content_hash(value)[:4]}"  # the label alone would not tell them apart
        parts.append(text if key in ("subject", "target") else f"{key}-{text}")
    return "-".join(parts)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What two `settings.yaml` say differently; a parameter that only one has is no difference."""
    found: dict[str, list[str]] = {}
    for stem in old["notebooks"].keys() & new["notebooks"].keys():
        before, after = old["notebooks"][stem], new["notebooks"][stem]
        for key in before.keys() & after.keys() - {"run"}:
            if before[key] != after[key]:
                found.setdefault(f"{key} {before[key]!r}, now {after[key]!r}", []).append(stem)
    told = [
        what if len(stems) == len(new["notebooks"]) else f"{what} in {', '.join(sorted(stems))}"
        for what, stems in sorted(found.items())
    ]
    return told or (["the pair's file"] if old.get("pair") != new.get("pair") else [])


def is_new(folder: Path, settings: dict[str, Any], *, update: bool = False) -> bool:
    """Whether these settings are not yet those of the run folder.

    Args:
        folder: The run folder; it need not be there.
        settings: From `resolve`.
        update: Allow settings that contradict those which made the folder.

    Raises:
        UserError: The folder was made by other settings, or what it says of them is damaged.
    """
    path = folder / SETTINGS
    if not path.exists():
        return True
    try:
        old = yaml.safe_load(path.read_text())
        changed = differences(old, settings)
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is damaged: delete {folder} and run again.") from None
    if changed and not update:
        raise UserError(
            f"{folder} was made by other settings ({'; '.join(changed[:3])}): give this run "
            "its own folder with NAME=..., or add UPDATE=1 to make again what differs."
        )
    return old != settings


def write(folder: Path, settings: dict[str, Any]) -> None:
    """Write the run folder's `settings.yaml`."""
    with atomic_path(folder / SETTINGS) as temporary:
        temporary.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def ask_model(notebooks: dict[str, dict]) -> None:
    """`check_model` in a process of its own: this one stays small while notebooks run."""
    values = json.dumps({key: next(iter(notebooks.values()))[key] for key in Common.model_fields})
    command = [sys.executable, "-m", "helpers.runs", values]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment())
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(told[-1] if told else "The check of model and fact ended without a word.")


def check_model(values: dict[str, Any]) -> None:
    """See that the model loads and knows the fact.

    Raises:
        UserError: It doesn't; the sentence says how likely the target is and what it knows.
    """
    from helpers.facts import ConceptPair, require_known

    file, relation = values["pair_file"], values["relation"]
    pair = (
        ConceptPair.from_file(file)
        if file
        else ConceptPair(values["subject"], values["target"], relation=relation)
    )
    from helpers.models import load_model  # only now: a wrong name is told without torch

    require_known(load_model(values["model"], dtype=values["dtype"], device=values["device"]), pair)


def environment() -> dict[str, str]:
    """The environment of every process of a run: this clone's helpers, no reports to anyone."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    dropped = {"MPLBACKEND"}  # notebooks draw inline
    return {k: v for k, v in os.environ.items() if k not in dropped} | {
        "PYTHONPATH": path,
        "PYTHONHASHSEED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "JUPYTER_PREFER_ENV_PATH": "1",
    }


if __name__ == "__main__":
    try:
        check_model(json.loads(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))
