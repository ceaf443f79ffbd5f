"""T-Patcher: one trained neuron in the last MLP for each token of the answer.

Huang et al. 2023, "Transformer-Patcher: One Mistake worth One Neuron" (arXiv 2301.09785). The paper
corrects mistakes one after another: every token that the model gets wrong has a neuron of its own,
a *patch*, which is active there and silent on all earlier inputs. Here the tokens of an answer are
the mistakes, and what is wrong with them is that the subject makes them likely.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations
from helpers.methods.fitting.answer_queries import AnswerQueries, answer_queries
from helpers.methods.fitting.hparams import UnitEditHparams
from helpers.methods.fitting.negatives import negative_inputs
from helpers.methods.fitting.patches import Patches, PatchLoss, TPatcherHparams, appended_patches
from helpers.methods.fitting.plain_writes import require_plain_writes
from helpers.methods.registry import method
from helpers.methods.training.data import forget_retain_data
from helpers.methods.weight_edit import WeightEdit
from helpers.models import architecture_of, torch_module
from helpers.training.loop import DivergedError, train

WARM_UP_STEPS = 10


@method("t_patcher", family="surgery", takes=("pair", "pairs"))
def t_patcher(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    hparams: TPatcherHparams,
    *,
    seed: int = 0,
) -> WeightEdit:
    """Append patches to the last MLP, trained on l_e + a l_a + m (l_m1 + l_m2) (Huang et al. 2023).

    A patch has a key k_p, a bias b_p and a value v_p. It adds act(q·k_p + b_p) v_p to the MLP's
    output, with q the MLP's input, its *query*. The edit loss l_e is a cross-entropy, in the paper
    with the right token. Here the label is the token with its probability without the subject,
    which is the goal in the search for ROME's `v*` too. The activation loss l_a = S(−q_e·k_p − b_p)
    makes the patch active on its own queries q_e: of all prompts to forget by, those after which
    the token is likelier. The memory losses l_m1 = S(q_i·k_p + b_p − β) and
    l_m2 = S((q_i − q_e)·k_p + γ) keep it silent on retained queries q_i. S is the mean of exp over
    the largest entries. Retained are ordinary text, the same prompts about other subjects, known
    neighbours, and the other facts of the subject and of the target.

    All old weights stay as they are, so the fact is suppressed where it is said, and what leads to
    it is untouched.

    Args:
        model: Any model of a known family that adds its MLPs' outputs to one residual stream.
        pairs: The pairs to forget; their patches are trained together.
        hparams: Its hyperparameters.
        seed: Draws text and neighbours.

    Raises:
        UserError: A target is no likelier with its subject than without, the training diverges, or
            the family normalises its MLPs' outputs.
    """
    arch = architecture_of(model)
    layer = arch.n_layers - 1
    require_plain_writes(model)
    queries = [query for pair in pairs for query in patched_tokens(model, pair, hparams)]
    states = [
        cache_activations(model, q.ids, sites=["mlp_in", "residual"], layers=[layer])
        for q in queries
    ]
    own = [x["mlp_in", layer] for x in states]
    residual = [x["residual", layer] for x in states]
    memory = memory_queries(model, pairs, hparams, layer=layer, seed=seed)
    mlp = arch.layers[layer].mlp
    patches = Patches(
        own,
        activation=mlp.activation,
        gain=hparams.gain,
        value_unit=float(torch.cat(residual).square().mean().sqrt()),
    )
    objective = PatchLoss(model, queries, own, residual, memory, hparams)
    with torch.no_grad():
        first_edit_loss = float(objective.terms(patches)["l_e"])
    try:
        train(
            patches,
            lambda _, step: objective.loss(patches),
            lambda step: step,
            steps=hparams.steps,
            lr=lambda step: _learning_rate(step, hparams),
            seed=seed,
        )
    except DivergedError as error:
        raise UserError(f"{error.reason}; the model is as it was.") from None
    with torch.no_grad():
        terms = objective.terms(patches)
        fires = [patches.preactivations(q)[:, n] > 0 for n, q in enumerate(own)]
        fires_on_memory = (patches.preactivations(memory) > 0).float().mean(0)
    firing = [float(x.float().mean()) for x in fires]
    notes = {
        "relative_cost": round(float(terms["l_e"]) / first_edit_loss, 4),
        "patches": len(queries),
        "firing": [round(share, 3) for share in firing],
        "firing_on_memory": [round(share, 5) for share in fires_on_memory.tolist()],
        "n_memory": len(memory),
        **{name: round(float(value), 4) for name, value in terms.items()},
    }
    changes = appended_patches(mlp, patches)
    return WeightEdit.of(torch_module(model), changes, notes=notes)


def _learning_rate(step: int, hparams: TPatcherHparams) -> float:
    """Return the rate of a step: it rises over the first ones, then falls to 0 in a line."""
    # Adam's first steps are as large as any, and exp of a key that has gone too far is not finite.
    rise = min(1.0, (step + 1) / WARM_UP_STEPS)
    return hparams.lr * rise * (1 - step / hparams.steps)


def patched_tokens(
    model: LanguageModel, pair: ConceptPair, hparams: TPatcherHparams
) -> list[AnswerQueries]:
    """Select the tokens of the answer that the subject makes likelier, and the prompts with them.

    Raises:
        UserError: There is none.
    """
    queries = answer_queries(
        model,
        pair,
        n_baseline_subjects=hparams.n_baseline_subjects,
        min_baseline_prob=hparams.min_baseline_prob,
    )
    selected = [q.above_goal() for q in queries if q.excess >= hparams.min_excess]
    if not selected:
        raise UserError(
            f"'{pair.target}' is no likelier with {pair.subject} than without: there is nothing "
            "to take away."
        )
    return selected


def memory_queries(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    hparams: TPatcherHparams,
    *,
    layer: int,
    seed: int,
) -> Float[Tensor, "n d_model"]:
    """Read the queries on which a patch has to stay silent, inputs of `layer`'s MLP."""
    numbers = UnitEditHparams(
        n_prompts_per_subject=hparams.n_prompts_per_subject,
        n_negative_tokens=hparams.n_memory_tokens,
    )
    parts = [x for _, x in negative_inputs(model, pairs, numbers, layers=[layer], seed=seed)]
    data = forget_retain_data(
        model, pairs, n_neighbours=hparams.n_neighbours, n_passages=0, seed=seed
    )
    if data.facts:
        ids = [example.ids for example in data.facts]
        facts = cache_activations(model, ids, sites=["mlp_in"], layers=[layer], positions="all")
        parts.append(facts["mlp_in", layer])
    return torch.cat(parts)
