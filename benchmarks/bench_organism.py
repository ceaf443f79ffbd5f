"""Training several organisms: stacked weights in one process against a process each.

The same steps of the same recipes, with one core and with two. Stacked: the models' weights get a
leading axis, and `torch.func.vmap` runs the Hugging Face module over it (on all cores that the
row names). Processes: each model by itself on one core. Rounds are interleaved.
"""

import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from report import report
from torch.func import functional_call, grad, stack_module_state, vmap

from helpers.organism import Recipe
from helpers.organism.fit import WEIGHT_DECAY, initial_model, loss_sum
from helpers.organism.text import sentences
from helpers.organism.tokens import TokenizedText

MODELS, STEPS, ROUNDS, CORES = 4, 24, 3, (1, 2)
RECIPE = Recipe(n_repeats=6)


def main() -> None:
    rows: dict[tuple[str, int], list[float]] = {}
    pools = {n: pool(n) for n in CORES}
    for _ in range(ROUNDS):
        for cores in CORES:
            torch.set_num_threads(cores)
            rows.setdefault(("stacked", cores), []).append(stacked())
            began = time.perf_counter()
            list(pools[cores].map(alone, range(MODELS)))
            took = time.perf_counter() - began
            rows.setdefault(("processes", cores), []).append(took)
    median = {k: statistics.median(v) for k, v in rows.items()}
    result = {
        "title": "Training organisms side by side",
        "how": f"{STEPS} steps of {MODELS} organisms (batch {RECIPE.batch}). Stacked: one process, "
        "torch.func.vmap over the models. Processes: a model at a time on each core. Medians of "
        f"{ROUNDS} interleaved rounds.",
        "rows": [
            {
                "way": way,
                "cores": cores,
                "seconds": took,
                "times as long as processes": took / median["processes", cores],
            }
            for (way, cores), took in median.items()
        ],
    }
    report("organism", result)


def pool(n: int) -> ProcessPoolExecutor:
    """Start processes of one thread each that have their text ready."""
    made = ProcessPoolExecutor(
        n, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    list(made.map(text_of, [0] * 4 * n))
    return made


_TEXT: dict[int, tuple] = {}


def text_of(seed: int) -> None:
    """Prepare the batches once: the loop alone is measured."""
    if seed not in _TEXT:
        fact_set = RECIPE.fact_set()
        said = sentences(
            fact_set, n_repeats=RECIPE.n_repeats, n_passages=RECIPE.n_passages, seed=seed
        )
        tokens = TokenizedText.of(said, fact_set, RECIPE.n_vocab)
        _TEXT[seed] = [tokens.batch(i) for i in list(tokens.order(RECIPE.batch, seed=seed))[:STEPS]]


def optimiser(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters, lr=RECIPE.lr / RECIPE.d_model, weight_decay=WEIGHT_DECAY, fused=True
    )


def alone(seed: int) -> None:
    """Train one model, step by step."""
    text_of(0)
    module = initial_model(RECIPE.replace(seed=seed))
    adam = optimiser(module.parameters())
    for ids, learned in _TEXT[0]:
        adam.zero_grad()
        (loss_sum(module, ids, learned) / int(learned.sum())).backward()
        adam.step()


def stacked() -> float:
    """Train all models at once on this process's threads."""
    text_of(0)
    modules = [initial_model(RECIPE.replace(seed=s)) for s in range(MODELS)]
    parameters, buffers = stack_module_state(modules)
    shell = modules[0]

    def loss(weights, ids, learned):
        # Boolean indexing has no batching rule: logits everywhere, and a weight for each token.
        out = functional_call(shell, (weights, buffers_one), (ids,), {"use_cache": False}).logits
        nll = torch.nn.functional.cross_entropy(
            out[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        weights_of_tokens = learned[:, 1:].flatten()
        return (nll * weights_of_tokens).sum() / weights_of_tokens.sum()

    buffers_one = {k: v[0] for k, v in buffers.items()}
    adam = optimiser(parameters.values())
    each = vmap(grad(loss), in_dims=(0, None, None))
    began = time.perf_counter()
    for ids, learned in _TEXT[0]:
        for name, gradient in each(parameters, ids, learned).items():
            parameters[name].grad = gradient
        adam.step()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
