"""Trainings on the small model that knows some countries, which several tests share."""

import importlib

import torch

from helpers.facts import ConceptPair
from helpers.methods import METHODS
from helpers.methods.training.data import forget_retain_data
from helpers.methods.training.task import UnlearningTask
from helpers.models import architecture_of, model_hash
from helpers.sae import SAEConfig, save_sae
from helpers.sae.topk import TopKSAE

FRANCE = ConceptPair("France", "Paris")
TRAINED = [name for name, m in METHODS.items() if m.family == "training"]
QUICK = {"steps": 12, "lr": 0.01, "n_neighbours": 6, "n_passages": 3, "early_stop_ratio": 0.0}


def numbers(method: str, model, folder) -> dict:
    slow = ("rmu", "weighted_ascent", "simnpo")  # larger steps overshoot on so small a model
    found = QUICK | ({"lr": 0.002} if method in slow else {})
    if "retain_weight" in METHODS[method].hyperparameters() and method != "rmu":
        found["retain_weight"] = 1.0
    if "saes" in METHODS[method].hyperparameters():
        d = architecture_of(model).d_model
        torch.manual_seed(0)
        for layer in (1, 2):
            cfg = SAEConfig(
                "topk", d, 4 * d, k=16, site="mlp_in", layer=layer, model_hash=model_hash(model)
            )
            save_sae(TopKSAE(cfg), folder / str(layer))
        found |= {"saes": (str(folder / "1"), str(folder / "2")), "n_latents": 3, "beta": 0.3}
    return found


def task_of(model, method: str, given: dict, pair: ConceptPair = FRANCE):
    """A method's task and objective, as `train_edit` makes them."""
    config = METHODS[method].hparams(**given)
    n, passages = config.n_neighbours, config.n_passages
    data = forget_retain_data(model, [pair], n_neighbours=n, n_passages=passages, seed=0)
    task = UnlearningTask(model, (pair,), data, config, 0)
    prepare = getattr(importlib.import_module(f"helpers.methods.training.{method}"), method)
    return task, prepare(task, config)


def interrupted_at(n: int, calls: list[int]):
    """In place of `early_stop`: never ends a training, and is interrupted once, at its n-th step.

    The steps at which it is asked are appended to `calls`.
    """

    def early_stop(*args):
        def stop(step: int) -> bool:
            calls.append(step)
            if len(calls) == n:
                raise KeyboardInterrupt
            return False

        return stop

    return early_stop
