"""The parameters of each notebook: named, typed and checked before a kernel starts.

Every notebook has one model here, and its parameters cell lists that model's fields line by line.
`helpers.book.profiles` reads a set of values for all of them.
"""

import ast
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from helpers.book import value_checks as checks
from helpers.book.common_settings import ROOT, Common, slug
from helpers.errors import UserError

__all__ = ["NOTEBOOKS", "ROOT", "Common", "current_names", "from_notebook", "slug", "validated"]

# Old name of a parameter → its name; profiles and commands may still use the old one.
RENAMED_PARAMETERS = {
    "most_neurons": "max_neurons",
    "shares": "scales",
    "n_together": "n_batch_facts",
    "n_absent": "n_controls",
    "rounds": "n_repeats",
}


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

    n_facts: int = Field(2, description="facts in the averaged curve, the pair among them", ge=2)
    max_neurons: int = Field(512, description="largest number of deleted neurons", ge=1)
    n_neighbours: int = Field(8, description="other facts of the relation that must stay", ge=2)
    n_subjects: int = Field(60, description="other subjects that define what is specific", ge=4)
    n_passages: int = Field(48, description="passages on which neurons are read", ge=4)
    n_tokens: int = Field(1024, description="tokens of each text for perplexity", ge=128)


class SparseAutoencoders(Common):
    """`04_sparse_autoencoders`."""

    site: Annotated[str, checks.OneSite] = Field(
        "mlp_in", description="input of the SAEs: mlp_in, neurons, mlp or residual"
    )
    depths: str = Field(
        "0.71, 0, 0.65, 0.75",
        description="layers as shares of the depth, the main SAE's first",
        pattern=r"^\s*(0?\.\d+|0)([\s,]+(0?\.\d+|0))*\s*$",
        coerce_numbers_to_str=True,  # papermill reads "0" as a number
    )
    d_sae: int = Field(6144, description="latents of the main SAE; the others have half", ge=16)
    k: int = Field(64, description="active latents per token", ge=1)
    n_tokens: int = Field(60_000, description="tokens of training text", ge=512)
    n_heldout: int = Field(4_096, description="tokens of held-out text for evaluation", ge=512)
    steps: int = Field(160, description="training steps of the main SAE", ge=1)
    short_steps: int = Field(40, description="training steps of all others", ge=1)
    batch: int = Field(4096, description="tokens in a training step", ge=16)
    lr: float = Field(0.002, description="learning rate", gt=0)


class ConceptFeatures(Common):
    """`05_concept_features`."""

    n_concepts: int = Field(60, description="countries to distinguish", ge=3)
    n_mentions: int = Field(6, description="mentions of each in running text, a split", ge=1)
    n_draws: int = Field(5, description="draws of equally many candidates", ge=1)
    n_features: int = Field(3, description="latents of the subject that are looked at", ge=1)


class EditingMLPs(Common):
    """`06_edit_mlps`."""

    methods: Annotated[str, checks.Methods] = Field(
        "neurons, rome, memit, gated_neuron, sae_pair, random_direction",
        description="all, or names",
    )
    compared: Annotated[str, checks.Methods] = Field(
        "rome, gated_neuron, concept_removal",
        description="edits of the fact, side by side",
    )
    saes: str = Field("", description="folders of SAEs for the methods that need them, by commas")
    scales: Annotated[str, checks.are_numbers(checks.DECIMAL, "positive numbers")] = Field(
        "0.5, 1",
        description="strengths on the curve: factors of the edit",
        coerce_numbers_to_str=True,  # papermill reads "1" as a number
    )
    n_dev_facts: int = Field(1, description="development facts on the curve", ge=1)
    n_facts: int = Field(1, description="held-out facts in the results", ge=1)
    n_seeds: int = Field(1, description="seeds, each with its own draws", ge=1)
    n_neighbours: int = Field(6, description="other facts of the relation that must stay", ge=2)
    n_tokens: int = Field(1024, description="tokens of each text for perplexity", ge=128)
    attacks: Annotated[str, checks.Attacks] = Field(
        "paraphrases, described, stitching, truncation",
        description="attacks on each held-out edit",
    )
    n_batch_facts: int = Field(
        3, description="held-out facts forgotten at once; 0 leaves it out", ge=0
    )


