"""Patches: an edit as one safetensors file, whose metadata are checked before they are used.

A file may come from anybody. One pydantic model (`Metadata`) validates its metadata; a checksum
over the metadata and another over the tensors reveal damage; and the tensors have to make an edit
together.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError, model_validator

from helpers.errors import UserError
from helpers.io.files import read_tensors, write_tensors
from helpers.io.hashing import content_hash, json_default
from helpers.io.manifest import versions
from helpers.io.safe_text import visible
from helpers.methods.change import tensors_hash
from helpers.methods.hook_intervention import HookIntervention, first_error
from helpers.methods.weight_edit import WeightEdit

FORMAT = "llm-unlearning/2"
OLDER = "llm-unlearning/1"  # has no checksum over the metadata, and its first files none at all

Text = Annotated[str, Field(min_length=1, max_length=1000)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
JsonObject = Json[dict[str, Any]]


class Fact(BaseModel):
    """The fact that an edit removes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    subject: Text
    target: Text
    relation: Text


class RequestedText(BaseModel):
    """The request for a text that an edit removes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request: Text
    kind: Text


class Metadata(BaseModel):
    """The metadata of a patch: how the edit was made, each entry a text.

    Attributes:
        format: `FORMAT`, or `OLDER`.
        method: Name of the method.
        pair: Subject, target and relation, or name and kind of a request for text; a list of them
            where several were solved together.
        hyperparameters: The method's hyperparameters.
        seed: Seed of everything random.
        seconds: Wall-clock time of the method.
        base_hash: `model_hash` of the model it was made on.
        notes: Plain data about how it was made.
        edited_tensors_hash: Hash of the tensors before a weight edit; called `touched_hash` in the
            file.
        rank: Largest rank of a weight edit's changes, for people who look into the file.
        norm: Frobenius norm of a weight edit, for people who look into the file.
        intervention: Kind of an intervention.
        settings: Settings of an intervention.
        versions: Versions of the packages that made it.
        content: Hash of the tensors.
        checksum: Hash of all other metadata.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal["llm-unlearning/1", "llm-unlearning/2"]
    method: Annotated[str, Field(min_length=1, max_length=100)]
    pair: Json[Fact | RequestedText | Annotated[list[Fact | RequestedText], Field(min_length=1)]]
    hyperparameters: JsonObject
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    base_hash: Hash
    notes: JsonObject
    edited_tensors_hash: Annotated[Hash | None, Field(alias="touched_hash")] = None
    rank: Annotated[int, Field(ge=1)] | None = None
    norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    intervention: Text | None = None
    settings: JsonObject | None = None
    versions: Json[dict[str, str]] | None = None
    content: Hash | None = None
    checksum: Hash | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Metadata":
        """Refuse what is neither a weight edit nor an intervention, and missing checksums."""
        weights = self.edited_tensors_hash is not None
        if weights == (self.intervention is not None) or weights == (self.settings is not None):
            raise ValueError(
                "it has to have either 'touched_hash' or 'intervention' and 'settings'"
            )
        if (self.format == FORMAT) != (self.checksum is not None):
            raise ValueError("its 'checksum' is missing, or the format has none")
        if self.format == FORMAT and self.content is None:
            raise ValueError("its 'content' is missing")
        return self


def write_patch(
    path: str | Path, delta: WeightEdit | HookIntervention, record: Mapping[str, Any]
) -> None:
    """Write an edit.

    Args:
        path: The file.
        delta: The change of the model.
        record: The other fields of `Edit`, by name.

    Raises:
        UserError: Something of it has no place in a patch; nothing is written.
    """
    tensors = delta.tensors()
    metadata = {
        "format": FORMAT,
        "method": record["method"],
        "pair": json.dumps(record["pair"]),
        "hyperparameters": json.dumps(record["hyperparameters"], default=json_default),
        "seed": str(record["seed"]),
        "seconds": repr(record["seconds"]),
        "base_hash": record["base_hash"],
        "notes": json.dumps(delta.notes, default=json_default),
        "versions": json.dumps(versions()),
        "content": tensors_hash(tensors),
    }
    if isinstance(delta, HookIntervention):
        metadata["intervention"] = delta.kind
        metadata["settings"] = json.dumps(delta.settings, default=json_default)
    else:
        metadata["touched_hash"] = delta.edited_tensors_hash
        metadata["rank"] = str(max(c.rank for c in delta.changes.values()))
        metadata["norm"] = repr(delta.norm())
    metadata["checksum"] = content_hash(metadata)
    try:
        Metadata.model_validate(metadata)
    except ValidationError as error:
        raise UserError(
            f"This edit cannot be written as a patch ({first_error(error)}): make it by unlearn(), "
            "or give it what is missing."
        ) from None
    write_tensors(path, tensors, metadata)


def read_patch(path: str | Path) -> tuple[WeightEdit | HookIntervention, dict[str, Any]]:
    """Read a patch; return the change of the model and the other fields of `Edit`, by name.

    Raises:
        UserError: The file is missing, damaged, or no patch of this suite.
    """
    tensors, texts = read_tensors(path)
    shown = visible(path)
    if texts.get("format") not in (FORMAT, OLDER):
        raise UserError(
            f"{shown} is no unlearning of this suite ({FORMAT}): give a file that save() wrote."
        )
    try:
        metadata = Metadata.model_validate(texts)
    except ValidationError as error:
        raise UserError(
            f"{shown} is damaged or not of this suite ({first_error(error)}): give a file that "
            "save() wrote."
        ) from None
    if metadata.checksum not in (
        None,
        content_hash({k: texts[k] for k in texts if k != "checksum"}),
    ):
        raise UserError(f"{shown} is damaged (its metadata are not those written): save it again.")
    if metadata.content not in (None, tensors_hash(tensors)):
        raise UserError(f"{shown} is damaged (its numbers are not those written): save it again.")
    try:
        if metadata.intervention is not None:
            settings = metadata.settings or {}
            delta: WeightEdit | HookIntervention = HookIntervention(
                metadata.intervention, settings, tensors, metadata.notes
            )
        else:
            notes = _current_notes(metadata.notes)
            edited_hash = metadata.edited_tensors_hash or ""  # there, or the metadata are refused
            delta = WeightEdit.from_tensors(tensors, edited_hash, notes)
    except UserError as error:
        raise UserError(f"{shown} holds no edit that can be made: {error}") from None
    record = ("method", "pair", "hyperparameters", "seed", "seconds", "base_hash")
    return delta, {name: value for name, value in metadata.model_dump().items() if name in record}


# Names of notes until 2026-11: those of a weight edit, and those of each of its latents.
RENAMED_NOTES = {"left": "relative_cost", "fires": "recall"}
RENAMED_LATENT_NOTES = {"spelling": "token_variant"}


def _current_notes(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Rename notes that older files name otherwise."""
    current = {RENAMED_NOTES.get(name, name): value for name, value in notes.items()}
    if isinstance(current.get("latents"), list):
        current["latents"] = [
            {RENAMED_LATENT_NOTES.get(k, k): v for k, v in note.items()}
            if isinstance(note, dict)
            else note
            for note in current["latents"]
        ]
    return current
