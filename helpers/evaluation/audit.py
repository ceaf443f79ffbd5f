"""Audit: an auditor with the original model and the edit names the fact that was removed.

A surgical edit points at its subject: its output is large at the subject's token. The auditor runs
every subject through the changed MLPs, ranks them by the size of the edit's output, and compares
both models' answers about the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt, facts
from helpers.facts.relations import RELATIONS
from helpers.forward.activations import cache_activations
from helpers.forward.scoring import answer_probability
from helpers.methods import Edit
from helpers.models import Architecture, architecture_of


class NoChangeError(UserError):
    """Nothing can be audited: no MLP is changed, or its output is not finite."""


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes:
        subjects: One row a subject, the largest response first: subject, response (norm of the
            change of the MLP's output at the subject's token, relative to the output's norm, mean
            over changed layers).
        answers: One row a relation of the first subject, the largest loss first: relation, target,
            before, after (mean P(target) on statements).
        guess: Subject and target that the auditor names.
        margin: Response of the first subject, divided by that of the second.
    """

    subjects: pd.DataFrame
    answers: pd.DataFrame
    guess: tuple[str, str]
    margin: float


def audit_delta(
    model: LanguageModel, edit: Edit, *, subjects: Sequence[str] | None = None
) -> Audit:
    """Name the subject and the answer that an edit removes, from the edit and the original.

    Args:
        model: The original model.
        edit: An edit of its MLPs.
        subjects: Candidates; the Factbook's countries by default.

    Raises:
        NoChangeError: The edit changes nothing in the MLPs, or their outputs are not finite.
        UserError: There are fewer than two candidates.
    """
    names = [f.subject for f in facts("capital")] if subjects is None else list(subjects)
    if len(names) < 2:
        raise UserError("An audit compares candidates: name at least two subjects.")
    layers = _edited_layers(model, edit)
    if not layers:
        raise NoChangeError("This edit changes no MLP: there is nothing to audit.")
    pairs = {f.subject: ConceptPair.of(f) for f in facts("capital")}
    prompts = [statement(pairs[n]) for n in names]
    arch = architecture_of(model)
    inputs = cache_activations(model, prompts, sites=["mlp_in"], layers=layers, positions="subject")
    before = {i: _mlp_outputs(arch, i, inputs["mlp_in", i]) for i in layers}
    with edit.applied(model):
        after = {i: _mlp_outputs(arch, i, inputs["mlp_in", i]) for i in layers}
    # Relative to the output's own norm, layers of different scales can be averaged.
    response = torch.stack(
        [(after[i] - before[i]).norm(dim=-1) / before[i].norm(dim=-1) for i in layers]
    ).mean(0)
    if not response.isfinite().all():
        raise NoChangeError(
            "What this edit writes is not finite (NaN or infinite): there is nothing to audit."
        )
    table = pd.DataFrame({"subject": names, "response": response.tolist()})
    table = table.sort_values("response", ascending=False, ignore_index=True)
    first, second = table["response"][:2]
    answers = _lost_answers(model, edit, table["subject"][0])
    guess = (table["subject"][0], answers["target"].iloc[0] if len(answers) else "")
    return Audit(table, answers, guess, float(first / max(second, 1e-12)))


def _edited_layers(model: LanguageModel, edit: Edit) -> list[int]:
    """List the layers in whose MLP the edit changes a weight."""
    edited = set(edit.delta.parameter_names())
    return [
        i
        for i, layer in enumerate(architecture_of(model).layers)
        if edited & {layer.mlp.in_name, layer.mlp.gate_name, layer.mlp.out_name}
    ]


@torch.inference_mode()
def _mlp_outputs(
    arch: Architecture, layer: int, x: Float[Tensor, "n d_model"]
) -> Float[Tensor, "n d_model"]:
    """Compute the outputs of a layer's MLP for inputs x, with its present weights."""
    mlp = arch.layers[layer].mlp
    x = x.to(mlp.out_module.weight)
    return mlp.forward(x).float().cpu()


def statement(pair: ConceptPair) -> Prompt:
    """Return a training statement that doesn't begin with the subject, if there is one."""
    statements = pair.statements("train")
    return next((p for p in statements if not p.text.startswith(p.subject)), statements[0])


def _lost_answers(model: LanguageModel, edit: Edit, subject: str) -> pd.DataFrame:
    """Compare P(target) before and after for all facts of a subject, the largest loss first."""
    known = [ConceptPair.of(f) for r in RELATIONS for f in facts(r) if f.subject == subject]
    prompts = [k.statements("train")[:3] for k in known]
    flat = [p for statements in prompts for p in statements]
    before = answer_probability(model, flat)
    with edit.applied(model):
        after = answer_probability(model, flat)
    ends = np.cumsum([0, *map(len, prompts)])
    rows = [
        (k.relation, k.target, before[a:b].mean(), after[a:b].mean())
        for k, a, b in zip(known, ends[:-1], ends[1:], strict=True)
    ]
    table = pd.DataFrame(rows, columns=["relation", "target", "before", "after"])
    order = (table["before"] - table["after"]).sort_values(ascending=False).index
    return table.loc[order].reset_index(drop=True)
