"""LoRA adapters of peft, merged into a copy of their base model.

An adapter's configuration can name modules to import and other files to read. So only the settings
of plain LoRA are passed on to peft, and only safetensors are read.
"""

import copy
import json
import logging
import warnings
from pathlib import Path
from typing import Any

from nnsight import LanguageModel
from torch import nn

from helpers.errors import UserError
from helpers.io.files import check_finite, read_json, read_tensors
from helpers.models.architecture import torch_module
from helpers.models.files import refusing, shown

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Settings that decide which numbers are merged.
USED = (
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "fan_in_fan_out",
    "bias",
    "lora_bias",
    "modules_to_save",
)
# Settings of training, and notes: the merged numbers are the same without them.
UNUSED = (
    "peft_type",
    "peft_version",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "init_lora_weights",
    "megatron_core",
    "qalora_group_size",
)
INITS = (None, True, False, "gaussian")  # the others subtract something from the base's weights


def is_adapter(name: str) -> bool:
    """Tell whether a name is that of a folder with an adapter's configuration."""
    try:
        return (Path(name).expanduser() / CONFIG).is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, nobody's home
        return False


def merge_adapter(model: LanguageModel, folder: str) -> nn.Module:
    """Merge a LoRA adapter into a copy of the model, as peft does; the model stays as it is.

    Args:
        model: The adapter's base model.
        folder: A folder with `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        The copy of the torch module, with the same parameters by name.

    Raises:
        UserError: The adapter is not plain LoRA, has no safetensors weights or is damaged; it was
            made for a model with other layers; or merged weights are not finite.
    """
    from peft import LoraConfig, PeftModel  # imported here: it takes a second that few need
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict  # with it

    path, what = Path(folder).expanduser(), f"The adapter {shown(folder)}"
    config = _config(path, what)
    if not (path / WEIGHTS).is_file():
        raise UserError(
            f"{what} has no {WEIGHTS}; pickled weights are never read: save it as safetensors."
        )
    tensors, _ = read_tensors(path / WEIGHTS)
    base = str(config.get("base_model_name_or_path") or "")
    named = f" (it names {shown(base)})" if base else ""
    advice = f"give the model that it was trained on as the original{named}"
    with refusing(f"{what} does not fit this model", advice), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GPT-2's transposed matrices, which peft handles
        settings = {name: config[name] for name in USED if name in config}
        adapted = PeftModel(copy.deepcopy(torch_module(model)), LoraConfig(**settings))
        needed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        unplaced = set_peft_model_state_dict(adapted, tensors).unexpected_keys
        for problem, names in (("lacks", needed - set(tensors)), ("has no place for", unplaced)):
            if names:
                raise ValueError(f"it {problem} '{min(names)}'")
        merged = adapted.merge_and_unload()
    check_finite(dict(merged.named_parameters()), what)
    given = torch_module(model).name_or_path
    if base and Path(base).name.lower() != Path(given).name.lower():  # perhaps a copy of it
        log.warning("%s names %s as its base; it is merged into %s.", what, shown(base), given)
    return merged


def _config(folder: Path, what: str) -> dict[str, Any]:
    """Read an adapter's configuration, and refuse anything but plain LoRA."""
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    others = [k for k, v in config.items() if v and k not in USED + UNUSED] if kind else []
    if kind != "LORA" or config.get("init_lora_weights") not in INITS:
        others.append("init_lora_weights" if kind == "LORA" else "peft_type")
    if others:
        value = json.dumps(config.get(others[0])) if kind else "missing"
        raise UserError(
            f"{what} is not plain LoRA ('{shown(others[0])}' is {shown(value)}): merge it into its "
            "model, save that with save_pretrained, and give its folder."
        )
    return config
