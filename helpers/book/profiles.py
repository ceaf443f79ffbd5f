"""Profiles: values for the parameters of all notebooks, with the user's values over them."""

import os
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from helpers.book.settings import NOTEBOOKS, ROOT, current_names, validated
from helpers.errors import UserError
from helpers.io.choices import suggestion
from helpers.io.request_spec import split_spec
from helpers.io.safe_text import visible
from helpers.io.yaml_files import read_yaml

_MODEL = (os.path.exists, "file or folder", "give that of a model, or a name on the hub")
MODELS = ("model", "checkpoint", "retrained")  # parameters that may be names on the hub
# Parameters that name a file or folder: test of existence, kind, advice.
PATHS = {
    "pair_file": (os.path.isfile, "file", "give the path of a YAML file with a pair"),
    "request_file": (os.path.isfile, "file", "give the path of a request, or reader:path"),
    "patch": (os.path.isfile, "file", "give an edit that save() wrote"),
    "saes": (os.path.isdir, "folder", "give those of trained SAEs"),
    **dict.fromkeys(MODELS, _MODEL),
}


class Profile(BaseModel):
    """The settings of all notebooks of one run.

    Attributes:
        name: The profile's name.
        notebooks: Stem → parameters.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    notebooks: dict[str, dict[str, Any]]


def load_profile(name: str, overrides: dict[str, str] | None = None) -> Profile:
    """Load a profile and put the user's values over it.

    Paths in a profile count from the profile's folder.

    Args:
        name: `smoke`, `default`, `full`, or the path of a YAML file: `common:` holds values for
            every notebook, a notebook's stem holds values for that one.
        overrides: Values for every notebook that has such a parameter.

    Raises:
        UserError: The profile is missing or malformed, or a parameter is unknown or mistyped.
    """
    path = _profile_path(name)
    label, sections = f"Profile {visible(path)}", _sections(path)
    _reject_unknown(sections, ["common", *NOTEBOOKS], f"{label} has an unknown section")
    overrides = current_names(overrides or {})
    parameters = {field for model in NOTEBOOKS.values() for field in model.model_fields}
    _reject_unknown(overrides, sorted(parameters), "There is no parameter")
    sections = {
        section: with_absolute_paths(values, path.absolute().parent)
        for section, values in sections.items()
    }
    notebooks = {}
    for stem, model in NOTEBOOKS.items():
        values = {"profile": path.stem, **sections.get("common", {}), **sections.get(stem, {})}
        values |= {k: v for k, v in overrides.items() if k in model.model_fields}
        notebooks[stem] = validated(stem, values).model_dump(mode="json")
    return Profile(name=path.stem, notebooks=notebooks)


def _profile_path(name: str) -> Path:
    """Return the file of a profile by its name or path."""
    is_path = name.lower().endswith((".yaml", ".yml"))
    path = Path(name) if is_path else ROOT / "profiles" / f"{name}.yaml"
    if not os.path.isfile(path):
        known = ", ".join(sorted(p.stem for p in (ROOT / "profiles").glob("*.yaml")))
        raise UserError(
            f"There is no profile '{visible(name)[:200]}'; choose from {known}, or name a YAML "
            "file."
        )
    return path


def _sections(path: Path) -> dict[Any, dict[Any, Any]]:
    """Read a profile's sections: name → parameters."""
    content = read_yaml(path, label="Profile")
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(
        isinstance({} if v is None else v, dict) for v in content.values()
    ):
        raise UserError(
            f"Profile {visible(path)}: give 'common:' and notebooks' names, each with a mapping."
        )
    return {section: values or {} for section, values in content.items()}


def with_absolute_paths(values: dict[Any, Any], base: Path) -> dict[Any, Any]:
    """Make the paths among the values absolute, because notebooks run in another folder.

    Args:
        values: Parameters by name.
        base: The folder from which relative paths count.

    Raises:
        UserError: A file or folder does not exist.
    """
    absolute = dict(values)
    for name in PATHS.keys() & {k for k, v in values.items() if isinstance(v, str) and v}:
        is_request = name == "request_file"
        reader, text = split_spec(values[name], base) if is_request else ("", values[name])
        parts = text.split(",") if name == "saes" or reader else [text]
        paths = [_absolute_path(name, part.strip(), base) for part in parts if part.strip()]
        absolute[name] = (f"{reader}:" if reader else "") + ",".join(paths)
    return absolute


def request_files(text: str) -> list[str]:
    """List the files of a request: those of a reader, or a YAML file and the files that it names.

    Args:
        text: The parameter `request_file`.
    """
    reader, paths = split_spec(text)
    if reader or not text.lower().endswith((".yaml", ".yml")):
        return [path for path in (paths.split(",") if reader else [text]) if path]
    content = read_yaml(Path(text), label="Request")
    named = content.values() if isinstance(content, dict) else ()
    parts = [part for value in named for part in (value if isinstance(value, list) else [value])]
    beside = [Path(text).parent / part for part in parts if isinstance(part, str)]
    return [text, *(str(path) for path in beside if os.path.isfile(path))]


def _absolute_path(name: str, text: str, base: Path) -> str:
    """Return the absolute path that parameter `name` gives, or a model's name on the hub."""
    exists, kind, advice = PATHS[name]
    path = os.path.join(base, os.path.expanduser(text))
    if exists(path):
        return os.path.realpath(path)
    if name in MODELS and not re.match(r"[/.~]|.*\.gguf$", text, re.IGNORECASE):
        return text  # a name on the hub
    raise UserError(f"There is no {kind} {visible(path)[:300]}; {advice}.")


def _reject_unknown(values: dict[Any, Any], known: list[str], sentence: str) -> None:
    for name in values:
        if name not in known:
            raise UserError(f"{sentence} '{visible(name)[:100]}'{suggestion(name, known)}.")
