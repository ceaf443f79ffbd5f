"""The methods that a chapter or benchmark compares, and the hyperparameters that they need."""

from collections.abc import Sequence
from typing import Any

from helpers.io.choices import check_choice
from helpers.methods import METHODS
from helpers.methods.registry import methods_that_take
from helpers.sae import load_sae

FAMILIES = ("surgery", "control")


def editing_methods(
    names: str = "all", saes: Sequence[str] = (), *, families: Sequence[str] = FAMILIES
) -> dict[str, dict[str, Any]]:
    """List methods of some families with the hyperparameters to call them with.

    A method that reads SAEs is given the SAEs of one site, the first of its sites
    of which there is an SAE. It is left out if there is none.

    Args:
        names: `all`, or names separated by commas.
        saes: Folders of SAEs.
        families: Families of methods; surgery and its controls by default.

    Raises:
        UserError: There is no such method.
    """
    for_pairs = methods_that_take("pair")
    chosen = [n.strip() for n in names.split(",")] if names != "all" else for_pairs
    for name in chosen:
        check_choice("method", name, for_pairs)
    sites = {folder: load_sae(folder).cfg.site for folder in saes}
    hyperparameters = {}
    for name in chosen:
        entry = METHODS[name]
        if entry.family not in families:
            continue
        if not entry.sae_sites:
            hyperparameters[name] = {}
            continue
        by_site = [tuple(f for f, site in sites.items() if site == s) for s in entry.sae_sites]
        if folders := next(filter(None, by_site), ()):
            hyperparameters[name] = {"saes": folders}
    return hyperparameters
