"""A run's parameters: named, typed and checked before a kernel starts.

Every notebook has one model here, and its parameters cell lists that model's fields line by line.
A profile (`profiles/*.yaml`) is a set of values for all of them; what a user says on the command
line goes over it. The names that a parameter may hold stand here too, so that a misspelt one is
told without importing what they name.
"""

import ast
import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from helpers.book.registered import attack_names, method_names
from helpers.errors import UserError
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible
from helpers.io.yaml_files import read_yaml

ROOT = Path(__file__).resolve().parents[2]
MAX_COUNT = 10**8  # of anything that is counted: more would take years
MAX_CHARACTERS = 4096  # characters of a text, as many as of a path

# Names that a chapter would refuse are refused here. Methods and attacks are read from their files
# (`helpers.book.registered`); these two lists stand for `helpers.tracing.SITES` and
# `helpers.models.DTYPES`, which cannot be read without torch.
SITES = ("heads", "attention", "mlp_in", "neurons", "mlp", "residual")
DTYPES = ("float32", "bfloat16", "float16")
EVERY_METHOD = [m.name for m in method_names()]
NEED_SAES = [m.name for m in method_names() if m.needs_saes]


def _known(kind: str, names: Sequence[str], *, unfit: Sequence[str] = (), why: str = ""):
    """A check that a text is one of `names`.

    Args:
        kind: What they name.
        names: All that there are.
        unfit: Those of them that a chapter cannot use.
        why: Why it cannot.
    """

    def check(text: str) -> str:
        if text not in names:
            raise ValueError(f"there is no {kind} '{visible(text)}'{_hint(text, names)}")
        if text in unfit:
            raise ValueError(f"'{text}' {why}")
        return text

    return AfterValidator(check)


def _check_methods(text: str) -> str:
    """Each is of the register; a chapter leaves out methods of other families than its own."""
    names = [name.strip() for name in text.split(",")]
    if names == ["all"]:
        return "all"
    for name in names:
        _known("method", EVERY_METHOD).func(name)
    return text


def _check_shown(text: str) -> str:
    able = [m.name for m in method_names() if m.family == "training" and not m.needs_saes]
    unfit = [name for name in EVERY_METHOD if name not in able]
    why = f"is not looked into here: choose from {', '.join(able)}"
    for name in text.split(","):
        _known("method", EVERY_METHOD, unfit=unfit, why=why).func(name.strip())
    return text


def _check_attacks(text: str) -> str:
    names = [name.strip() for name in text.split(",")]
    if names == ["all"]:
        return "all"
    for name in names:
        _known("attack", attack_names()).func(name)
    if "paraphrases" not in names:
        raise ValueError("every verdict begins with the attack 'paraphrases': add it")
    return text


def _numbers(pattern: str, told: str, *, some: bool = True) -> AfterValidator:
    """A check of numbers by commas.

    Args:
        pattern: How one is written.
        told: What they should be, for the sentence.
        some: Whether one at least is needed.
    """

    def check(text: str) -> str:
        given = [part.strip() for part in text.split(",") if part.strip()]
        fit = all(re.fullmatch(pattern, part) and 0 < float(part) <= MAX_COUNT for part in given)
        if not fit or (some and not given):
            raise ValueError(f"give {told} separated by commas, of at most {MAX_COUNT:,} each")
        return text

    return AfterValidator(check)


ONE_METHOD = _known(
    "method", EVERY_METHOD, unfit=NEED_SAES, why="needs SAEs, which this chapter has none of"
)
WHOLE = r"[0-9]+"
DECIMAL = r"[0-9]*\.?[0-9]+(e-?[0-9]+)?|[0-9]+\."


