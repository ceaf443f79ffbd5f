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

from helpers.book.profiles import Profile, load_profile, with_absolute_paths
from helpers.book.settings import ROOT, Common, slug
from helpers.errors import UserError
from helpers.io.files import CACHE_VARIABLE, atomic_path, cache_dir
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible
from helpers.io.yaml_files import read_yaml

SETTINGS = "settings.yaml"  # in the run folder
RESERVED = {"run": "--name", "profile": "--profile"}  # parameters that have their own option
FACT = ("subject", "target", "relation")  # what a pair file says too
LONGEST_NAME = 120  # file systems take 255 bytes


def resolve(options: argparse.Namespace) -> dict[str, Any]:
    """All settings of the run that the command line asks for, checked as far as is cheap.

    Paths on the command line count from the caller's folder, those in a profile from the profile's.

    Returns:
        The content of `settings.yaml`: `name`, `profile`, `pair` (of the user's pair file: its
        hash, subject, target and relation; or None), `notebooks` (parameters by stem).

    Raises:
        UserError: Something in it is unknown, misspelt, mistyped or contradictory.
    """
    overrides = with_absolute_paths(dict(_assignment(text) for text in options.set), Path.cwd())
    profile = load_profile(options.profile, overrides)
    pair = _pair(profile, overrides)
    if pair:
        overrides |= {name: pair[name] for name in FACT}
        profile = load_profile(options.profile, overrides)
    name = options.name or _run_name(options, profile)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) or len(name) > LONGEST_NAME:
        raise UserError(
            f"'{visible(name)[:LONGEST_NAME]}' is no name for a run: give one by NAME=... of "
            f"letters, digits, '-', '_' and '.', {LONGEST_NAME} at most."
        )
    folder = Path(os.path.realpath(options.runs)) / name
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


def _pair(profile: Profile, overrides: dict[str, str]) -> dict[str, str] | None:
    """What the run's pair file says of its fact, and its hash; None where there is no such file.

    Raises:
        UserError: There are several, the file is not as it should be, or it is contradicted.
    """
    from helpers.facts import ConceptPair

    files = {values["pair_file"] for values in profile.notebooks.values()}
    if len(files) > 1:
        raise UserError(
            f"The notebooks of profile {visible(profile.name)} are about several facts: give "
            "'pair_file' under 'common:'."
        )
    (file,) = files
    if not file:
        return None
    pair = ConceptPair.from_file(file)
    for name in FACT:
        if "pair_file" in overrides:
            contradicted = name in overrides
        else:  # the profile names the file, and may name the same fact beside it
            usual = (Common.model_fields[name].default, getattr(pair, name))
            contradicted = any(v[name] not in usual for v in profile.notebooks.values())
        if contradicted:
            raise UserError(f"{visible(file)} says what {name} is: leave {name} away, or the file.")
    return {"file": content_hash(Path(file))} | {name: getattr(pair, name) for name in FACT}


def _run_name(options: argparse.Namespace, asked: Profile) -> str:
    """The profile's name, and what differs from it: runs of other settings get other folders."""
    plain = load_profile(options.profile)
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
    name = "-".join(parts)
    return name if len(name) <= LONGEST_NAME else f"{name[:100]}-{content_hash(name)[:8]}"


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What two `settings.yaml` say differently; a parameter that only one has is no difference."""
    found: dict[str, list[str]] = {}
    for stem in old["notebooks"].keys() & new["notebooks"].keys():
        before, after = old["notebooks"][stem], new["notebooks"][stem]
        for key in before.keys() & after.keys() - {"run"}:
            if before[key] != after[key]:
                told = f"{key} {_short(before[key])}, now {_short(after[key])}"
                found.setdefault(told, []).append(stem)
    told = [
        what if len(stems) == len(new["notebooks"]) else f"{what} in {', '.join(sorted(stems))}"
        for what, stems in sorted(found.items())
    ]
    return told or (["the pair's file"] if old.get("pair") != new.get("pair") else [])


def _short(value: Any) -> str:
    text = visible(repr(value))
    return text if len(text) <= 100 else f"{text[:100]}…"


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a run folder.

    Raises:
        UserError: They are missing or damaged.
    """
    path = folder / SETTINGS
    try:
        found = read_yaml(path)
        if isinstance(found["profile"], str) and all(
            isinstance(values, dict) for values in found["notebooks"].values()
        ):
            return found
        reason = "it does not hold what it should"
    except (UserError, TypeError, KeyError, AttributeError) as error:
        reason = str(error) if isinstance(error, UserError) else "it does not hold what it should"
    raise UserError(
        f"{visible(path)} is damaged ({reason.rstrip('.')}): delete it and run again; finished "
        "steps are kept."
    )


def is_new(folder: Path, settings: dict[str, Any], *, update: bool = False) -> bool:
    """Whether these settings are not yet those of the run folder.

    Args:
        folder: The run folder; it need not be there.
        settings: From `resolve`.
        update: Allow settings that contradict those which made the folder.

    Raises:
        UserError: The folder was made by other settings, or what it says of them is damaged.
    """
    if not os.path.lexists(folder / SETTINGS):
        return True
    old = read_settings(folder)
    changed = changed_settings(old, settings)
    if changed and not update:
        raise UserError(
            f"{visible(folder)} was made by other settings ({'; '.join(changed[:3])}): give this "
            "run its own folder with NAME=..., or add UPDATE=1 to make again what differs."
        )
    return old != settings


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the run folder's `settings.yaml`."""
    with atomic_path(folder / SETTINGS) as temporary:
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        temporary.write_text(text, encoding="utf-8")


def check_model_apart(notebooks: dict[str, dict]) -> None:
    """`check_model` in a process of its own: this one stays small while notebooks run.

    Raises:
        UserError: As `check_model`, or its process was killed.
    """
    values = {key: next(iter(notebooks.values()))[key] for key in Common.model_fields}
    # It reads all of stdin first: a question would find the end of it there.
    done = subprocess.run(
        [sys.executable, "-m", "helpers.book.run_settings"],
        input=json.dumps(values),
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=environment(),
    )
    if done.returncode < 0:
        raise UserError(
            "The check of model and fact was killed, most likely because memory ran out: close "
            "programs, or take a smaller model."
        )
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
    if os.environ.get(CACHE_VARIABLE):
        cache_dir()  # makes it absolute
    dropped = {"MPLBACKEND"}  # notebooks draw inline
    terminal = {"PYTHONIOENCODING": getattr(sys.stdout, "encoding", None) or "utf-8"}
    return (
        terminal
        | {k: v for k, v in os.environ.items() if k not in dropped}
        | {
            "PYTHONPATH": path,
            "PYTHONHASHSEED": "0",
            "PYTHONUTF8": "1",  # files are UTF-8 in any locale
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "JUPYTER_PREFER_ENV_PATH": "1",
        }
    )


if __name__ == "__main__":
    try:
        check_model(json.loads(sys.stdin.read()))
    except UserError as error:
        sys.exit(str(error))
