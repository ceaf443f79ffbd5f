"""The settings of a run: resolved from profile and command line, checked, and stored.

Every mistake in the input is reported here, before a kernel starts.
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

from helpers.book.environment import environment
from helpers.book.profiles import MODELS, Profile, load_profile, with_absolute_paths
from helpers.book.settings import ROOT, Common, slug
from helpers.errors import UserError
from helpers.io.files import atomic_path
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible
from helpers.io.yaml_files import read_yaml

SETTINGS = "settings.yaml"  # in the run folder
RESERVED = {"run": "--name", "profile": "--profile"}  # parameters that have their own option
FACT = ("subject", "target", "relation")  # parameters that a pair file gives too
MAX_NAME = 120  # characters; file systems allow 255 bytes


def resolve(options: argparse.Namespace) -> dict[str, Any]:
    """Resolve all settings of a run from the command line, and check them as far as is cheap.

    Paths on the command line count from the caller's folder, those in a profile from the profile's.

    Returns:
        The content of `settings.yaml`: `name`, `profile`, `pair` (hash, subject, target and
        relation of the user's pair file, or None), and `notebooks` (stem → parameters).

    Raises:
        UserError: An option or parameter is unknown, misspelt, mistyped or contradictory.
    """
    overrides = with_absolute_paths(dict(_assignment(text) for text in options.set), Path.cwd())
    profile = load_profile(options.profile, overrides)
    pair = _pair(profile, overrides)
    if pair:
        overrides |= {name: pair[name] for name in FACT}
        profile = load_profile(options.profile, overrides)
    name = options.name or _run_name(options, profile)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) or len(name) > MAX_NAME:
        raise UserError(
            f"'{visible(name)[:MAX_NAME]}' is no name for a run: give one by NAME=... of "
            f"letters, digits, '-', '_' and '.', {MAX_NAME} at most."
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
    """Read the fact of the run's pair file, and its hash; None if there is no such file.

    Raises:
        UserError: There are several files, the file is malformed, or a parameter contradicts it.
    """
    from helpers.facts import ConceptPair  # on use: --help and wrong settings need no torch

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
            consistent = (Common.model_fields[name].default, getattr(pair, name))
            contradicted = any(v[name] not in consistent for v in profile.notebooks.values())
        if contradicted:
            raise UserError(f"{visible(file)} says what {name} is: leave {name} away, or the file.")
    return {"file": content_hash(Path(file))} | {name: getattr(pair, name) for name in FACT}


def _run_name(options: argparse.Namespace, profile: Profile) -> str:
    """Join the profile's name and all values that differ from it, so that each run has a folder."""
    unchanged = load_profile(options.profile)
    differing = {
        key: values[key]
        for stem, values in profile.notebooks.items()
        for key in values
        if values[key] != unchanged.notebooks[stem][key]
    }
    parts = [unchanged.name]
    for key in sorted(differing, key=lambda k: (k not in ("subject", "target"), k)):
        value = str(differing[key])
        label = Path(value).stem if key in ("pair_file", "patch", *MODELS) else value
        ascii_label = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
        text = slug(ascii_label)[:40]
        if label != value or not label.isascii():
            text += f"-{content_hash(value)[:4]}"  # the label alone would not tell them apart
        parts.append(text if key in ("subject", "target") else f"{key}-{text}")
    name = "-".join(parts)
    return name if len(name) <= MAX_NAME else f"{name[:100]}-{content_hash(name)[:8]}"


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List in words where two `settings.yaml` differ in parameters that both have."""
    stems_by_change: dict[str, list[str]] = {}
    for stem in old["notebooks"].keys() & new["notebooks"].keys():
        old_values, new_values = old["notebooks"][stem], new["notebooks"][stem]
        for key in old_values.keys() & new_values.keys() - {"run"}:
            if old_values[key] != new_values[key]:
                change = f"{key} {_short(old_values[key])}, now {_short(new_values[key])}"
                stems_by_change.setdefault(change, []).append(stem)
    changes = [
        change if len(stems) == len(new["notebooks"]) else f"{change} in {', '.join(sorted(stems))}"
        for change, stems in sorted(stems_by_change.items())
    ]
    return changes or (["the pair's file"] if old.get("pair") != new.get("pair") else [])


def _short(value: Any) -> str:
    text = visible(repr(value))
    return text if len(text) <= 100 else f"{text[:100]}…"


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of a run folder.

    Raises:
        UserError: The file is missing or damaged.
    """
    path = folder / SETTINGS
    try:
        settings = read_yaml(path)
        if isinstance(settings["profile"], str) and all(
            isinstance(values, dict) for values in settings["notebooks"].values()
        ):
            return settings
        reason = "it does not hold what it should"
    except (UserError, TypeError, KeyError, AttributeError) as error:
        reason = str(error) if isinstance(error, UserError) else "it does not hold what it should"
    raise UserError(
        f"{visible(path)} is damaged ({reason.rstrip('.')}): delete it and run again; finished "
        "steps are kept."
    )


def is_new(folder: Path, settings: dict[str, Any], *, update: bool = False) -> bool:
    """Tell whether a run folder has other settings than these, or none.

    Args:
        folder: The run folder, which need not exist.
        settings: The result of `resolve`.
        update: Allow settings that contradict those of the folder.

    Raises:
        UserError: The folder was made by other settings, or its settings are damaged.
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
    """Write `settings.yaml` into a run folder."""
    with atomic_path(folder / SETTINGS) as temporary:
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        temporary.write_text(text, encoding="utf-8")


def check_model_apart(notebooks: dict[str, dict]) -> None:
    """Call `check_model` in another process, so that this one stays small while notebooks run.

    Raises:
        UserError: The model does not load or does not know the fact, or the process was killed.
    """
    values = {key: next(iter(notebooks.values()))[key] for key in Common.model_fields}
    requested = ("request_file", "capability")  # parameters of some notebooks alone
    values |= {key: v[key] for v in notebooks.values() for key in requested if v.get(key)}
    # The process reads all of stdin first, so that no library can wait for an answer there.
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
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(lines[-1] if lines else "The check of model and fact ended without a word.")


def check_model(values: dict[str, Any]) -> None:
    """Check that the model loads and knows the fact, and what else is asked to be forgotten.

    Raises:
        UserError: It doesn't; the sentence gives the target's probability and known facts. Or a
            request is malformed, or of a capability that the model lacks.
    """
    from helpers.facts import ConceptPair, require_known  # on use: it imports torch

    file, relation = values["pair_file"], values["relation"]
    pair = (
        ConceptPair.from_file(file)
        if file
        else ConceptPair(values["subject"], values["target"], relation=relation)
    )
    from helpers.models import load_model  # only now: a wrong name is reported without torch

    model = load_model(values["model"], dtype=values["dtype"], device=values["device"])
    require_known(model, pair)
    from helpers.book.chapter_requests import facts_request, text_request  # likewise

    if values.get("request_file"):
        facts_request(values["request_file"], pair).known(model)
    if values.get("capability"):
        text_request(model, "", values["capability"])


if __name__ == "__main__":
    try:
        check_model(json.loads(sys.stdin.read()))
    except UserError as error:
        sys.exit(str(error))