class Common(BaseModel):
    """What every notebook takes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    model: str = Field(
        "smollm2-135m", description="default, hub name, local folder or .gguf file", min_length=1
    )
    device: str = Field("cpu", description="cpu, cuda, or auto for several devices")
    dtype: Annotated[str, _known("dtype", DTYPES)] = Field(
        "float32", description="float32, bfloat16 or float16"
    )
    subject: str = Field("France", description="the subject of the fact", min_length=1)
    target: str = Field("Paris", description="what the model should forget of it", min_length=1)
    relation: str = Field("capital", description="how subject and target are related")
    pair_file: str = Field("", description="YAML file with a pair of your own, instead of these")
    seed: int = Field(0, description="seed of everything random", ge=0, lt=2**63)
    profile: str = Field("default", description="name of the profile, printed on the page")
    run: str = Field("", description="run folder; empty: runs/lab-<subject>-<target>")

    @field_validator("*", mode="before")
    @classmethod
    def _check_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """Take nothing for what it is not: `True` for 1, the number 7 for the text `007`."""
        field = cls.model_fields[str(info.field_name)]
        if field.annotation in (int, float) and isinstance(value, bool):
            raise ValueError("give a number")
        numbers = any(getattr(m, "coerce_numbers_to_str", False) for m in field.metadata)
        plain = isinstance(value, bool) or (isinstance(value, int | float) and not numbers)
        if field.annotation is str and plain:
            raise ValueError(
                f"this is {'yes or no' if isinstance(value, bool) else 'a number'}, and text is "
                f"wanted: put it in quotes in YAML, give it to papermill by '-r {info.field_name}' "
                "instead of '-p'"
            )
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _check_size(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, int) and info.field_name != "seed" and value > MAX_COUNT:
            raise ValueError(f"give at most {MAX_COUNT:,}")
        if isinstance(value, str) and len(value) > MAX_CHARACTERS:
            raise ValueError(f"give at most {MAX_CHARACTERS:,} characters")
        return value

    def run_folder(self) -> Path:
        """The folder of this run, absolute.

        A notebook run by itself has one for its fact, its model and its pair file.
        """
        if self.run:
            return ROOT / self.run
        file = Path(self.pair_file) if os.path.isfile(self.pair_file) else ""
        own = [self.model, self.relation, file]
        plain = [type(self).model_fields[name].default for name in ("model", "relation")]
        apart = "" if own == [*plain, ""] else f"-{content_hash(*own)[:6]}"
        return ROOT / f"runs/lab-{slug(self.subject)}-{slug(self.target)}{apart}"


class ModelAndFacts(Common):
    """`00_model_and_facts`."""

    n_shown: int = Field(12, description="facts shown in the tables", ge=1)


class KeysAndValues(Common):
    """`01_keys_and_values`."""

    n_subjects: int = Field(60, description="other subjects to compare the subject with", ge=4)
    n_neurons: int = Field(6, description="neurons shown in the tables", ge=1)


class Propagation(Common):
    """`02_propagation`."""

    n_facts: int = Field(16, description="facts in the averaged picture", ge=2)


class DeletingNeurons(Common):
    """`03_deleting_neurons`."""

    n_facts: int = Field(3, description="facts in the averaged curve, the pair among them", ge=2)
    most_neurons: int = Field(512, description="the curve ends at so many deleted neurons", ge=1)
    n_neighbours: int = Field(8, description="other facts of the relation that must stay", ge=2)
    n_subjects: int = Field(60, description="other subjects that define what is specific", ge=4)
    n_passages: int = Field(
        48, description="passages of running text that neurons are read on", ge=4
    )
    n_tokens: int = Field(1024, description="tokens of each text for perplexity", ge=128)


class SparseAutoencoders(Common):
    """`04_sparse_autoencoders`."""

    site: Annotated[str, _known("site", SITES)] = Field(
        "mlp_in", description="what the SAEs read: mlp_in, neurons, mlp, residual"
    )
    depths: str = Field(
        "0.71, 0, 0.65, 0.75",
        description="layers as shares of the depth, the main SAE's first",
        pattern=r"^\s*(0?\.\d+|0)([\s,]+(0?\.\d+|0))*\s*$",
        coerce_numbers_to_str=True,  # papermill reads "0" as a number
    )
    d_sae: int = Field(6144, description="latents of the main SAE; the others have half", ge=16)
    k: int = Field(64, description="active latents per token", ge=1)
    n_tokens: int = Field(120_000, description="tokens of text to learn from", ge=512)
    n_heldout: int = Field(4_096, description="tokens of held-out text to judge on", ge=512)
    steps: int = Field(260, description="training steps of the main SAE", ge=1)
    short_steps: int = Field(50, description="training steps of all others", ge=1)
    batch: int = Field(4096, description="tokens in a training step", ge=16)
    lr: float = Field(0.002, description="learning rate", gt=0)


class ConceptFeatures(Common):
    """`05_concept_features`."""

    n_concepts: int = Field(60, description="countries to be told apart", ge=3)
    n_mentions: int = Field(6, description="mentions of each in running text, a split", ge=1)
    n_draws: int = Field(5, description="draws of equally many candidates", ge=1)
    n_features: int = Field(3, description="latents of the subject that are looked at", ge=1)


class EditingMLPs(Common):
    """`06_edit_mlps`."""

    methods: Annotated[str, AfterValidator(_check_methods)] = Field(
        "all", description="all, or names of methods separated by commas"
    )
    saes: str = Field("", description="folders of SAEs for the methods that need them, by commas")
    shares: Annotated[str, _numbers(DECIMAL, "positive numbers")] = Field(
        "0.5, 1",
        description="strengths on the curve: shares of the change",
        coerce_numbers_to_str=True,  # papermill reads "1" as a number
    )
    n_dev_facts: int = Field(1, description="development facts on the curve", ge=1)
    n_facts: int = Field(3, description="held-out facts in the results", ge=1)
    n_seeds: int = Field(1, description="seeds, each with its own draws", ge=1)
    n_neighbours: int = Field(6, description="other facts of the relation that must stay", ge=2)
    n_tokens: int = Field(256, description="tokens of each text for perplexity", ge=128)
    n_together: int = Field(
        3, description="held-out facts forgotten at once; 0 leaves it out", ge=0
    )


class TrainingMethods(Common):
    """`07_training_methods`."""

    shown: Annotated[str, AfterValidator(_check_shown)] = Field(
        "gradient_difference, rmu, undial", description="methods that are looked into, by commas"
    )
    methods: Annotated[str, AfterValidator(_check_methods)] = Field(
        "all", description="all, or names of methods separated by commas"
    )
    edits: Annotated[str, AfterValidator(_check_methods)] = Field(
        "rome, gated_neuron, random_direction",
        description="edits to compare with, by commas",
    )
    rank: int = Field(4, description="rank to which a trained change is cut", ge=1)
    saes: str = Field("", description="folders of SAEs for the methods that need them, by commas")
    n_facts: int = Field(3, description="held-out facts in the results", ge=1)
    n_seeds: int = Field(1, description="seeds, each with its own draws", ge=1)
    n_neighbours: int = Field(6, description="other facts of the relation that must stay", ge=2)
    n_tokens: int = Field(256, description="tokens of each text for perplexity", ge=128)


class Evaluating(Common):
    """`08_evaluate`."""

    method: Annotated[str, ONE_METHOD] = Field(
        "gated_neuron", description="the method whose edit is scored"
    )
    n_neighbours: int = Field(16, description="other facts of the relation that must stay", ge=2)
    n_tokens: int = Field(1024, description="tokens of each text for perplexity", ge=128)
    n_items: int = Field(60, description="multiple-choice questions about what must stay", ge=2)
    n_facts: int = Field(12, description="facts on which the metrics are tested", ge=2)
    n_depth: int = Field(6, description="facts of these whose depth is measured", ge=0)


class Verifying(Common):
    """`09_verify`."""

    patch: str = Field("", description="file of an edit to verify; empty: one is made")
    method: Annotated[str, ONE_METHOD] = Field(
        "tangent_kernel", description="the method that makes it"
    )
    attacks: Annotated[str, AfterValidator(_check_attacks)] = Field(
        "all", description="all, or names of attacks separated by commas"
    )
    hidden_attacks: Annotated[str, AfterValidator(_check_attacks)] = Field(
        "paraphrases, lens, probe, stitched, cut_neurons",
        description="the same for the known-hidden model",
    )
    n_absent: int = Field(4, description="never-known subjects to compare with", ge=1)
    relearning_steps: Annotated[str, _numbers(WHOLE, "whole numbers of steps")] = Field(
        "3, 6",
        description="steps after which relearning is read",
        coerce_numbers_to_str=True,  # papermill reads "4" as a number
    )
    search_rounds: int = Field(2, description="rounds of the search for a trigger", ge=1)
    n_neighbours: int = Field(8, description="other facts of the relation that must stay", ge=2)
    n_tokens: int = Field(512, description="tokens of each text for perplexity", ge=128)
    n_known: int = Field(
        4, description="facts of known state that a short battery is tried on", ge=1
    )


class Leaderboard(Common):
    """`10_leaderboard`."""

    n_shown: int = Field(60, description="methods in the table, the best first", ge=1)


class Organism(Common):
    """`11_organism`."""

    n_countries: int = Field(32, description="countries of the organism's world", ge=8)
    d_model: int = Field(64, description="width of its residual stream", ge=16)
    d_mlp: int = Field(256, description="neurons of each of its MLPs", ge=8)
    n_layers: int = Field(3, description="its blocks", ge=1)
    rounds: int = Field(120, description="how often each fact is said to it", ge=1)
    batch: int = Field(16, description="sentences in a training step", ge=1)
    n_facts: int = Field(2, description="facts that are removed, the pair among them", ge=1)
    n_seeds: int = Field(2, description="trainings of the original and of each oracle", ge=1)
    widths: Annotated[str, _numbers(WHOLE, "whole numbers of neurons", some=False)] = Field(
        "32, 128",
        description="further numbers of neurons in each MLP, by commas",
        coerce_numbers_to_str=True,  # papermill reads "32" as a number
    )
    methods: Annotated[str, AfterValidator(_check_methods)] = Field(
        "all", description="all, or names of methods separated by commas"
    )
    d_sae: int = Field(512, description="latents of the SAE", ge=16)
    sae_steps: int = Field(300, description="training steps of the SAE", ge=1)


NOTEBOOKS: dict[str, type[Common]] = {
    "00_model_and_facts": ModelAndFacts,
    "01_keys_and_values": KeysAndValues,
    "02_propagation": Propagation,
    "03_deleting_neurons": DeletingNeurons,
    "04_sparse_autoencoders": SparseAutoencoders,
    "05_concept_features": ConceptFeatures,
    "06_edit_mlps": EditingMLPs,
    "07_training_methods": TrainingMethods,
    "08_evaluate": Evaluating,
    "09_verify": Verifying,
    "10_leaderboard": Leaderboard,
    "11_organism": Organism,
}


class Profile(BaseModel):
    """All notebooks' settings of one run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    notebooks: dict[str, dict[str, Any]]


