"""The result of every method: an edit that is applied to a model and reverted bit for bit."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.io.safe_text import visible
from helpers.methods.appended_neurons import parameter_shapes, shapes_after
from helpers.methods.edit_files import write_patch
from helpers.methods.edit_stack import (
    AppliedEdit,
    active_edits,
    all_or_nothing,
    applied_edits,
    base_model,
    earliest_snapshots,
    push,
)
from helpers.methods.export import save_peft_adapter
from helpers.methods.hook_intervention import HookIntervention
from helpers.methods.snapshots import (
    ParameterSnapshot,
    edited_tensors_hash,
    restore_parameters,
    snapshot_parameters,
    uninterrupted,
)
from helpers.methods.weight_edit import WeightEdit
from helpers.models import architecture_of, model_hash, torch_module


@dataclass(frozen=True, eq=False)
class Edit:
    """The result of a method: a weight edit or an intervention, and how it was made.

    Attributes:
        method: Name of the method.
        pair: Subject, target and relation, or `request` and `kind` of a request for text; a list of
            them where several were solved together.
        delta: The change of the model, a `WeightEdit` or a `HookIntervention`.
        hyperparameters: The method's hyperparameters, defaults included.
        seed: Seed of everything random.
        seconds: Wall-clock time of the method.
        base_hash: `model_hash` of the model it was made on.
    """

    method: str
    pair: dict[str, str] | list[dict[str, str]]
    delta: WeightEdit | HookIntervention
    hyperparameters: dict[str, Any]
    seed: int
    seconds: float
    base_hash: str

    @property
    def changes_weights(self) -> bool:
        """Tell whether weights change; an intervention leaves the fact in them."""
        return self.delta.changes_weights

    def apply(self, model: LanguageModel) -> None:
        """Change the model's weights, or register an intervention's hooks; all of it or nothing.

        An edit that only appends neurons can be applied beside other edits of the model that it was
        made for: the neurons of one edit don't change those of another.

        Raises:
            UserError: The edit, or one of the same content, is applied already; the weights are not
                those it was made for or would not be finite; or it is an intervention on another
                model.
        """
        stack = applied_edits(model)
        if self._place(stack) is not None:
            raise UserError(f"This edit ({self._shown}) is applied already: revert it first.")
        register_hooks = None
        if isinstance(self.delta, WeightEdit):
            self._check_weights(model, stack)
        else:
            self._require_own_model(model)
            register_hooks = self.delta.hook_factory(model)
        all_or_nothing(
            model,
            self.delta.parameter_names(),
            lambda before: push(model, AppliedEdit(self, before, register_hooks)),
        )

    def revert(self, model: LanguageModel) -> None:
        """Restore the weights bit by bit; if that fails, everything stays as it is.

        Edits that were applied later stay: weight edits are taken off, and applied again without
        this one.

        Raises:
            UserError: The edit is not applied, or a later edit was made for a model that this one
                widened.
        """
        module, stack = torch_module(model), applied_edits(model)
        place = self._place(stack)
        if place is None:
            raise UserError(f"This edit ({self._shown}) is not applied to this model.")
        weight_edits = [entry for entry in stack[place:] if entry.edit.changes_weights]
        names = {name for entry in weight_edits for name in entry.before}
        later_edits = [entry.edit for entry in stack[place + 1 :] if entry.edit.changes_weights]
        self._check_later_edits(model, earliest_snapshots(weight_edits), later_edits)

        def change(_: Mapping[str, ParameterSnapshot]) -> None:
            this_entry, *later_entries = stack[place:]
            del stack[place:]
            this_entry.remove_hooks()  # later interventions' hooks stay: none depends on another
            restore_parameters(module, earliest_snapshots(weight_edits))
            for entry in later_entries:
                if entry.edit.changes_weights:
                    entry = AppliedEdit(entry.edit, snapshot_parameters(module, entry.before))
                push(model, entry)

        all_or_nothing(model, names, change)

    def _place(self, stack: Sequence[AppliedEdit]) -> int | None:
        """Return the index on the stack of this edit, or else of one of the same content."""
        places = [n for n, entry in enumerate(stack) if entry.edit is self]
        places += [n for n, entry in enumerate(stack) if entry.edit.delta.same_as(self.delta)]
        return places[0] if places else None

    @property
    def _shown(self) -> str:
        return visible(self.method)

    def _check_weights(self, model: LanguageModel, stack: Sequence[AppliedEdit]) -> None:
        """Refuse a model with other weights than those that the edit was made for."""
        module, changes = torch_module(model), self.delta.changes
        only_appends = not any(change.is_additive for change in changes.values())
        # Neurons of other edits don't matter to appended ones: compare with the weights before.
        fits_below = bool(stack and only_appends) and (
            edited_tensors_hash(module, changes, earliest_snapshots(stack))
            == self.delta.edited_tensors_hash
        )
        self.delta.check_fits(module, architecture_of(model), check_base=not fits_below)

    def _check_later_edits(
        self,
        model: LanguageModel,
        before: Mapping[str, ParameterSnapshot],
        later_edits: Sequence["Edit"],
    ) -> None:
        """Refuse to revert if a later weight edit does not fit the model without this one.

        Args:
            model: The model with all of them.
            before: The parameters that they change, as they were before this edit.
            later_edits: The weight edits that were applied after this one.
        """
        sizes = parameter_shapes(torch_module(model), before) | {
            name: None if snapshot.parameter is None else tuple(snapshot.parameter.shape)
            for name, snapshot in before.items()
        }
        for later in later_edits:
            try:
                sizes = shapes_after(later.delta.changes, sizes)
            except UserError:
                raise UserError(
                    f"This edit ({self._shown}) cannot come off while a later one "
                    f"({later._shown}) is on, which was made for the model that this one widened: "
                    "revert the later one first."
                ) from None

    def _require_own_model(self, model: LanguageModel) -> None:
        """Refuse an intervention on another model than its own, with or without edits."""
        if self.base_hash != model_hash(model):
            with base_model(model):
                if self.base_hash != model_hash(model):
                    raise UserError(
                        f"This intervention ({self._shown}) was made on another model: make it on "
                        "this one."
                    )

    @contextlib.contextmanager
    def applied(self, model: LanguageModel) -> Iterator[LanguageModel]:
        """Apply the edit for a `with` block; afterwards revert it, and check the weights' hash."""
        edits_before = active_edits(model)
        hash_before = edited_tensors_hash(torch_module(model), self.delta.parameter_names())
        try:
            self.apply(model)
            yield model
        finally:
            if self in active_edits(model) and self not in edits_before:  # not if it was refused
                with uninterrupted():
                    self.revert(model)
            if active_edits(model) == edits_before:
                hash_after = edited_tensors_hash(torch_module(model), self.delta.parameter_names())
                if hash_after != hash_before:
                    raise RuntimeError("the weights did not come back")

    def save(self, path: str | Path) -> None:
        """Write the edit as one safetensors file that `load_unlearning` reads back bit-exactly.

        Raises:
            UserError: Something of it has no place in such a file, which is then not written.
        """
        write_patch(path, self.delta, {k: v for k, v in vars(self).items() if k != "delta"})

    def to_peft(self, folder: str | Path, model: LanguageModel) -> None:
        """Write the edit as a LoRA adapter that peft loads onto the base model.

        Args:
            folder: `adapter_config.json` and `adapter_model.safetensors` are written there.
            model: The base model; only its layout is read.

        Raises:
            UserError: The edit appends neurons, a changed tensor is not a linear layer's weight, or
                it is an intervention.
        """
        self._require_weights("written as an adapter")
        if self.delta.appends_neurons:
            raise UserError(
                f"This edit ({self._shown}) appends neurons, and an adapter cannot widen a layer: "
                "use save() for a patch, or helpers.methods.save_pretrained_widened for a whole "
                "model."
            )
        save_peft_adapter(self.delta.changes, folder, model)

    def compressed(self, rank: int, dtype: torch.dtype = torch.float16) -> "Edit":
        """Return the same edit with each matrix's change cut to `rank`, numbers stored as `dtype`.

        Raises:
            UserError: The rank is not positive, or the edit is an intervention.
        """
        self._require_weights("compressed")
        return replace(self, delta=self.delta.compressed(rank, dtype))

    def _require_weights(self, action: str) -> None:
        """Refuse an intervention, where an action needs a change of weights."""
        if not self.changes_weights:
            raise UserError(
                f"This is an intervention ({self._shown}): it changes no weight that could be "
                f"{action}; use save(), and applied() on the loaded model."
            )

    def report(self, model: LanguageModel) -> dict[str, Any]:
        """Return tensors with rank and norm, size in bytes, time, and how the edit was made."""
        weights = isinstance(self.delta, WeightEdit)
        return {
            **{k: v for k, v in vars(self).items() if k != "delta"},
            "notes": self.delta.notes,
            "bytes": self.delta.size(),
            "changes_weights": weights,
            "tensors": self.delta.measures(torch_module(model)) if weights else [],
        }
