"""Load a causal language model by its name."""

import warnings

import torch
from nnsight import LanguageModel, NNsightDeprecationWarning
from transformers.utils.logging import disable_progress_bar

from helpers.errors import UserError
from helpers.models.architecture import _has, architecture_of, body_of
from helpers.models.context import POSITIONS, _check_pass
from helpers.models.files import refusing, shown
from helpers.models.sources import DEFAULT, find_model
from helpers.models.strict_loading import load_files

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(name: str = DEFAULT, *, dtype: str = "float32", device: str = "cpu"):
    """Load a causal language model with its tokenizer.

    Nothing but its weights, configuration and tokenizer is read, and no code of its own is run.
    Every parameter comes from the weights and every tensor of the weights goes into one.

    Args:
        name: `smollm2-135m` (the default, from its Python package, converted once into the
            cache), a Hugging Face hub name, a local folder, or a `.gguf` file.
        dtype: float32, bfloat16 or float16.
        device: `cpu`, `cuda`, `cuda:1`, or `auto` to spread a big model over all devices.

    Returns:
        An nnsight `LanguageModel` in evaluation mode; the torch module is `model._module`.

    Raises:
        UserError: Unknown name, damaged or unsafe files, weights that are not the configuration's,
            a dtype, device or MLP that is not known.
    """
    if dtype not in DTYPES:
        raise UserError(f"There is no dtype '{shown(dtype)}'; choose from {', '.join(DTYPES)}.")
    _check_device(device)
    disable_progress_bar()
    files = find_model(name)
    module, tokenizer = load_files(files, dtype=DTYPES[dtype], device=device)
    module.eval().requires_grad_(False)
    advice = (
        "the suite knows the families of Llama, GPT-2, GPT-NeoX, OPT, Gemma, Qwen2 and the like"
    )
    with (
        refusing(f"{files.what} is of a kind that is not known", advice),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", NNsightDeprecationWarning)  # the class is ours to pin
        # A model that is spread over several devices stays where it is.
        placement = {} if hasattr(module, "hf_device_map") else {"device": module.device}
        model = LanguageModel(module, tokenizer=tokenizer, **placement)
        architecture_of(model)
    body = body_of(model)
    if any(_has(body, name) for name in POSITIONS):
        body.register_forward_pre_hook(_check_pass, with_kwargs=True)
    return model


def _check_device(device: str) -> None:
    accelerator = torch.accelerator.current_accelerator()
    kind = accelerator.type if accelerator is not None else ""
    n = torch.accelerator.device_count() if kind else 0
    devices = ["cpu", "auto", *([kind] if n else []), *(f"{kind}:{i}" for i in range(n))]
    if device in devices:
        return
    if str(device).startswith("cuda") and kind != "cuda":
        raise UserError("No CUDA device is available here; use device 'cpu'.")
    raise UserError(f"There is no device '{shown(device)}' here; choose from {', '.join(devices)}.")