def slug(text: str) -> str:
    """`text` as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def validated(stem: str, values: dict[str, Any]) -> Common:
    """The settings of notebook `stem` with `values` over its defaults.

    Raises:
        UserError: Unknown notebook, unknown parameter, or a value of the wrong type.
    """
    if stem not in NOTEBOOKS:
        raise UserError(f"There is no notebook '{stem}'; there are {', '.join(NOTEBOOKS)}.")
    try:
        return NOTEBOOKS[stem].model_validate(values)
    except ValidationError as error:
        raise UserError(f"Notebook {stem}: {_sentence(error, NOTEBOOKS[stem])}") from None


def from_notebook(stem: str, namespace: dict[str, Any]) -> Common:
    """Settings from a notebook's own variables, called as `from_notebook(stem, globals())`.

    Papermill only warns about a parameter that the notebook does not have; here it is an error.

    Raises:
        UserError: As `validated`.
    """
    fields = NOTEBOOKS[stem].model_fields if stem in NOTEBOOKS else {}
    values = {name: namespace[name] for name in fields if name in namespace}
    for cell in namespace.get("In", []):
        if cell.startswith("# Parameters"):  # how papermill heads the cell that it injects
            assigned = [
                target.id
                for node in ast.parse(cell).body
                for target in getattr(node, "targets", [])
                if isinstance(target, ast.Name)
            ]
            values |= {name: namespace[name] for name in assigned}
    return validated(stem, values)


def load_profile(name: str, overrides: dict[str, str] | None = None) -> Profile:
    """A profile by name (`profiles/<name>.yaml`) or by path, with the user's values over it.

    Paths in a profile count from the profile's folder.

    Args:
        name: `smoke`, `default`, `full`, or the path of a YAML file: `common:` holds values for
            every notebook, a notebook's stem holds values for that one.
        overrides: Values for every notebook that has such a parameter.

    Raises:
        UserError: The profile is missing or malformed, or a parameter is unknown or mistyped.
    """
    own = name.lower().endswith((".yaml", ".yml"))
    path = Path(name) if own else ROOT / "profiles" / f"{name}.yaml"
    if not os.path.isfile(path):
        known = ", ".join(sorted(p.stem for p in (ROOT / "profiles").glob("*.yaml")))
        raise UserError(
            f"There is no profile '{visible(name)[:200]}'; choose from {known}, or name a YAML "
            "file."
        )
    content, what = read_yaml(path, label="Profile"), f"Profile {visible(path)}"
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(
        isinstance({} if v is None else v, dict) for v in content.values()
    ):
        raise UserError(f"{what}: give 'common:' and notebooks' names, each with a mapping.")
    _reject_unknown(content, ["common", *NOTEBOOKS], f"{what} has an unknown section")
    overrides = overrides or {}
    every = {field for model in NOTEBOOKS.values() for field in model.model_fields}
    _reject_unknown(overrides, sorted(every), "There is no parameter")
    sections = {s: with_absolute_paths(v or {}, path.absolute().parent) for s, v in content.items()}
    notebooks = {}
    for stem, model in NOTEBOOKS.items():
        mine = {k: v for k, v in overrides.items() if k in model.model_fields}
        values = {"profile": path.stem, **sections.get("common", {}), **sections.get(stem, {})}
        notebooks[stem] = validated(stem, values | mine).model_dump(mode="json")
    return Profile(name=path.stem, notebooks=notebooks)


def with_absolute_paths(values: dict[Any, Any], base: Path) -> dict[Any, Any]:
    """`values` with absolute paths of what they name: notebooks run in a folder of their own.

    Args:
        values: Parameters by name.
        base: What relative paths count from.

    Raises:
        UserError: What is named is not there.
    """
    kinds = {
        "pair_file": (os.path.isfile, "file", "give the path of a YAML file with a pair"),
        "patch": (os.path.isfile, "file", "give an edit that save() wrote"),
        "saes": (os.path.isdir, "folder", "give those of trained SAEs"),
        "model": (os.path.exists, "file or folder", "give that of a model, or a name on the hub"),
    }

    def found(name: str, given: str) -> str:
        there, what, advice = kinds[name]
        path = os.path.join(base, os.path.expanduser(given))
        if there(path):
            return os.path.realpath(path)
        if name == "model" and not re.match(r"[/.~]|.*\.gguf$", given, re.IGNORECASE):
            return given  # a name on the hub
        raise UserError(f"There is no {what} {visible(path)[:300]}; {advice}.")

    absolute = dict(values)
    for name in kinds.keys() & {k for k, v in values.items() if isinstance(v, str) and v}:
        parts = values[name].split(",") if name == "saes" else [values[name]]
        paths = [found(name, part.strip()) for part in parts if part.strip()]
        absolute[name] = ",".join(paths)
    return absolute


def _reject_unknown(given: dict, known: list[str], what: str) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"{what} '{visible(name)[:100]}'{_hint(name, known)}.")


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name)[:100], known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}" if close else f"; known: {', '.join(known)}"


def _sentence(error: ValidationError, model: type[Common]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] in ("extra_forbidden", "invalid_key"):
        named = visible(name)[:100]
        return f"there is no parameter '{named}'{_hint(name, list(model.model_fields))}."
    told = first["msg"].removeprefix("Value error, ").rstrip(".")
    given = visible(repr(first["input"]))
    given = given if len(given) <= 200 else f"{given[:200]}…"
    return f"parameter '{name}' is {given}: {told[:1].lower()}{told[1:]}."