class TrainingMethods(Common):
    """`07_training_methods`."""

    shown: Annotated[str, checks.TrainingMethodNames] = Field(
        "gradient_difference, rmu, undial", description="methods that are looked into, by commas"
    )
    methods: Annotated[str, checks.Methods] = Field(
        "gradient_difference, npo, rmu, sae_clamp, in_context",
        description="all, or names",
    )
    edits: Annotated[str, checks.Methods] = Field(
        "rome, random_direction", description="edits to compare with, by commas"
    )
    rank: int = Field(4, description="rank to which a trained change is cut", ge=1)
    saes: str = Field("", description="folders of SAEs for the methods that need them, by commas")
    n_facts: int = Field(1, description="held-out facts in the results", ge=1)
    n_seeds: int = Field(1, description="seeds, each with its own draws", ge=1)
    n_neighbours: int = Field(6, description="other facts of the relation that must stay", ge=2)
    n_tokens: int = Field(1024, description="tokens of each text for perplexity", ge=128)
    attacks: Annotated[str, checks.Attacks] = Field(
        "paraphrases, described, stitching, truncation",
        description="attacks on each held-out edit",
    )


class Evaluating(Common):
    """`08_evaluate`."""

    method: Annotated[str, checks.OneMethod] = Field(
        "gated_neuron", description="the method whose edit is evaluated"
    )
    n_neighbours: int = Field(16, description="other facts of the relation that must stay", ge=2)
    n_tokens: int = Field(1024, description="tokens of each text for perplexity", ge=128)
    n_items: int = Field(60, description="multiple-choice questions about what must stay", ge=2)
    n_facts: int = Field(6, description="facts on which the metrics are tested", ge=2)
    n_depth: int = Field(5, description="facts of these whose depth is measured", ge=0)


class Verifying(Common):
    """`09_verify`."""

    patch: str = Field("", description="file of an edit to verify; empty: one is made")
    checkpoint: str = Field("", description="instead: another checkpoint of the model, or adapter")
    retrained: str = Field("", description="a checkpoint that was trained without the fact")
    method: Annotated[str, checks.OneMethod] = Field(
        "gated_neuron", description="the method that makes it"
    )
    attacks: Annotated[str, checks.Attacks] = Field(
        "all", description="all, short, or names of attacks separated by commas"
    )
    hidden_attacks: Annotated[str, checks.Attacks] = Field(
        "all", description="attacks that are tried on models that hide the fact"
    )
    hidings: Annotated[str, checks.Hidings] = Field(
        ", ".join(checks.HIDINGS), description="ways in which these hide it"
    )
    n_controls: int = Field(2, description="control facts to compare with", ge=1)
    relearning_steps: Annotated[str, checks.Steps] = Field(
        "5",  # papermill reads it as a number
        description="steps after which relearning is measured",
        coerce_numbers_to_str=True,
    )
    relearning_rates: Annotated[str, checks.LearningRates] = Field(
        "3e-4", description="learning rates of relearning", coerce_numbers_to_str=True
    )
    search_rounds: int = Field(2, description="rounds of the search for a trigger", ge=1)
    n_neighbours: int = Field(8, description="other facts of the relation that must stay", ge=2)
    n_tokens: int = Field(2048, description="tokens of each text for perplexity", ge=128)
    n_known: int = Field(2, description="facts of known state on which a battery is tested", ge=1)
    known_attacks: Annotated[str, checks.Attacks] = Field(
        "short", description="attacks of this battery: short, all, or names"
    )

    @field_validator("checkpoint")
    @classmethod
    def _check_one_edit(cls, checkpoint: str, info: ValidationInfo) -> str:
        """Refuse a checkpoint beside a patch: one edit is verified at a time."""
        if checkpoint and info.data.get("patch"):
            raise ValueError("a patch is given too: leave one of the two away")
        return checkpoint


class Leaderboard(Common):
    """`10_leaderboard`."""

    n_shown: int = Field(60, description="methods in the table, the best first", ge=1)


class Organism(Common):
    """`11_organism`."""

    trains_own_model: ClassVar[bool] = True

    n_countries: int = Field(32, description="countries of the organism's world", ge=8)
    d_model: int = Field(64, description="width of its residual stream", ge=16)
    d_mlp: int = Field(256, description="neurons of each of its MLPs", ge=8)
    n_layers: int = Field(3, description="its blocks", ge=1)
    n_repeats: int = Field(80, description="times that each fact is in the training text", ge=1)
    batch: int = Field(16, description="sentences in a training step", ge=1)
    n_facts: int = Field(2, description="facts that are removed, the pair among them", ge=1)
    n_seeds: int = Field(2, description="trainings of the original and of each oracle", ge=1)
    widths: Annotated[
        str, checks.are_numbers(checks.WHOLE, "whole numbers of neurons", allow_none=True)
    ] = Field(
        "32",
        description="further numbers of neurons in each MLP, by commas",
        coerce_numbers_to_str=True,  # papermill reads "32" as a number
    )
    methods: Annotated[str, checks.Methods] = Field(
        "all", description="all, or names of methods separated by commas"
    )
    d_sae: int = Field(512, description="latents of the SAE", ge=16)
    sae_steps: int = Field(300, description="training steps of the SAE", ge=1)


