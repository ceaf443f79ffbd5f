"""Export edits to other libraries: a LoRA adapter for peft, a standard model for transformers.

An edit may append neurons to some layers. A standard model is as wide in every layer, so the others
are padded with neurons that write nothing.
"""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from nnsight import LanguageModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from helpers.errors import UserError
from helpers.io.files import atomic_path
from helpers.methods.appended_neurons import bias_name
from helpers.methods.change import Change
from helpers.models import MLPArchitecture, architecture_of, torch_module
from helpers.models.hooks import active_interventions
from helpers.models.tokenization import save_tokenizer

# Names of d_mlp in configurations of Llama and its relatives, of GPT-2, and of OPT.
WIDTH_NAMES = ("intermediate_size", "n_inner", "ffn_dim")


def save_peft_adapter(
    changes: Mapping[str, Change], folder: str | Path, model: LanguageModel
) -> None:
    """Write changes of linear layers' weights as a LoRA adapter of peft.

    Args:
        changes: Name → change; none appends neurons.
        folder: `adapter_config.json` and `adapter_model.safetensors` are written there.
        model: The base model; only its layout is read.

    Raises:
        UserError: A changed tensor is not a linear layer's weight.
    """
    from peft import LoraConfig  # imported here: it takes a second that few edits need

    tensors, ranks, transposed = {}, {}, set()
    for name, change in changes.items():
        owner = name.removesuffix(".weight")
        layer = torch_module(model).get_submodule(owner)
        if not isinstance(layer, Conv1D | torch.nn.Linear) or not name.endswith(".weight"):
            raise UserError(f"{name} is no linear layer's weight: peft has no adapter for it.")
        left, right = change.factors()
        if isinstance(layer, Conv1D):  # stored (in, out)
            left, right = right.T, left.T
        ranks[owner] = left.shape[1]
        transposed.add(isinstance(layer, Conv1D))
        prefix = f"base_model.model.{owner}"
        tensors[f"{prefix}.lora_A.weight"] = right.float().contiguous().clone()
        tensors[f"{prefix}.lora_B.weight"] = left.float().contiguous().clone()
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


def save_pretrained_widened(model: LanguageModel, folder: str | Path) -> Path:
    """Write the model with the edits that it carries, for `from_pretrained`; return the folder.

    Args:
        model: A model on which edits that append neurons are applied.
        folder: A new folder for config, safetensors and tokenizer.

    Raises:
        UserError: The folder exists, the model carries an intervention, which no weights can hold,
            or the family's configuration has no place for the appended tensors (biases of a gated
            MLP where it allows none).
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} is there already: name a folder that is not.")
    module, arch = torch_module(model), architecture_of(model)
    if active_interventions(module):
        raise UserError(
            "The model carries an intervention, which is no weights and would be lost: revert it, "
            "and keep it as a patch (save)."
        )
    width = max(layer.mlp.W_in().shape[0] for layer in arch.layers)
    config = copy.deepcopy(module.config)
    setattr(config, next(n for n in WIDTH_NAMES if hasattr(config, n)), width)
    tensors = {n: t.detach() for n, t in module.state_dict().items()}
    # Thresholds of appended neurons are biases, which a gated MLP has in all layers or in none.
    gated = arch.layers[0].mlp.gate_name is not None
    if gated and any(n in tensors for layer in arch.layers for n in _biases(layer.mlp)):
        config.mlp_bias = True
    for layer in arch.layers:
        _pad_mlp(tensors, layer.mlp, width, arch.d_model, getattr(config, "mlp_bias", False))
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


def _pad_mlp(
    tensors: dict[str, Tensor], mlp: MLPArchitecture, width: int, d_model: int, add_biases: bool
) -> None:
    """Pad one MLP's tensors with zeros, in place, to `width` neurons.

    Args:
        tensors: The model's tensors by name.
        mlp: The MLP.
        width: Neurons after padding.
        d_model: Length of the bias of W_out.
        add_biases: Add biases of zeros where the MLP has none.
    """
    rows = 1 if mlp.transposed else 0
    for name in filter(None, (mlp.in_name, mlp.gate_name)):
        tensors[name] = _padded(tensors[name], width, rows)
    tensors[mlp.out_name] = _padded(tensors[mlp.out_name], width, 1 - rows)
    for name in _biases(mlp):
        if name in tensors or add_biases:
            size = d_model if name == bias_name(mlp.out_name) else width
            empty = tensors[mlp.in_name].new_zeros(0)
            tensors[name] = _padded(tensors.get(name, empty), size, 0)


def _biases(mlp: MLPArchitecture) -> list[str]:
    """Return the names of an MLP's biases, whether it has them or not."""
    return [bias_name(n) for n in (mlp.in_name, mlp.gate_name, mlp.out_name) if n]


def _padded(tensor: Tensor, size: int, axis: int) -> Tensor:
    """Append zeros along an axis up to `size`."""
    shape = list(tensor.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], axis)
