"""What every method returns, and the register of methods.

A method is a function of a model and a pair, registered by `@method`, that returns a `WeightDelta`
(or, of the family `inference`, an `Intervention`) and leaves the model as it found it. `unlearn`
checks the call, times it and wraps the result.
"""

import contextlib
import difflib
import inspect
import json
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from nnsight import LanguageModel
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from helpers.artifacts import (
    atomic_path,
    content_hash,
    plain,
    read_tensors,
    versions,
    write_tensors,
)
from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.facts.known import not_known
from helpers.methods.delta import Kept, WeightDelta, keep, put_back, touched_hash
from helpers.methods.intervention import Intervention
from helpers.models import model_hash

FORMAT = "llm-unlearning/1"


@dataclass(frozen=True)
class Method:
    """An entry of the register.

    Attributes:
        name: What users call it.
        family: `surgery`, `training`, `inference` or `control`.
        function: (model, pair, *, seed, hyperparameters) → WeightDelta or Intervention.
        many: The function takes a list of pairs instead, and solves for all of them at once.
    """

    name: str
    family: str
    function: Callable[..., WeightDelta | Intervention]
    many: bool = False

    def make(
        self, model: LanguageModel, pairs: Sequence[ConceptPair], *, seed: int, **how: Any
    ) -> WeightDelta | Intervention:
        """Call the function on pairs, one unless it takes many."""
        return self.function(model, list(pairs) if self.many else pairs[0], seed=seed, **how)

    def hyperparameters(self) -> dict[str, Any]:
        """Names and defaults of its hyperparameters."""
        parameters = inspect.signature(self.function).parameters.values()
        return {
            p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "seed"
        }


METHODS: dict[str, Method] = {}


def method(name: str, *, family: str, many: bool = False) -> Callable:
    """Register a function as the method `name`; `many` if it takes a list of pairs."""

    def register(function: Callable[..., WeightDelta]) -> Callable[..., WeightDelta]:
        METHODS[name] = Method(name, family, function, many)
        return function

    return register


