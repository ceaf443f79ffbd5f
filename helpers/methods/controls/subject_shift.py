"""Subject shift: a model in which the subject's state is moved towards that of other subjects."""

import time

import torch
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations
from helpers.forward.layer_cache import cache_below, use_layer_cache
from helpers.forward.scoring import answer_probability
from helpers.methods.controls.logit_suppression import least_size
from helpers.methods.edit import Edit
from helpers.methods.fitting.layer_stats import key_covariance
from helpers.methods.fitting.units import shrink_covariance
from helpers.methods.snapshots import subtracted
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import architecture_of, model_hash, torch_module

# Of 30. The default model can do without this layer's MLP: leaving it out shows that the rest of
# the model still knows the fact.
LAYER = 13


def subject_shift(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    layer: int | None = None,
    target_prob: float = 0.01,
    damping: float = 0.01,
    n_other_subjects: int = 48,
) -> Edit:
    """Move the subject's state in one layer towards the mean of other subjects, by rank one.

    W_out gets ΔW = s · d wᵀ. d is the mean residual stream at other subjects' last tokens less that
    at the subject's. w reads 1 from the subject's keys and as little as possible from other text:
    w = C⁻¹Kᵀ (K C⁻¹Kᵀ + damping)⁻¹ 1, with C the second moment of keys. s is about the least size
    at which the training prompts' mean P(target) is at most `target_prob`. What the layers above
    know of the subject stays in their weights; they are only not asked for it. It is not a method
    of unlearning but a known-hidden model.

    Args:
        model: Any model of a known family.
        pair: What to hide.
        layer: The layer; by default one about the middle.
        target_prob: Mean P(target) to come down to.
        damping: Added to the keys' Gram matrix, in multiples of its mean diagonal entry.
        n_other_subjects: Subjects whose mean is moved to.

    Raises:
        UserError: No size of the change reaches the probability.
    """
    start_time, base = time.perf_counter(), model_hash(model)
    arch, prompts = architecture_of(model), pair.prompts("train")
    i = arch.relative_layers((LAYER,))[0] if layer is None else arch.check_layer(layer)
    own = cache_activations(
        model, prompts, sites=["neurons", "residual"], layers=[i], positions="subject"
    )
    others = [
        other.prompts("train")[k % len(prompts)]
        for k, other in enumerate(pair.comparison_pairs(n_other_subjects))
    ]
    if not others:
        raise UserError(f"There are no other subjects to move {pair.subject} to.")
    residual = cache_activations(
        model, others, sites=["residual"], layers=[i], positions="subject"
    )["residual", i]
    d = residual.mean(0) - own["residual", i].mean(0)
    keys = own["neurons", i].double()  # (n, d_mlp)
    C = shrink_covariance(key_covariance(model, layers=[i])[i], 1e-3)
    whitened = torch.linalg.solve(C, keys.T)  # C⁻¹Kᵀ, (d_mlp, n)
    gram = shrink_covariance(keys @ whitened, damping)
    w = (whitened @ torch.linalg.solve(gram, torch.ones(len(gram), dtype=gram.dtype))).float()
    layer_cache = cache_below(model, [i])

    def is_low_enough(size: float) -> bool:
        with (
            subtracted(model, {i: -torch.outer(size * d, w)}),
            use_layer_cache(model, layer_cache),
        ):
            return bool(answer_probability(model, prompts).mean() <= target_prob)

    size = least_size(is_low_enough, 0.25)
    if size is None:
        raise UserError(f"No shift in layer {i} brings P({pair.target}) down to {target_prob}.")
    mlp = arch.layers[i].mlp
    change = low_rank_change(mlp, size * d[:, None], w[None])
    return Edit(
        method="subject_shift",
        pair={"subject": pair.subject, "target": pair.target, "relation": pair.relation},
        delta=WeightEdit.of(torch_module(model), {mlp.out_name: change}, notes={"size": size}),
        hyperparameters={
            "layer": i,
            "target_prob": target_prob,
            "damping": damping,
            "n_other_subjects": n_other_subjects,
        },
        seed=0,  # nothing is random
        seconds=time.perf_counter() - start_time,
        base_hash=base,
    )
