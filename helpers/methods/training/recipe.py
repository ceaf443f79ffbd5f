"""What all training methods share: their settings, how they are registered, and one call that fits.

A method is a function from a `UnlearningTask` and its hyperparameters, a subclass of `TrainingConfig`, to an
`UnlearningLoss`. `training_method` registers it.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor, nn

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.io.code_version import code_hash
from helpers.io.files import cache_dir
from helpers.io.hashing import content_hash, folder_hash
from helpers.methods.change import Change
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.snapshots import preserved_parameters
from helpers.methods.training.data import BatchSchedule, ForgetRetainData, forget_retain_data
from helpers.methods.weight_edit import WeightEdit
from helpers.models import architecture_of, model_hash
from helpers.training.examples import (
    Batch,
    Example,
    in_batches,
    label_logits,
    mean_loss,
    sum_per_sequence,
    token_losses,
)
from helpers.training.loop import DivergedError, History, choose_parameters, train
from helpers.training.lora import lora_adapters

log = logging.getLogger(__name__)

LAYERS = (5, 6, 7, 8)  # of 30: among those that enrich the subject's tokens (chapter 02)
CHECK = 2  # steps between two looks at the development prompts


@dataclass(frozen=True)
class TrainingConfig(Hyperparameters):
    """Hyperparameters that every training method has.

    Defaults of the rate, and of what else a method's grid holds, are those that the search of
    `helpers.evaluation.tuning` chose; `tuned.json` beside this file is its record. The papers'
    rates are for models many times as large.

    Attributes:
        steps: Steps of AdamW, at most.
        lr: Learning rate.
        batch: Examples to forget in a forward pass, and as many to retain.
        accumulate: Forward passes a step; their losses are averaged. A larger batch in less memory.
        parameters: `mlps`, `values`, `all`, or names of matrices (`helpers.models.parameters`).
        layers: Which blocks; None for the method's own, at the same relative depth in any model.
        rank: 0 trains the matrices whole, more trains LoRA factors of that rank.
        stop_at: The training ends when the mean P(target) over the pair's development prompts is
            at most this share of what it was; 0 never ends it.
        n_neighbours: Known neighbours among what is retained.
        n_passages: Passages of text among what is retained.
    """

    steps: int = 30
    lr: float = 4e-4
    batch: int = 4
    accumulate: int = 1
    parameters: str = "mlps"
    layers: Sequence[int] | None = None
    rank: int = 0
    stop_at: float = 0.02
    n_neighbours: int = 24
    n_passages: int = 12


class ForgetRetainBatch(NamedTuple):
    """What a step is made of."""

    forget: Batch
    retain: Batch | None


@dataclass(frozen=True)
class UnlearningLoss:
    """What a method minimises, and how.

    Attributes:
        loss: (module, `ForgetRetainBatch`) → scalar.
        layers: The method's own choice of blocks.
        share: What is kept of the change: −α for a task vector.
        early: Whether forgetting on development prompts may end the training.
    """

    loss: Callable[[nn.Module, ForgetRetainBatch], Tensor]
    layers: Sequence[int] | None = None
    share: float = 1.0
    early: bool = True


@dataclass(frozen=True)
class UnlearningTask:
    """What a method is given.

    Attributes:
        model: The model, as yet the original.
        pair: What to forget.
        data: Examples.
        config: The hyperparameters.
        seed: Of everything random.
    """

    model: LanguageModel
    pair: ConceptPair
    data: ForgetRetainData
    config: TrainingConfig
    seed: int

    def layers(self, default: Sequence[int]) -> list[int]:
        """The layers asked for, or `default` of a model of 30 layers at the same depth here."""
        arch = architecture_of(self.model)
        chosen = self.config.layers or arch.relative_layers(default)
        return sorted({arch.check_layer(i) for i in chosen})

    def forget_loss(self, step: ForgetRetainBatch) -> Float[Tensor, ""]:
        """L_F: mean token NLL on the step's examples to forget."""
        return mean_loss(self.model, step.forget)

    def retain_loss(self, step: ForgetRetainBatch) -> Float[Tensor, ""] | float:
        """L_R: mean token NLL on the step's examples to retain; 0 where there are none."""
        return 0.0 if step.retain is None else mean_loss(self.model, step.retain)

    @torch.no_grad()
    def reference_logits(self, examples: Sequence[Example]) -> list[Float[Tensor, "k vocab"]]:
        """The original model's logits at the tokens that count, for each example."""
        found: list = [None] * len(examples)
        for batch in in_batches(examples):
            scores = label_logits(self.model, batch)
            for row, i in enumerate(batch.index.tolist()):
                found[i] = scores[(batch.row == row).to(scores.device)]
        return found

    @torch.no_grad()
    def reference_sums(self, examples: Sequence[Example]) -> Float[Tensor, " n"]:
        """The original model's NLL of each example, summed over the tokens that count."""
        found = torch.zeros(len(examples), device=self.model._module.device)
        for batch in in_batches(examples):
            losses = token_losses(label_logits(self.model, batch), batch)
            found[batch.index.to(found.device)] = sum_per_sequence(losses, batch)
        return found


