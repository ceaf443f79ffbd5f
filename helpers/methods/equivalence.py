"""The same edit twice: as weights, and as an nnsight intervention on the unedited model.

A matrix that is added to W equals an intervention at its output: y + ΔW x. Appended neurons equal
one at the output of W_out: y + V (act(G x + b_g) ⊙ (U x + b_u)). Both forms must give the same
logits. Some interventions have no such ΔW: those that switch on a nonlinear function of the state
which is no neuron of the model's own kind, such as an SAE that clamps a latent or a top-k.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.prompts import Prompt, token_ids
from helpers.methods.appended_neurons import bias_name
from helpers.methods.edit import Edit
from helpers.methods.weight_edit import WeightEdit
from helpers.models import MLPArchitecture, architecture_of, final_norm, torch_module, unembed


def max_logit_diff(model: LanguageModel, edit: Edit, prompts: Sequence[Prompt | str]) -> float:
    """Return the largest difference of any logit between the edit as weights and as intervention.

    Args:
        model: The model without the edit.
        edit: An edit of its MLPs' weights.
        prompts: Texts, compared at every position.

    Raises:
        UserError: The edit changes a tensor that is not of an MLP.
    """
    largest, module = 0.0, torch_module(model)
    for prompt in prompts:
        ids = token_ids(model, prompt)
        intervened = intervened_logits(model, cast(WeightEdit, edit.delta), ids)
        with edit.applied(model), torch.inference_mode():
            folded = module(torch.tensor([ids]).to(module.device)).logits[0]
        largest = max(largest, float((intervened - folded.float()).abs().max()))
    return largest


def intervened_logits(
    model: LanguageModel, weight_edit: WeightEdit, ids: Sequence[int]
) -> Float[Tensor, "t vocab"]:
    """Compute logits of the unedited model with the edit's effect added at the MLPs' outputs.

    Args:
        model: The model without the edit.
        weight_edit: An edit of its MLPs' weights.
        ids: Tokens of one sequence.

    Raises:
        UserError: The edit changes a tensor that is not of an MLP.
    """
    arch = architecture_of(model)
    known = {name for layer in arch.layers for name in _tensor_names(layer.mlp)}
    for name in weight_edit.changes:
        if name not in known:
            raise UserError(f"{name} is no matrix of an MLP: only edits of MLPs can be compared.")
    with torch.inference_mode(), model.trace(torch.tensor([list(ids)])) as tracer:
        for layer in arch.layers:
            if any(name in weight_edit.changes for name in _tensor_names(layer.mlp)):
                _intervene(layer.mlp, weight_edit)
        final = arch.layers[-1].block.output.save()  # (1, t, d_model)
        tracer.stop()
    with torch.inference_mode():
        return unembed(model, final_norm(model, final))[0].float()


def _intervene(mlp: MLPArchitecture, weight_edit: WeightEdit) -> None:
    """Add an edit's effect to one MLP's activations, inside a trace."""
    inputs = None
    for name, envoy in (
        (mlp.gate_name, mlp.gate_envoy if mlp.gate_name else None),  # in order of execution
        (mlp.in_name, mlp.in_envoy),
    ):
        if name is None:
            continue
        inputs = envoy.input
        added = _added_output(mlp, weight_edit, name, inputs)
        if added is not None:
            envoy.output = envoy.output + added
    hidden, output = mlp.out_envoy.input, mlp.out_envoy.output
    for added in (
        _added_output(mlp, weight_edit, mlp.out_name, hidden),
        _appended_neurons_output(mlp, weight_edit, inputs),
    ):
        output = output if added is None else output + added
    mlp.out_envoy.output = output


def _tensor_names(mlp: MLPArchitecture) -> list[str]:
    """Return the names of an MLP's matrices and biases, whether it has the latter or not."""
    matrices = [n for n in (mlp.gate_name, mlp.in_name, mlp.out_name) if n]
    return [*matrices, *(bias_name(n) for n in matrices)]


def _added_output(
    mlp: MLPArchitecture, weight_edit: WeightEdit, name: str, x: Tensor
) -> Tensor | None:
    """Return ΔW x for a matrix of an MLP and its inputs; None without an added matrix."""
    change = weight_edit.changes.get(name)
    if change is None or not change.is_additive:
        return None
    matrix = change.matrix().to(x)
    return x @ (matrix if mlp.transposed else matrix.T)


def _appended_neurons_output(
    mlp: MLPArchitecture, weight_edit: WeightEdit, x: Tensor
) -> Tensor | None:
    """Return the output of the neurons appended to an MLP for its inputs; None without any."""
    out = weight_edit.changes.get(mlp.out_name)
    if out is None or out.appended is None:
        return None

    def preactivation(name: str) -> Tensor:
        rows = weight_edit.changes[name].appended.to(x)
        bias = weight_edit.changes.get(bias_name(name))
        y = x @ (rows if mlp.transposed else rows.T)
        return y if bias is None or bias.appended is None else y + bias.appended.to(x)

    hidden = mlp.activation(preactivation(mlp.gate_name or mlp.in_name))
    if mlp.gate_name:
        hidden = hidden * preactivation(mlp.in_name)
    values = out.appended.to(x)
    return hidden @ (values if mlp.transposed else values.T)