@dataclass(frozen=True, eq=False)
class Unlearning:
    """The result of a method: a change of weights, or an intervention, and where it comes from.

    Attributes:
        method: Its name.
        pair: Subject, target and relation; a list of them where several were solved together.
        delta: The change of weights, or the `Intervention`.
        hyperparameters: As used.
        seed: As used.
        seconds: Wall-clock time of the method.
        base_hash: `model_hash` of the model it was made on.
    """

    method: str
    pair: dict[str, str] | list[dict[str, str]]
    delta: WeightDelta | Intervention
    hyperparameters: dict[str, Any]
    seed: int
    seconds: float
    base_hash: str

    @property
    def removes(self) -> bool:
        """Whether weights change. An intervention removes nothing: the fact is still in them."""
        return not isinstance(self.delta, Intervention)

    def apply(self, model: LanguageModel) -> None:
        """Change the model's weights, or put an intervention on.

        An edit that only appends neurons goes onto the model that it was made for also when that
        carries other edits: neurons stand side by side.

        Raises:
            UserError: It is applied already, the weights are not those it was made for, or it is an
                intervention on another model.
        """
        stack = _APPLIED.setdefault(model._module, [])
        if any(entry.edit is self for entry in stack):
            raise UserError(f"This edit ({self.method}) is applied already: revert it first.")
        if not self.removes and self.base_hash != model_hash(model):
            with original(model):
                if self.base_hash != model_hash(model):
                    raise UserError(
                        f"This intervention ({self.method}) was made on another model: make it "
                        "on this one."
                    )
        beside = False
        if (
            stack
            and self.removes
            and not any(change.adds for change in self.delta.changes.values())
        ):
            with original(model):
                now = touched_hash(model._module, self.delta.changes)
            beside = now == self.delta.touched_hash
        stack.append(_Applied.on(model, self, anywhere=beside))

    def revert(self, model: LanguageModel) -> None:
        """Give the weights back as they were, bit by bit.

        Edits applied after this one stay: they are taken off, and put on again without it.

        Raises:
            UserError: It is not applied, or a later edit widened what this one did.
        """
        stack, module = _APPLIED.get(model._module, []), model._module
        place = next((i for i, entry in enumerate(stack) if entry.edit is self), None)
        if place is None:
            raise UserError(f"This edit ({self.method}) is not applied to this model.")
        later = [entry.edit for entry in stack[place + 1 :]]
        for entry in reversed(stack[place:]):
            put_back(module, entry.before)
            entry.remove()
        del stack[place:]
        for edit in later:
            stack.append(_Applied.on(model, edit, anywhere=True))

    @contextlib.contextmanager
    def applied(self, model: LanguageModel) -> Iterator[LanguageModel]:
        """The model with the edit, for the length of a `with` block; restored and proved after."""
        others = applied_to(model)
        before = touched_hash(model._module, self.delta.changes)
        self.apply(model)
        try:
            yield model
        finally:
            self.revert(model)
            same = applied_to(model) == others
            if same and touched_hash(model._module, self.delta.changes) != before:
                raise RuntimeError("the weights did not come back")

    def save(self, path: str | Path) -> None:
        """Write the edit as one safetensors file that `load_unlearning` reads back bit-exactly."""
        about = {
            "format": FORMAT,
            "method": self.method,
            "pair": json.dumps(self.pair),
            "hyperparameters": json.dumps(self.hyperparameters, default=plain),
            "seed": str(self.seed),
            "seconds": repr(self.seconds),
            "base_hash": self.base_hash,
            "notes": json.dumps(self.delta.notes),
            "versions": json.dumps(versions()),
        }
        if isinstance(self.delta, Intervention):
            about["intervention"] = self.delta.kind
            about["settings"] = json.dumps(self.delta.settings)
        else:
            about["touched_hash"] = self.delta.touched_hash
            about["rank"] = str(max(c.rank for c in self.delta.changes.values()))
            about["norm"] = repr(self.delta.norm())
        tensors = self.delta.tensors()
        write_tensors(path, tensors, {**about, "content": _content(tensors)})

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
        if self.delta.widens:
            raise UserError(
                f"This edit ({self.method}) appends neurons, and an adapter cannot widen a layer: "
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
                f"This is an intervention ({self.method}): it changes no weight that could be "
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


@dataclass(eq=False)
class _Applied:
    """An edit on a model, what its tensors were before, and what takes its hooks off."""

    edit: Unlearning
    before: dict[str, Kept]
    remove: Callable[[], None]

    @classmethod
    def on(cls, model: LanguageModel, edit: Unlearning, *, anywhere: bool = False) -> "_Applied":
        if isinstance(edit.delta, Intervention):
            return cls(edit, {}, edit.delta.install(model))
        before = edit.delta.add_to(model._module, anywhere=anywhere)
        return cls(edit, before, lambda: None)


_APPLIED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def applied_to(model: LanguageModel) -> list[Unlearning]:
    """The edits that the model carries, in the order they were applied."""
    return [entry.edit for entry in _APPLIED.get(model._module, [])]


@contextlib.contextmanager
def original(model: LanguageModel) -> Iterator[LanguageModel]:
    """The model without any edit, for the length of a `with` block."""
    before: dict[str, Kept] = {}
    stack = _APPLIED.get(model._module, [])
    for entry in reversed(stack):
        before |= entry.before
        entry.remove()
    edited = keep(model._module, before)
    put_back(model._module, before)
    try:
        yield model
    finally:
        put_back(model._module, edited)
        for entry in stack:
            if isinstance(entry.edit.delta, Intervention):
                entry.remove = entry.edit.delta.install(model)


def unlearn(
    model: LanguageModel,
    pair: ConceptPair | Sequence[ConceptPair],
    method: str = "neurons",
    *,
    seed: int = 0,
    **hyperparameters: Any,
) -> Unlearning:
    """Make the edit that removes `pair` from `model`; the model itself stays as it is.

    Args:
        model: Any model of a known family.
        pair: What to forget; several pairs at once where the method solves for them together.
        method: A name in `METHODS`.
        seed: Seed of everything random.
        **hyperparameters: The method's own, checked against its signature.

    Raises:
        UserError: There is no such method or hyperparameter, the method takes one pair at a time,
            or the edit would change nothing.

    Warns:
        UserWarning: The model does not know a pair: there is nothing to forget.
    """
    if method not in METHODS:
        raise UserError(f"There is no method '{method}'{_hint(method, list(METHODS))}.")
    entry = METHODS[method]
    known = entry.hyperparameters()
    for name in hyperparameters:
        if name not in known:
            raise UserError(
                f"The method '{method}' has no hyperparameter '{name}'{_hint(name, list(known))}."
            )
    pairs = [pair] if isinstance(pair, ConceptPair) else list(pair)
    if not pairs:
        raise UserError("There is no pair to forget: give at least one.")
    if len(pairs) > 1 and not entry.many:
        together = ", ".join(n for n, m in METHODS.items() if m.many)
        raise UserError(
            f"The method '{method}' forgets one pair at a time: make one edit after another, or "
            f"use one that solves for several at once ({together})."
        )
    for one in pairs:
        if told := not_known(model, one):
            warnings.warn(f"{told}, so there is little to forget.", stacklevel=2)
    base = model_hash(model)
    started = time.perf_counter()
    delta = entry.make(model, pairs, seed=seed, **hyperparameters)
    seconds = time.perf_counter() - started
    names = [{"subject": p.subject, "target": p.target, "relation": p.relation} for p in pairs]
    about = names[0] if len(names) == 1 else names
    return Unlearning(method, about, delta, known | hyperparameters, seed, seconds, base)


def load_unlearning(path: str | Path) -> Unlearning:
    """Read an edit that `Unlearning.save` wrote.

    Raises:
        UserError: The file is missing, damaged, or not an edit of this suite.
    """
    tensors, about = read_tensors(path)
    if about.get("format") != FORMAT:
        raise UserError(
            f"{path} is no unlearning of this suite ({FORMAT}): give a file that save() wrote."
        )
    now = _content(tensors)
    if about.get("content", now) != now:  # older files have none
        raise UserError(f"{path} is damaged (its numbers are not those written): save it again.")
    notes = json.loads(about["notes"])
    if "intervention" in about:
        delta = Intervention(about["intervention"], json.loads(about["settings"]), tensors, notes)
    else:
        delta = WeightDelta.from_tensors(tensors, about["touched_hash"], notes)
    return Unlearning(
        about["method"],
        json.loads(about["pair"]),
        delta,
        json.loads(about["hyperparameters"]),
        int(about["seed"]),
        float(about["seconds"]),
        about["base_hash"],
    )


def _content(tensors: Mapping[str, torch.Tensor]) -> str:
    return content_hash(*(x for name in sorted(tensors) for x in (name, tensors[name])))


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(known)}" if known else "; it has none"