class EntitiesAndTopics(Common):
    """`12_entities_and_topics`."""

    request_file: str = Field("", description="file of facts to forget, instead of the subject's")
    methods: Annotated[str, checks.MethodsOfPairs] = Field(
        "gated_neuron, memit", description="methods, by commas"
    )
    n_topic_facts: int = Field(6, description="known facts of the topic; 0 leaves it out", ge=0)
    n_neighbours: int = Field(12, description="facts of other subjects that must stay", ge=2)
    n_tokens: int = Field(1024, description="tokens of ordinary text", ge=128)
    n_ripple_facts: int = Field(5, description="facts whose consequences are asked", ge=1)
    n_taken_back: int = Field(0, description="facts that are taken back, one by one", ge=0)


class Capabilities(Common):
    """`13_capabilities`."""

    capability: str = Field("", description="what is removed; empty: the first the model has")
    request_file: str = Field("", description="file of text to forget, instead of the capability")
    methods: Annotated[str, checks.MethodsOfText] = Field(
        "selective_pruning, random_pruning, kfade", description="methods, by commas"
    )
    matrix: str = Field("", description="further capabilities of the matrix, by commas")
    relearning_steps: Annotated[str, checks.Steps] = Field(
        "5, 10",
        description="steps of fine-tuning, by commas",
        coerce_numbers_to_str=True,  # papermill reads "5" as a number
    )
    n_tokens: int = Field(512, description="tokens of each text that is measured", ge=128)


class Benchmarks(Common):
    """`14_benchmarks`."""

    n_people: int = Field(12, description="invented people", ge=2, le=240)
    n_forgotten: int = Field(4, description="those of them that are to be forgotten", ge=1)
    epochs: int = Field(8, description="times that fine-tuning sees each answer", ge=1)
    methods: Annotated[str, checks.MethodsOfText] = Field(
        "gradient_difference, npo, selective_pruning", description="methods, by commas"
    )
    n_steps: int = Field(12, description="steps of methods that train", ge=1)
    n_relearning_steps: int = Field(5, description="steps of fine-tuning, as an attack", ge=1)
    request_file: str = Field("", description="a benchmark's files to score, tofu:forget10.json")
    n_questions: int = Field(20, description="questions of each of these files", ge=2)

    @field_validator("n_forgotten")
    @classmethod
    def _check_some_stay(cls, n_forgotten: int, info: ValidationInfo) -> int:
        """Refuse to forget everybody."""
        if n_forgotten >= info.data.get("n_people", n_forgotten + 1):
            raise ValueError("some of the people have to stay: choose fewer than n_people")
        return n_forgotten


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
    "12_entities_and_topics": EntitiesAndTopics,
    "13_capabilities": Capabilities,
    "14_benchmarks": Benchmarks,
}


def validated(stem: str, values: dict[str, Any]) -> Common:
    """Return the settings of notebook `stem`, with `values` over its defaults.

    Raises:
        UserError: Unknown notebook, unknown parameter, or a value of the wrong type.
    """
    if stem not in NOTEBOOKS:
        raise UserError(f"There is no notebook '{stem}'; there are {', '.join(NOTEBOOKS)}.")
    try:
        return NOTEBOOKS[stem].model_validate(current_names(values))
    except ValidationError as error:
        known = list(NOTEBOOKS[stem].model_fields)
        raise UserError(f"Notebook {stem}: {checks.error_sentence(error, known)}") from None


def from_notebook(stem: str, namespace: dict[str, Any]) -> Common:
    """Return the settings that a notebook's variables hold; call it with `globals()`.

    Papermill only warns about a parameter that the notebook does not have; here it is an error.

    Raises:
        UserError: Unknown notebook, unknown parameter, or a value of the wrong type.
    """
    fields = NOTEBOOKS[stem].model_fields if stem in NOTEBOOKS else {}
    values = {name: namespace[name] for name in fields if name in namespace}
    for cell in namespace.get("In", []):
        if cell.startswith("# Parameters"):  # first line of the cell that papermill injects
            assigned = [
                target.id
                for node in ast.parse(cell).body
                for target in getattr(node, "targets", [])
                if isinstance(target, ast.Name)
            ]
            values |= {name: namespace[name] for name in assigned}
    return validated(stem, values)


def current_names(values: dict[Any, Any]) -> dict[Any, Any]:
    """Replace old names of parameters by those of today."""
    return {RENAMED_PARAMETERS.get(name, name): value for name, value in values.items()}
