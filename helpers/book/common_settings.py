"""The parameters that every notebook has: model, fact, seed, and the run they belong to."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from helpers.book import value_checks as checks
from helpers.io.hashing import content_hash

ROOT = Path(__file__).resolve().parents[2]


class Common(BaseModel):
    """Parameters that every notebook has.

    Attributes:
        trains_own_model: The notebook makes its models itself; `model` has no part in it.
    """

    trains_own_model: ClassVar[bool] = False

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    model: str = Field(
        "smollm2-135m", description="default, hub name, local folder or .gguf file", min_length=1
    )
    device: str = Field("cpu", description="cpu, cuda, or auto for several devices")
    dtype: Annotated[str, checks.OneDtype] = Field(
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
        """Refuse conversions that pydantic would make: `True` to 1, the text `007` to 7."""
        field = cls.model_fields[str(info.field_name)]
        if field.annotation in (int, float) and isinstance(value, bool):
            raise ValueError("give a number")
        takes_numbers = any(getattr(m, "coerce_numbers_to_str", False) for m in field.metadata)
        is_number = isinstance(value, int | float) and not takes_numbers
        if field.annotation is str and (isinstance(value, bool) or is_number):
            raise ValueError(
                f"this is {'yes or no' if isinstance(value, bool) else 'a number'}, and text is "
                f"wanted: put it in quotes in YAML, give it to papermill by '-r {info.field_name}' "
                "instead of '-p'"
            )
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _check_size(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse counts and texts beyond any use."""
        if isinstance(value, int) and info.field_name != "seed" and value > checks.MAX_COUNT:
            raise ValueError(f"give at most {checks.MAX_COUNT:,}")
        if isinstance(value, str) and len(value) > checks.MAX_CHARACTERS:
            raise ValueError(f"give at most {checks.MAX_CHARACTERS:,} characters")
        return value

    def run_folder(self) -> Path:
        """Return the absolute path of this run's folder.

        A notebook run by itself has one folder for each fact, model and pair file.
        """
        if self.run:
            return ROOT / self.run
        file = Path(self.pair_file) if os.path.isfile(self.pair_file) else ""
        values = [self.model, self.relation, file]
        defaults = [type(self).model_fields[name].default for name in ("model", "relation")]
        suffix = "" if values == [*defaults, ""] else f"-{content_hash(*values)[:6]}"
        return ROOT / f"runs/lab-{slug(self.subject)}-{slug(self.target)}{suffix}"


def slug(text: str) -> str:
    """Convert text to a part of a file's name: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
