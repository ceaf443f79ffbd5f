"""Checks of a run's parameters: names that exist, and lists of numbers.

A chapter would refuse an unknown name only after minutes, so the front door refuses it at once. The
names are known here without importing what they name.
"""

import re
from collections.abc import Callable, Sequence

from pydantic import AfterValidator, ValidationError

from helpers.book.registered import MethodName, attack_names, method_names, renamed_attacks
from helpers.io.choices import suggestion
from helpers.io.safe_text import visible

MAX_COUNT = 10**8  # of anything that is counted: more would take years
MAX_CHARACTERS = 4096  # of a text, as many as of a path
WHOLE = r"[0-9]+"
DECIMAL = r"[0-9]*\.?[0-9]+(e-?[0-9]+)?|[0-9]+\."

# Methods and attacks are read from their files (`helpers.book.registered`). These lists repeat
# `helpers.tracing.SITES`, `helpers.models.DTYPES` and `Hiding` of
# `helpers.evaluation.meta.hidden_models`, which cannot be imported without torch.
SITES = ("heads", "attention", "mlp_in", "neurons", "mlp", "residual")
DTYPES = ("float32", "bfloat16", "float16")
HIDINGS = ("output", "refusal", "name filter", "subject shift")  # the first is attacked in any case
ALL_METHODS = [m.name for m in method_names() if "pair" in m.takes]
SAE_METHODS = [m.name for m in method_names() if m.needs_saes]


def is_one_of(
    kind: str, names: Sequence[str], *, unfit: Sequence[str] = (), why: str = ""
) -> Callable[[str], str]:
    """Make a check that a text is one of the names.

    Args:
        kind: What the names name, for the sentence.
        names: All names that exist.
        unfit: Those of them that a chapter cannot use.
        why: Why it cannot, as the predicate of a sentence.
    """

    def check(text: str) -> str:
        if text not in names:
            raise ValueError(f"there is no {kind} '{visible(text)}'{suggestion(text, names)}")
        if text in unfit:
            raise ValueError(f"'{text}' {why}")
        return text

    return check


def check_methods(text: str) -> str:
    """Check `all` or names of methods by commas, of any family; a chapter picks its own family."""
    names = [name.strip() for name in text.split(",")]
    if names == ["all"]:
        return "all"
    for name in names:
        is_one_of("method", ALL_METHODS)(name)
    return text


def are_methods(
    fits: Callable[[MethodName], bool], why: str, *, among: Sequence[str]
) -> AfterValidator:
    """Make a check of names by commas of some methods, none of which reads SAEs.

    Args:
        fits: Tells whether a chapter can use a method without SAEs.
        why: Why it cannot use another, as the predicate of a sentence.
        among: All names that are methods for the chapter.
    """
    fit = [m.name for m in method_names() if fits(m) and not m.needs_saes]
    unfit = [name for name in among if name not in fit]
    check_one = is_one_of(
        "method", among, unfit=unfit, why=f"{why} here: choose from {', '.join(fit)}"
    )

    return are_each(check_one)


def are_each(check_one: Callable[[str], str]) -> AfterValidator:
    """Make a check of names by commas, each of which `check_one` accepts."""

    def check(text: str) -> str:
        for name in text.split(","):
            check_one(name.strip())
        return text

    return AfterValidator(check)


def check_attacks(text: str) -> str:
    """Check `all`, `short` or names of attacks by commas; old names become new.

    Names include `paraphrases`.
    """
    names = [name.strip() for name in text.split(",")]
    if names in (["all"], ["short"]):
        return names[0]
    names = [renamed_attacks().get(name, name) for name in names]
    for name in names:
        is_one_of("attack", attack_names())(name)
    if "paraphrases" not in names:
        raise ValueError("every verdict begins with the attack 'paraphrases': add it")
    return ", ".join(names)


def are_numbers(pattern: str, description: str, *, allow_none: bool = False) -> AfterValidator:
    """Make a check of positive numbers by commas.

    Args:
        pattern: Regular expression of one number.
        description: What the numbers should be, for the sentence.
        allow_none: Accept a text without any number.
    """

    def check(text: str) -> str:
        numbers = [part.strip() for part in text.split(",") if part.strip()]
        fit = all(re.fullmatch(pattern, part) and 0 < float(part) <= MAX_COUNT for part in numbers)
        if not fit or not (numbers or allow_none):
            limit = f"at most {MAX_COUNT:,} each"
            raise ValueError(f"give {description} separated by commas, of {limit}")
        return text

    return AfterValidator(check)


Steps = are_numbers(WHOLE, "whole numbers of steps")
LearningRates = are_numbers(DECIMAL, "positive learning rates")
OneSite = AfterValidator(is_one_of("site", SITES))
OneDtype = AfterValidator(is_one_of("dtype", DTYPES))
OneMethod = AfterValidator(
    is_one_of(
        "method", ALL_METHODS, unfit=SAE_METHODS, why="needs SAEs, which this chapter has none of"
    )
)
Methods = AfterValidator(check_methods)
EVERY_METHOD = [m.name for m in method_names()]
MethodsOfPairs = are_methods(
    lambda m: "pairs" in m.takes, "does not forget several facts together", among=EVERY_METHOD
)
MethodsOfText = are_methods(lambda m: "text" in m.takes, "does not forget text", among=EVERY_METHOD)
TrainingMethodNames = are_methods(
    lambda m: m.family == "training" and "pair" in m.takes,
    "is not looked into",
    among=ALL_METHODS,
)
Attacks = AfterValidator(check_attacks)
Hidings = are_each(is_one_of("way of hiding", HIDINGS))


def error_sentence(error: ValidationError, parameters: Sequence[str]) -> str:
    """Return the first problem that pydantic reports as a sentence.

    Args:
        error: Problems of a notebook's parameters.
        parameters: Names of all parameters of the notebook.
    """
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] in ("extra_forbidden", "invalid_key"):
        shown = visible(name)[:100]
        return f"there is no parameter '{shown}'{suggestion(name, parameters)}."
    problem = first["msg"].removeprefix("Value error, ").rstrip(".")
    value = visible(repr(first["input"]))
    value = value if len(value) <= 200 else f"{value[:200]}…"
    return f"parameter '{name}' is {value}: {problem[:1].lower()}{problem[1:]}."
