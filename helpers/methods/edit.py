"""What every method returns: an edit, which goes on a model and off again bit for bit."""

import contextlib
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from nnsight import LanguageModel
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from helpers.errors import UserError
from helpers.io.files import atomic_path
from helpers.io.safe_text import visible
from helpers.methods.appended_neurons import parameter_shapes, shapes_after
from helpers.methods.edit_files import write_patch
from helpers.methods.hook_intervention import HookIntervention
from helpers.methods.snapshots import (
    ParameterSnapshot,
    edited_tensors_hash,
    restore_parameters,
    snapshot_parameters,
    uninterrupted,
)
from helpers.methods.weight_edit import WeightEdit
from helpers.models import anatomy, model_hash


@dataclass(frozen=True, eq=False)
class Edit:
    """The result of a method: a change of weights, or an intervention, and where it comes from.

    Attributes:
        method: Its name.
        pair: Subject, target and relation; a list of them where several were solved together.
        delta: The change of weights, or the `HookIntervention`.
        hyperparameters: As used.
        seed: As used.
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
    def removes(self) -> bool:
        """Whether weights change. An intervention removes nothing: the fact is still in them."""
        return not isinstance(self.delta, HookIntervention)

    def apply(self, model: LanguageModel) -> None:
        """Change the model's weights, or put an intervention on; all of it or nothing.

        An edit that only appends neurons goes onto the model that it was made for also when that
        carries other edits: neurons stand side by side.

        Raises:
            UserError: It is applied already (itself or one of the same content), the weights are
                not those it was made for or would not be finite, or it is an intervention on
                another model.
        """
        module, stack = model._module, _stack(model)
        if self._place(stack) is not None:
            raise UserError(f"This edit ({self._named}) is applied already: revert it first.")
        put = None
        if self.removes:
            changes = self.delta.changes
            beside = bool(stack) and not any(change.adds for change in changes.values())
            beside = beside and (
                edited_tensors_hash(module, changes, _earliest(stack))
                == self.delta.edited_tensors_hash
            )
            self.delta.check_fits(module, anatomy(model), anywhere=beside)
        else:
            self._require_own_model(model)
            put = self.delta.install(model)
        _all_or_nothing(
            model,
            self.delta.changes,
            lambda before: _put_on(model, _Applied(self, before, put)),
        )

    def revert(self, model: LanguageModel) -> None:
        """Give the weights back as they were, bit by bit; if that fails, all stays as it is.

        Edits applied after this one stay: those of weights are taken off, and put on again without
        it.

        Raises:
            UserError: It is not applied, or a later edit was made for a model that this one
                widened.
        """
        module, stack = model._module, _stack(model)
        place = self._place(stack)
        if place is None:
            raise UserError(f"This edit ({self._named}) is not applied to this model.")
        changed = [entry for entry in stack[place:] if entry.edit.removes]
        names = {name for entry in changed for name in entry.before}
        sizes = parameter_shapes(module, names) | {
            name: None if kept.parameter is None else tuple(kept.parameter.shape)
            for name, kept in _earliest(changed).items()
        }
        for entry in stack[place + 1 :]:
            try:
                sizes = shapes_after(entry.edit.delta.changes, sizes)
            except UserError:
                raise UserError(
                    f"This edit ({self._named}) cannot come off while a later one "
                    f"({entry.edit._named}) is on, which was made for the model that this one "
                    "widened: revert the later one first."
                ) from None

        def change(_: Mapping[str, ParameterSnapshot]) -> None:
            mine, *later = stack[place:]
            del stack[place:]
            mine.take_off()  # hooks of later interventions stay as they are: none is on another
            restore_parameters(module, _earliest(changed))
            for entry in later:
                if entry.edit.removes:
                    entry = _Applied(entry.edit, snapshot_parameters(module, entry.before))
                _put_on(model, entry)

        _all_or_nothing(model, names, change)

    def _place(self, stack: "Sequence[_Applied]") -> int | None:
        """Where on the stack the edit is, or one of the same content."""
        found = [n for n, entry in enumerate(stack) if entry.edit is self]
        found += [n for n, entry in enumerate(stack) if entry.edit.delta.same_as(self.delta)]
        return found[0] if found else None

    @property
    def _named(self) -> str:
        return visible(self.method)

    def _require_own_model(self, model: LanguageModel) -> None:
        """Refuse to put an intervention on another model than its own, with or without edits."""
        if self.base_hash != model_hash(model):
            with base_model(model):
                if self.base_hash != model_hash(model):
                    raise UserError(
                        f"This intervention ({self._named}) was made on another model: make it on "
                        "this one."
                    )

    @contextlib.contextmanager
    def applied(self, model: LanguageModel) -> Iterator[LanguageModel]:
        """The model with the edit, for the length of a `with` block; restored and proved after."""
        others = active_edits(model)
        before = edited_tensors_hash(model._module, self.delta.changes)
        try:
            self.apply(model)
            yield model
        finally:
            if self in active_edits(model) and self not in others:  # not if `apply` was refused
                with uninterrupted():
                    self.revert(model)
            same = active_edits(model) == others
            if same and edited_tensors_hash(model._module, self.delta.changes) != before:
                raise RuntimeError("the weights did not come back")

    def save(self, path: str | Path) -> None:
        """Write the edit as one safetensors file that `load_unlearning` reads back bit-exactly.

        Raises:
            UserError: Something of it has no place in such a file, which is then not written.
        """
        write_patch(path, self.delta, {k: v for k, v in vars(self).items() if k != "delta"})

    def to_peft(self, folder: str | Path, model: LanguageModel) -> None:
        """Write the edit as a LoRA adapter that peft puts on the untouched base model.

        Args:
            folder: `adapter_config.json` and `adapter_model.safetensors` are written there.
            model: The base model; only its layout is read.

        Raises:
            UserError: The edit appends neurons, a changed tensor is not a linear layer's weight, or
                it is an intervention.
        """
        from peft import LoraConfig

        self._require_weights("written as an adapter")
        if self.delta.appends_neurons:
            raise UserError(
                f"This edit ({self._named}) appends neurons, and an adapter cannot widen a layer: "
                "use save() for a patch, or helpers.methods.save_widened for a whole model."
            )

        tensors, ranks, transposed = {}, {}, set()
        for name, change in self.delta.changes.items():
            owner = name.removesuffix(".weight")
            layer = model._module.get_submodule(owner)
            if not isinstance(layer, Conv1D | torch.nn.Linear) or not name.endswith(".weight"):
                raise UserError(f"{name} is no linear layer's weight: peft has no adapter for it.")
            left, right = change.factors()
            if isinstance(layer, Conv1D):  # stored (in, out)
                left, right = right.T, left.T
            ranks[owner] = left.shape[1]
            transposed.add(isinstance(layer, Conv1D))
            base = f"base_model.model.{owner}"
            tensors[f"{base}.lora_A.weight"] = right.float().contiguous().clone()
            tensors[f"{base}.lora_B.weight"] = left.float().contiguous().clone()
        config = LoraConfig(
            r=max(ranks.values()),
            lora_alpha=max(ranks.values()),
            rank_pattern=ranks,
            alpha_pattern=ranks,  # alpha / rank = 1: the adapter is the change itself
            target_modules=list(ranks),
            fan_in_fan_out=transposed == {True},
            task_type="CAUSAL_LM",
        )
        Path(folder).mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        with atomic_path(Path(folder) / "adapter_model.safetensors") as temporary:
            save_file(tensors, temporary)

    def compressed(self, rank: int, dtype: torch.dtype = torch.float16) -> "Unlearning":
        """The same edit with each matrix's change cut to `rank`, numbers stored as `dtype`.

        Raises:
            UserError: The rank is not positive, or it is an intervention.
        """
        self._require_weights("compressed")
        return replace(self, delta=self.delta.compressed(rank, dtype))

    def _require_weights(self, what: str) -> None:
        if not self.removes:
            raise UserError(
                f"This is an intervention ({self._named}): it changes no weight that could be "
                f"{what}; use save(), and applied() on the loaded model."
            )

    def report(self, model: LanguageModel) -> dict[str, Any]:
        """What changed: tensors with rank and norm, size, time, and where it comes from."""
        return {
            **{k: v for k, v in vars(self).items() if k != "delta"},
            "notes": self.delta.notes,
            "bytes": self.delta.size(),
            "removes": self.removes,
            "tensors": self.delta.measures(model._module) if self.removes else [],
        }


Unlearning = Edit  # the name that the class had until 2026-11


@dataclass(eq=False)
class _Applied:
    """An edit on a model.

    Attributes:
        edit: The edit.
        before: The tensors that it changes, as they were.
        put: Puts an intervention's hooks on; gives the call that takes them off.
    """

    edit: Edit
    before: dict[str, ParameterSnapshot]
    put: Callable[[], Callable[[], None]] | None = None
    _remove: Callable[[], None] | None = field(default=None, init=False)

    def put_on(self) -> None:
        """Put the hooks on, unless they are."""
        if self.put and not self._remove:
            self._remove = self.put()

    def take_off(self) -> None:
        """Take the hooks off, if they are on."""
        if self._remove:
            self._remove()
            self._remove = None


_APPLIED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _stack(model: LanguageModel) -> list[_Applied]:
    return _APPLIED.setdefault(model._module, [])


def _earliest(stack: Sequence[_Applied]) -> dict[str, ParameterSnapshot]:
    """The tensors that some edits change, as they were before the first of them."""
    found: dict[str, ParameterSnapshot] = {}
    for entry in reversed(stack):
        found |= entry.before
    return found


def _put_on(model: LanguageModel, entry: _Applied) -> None:
    _stack(model).append(entry)
    if entry.edit.removes:
        entry.edit.delta.add_to(model._module)
    entry.put_on()


def _all_or_nothing(
    model: LanguageModel,
    names: Collection[str],
    change: Callable[[dict[str, ParameterSnapshot]], None],
) -> None:
    """Call `change`; whatever it raises, tensors, hooks and the stack are then as they were.

    Args:
        model: The model.
        names: The tensors that it changes.
        change: Is given them as they are; Ctrl-C waits until it is done, and then undoes it.
    """
    stack, before = _stack(model), snapshot_parameters(model._module, names)
    entries = list(stack)
    try:
        with uninterrupted():
            change(before)
    except BaseException:  # out of memory, or interrupted, too
        with uninterrupted():
            restore_parameters(model._module, before)
            for entry in stack:
                entry.take_off()
            stack[:] = entries
            _hooks_in_order(stack)
        raise


def _hooks_in_order(stack: Sequence[_Applied]) -> None:
    """Put the hooks of all interventions on, the first edit's first."""
    for entry in stack:
        entry.take_off()
    for entry in stack:
        entry.put_on()


def active_edits(model: LanguageModel) -> list[Edit]:
    """The edits that the model carries, in the order they were applied."""
    return [entry.edit for entry in _APPLIED.get(model._module, [])]


@contextlib.contextmanager
def base_model(model: LanguageModel) -> Iterator[LanguageModel]:
    """The model without any edit, for the length of a `with` block.

    What is applied inside of the block and not reverted comes off at its end.
    """
    module, stack = model._module, _stack(model)
    before = _earliest(stack)
    edited = snapshot_parameters(module, before)
    try:
        with uninterrupted():
            _APPLIED[module] = []
            for entry in stack:
                entry.take_off()
            restore_parameters(module, before)
        yield model
    finally:
        with uninterrupted():
            left = _stack(model)
            if left is not stack:
                for entry in left:
                    entry.take_off()
                restore_parameters(module, _earliest(left))
            restore_parameters(module, edited)
            _APPLIED[module] = stack
            _hooks_in_order(stack)
