"""A model with a few neurons more, written as a standard model that Hugging Face loads.

An edit appends neurons to some layers; a standard model is as wide in every layer, so the others
get neurons that write nothing.
"""

import copy
from pathlib import Path

import torch
from nnsight import LanguageModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from helpers.errors import UserError
from helpers.io.files import atomic_path
from helpers.models import anatomy
from helpers.models.hooks import active_interventions
from helpers.models.tokenization import save_tokenizer

WIDTH = ("intermediate_size", "n_inner", "ffn_dim")  # how configurations call d_mlp


def save_pretrained_widened(model: LanguageModel, folder: str | Path) -> Path:
    """Write the model as it is, with the edits that it carries, for `from_pretrained`.

    Args:
        model: A model with edits that append neurons applied.
        folder: Made; config, safetensors and tokenizer go there.

    Raises:
        UserError: The folder is there already, the model carries an intervention, which no weights
            can hold, or the family's configuration has no place for what was appended (biases of a
            gated MLP where it allows none).
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} is there already: name a folder that is not.")
    module, parts = model._module, anatomy(model)
    if active_interventions(module):
        raise UserError(
            "The model carries an intervention, which is no weights and would be lost: revert it, "
            "and keep it as a patch (save)."
        )
    widest = max(layer.mlp.W_in().shape[0] for layer in parts.layers)
    config = copy.deepcopy(module.config)
    setattr(config, next(n for n in WIDTH if hasattr(config, n)), widest)
    tensors = {n: t.detach() for n, t in module.state_dict().items()}
    gated = parts.layers[0].mlp.gate_name is not None
    names = [n for layer in parts.layers for n in _biases(layer.mlp)]
    if gated and any(n in tensors for n in names):
        config.mlp_bias = True
    for layer in parts.layers:
        mlp = layer.mlp
        rows = 1 if mlp.transposed else 0
        for name in filter(None, (mlp.in_name, mlp.gate_name)):
            tensors[name] = _padded(tensors[name], widest, rows)
        tensors[mlp.out_name] = _padded(tensors[mlp.out_name], widest, 1 - rows)
        for name in _biases(mlp):
            if name in tensors or getattr(config, "mlp_bias", False):
                size = parts.d_model if name.startswith(_stem(mlp.out_name)) else widest
                like = tensors[mlp.in_name].new_zeros(0)
                tensors[name] = _padded(tensors.get(name, like), size, 0)
    wide = AutoModelForCausalLM.from_config(config, dtype=module.dtype)
    if set(wide.state_dict()) != set(tensors):
        raise UserError(
            f"{type(module).__name__} has no biases in its MLPs, and a neuron with a threshold "
            "needs one: keep the edit as a patch (save) and apply it after loading."
        )
    wide.load_state_dict(tensors)
    wide.tie_weights()
    with atomic_path(folder, folder=True) as temporary:
        wide.save_pretrained(temporary)
        save_tokenizer(model.tokenizer, temporary)
    return folder


def _stem(name: str) -> str:
    return name.removesuffix("weight")


def _biases(mlp) -> list[str]:
    return [f"{_stem(n)}bias" for n in (mlp.in_name, mlp.gate_name, mlp.out_name) if n]


def _padded(tensor: Tensor, size: int, axis: int) -> Tensor:
    shape = list(tensor.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], axis)
