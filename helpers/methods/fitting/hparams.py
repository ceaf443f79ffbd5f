"""Hyperparameters that the fitted edits share: every number that decides their result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from helpers.io.choices import check_choice
from helpers.methods.registry import Hyperparameters

PARAMETRIZATIONS = ("append", "low_rank")


@dataclass(frozen=True)
class PreservationHparams(Hyperparameters):
    """Hyperparameters of the answers and activations that an edit preserves.

    Attributes:
        min_prob: A fact's whole answer is preserved from this probability on.
        full_weight_prob: A constraint has weight 1 from this probability on.
        min_weight: Least weight of a constraint.
        top_k: Preserved next tokens after each prompt that fits any country.
        corpus_weight: Weight of ordinary text's keys in the preservation metric (MEMIT's
            `mom2_update_weight`).
        neighbour_weight: Weight of the keys of the same prompts about other subjects.
        identity_weight: Weight of a change in any direction, relative to the median variance of a
            key's component.
        n_prompts_per_subject: Prompts about each other subject among the negatives.
    """

    min_prob: float = 0.02
    full_weight_prob: float = 0.5
    min_weight: float = 0.02
    top_k: int = 3
    corpus_weight: float = 1.0
    neighbour_weight: float = 10.0
    identity_weight: float = 0.1
    n_prompts_per_subject: int = 5


@dataclass(frozen=True)
class UnitEditHparams(PreservationHparams):
    """Hyperparameters of gated units and of the fit of their values.

    A field that ends in `_append` or `_low_rank` counts for that parametrization alone.

    Attributes:
        parametrization: `append` adds the units as new neurons; `low_rank` changes the existing
            W_out along the keys on which they are active.
        target_prob: Probability that the training prompts' answers come down to; by default that
            of the parametrization.
        target_prob_append: Default of `target_prob` for new neurons.
        target_prob_low_rank: Default of `target_prob` for W_out, which other subjects share: the
            lower it is, the more they are disturbed.
        max_fpr: Largest share of the negatives above a unit's threshold.
        shrinkage: Shrinkage of the negatives' covariance, relative to its mean variance.
        min_recall: Least share of the subject's prompts above the threshold.
        min_margin: Least mean margin of those prompts, relative to the distance of the means.
        gain: Factor on the nonlinearity's input; at 20 SiLU and GELU are nearly ReLU.
        saturation: Margin above which the activation is constant, relative to the mean margin.
        active_eps: Activations up to this size count as zero; a clear detection has 1.
        min_patching_effect: Share of the answer that the edited layers have to carry.
        n_patched_facts: Known development facts by which that is measured.
        default_layer: Last edited layer, of 30, for relations without a known fact.
        n_layers_append: Edited layers, of 30, for new neurons.
        n_layers_low_rank: Edited layers, of 30, for W_out: each of them then changes less.
        n_neighbours_low_rank: Known neighbours whose answers are preserved in W_out; new neurons
            are inactive on them.
        corpus_weight: Weight of ordinary text's keys in the preservation metric (MEMIT's
            `mom2_update_weight`), for `low_rank`.
        n_corpus_tokens: Tokens of ordinary text for that metric.
        n_negative_tokens: Tokens of ordinary text among the negatives of the units.
        damping: Initial and least damping of the Levenberg-Marquardt steps, relative to the
            kernel's diagonal.
        step_sizes: Fractions of the residual that the first steps remove; later ones remove all.
        rtol: The fit has converged at this cost, relative to the initial cost.
        max_iterations: Most iterations of the fit.
        damping_up: Factor on the damping after a rejected step.
        damping_down: Divisor of the damping after an accepted step.
        max_damping: The fit ends at this damping, with which no step moves anything.
        jacobian_reuse_ratio: A step that leaves at most this share of the cost keeps the Jacobian.
        accept_slack: A step is accepted up to this multiple of the best cost: a pass with
            derivatives rounds otherwise than one without.
    """

    RENAMED: ClassVar = {
        "form": "parametrization",
        "floor": "target_prob",
        "shrink": "shrinkage",
        "ridge": "damping",
        "steps": "step_sizes",
    }

    parametrization: str = "append"
    target_prob: float | None = None
    target_prob_append: float = 0.001
    target_prob_low_rank: float = 0.004
    max_fpr: float = 1e-4
    shrinkage: float = 0.01
    min_recall: float = 0.5
    min_margin: float = 0.02
    gain: float = 20.0
    saturation: float = 0.5
    active_eps: float = 1e-3
    min_patching_effect: float = 0.8
    n_patched_facts: int = 6
    default_layer: int = 22
    n_layers_append: int = 4
    n_layers_low_rank: int = 8
    n_neighbours_low_rank: int = 120
    corpus_weight: float = 40.0
    n_corpus_tokens: int = 60_000
    n_negative_tokens: int = 8_192
    damping: float = 0.01
    step_sizes: tuple[float, ...] = (0.5, 0.8, 1.0, 1.0)
    rtol: float = 0.01
    max_iterations: int = 40
    damping_up: float = 10.0
    damping_down: float = 3.0
    max_damping: float = 1e6
    jacobian_reuse_ratio: float = 0.1
    accept_slack: float = 1.0001

    def __post_init__(self):
        """Refuse an unknown parametrization.

        Raises:
            UserError: There is no such parametrization.
        """
        check_choice("parametrization", self.parametrization, PARAMETRIZATIONS)

    @classmethod
    def current_names(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Rename older hyperparameters; `quantile` was 1 − `max_fpr`.

        Args:
            given: Name → value; a name that is a field keeps it.
        """
        renamed = super().current_names(given)
        if isinstance(renamed.get("quantile"), int | float):
            renamed["max_fpr"] = round(1 - float(renamed.pop("quantile")), 12)
        return renamed

    @property
    def appends(self) -> bool:
        """True if the units become new neurons."""
        return self.parametrization == "append"

    @property
    def n_layers(self) -> int:
        """Number of edited layers, of 30, for the parametrization."""
        return self.n_layers_append if self.appends else self.n_layers_low_rank

    @property
    def chosen_target_prob(self) -> float:
        """Probability that the answers come down to, for the parametrization."""
        if self.target_prob is not None:
            return self.target_prob
        return self.target_prob_append if self.appends else self.target_prob_low_rank
