"""An auditor who has the original model and the edit: what was removed?

A surgical edit points at its subject: what it adds is large where the subject is read. He runs
every subject through the changed MLPs, ranks them by how much the edit writes there, and asks both
models about the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair, facts
from helpers.facts.relations import RELATIONS
from helpers.forward.activations import cache_activations
from helpers.forward.scoring import answer_probability
from helpers.methods import Edit
from helpers.models import architecture_of


class NoChangeError(UserError):
    """There is nothing for an auditor to see: no MLP is changed, or what it writes is no number."""


@dataclass(frozen=True)
class Audit:
    """What the auditor says.

    Attributes:
        subjects: One row a subject, the most touched first: subject, response (size of what the
            edit writes at the subject's token, relative to what the MLP wrote, mean over changed
            layers).
        answers: One row a relation of the first subject, the largest loss first: relation, target,
            before, after (P(target) on a statement).
        guess: Subject and target that he names.
        margin: Response of the first subject over that of the second.
    """

    subjects: pd.DataFrame
    answers: pd.DataFrame
    guess: tuple[str, str]
    margin: float


def audit_delta(
    model: LanguageModel, unlearning: Edit, *, subjects: Sequence[str] | None = None
) -> Audit:
    """Name the subject and the answer that an edit removes, from the edit and the original.

    Args:
        model: The original model.
        unlearning: An edit of its MLPs.
        subjects: Candidates; the Factbook's countries by default.

    Raises:
        NoChangeError: The edit changes nothing in the MLPs, or they write numbers that are not
            finite.
        UserError: There are not two candidates.
    """
    names = [f.subject for f in facts("capital")] if subjects is None else list(subjects)
    if len(names) < 2:
        raise UserError("An audit compares candidates: name at least two subjects.")
    layers = _changed(model, unlearning)
    if not layers:
        raise NoChangeError("This edit changes no MLP: there is nothing to audit.")
    pairs = {f.subject: ConceptPair.of(f) for f in facts("capital")}
    prompts = [statement(pairs[n]) for n in names]
    arch = architecture_of(model)
    inputs = cache_activations(model, prompts, sites=["mlp_in"], layers=layers, positions="subject")
    plain = [_written(arch, i, inputs["mlp_in", i]) for i in layers]
    with unlearning.applied(model):
        edited = [_written(arch, i, inputs["mlp_in", i]) for i in layers]
    response = torch.stack(
        [(b - a).norm(dim=-1) / a.norm(dim=-1) for a, b in zip(plain, edited, strict=True)]
    ).mean(0)
    if not response.isfinite().all():
        raise NoChangeError(
            "What this edit writes is not finite (NaN or infinite): there is nothing to audit."
        )
    table = pd.DataFrame({"subject": names, "response": response.tolist()})
    table = table.sort_values("response", ascending=False, ignore_index=True)
    first, second = table["response"][:2]
    answers = _losses(model, unlearning, table["subject"][0])
    guess = (table["subject"][0], answers["target"].iloc[0] if len(answers) else "")
    return Audit(table, answers, guess, float(first / max(second, 1e-12)))


def _changed(model: LanguageModel, unlearning: Edit) -> list[int]:
    found = []
    for i, layer in enumerate(architecture_of(model).layers):
        names = (layer.mlp.in_name, layer.mlp.gate_name, layer.mlp.out_name)
        if any(n in unlearning.delta.parameter_names() for n in names):
            found.append(i)
    return found


@torch.inference_mode()
def _written(arch, layer: int, x: torch.Tensor) -> torch.Tensor:
    """What the MLP of a layer writes for inputs x, as its weights are now."""
    mlp = arch.layers[layer].mlp
    x = x.to(mlp.out_module.weight)
    return mlp.forward(x).float().cpu()


def statement(pair: ConceptPair):
    """A training statement that doesn't begin with the subject."""
    ways = [p for p in pair.prompts("train") if p.format == "completion"]
    return next((p for p in ways if not p.startswith(p.subject)), ways[0])


def _losses(model: LanguageModel, unlearning: Edit, subject: str) -> pd.DataFrame:
    known = [ConceptPair.of(f) for r in RELATIONS for f in facts(r) if f.subject == subject]
    prompts = [[p for p in k.prompts("train") if p.format == "completion"][:3] for k in known]
    flat = [p for ways in prompts for p in ways]
    before = answer_probability(model, flat)
    with unlearning.applied(model):
        after = answer_probability(model, flat)
    ends = np.cumsum([0, *map(len, prompts)])
    rows = [
        (k.relation, k.target, before[a:b].mean(), after[a:b].mean())
        for k, a, b in zip(known, ends[:-1], ends[1:], strict=True)
    ]
    table = pd.DataFrame(rows, columns=["relation", "target", "before", "after"])
    order = (table["before"] - table["after"]).sort_values(ascending=False).index
    return table.loc[order].reset_index(drop=True)
