"""A run's parameters: named, typed and checked before a kernel starts.

Every notebook has one model here, and its parameters cell lists that model's fields line by line.
A profile (`profiles/*.yaml`) is a set of values for all of them; what a user says on the command
line goes over it.
"""

import ast
import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from helpers.artifacts import content_hash
from helpers.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


class Common(BaseModel):
    """What every notebook takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = Field("smollm2-135m", description="default, hub name, local folder or .gguf file")
    device: str = Field("cpu", description="cpu, cuda, or auto for several devices")
    dtype: str = Field("float32", description="float32, bfloat16 or float16")
    subject: str = Field("France", description="the subject of the fact", min_length=1)
    target: str = Field("Paris", description="what the model should forget of it", min_length=1)
    relation: str = Field("capital", description="how subject and target are related")
    pair_file: str = Field("", description="YAML file with a pair of your own, instead of these")
    seed: int = Field(0, description="seed of everything random", ge=0)
    profile: str = Field("default", description="name of the profile, printed on the page")
    run: str = Field("", description="run folder; empty: runs/lab-<subject>-<target>")

    def run_folder(self) -> Path:
        """The folder of this run, absolute.

        A notebook run by itself has one for its fact, its model and its pair file.
        """
        if self.run:
            return ROOT / self.run
        file = Path(self.pair_file)
        own = [self.model, self.relation, file if file.is_file() else ""]
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

    site: str = Field("mlp_in", description="what the SAEs read: mlp_in, neurons, mlp, residual")
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

    methods: str = Field("all", description="all, or names of methods separated by commas")
    saes: str = Field("", description="folders of SAEs for the methods that need them, by commas")
    shares: str = Field(
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

    shown: str = Field(
        "gradient_difference, rmu, undial", description="methods that are looked into, by commas"
    )
    methods: str = Field("all", description="all, or names of methods separated by commas")
    edits: str = Field(
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

    method: str = Field("gated_neuron", description="the method whose edit is scored")
    n_neighbours: int = Field(16, description="other facts of the relation that must stay", ge=2)
    n_tokens: int = Field(1024, description="tokens of each text for perplexity", ge=128)
    n_items: int = Field(60, description="multiple-choice questions about what must stay", ge=2)
    n_facts: int = Field(12, description="facts on which the metrics are tested", ge=2)
    n_depth: int = Field(6, description="facts of these whose depth is measured", ge=0)


class Verifying(Common):
    """`09_verify`."""

    patch: str = Field("", description="file of an edit to verify; empty: one is made")
    method: str = Field("tangent_kernel", description="the method that makes it")
    attacks: str = Field("all", description="all, or names of attacks separated by commas")
    hidden_attacks: str = Field(
        "paraphrases, lens, probe, stitched, cut_neurons",
        description="the same for the known-hidden model",
    )
    n_absent: int = Field(4, description="never-known subjects to compare with", ge=1)
    relearning_steps: str = Field(
        "3, 6",
        description="steps after which relearning is read",
        pattern=r"^\s*[1-9]\d*(\s*,\s*[1-9]\d*)*\s*$",
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
    widths: str = Field(
        "32, 128",
        description="further numbers of neurons in each MLP, by commas",
        coerce_numbers_to_str=True,  # papermill reads "32" as a number
    )
    methods: str = Field("all", description="all, or names of methods separated by commas")
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
        return NOTEBOOKS[stem](**values)
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

    Args:
        name: `smoke`, `default`, `full`, or the path of a YAML file: `common:` holds values for
            every notebook, a notebook's stem holds values for that one.
        overrides: Values for every notebook that has such a parameter.

    Raises:
        UserError: The profile is missing or malformed, or a parameter is unknown or mistyped.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else ROOT / "profiles" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (ROOT / "profiles").glob("*.yaml")))
        raise UserError(f"There is no profile '{name}'; choose from {known}, or name a YAML file.")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise UserError(f"Profile {path} is not valid YAML: {_one_line(error)}.") from None
    if not isinstance(content, dict) or not all(
        isinstance(v or {}, dict) for v in content.values()
    ):
        raise UserError(
            f"Profile {path}: give 'common:' and notebooks' names, each with a mapping."
        )
    _reject_unknown(content, ["common", *NOTEBOOKS], f"Profile {path} has an unknown section")
    overrides = overrides or {}
    every = {field for model in NOTEBOOKS.values() for field in model.model_fields}
    _reject_unknown(overrides, sorted(every), "There is no parameter")
    common = content.get("common") or {}
    notebooks = {}
    for stem, model in NOTEBOOKS.items():
        mine = {k: v for k, v in overrides.items() if k in model.model_fields}
        values = {"profile": path.stem, **common, **(content.get(stem) or {}), **mine}
        notebooks[stem] = validated(stem, values).model_dump(mode="json")
    return Profile(name=path.stem, notebooks=notebooks)


def _reject_unknown(given: dict, known: list[str], what: str) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"{what} '{name}'{_hint(name, known)}.")


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(known)}"


def _sentence(error: ValidationError, model: type[Common]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return f"there is no parameter '{name}'{_hint(name, list(model.model_fields))}."
    return f"parameter '{name}' is {first['input']!r}: {first['msg'].lower()}."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