def training_method(name: str) -> Callable:
    """Register a function (task, hparams) → `UnlearningLoss` as the method `name`.

    The annotation of `hparams` is the class of its hyperparameters, a subclass of `TrainingConfig`.
    """

    def register(
        prepare: Callable[[UnlearningTask, Any], UnlearningLoss],
    ) -> Callable[..., WeightEdit]:
        config = inspect.signature(prepare).parameters["hparams"].annotation

        @functools.wraps(prepare)
        def function(
            model: LanguageModel, pair: ConceptPair, hparams: config, *, seed: int = 0
        ) -> WeightEdit:
            saes = [folder_hash(folder) for folder in getattr(hparams, "saes", ())]
            version = [name, saes, code_hash(inspect.getsourcefile(prepare))]
            return fit(model, pair, prepare, hparams, seed, version)

        function.__signature__ = inspect.Signature(
            [
                inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=a)
                for n, a in (("model", LanguageModel), ("pair", ConceptPair), ("hparams", config))
            ]
        )
        return method(name, family="training")(function)

    return register


def fit(
    model: LanguageModel,
    pair: ConceptPair,
    prepare: Callable[[UnlearningTask, Any], UnlearningLoss],
    config: TrainingConfig,
    seed: int,
    version: Any,
) -> WeightEdit:
    """Train as configured, put the model back as it was, and return the change.

    A training of minutes leaves a checkpoint in the cache, and one that was killed goes on from it
    to the same numbers.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        prepare: The method.
        config: The method's hyperparameters.
        seed: Of everything random.
        version: Plain data that tells the method and its code from others.

    Raises:
        UserError: A hyperparameter is out of range, there is nothing to forget, or the loss was not
            finite; the model is then as it was.
    """
    _check(config)
    data = forget_retain_data(
        model, pair, n_neighbours=config.n_neighbours, n_passages=config.n_passages, seed=seed
    )
    task = UnlearningTask(model, pair, data, config, seed)
    objective = prepare(task, config)
    layers = objective.layers or task.layers(LAYERS)
    every = config.parameters == "all" and config.layers is None and not objective.layers
    names = choose_parameters(model, config.parameters, layers=None if every else layers)
    forget = BatchSchedule(data.forget, config.batch, seed=seed)
    retain = BatchSchedule(data.retain, config.batch, seed=seed + 1) if data.retain else None
    how = {
        "steps": config.steps,
        "lr": config.lr,
        "accumulate": config.accumulate,
        "seed": seed,
        "stop": forgotten(model, pair, config.stop_at) if objective.early else None,
    }

    asked = [str(pair), pair.relation, *pair.fingerprint()]
    identity = [model_hash(model), asked, version, vars(config), seed]
    checkpoint = cache_dir() / "trainings" / f"{content_hash(identity)}.safetensors"

    def run(trained: list[str]) -> History:
        at = lambda i: ForgetRetainBatch(forget.at(i), retain.at(i) if retain else None)  # noqa: E731
        files = {"checkpoint": checkpoint, "identity": identity}
        return train(model._module, objective.loss, at, parameters=trained, **how, **files)

    try:
        if config.rank:
            changes, history = _by_adapters(model._module, names, config.rank, objective, seed, run)
        else:
            changes, history = _whole(model._module, names, objective, run)
    except DivergedError as error:
        checkpoint.unlink(missing_ok=True)
        raise UserError(f"{error.told}; the model is as it was.") from None
    notes = data.sizes() | {
        "trained": f"{config.parameters} of layers {', '.join(map(str, layers))}"
        if not every
        else "all parameters",
        "numbers": sum(model._module.get_parameter(n).numel() for n in changes),
        "steps": history.steps,
        "stopped_early": history.stopped,
        "first_loss": history.losses[0],
        "last_loss": history.losses[-1],
    }
    log.info("%s, %s", pair, notes)
    return WeightEdit.of(model._module, changes, notes=notes)


def _check(config: TrainingConfig) -> None:
    for name, low in (
        ("steps", 1),
        ("batch", 1),
        ("accumulate", 1),
        ("rank", 0),
        ("n_neighbours", 0),
    ):
        if getattr(config, name) < low:
            raise UserError(f"{name} is {getattr(config, name)}: choose at least {low}.")
    if not config.lr > 0:
        raise UserError(f"lr is {config.lr}: choose a positive learning rate.")


def _whole(
    module: nn.Module, names: list[str], objective: UnlearningLoss, run: Callable
) -> tuple[dict[str, Change], History]:
    with preserved_parameters(module, names) as before:
        history = run(names)
        moved = {n: (k.parameter.detach().float() - k.data.float()) for n, k in before.items()}
    changes = {n: Change(dense=(objective.share * d).cpu()) for n, d in moved.items()}
    return changes, history


def _by_adapters(
    module: nn.Module,
    names: list[str],
    rank: int,
    objective: UnlearningLoss,
    seed: int,
    run: Callable,
) -> tuple[dict[str, Change], History]:
    with lora_adapters(module, names, rank=rank, seed=seed) as factors:
        owned = {id(p): n for n, p in module.named_parameters()}
        trained = [owned[id(p)] for f in factors.values() for p in f.parameters()]
        history = run(trained)
    changes = {
        name: Change(
            left=(objective.share * f.left).detach().cpu(), right=f.right.detach().cpu().clone()
        )
        for name, f in factors.items()
    }
    return changes, history


def forgotten(
    model: LanguageModel, pair: ConceptPair, share: float
) -> Callable[[int], bool] | None:
    """Whether P(target) on the development prompts came down to a share of what it is now."""
    if not share:
        return None
    prompts = pair.prompts("dev")
    goal = share * float(answer_probability(model, prompts).mean())

    def reached(step: int) -> bool:
        return step % CHECK == 0 and float(answer_probability(model, prompts).mean()) <= goal

    return reached
