"""The same edit twice: as weights, and as an nnsight intervention on the unedited model.

Whatever is added to a matrix W is an intervention at its output: y + ΔW x. Appended neurons are one
at the output of W_out: y + V (act(G x + b_g) ⊙ (U x + b_u)). Both can be folded into weights, so
both must give the same logits. An intervention that switches on a nonlinear function of the state
which is no neuron of the model's own kind (an SAE that clamps a latent to a fixed value, a top-k)
has no such ΔW.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.sites import token_ids
from helpers.methods.edit import Edit
from helpers.methods.weight_edit import WeightEdit
from helpers.models import MLPAnatomy, anatomy, final_norm, unembed


def max_logit_diff(model: LanguageModel, unlearning: Edit, prompts: Sequence[str]) -> float:
    """Largest difference of any logit between the edit as weights and as an intervention.

    Args:
        model: The model without the edit.
        unlearning: An edit of its MLPs.
        prompts: Compared at every position.

    Raises:
        UserError: The edit changes something else than the MLPs' matrices and their new neurons.
    """
    gap = 0.0
    for prompt in prompts:
        ids = token_ids(model, prompt)
        intervened = intervened_logits(model, unlearning.delta, ids)
        with unlearning.applied(model), torch.inference_mode():
            folded = model._module(torch.tensor([ids]).to(model._module.device)).logits[0]
        gap = max(gap, float((intervened - folded.float()).abs().max()))
    return gap


def intervened_logits(
    model: LanguageModel, delta: WeightEdit, ids: Sequence[int]
) -> Float[Tensor, "t vocab"]:
    """Logits of the unedited model while `delta` is computed beside it.

    Raises:
        UserError: As `max_logit_diff`.
    """
    parts = anatomy(model)
    known = {n for layer in parts.layers for m in _matrices(layer.mlp) for n in (m, _bias(m))}
    for name in delta.changes:
        if name not in known:
            raise UserError(f"{name} is no matrix of an MLP: only edits of MLPs can be compared.")
    with torch.inference_mode(), model.trace(torch.tensor([list(ids)])) as tracer:
        for layer in parts.layers:
            mlp = layer.mlp
            if not any(n in delta.changes for m in _matrices(mlp) for n in (m, _bias(m))):
                continue
            gate = layer.mlp.gate_envoy if mlp.gate_name else None
            read = None
            for name, envoy in ((mlp.gate_name, gate), (mlp.in_name, mlp.in_envoy)):
                if name is None:
                    continue
                read = envoy.input
                added = _added(mlp, delta, name, read)
                if added is not None:
                    envoy.output = envoy.output + added
            hidden = mlp.out_envoy.input
            written = mlp.out_envoy.output
            added = _added(mlp, delta, mlp.out_name, hidden)
            written = written if added is None else written + added
            new = _new_neurons(mlp, delta, read)
            mlp.out_envoy.output = written if new is None else written + new
        final = parts.layers[-1].block.output.save()
        tracer.stop()
        # (1, t, d_model)
    with torch.inference_mode():
        return unembed(model, final_norm(model, final))[0].float()


def _matrices(mlp: MLPAnatomy) -> list[str]:
    return [n for n in (mlp.gate_name, mlp.in_name, mlp.out_name) if n]


def _bias(name: str) -> str:
    return f"{name.removesuffix('weight')}bias"


def _added(mlp: MLPAnatomy, delta: WeightEdit, name: str, x: Tensor) -> Tensor | None:
    change = delta.changes.get(name)
    if change is None or not change.adds:
        return None
    matrix = change.matrix().to(x)
    return x @ (matrix if mlp.transposed else matrix.T)


def _new_neurons(mlp: MLPAnatomy, delta: WeightEdit, x: Tensor) -> Tensor | None:
    """What appended neurons write for the MLP's inputs `x`."""
    out = delta.changes.get(mlp.out_name)
    if out is None or out.appended is None:
        return None

    def row(name: str) -> Tensor:
        new = delta.changes[name].appended.to(x)
        bias = delta.changes.get(_bias(name))
        y = x @ (new if mlp.transposed else new.T)
        return y if bias is None or bias.appended is None else y + bias.appended.to(x)

    hidden = mlp.activation(row(mlp.gate_name or mlp.in_name))
    if mlp.gate_name:
        hidden = hidden * row(mlp.in_name)
    values = out.appended.to(x)
    return hidden @ (values if mlp.transposed else values.T)
