"""A user's request as a YAML file: pairs to forget, or files with text to forget."""

from pathlib import Path
from typing import Any

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.facts.pair_file import PairFile, check_pair, clean_name, require_file
from helpers.io.safe_text import visible
from helpers.io.yaml_files import Unquoted, read_yaml
from helpers.requests.checks import check_apart
from helpers.requests.facts_requests import pair_list
from helpers.requests.items import OWN_FIELDS, ItemFile, own_item
from helpers.requests.request import FactsRequest, TextRequest
from helpers.requests.text_files import ROLES, request_of_files

SHARED = ("prompts", "others", "must_stay")  # what all pairs of a file may have in common


def read_request_file(path: Path) -> FactsRequest | TextRequest:
    """Read a request from a YAML file.

    The file has one of three forms. With `pairs`, a list of pairs as in a pair file, it may name
    `prompts`, `others` and `must_stay` for all of them. With `forget`, one or more files of JSON
    rows or text beside it, it may name files under the other `ROLES`. Otherwise it is the file of
    a single pair.

    Raises:
        UserError: The file is missing or has something missing or misspelt, or what is to be
            forgotten has to stay too.
    """
    require_file(path)
    content = read_yaml(path, scalars_as_text=True)
    shown = visible(path)
    if not isinstance(content, dict) or not {"pairs", "forget", "subject"} & content.keys():
        raise UserError(
            f"{shown} must name what to forget: 'pairs:', or 'forget:' with files, or 'subject:' "
            "and 'target:'."
        )
    name = _name(content, path)
    if "pairs" in content:
        _check_keys(content, ("name", "pairs", *SHARED), shown)
        pairs = [ConceptPair.of_content(item) for item in _pairs(content, f"{shown}, pair", path)]
        request = pair_list(name, pairs)
        check_apart(request)
        return request
    if "forget" in content:
        _check_keys(content, ("name", *ROLES), shown)
        return request_of_files(
            name, {role: _files(content[role], role, path) for role in ROLES if role in content}
        )
    single = {key: value for key, value in content.items() if key != "name"}
    request = pair_list(name, [ConceptPair.of_content(check_pair(single, shown))])
    check_apart(request)
    return request


def _name(content: dict[str, Any], path: Path) -> str:
    """Return the request's name, by default that of its file."""
    return clean_name(content.get("name", path.stem), "name") or path.stem


def _check_keys(content: dict[str, Any], known: tuple[str, ...], shown: str) -> None:
    if unknown := [key for key in content if key not in known]:
        raise UserError(
            f"{shown}: there is no '{visible(unknown[0])}' beside "
            f"'{'pairs' if 'pairs' in known else 'forget'}:'; known are {', '.join(known)}."
        )


def _pairs(content: dict[str, Any], label: str, path: Path) -> list[PairFile]:
    """Check each pair, with what all have in common filled in."""
    pairs = content["pairs"]
    if not isinstance(pairs, list) or not pairs:
        raise UserError(f"{visible(path)}: 'pairs:' has to be a list of at least one pair.")
    shared = {key: content[key] for key in SHARED if key in content}
    checked = []
    for number, pair in enumerate(pairs, 1):
        if isinstance(pair, dict):
            stay = [*_listed(pair.get("must_stay")), *_listed(shared.get("must_stay"))]
            pair = shared | pair | ({"must_stay": stay} if stay else {})
        checked.append(check_pair(pair, f"{label} {number}"))
    return checked


def _listed(value: Any) -> list[Any]:
    if value is None or value == Unquoted("", "nothing"):
        return []
    return value if isinstance(value, list) else [value]


def _files(value: Any, role: str, path: Path) -> list[ItemFile]:
    """Return the files that are named under a role, relative to the folder of the YAML file."""
    names = _listed(value)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(
            f"{visible(path)}: '{role}:' has to name a file, or a list of files, beside it."
        )
    return [
        ItemFile(path.parent / Path(name.strip()).expanduser(), own_item, OWN_FIELDS)
        for name in names
    ]
