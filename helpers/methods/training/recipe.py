"""The common part of all training methods: hyperparameters, registration, and training.

A method is a function from an `UnlearningTask` and its hyperparameters, a subclass of
`TrainingConfig`, to an `UnlearningLoss`. `training_method` registers it.
"""

import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nnsight import LanguageModel
from torch import nn

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.io.code_version import code_hash
from helpers.io.files import cache_dir
from helpers.io.hashing import content_hash, folder_hash
from helpers.methods.change import Change
from helpers.methods.registry import Method, add_method
from helpers.methods.snapshots import preserved_parameters
from helpers.methods.training.data import ForgetRetainData, forget_retain_data, text_data
from helpers.methods.training.early_stop import Forgotten, early_stop
from helpers.methods.training.robust.wrappers import check_robust, robust_losses
from helpers.methods.training.stages import Stages
from helpers.methods.training.task import TrainingConfig, UnlearningLoss, UnlearningTask
from helpers.methods.weight_edit import WeightEdit
from helpers.models import model_hash, torch_module
from helpers.requests import TextRequest
from helpers.training.loop import DivergedError, History, choose_parameters, train
from helpers.training.lora import lora_adapters

log = logging.getLogger(__name__)

Prepare = Callable[[UnlearningTask, Any], UnlearningLoss]


def training_method(
    name: str, *, takes: Sequence[str] = ("pair",), sae_sites: Sequence[str] = ()
) -> Callable[[Prepare], Prepare]:
    """Register a function (task, hparams) → `UnlearningLoss` as the method `name`.

    The annotation of `hparams` is the class of its hyperparameters, a subclass of `TrainingConfig`.

    Args:
        name: The name by which users choose it.
        takes: The forms of request that it takes, of `FORMS`.
        sae_sites: Sites of the SAEs that it reads.
    """

    def register(prepare: Prepare) -> Prepare:
        config = inspect.signature(prepare).parameters["hparams"].annotation

        def function(
            model: LanguageModel,
            request: ConceptPair | Forgotten,
            hparams: TrainingConfig,
            *,
            seed: int = 0,
        ) -> WeightEdit:
            what = [request] if isinstance(request, ConceptPair) else request
            saes = [folder_hash(folder) for folder in getattr(hparams, "saes", ())]
            version = [name, saes, code_hash(inspect.getsourcefile(prepare))]
            return train_edit(model, what, prepare, hparams, seed=seed, version=version)

        function.__doc__ = prepare.__doc__
        add_method(Method(name, "training", function, config, tuple(takes), tuple(sae_sites)))
        return prepare

    return register


def train_edit(
    model: LanguageModel,
    what: Forgotten,
    prepare: Prepare,
    config: TrainingConfig,
    *,
    seed: int,
    version: Any,
) -> WeightEdit:
    """Train as configured, restore the model, and return the change.

    A training of minutes leaves a checkpoint in the cache. One that was killed resumes from it and
    comes to the same numbers.

    Args:
        model: Any model of a known family.
        what: What to forget: pairs, or text.
        prepare: The method.
        config: The method's hyperparameters.
        seed: Seed of everything random.
        version: Plain data that tells the method and its code from others.

    Raises:
        UserError: A hyperparameter is out of range, there is nothing to forget, or the loss was not
            finite; the model is then as it was.
    """
    _check(config)
    check_robust(config)
    data = _data(model, what, config, seed)
    pairs = () if isinstance(what, TextRequest) else tuple(what)
    task = UnlearningTask(model, pairs, data, config, seed)
    tasks, losses = robust_losses(task, lambda task: prepare(task, config))
    stages = Stages(tasks, losses)
    unlearning_loss = losses[-1]
    layers = task.trained_layers(unlearning_loss)
    whole_model = (
        config.parameters == "all" and config.layers is None and not unlearning_loss.layers
    )
    names = choose_parameters(model, config.parameters, layers=None if whole_model else layers)
    stop = early_stop(model, what, config) if unlearning_loss.early_stopping else None
    facts = [[str(pair), pair.relation, *pair.fingerprint()] for pair in pairs]
    content = what.fingerprint() if isinstance(what, TextRequest) else facts
    identity = [model_hash(model), content, version, vars(config), seed]
    checkpoint = cache_dir() / "trainings" / f"{content_hash(identity)}.safetensors"

    def run(trained: list[str]) -> History:
        return train(
            torch_module(model),
            lambda _, i: stages.loss(i),
            lambda i: i,
            steps=config.steps,
            lr=config.lr,
            parameters=trained,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            seed=seed,
            stop=stages.only_in_last(stop) if stop else None,
            checkpoint=checkpoint,
            identity=identity,
        )

    changes, history = _changes(
        torch_module(model), names, config, unlearning_loss.delta_scale, seed, run, checkpoint
    )
    numbers = sum(torch_module(model).get_parameter(n).numel() for n in changes)
    trained = f"{config.parameters} of layers {', '.join(map(str, layers))}"
    notes = data.sizes() | {
        "trained": "all parameters" if whole_model else trained,
        "numbers": numbers,
        "steps": history.steps,
        "stopped_early": history.stopped,
        "first_loss": history.losses[0],
        "last_loss": history.losses[-1],
    }
    log.info("%s, %s", ", ".join(map(str, pairs)) or what, notes)
    return WeightEdit.of(torch_module(model), changes, notes=notes)


def _data(
    model: LanguageModel, what: Forgotten, config: TrainingConfig, seed: int
) -> ForgetRetainData:
    """Collect the examples to forget and to retain, as configured."""
    if isinstance(what, TextRequest):
        n_tokens, seq_len = config.n_text_tokens, config.text_tokens
        return text_data(model, what, n_tokens=n_tokens, seq_len=seq_len)
    return forget_retain_data(
        model,
        what,
        n_neighbours=config.n_neighbours,
        n_passages=config.n_passages,
        passage_tokens=config.passage_tokens,
        min_answer_prob=config.min_answer_prob,
        seed=seed,
    )


def _check(config: TrainingConfig) -> None:
    """Refuse hyperparameters that are out of range."""
    for name, low in (
        ("steps", 1),
        ("batch_size", 1),
        ("gradient_accumulation_steps", 1),
        ("lora_rank", 0),
        ("early_stop_every", 1),
        ("n_neighbours", 0),
    ):
        if getattr(config, name) < low:
            raise UserError(f"{name} is {getattr(config, name)}: choose at least {low}.")
    if not config.lr > 0:
        raise UserError(f"lr is {config.lr}: choose a positive learning rate.")


def _changes(
    module: nn.Module,
    names: list[str],
    config: TrainingConfig,
    delta_scale: float,
    seed: int,
    run: Callable[[list[str]], History],
    checkpoint: Path,
) -> tuple[dict[str, Change], History]:
    """Train matrices or their LoRA factors; return the scaled changes and the course.

    Args:
        module: The torch module; it is restored.
        names: The matrices.
        config: The hyperparameters.
        delta_scale: Factor of the changes.
        seed: Draws LoRA's factors.
        run: Trains the parameters of these names.
        checkpoint: Its checkpoint, deleted if the training diverges.
    """
    try:
        if config.lora_rank:
            return _train_lora(module, names, config.lora_rank, delta_scale, seed, run)
        return _train_whole(module, names, delta_scale, run)
    except DivergedError as error:
        checkpoint.unlink(missing_ok=True)
        raise UserError(f"{error.reason}; the model is as it was.") from None


def _train_whole(
    module: nn.Module, names: list[str], delta_scale: float, run: Callable[[list[str]], History]
) -> tuple[dict[str, Change], History]:
    """Train whole matrices."""
    with preserved_parameters(module, names) as before:
        history = run(names)
        deltas = {n: (k.parameter.detach().float() - k.data.float()) for n, k in before.items()}
    return {n: Change(dense=(delta_scale * d).cpu()) for n, d in deltas.items()}, history


def _train_lora(
    module: nn.Module,
    names: list[str],
    rank: int,
    delta_scale: float,
    seed: int,
    run: Callable[[list[str]], History],
) -> tuple[dict[str, Change], History]:
    """Train LoRA factors of matrices."""
    with lora_adapters(module, names, rank=rank, seed=seed) as adapters:
        name_of = {id(p): n for n, p in module.named_parameters()}
        history = run([name_of[id(p)] for a in adapters.values() for p in a.parameters()])
    changes = {
        name: Change(
            left=(delta_scale * adapter.lora_B).detach().cpu(),
            right=adapter.lora_A.detach().cpu().clone(),
        )
        for name, adapter in adapters.items()
    }
    return changes, history
