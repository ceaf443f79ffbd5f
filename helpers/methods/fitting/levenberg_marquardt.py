"""The Levenberg-Marquardt fit of the values that given keys write."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.layer_cache import LayerCache, cache_below, use_layer_cache
from helpers.forward.prefix_cache import PrefixCache
from helpers.methods.fitting.constraints import target_change
from helpers.methods.fitting.edit_constraint import EditConstraint, at_all_positions
from helpers.methods.fitting.hparams import UnitEditHparams
from helpers.methods.fitting.kernel_ridge import fit_kernel_ridge
from helpers.methods.fitting.key_directions import Keys
from helpers.methods.fitting.linear_model import Linearization
from helpers.methods.fitting.linearization import answer_logodds, linearize
from helpers.models import architecture_of

Values = dict[int, Float[Tensor, "n d_model"]]
"""Layer → the vector that each of its keys writes."""


def fit_values_lm(
    model: LanguageModel,
    constraints: Sequence[EditConstraint],
    keys: Keys,
    hparams: UnitEditHparams,
    *,
    prefix_cache: PrefixCache | None,
) -> tuple[Values, float]:
    """Fit the values with the least Σ tr(Vᵀ G V) that meet all constraints.

    This is damped Gauss-Newton (Levenberg 1944, Marquardt 1963) on the weighted squared residual of
    the log-odds. To first order the values V of keys with activations a change the log-odds of
    constraint i by the inner product of V with f_i = Σ_p a_p g_ipᵀ. So K_ij = tr(f_iᵀ G⁻¹ f_j), and
    the step is ΔV = G⁻¹ Σ_i α_i f_i with α = (K + Λ)⁻¹ residual. G is the Gram matrix of the keys:
    1 for new neurons, U A Uᵀ for directions of an existing matrix.

    A step that raises the cost is rejected and tried again with more damping. A step that leaves
    little of the cost keeps the Jacobian, and the next iteration needs no gradients (the chord
    method).

    Args:
        model: Any model of a known family.
        constraints: Forget and retain constraints.
        keys: Layer → units or key directions.
        hparams: Hyperparameters of the fit. The damping of a constraint is divided by its weight.
        prefix_cache: Cache that holds the constraints' sequences, for units; None for key
            directions, which are active everywhere.

    Returns:
        The best values, and their cost (weighted sum of squared residuals, nats²) relative to the
        initial cost, both over all constraints: those where no key is active stay as they are.

    Raises:
        UserError: Two prompts cannot be told apart, or no step lowers the cost.
    """
    unreached_cost = _unreached_cost(model, constraints, keys, prefix_cache)
    constraints = _reachable(constraints, prefix_cache)
    edit = _TrialEdit(
        model,
        at_all_positions(constraints),
        keys,
        prefix_cache,
        None if prefix_cache else cache_below(model, keys),
    )
    weights = torch.tensor([c.weight for c in constraints])
    values = edit.zero_values()
    best_values, best_residual, best_cost = values, torch.zeros(len(constraints)), math.inf
    initial_logodds: Float[Tensor, " n"] | None = None
    costs: list[float] = []
    damping, n_accepted, reuse_jacobian = hparams.damping, 0, False
    for _ in range(hparams.max_iterations):
        logodds, linearization = edit.evaluate(values, include_gradients=not reuse_jacobian)
        if initial_logodds is None:
            initial_logodds = logodds
        residual = target_change(constraints, logodds, initial_logodds)  # (n_constraints,), nats
        cost = float((weights * residual.square()).sum())
        costs.append(cost)

        if reuse_jacobian and cost > hparams.jacobian_reuse_ratio * best_cost:
            # The Jacobian is stale: compute it at the better of the two points.
            if cost < best_cost:
                best_values, best_cost = values, cost
            values, reuse_jacobian = best_values, False
            continue
        if cost <= best_cost * hparams.accept_slack:
            # Accept the step, and trust the linear model further: less damping.
            if linearization is not None:
                system = KernelSystem.build(
                    model, constraints, keys, linearization, active_eps=hparams.active_eps
                )
            reuse_jacobian = cost <= hparams.jacobian_reuse_ratio * best_cost < math.inf
            best_values, best_residual, best_cost = values, residual, cost
            damping = max(hparams.damping, damping / hparams.damping_down)
        else:
            # Reject it: the next step starts at the best point and is shorter by more damping.
            n_accepted -= 1
            damping *= hparams.damping_up
        schedule = hparams.step_sizes
        step_size = schedule[n_accepted] if n_accepted < len(schedule) else 1.0
        values = system.apply_step(
            best_values, step_size * best_residual, constraints, damping=damping / weights
        )
        n_accepted += 1
        if best_cost <= hparams.rtol * costs[0] and n_accepted >= len(schedule):
            return values, _relative(best_cost, costs[0], unreached_cost)
        if damping > hparams.max_damping:
            break
    if best_cost >= costs[0]:
        raise UserError(
            "No values in these layers bring the answers nearer to their targets: take other "
            "layers."
        )
    return best_values, _relative(best_cost, costs[0], unreached_cost)


def _relative(cost: float, initial_cost: float, unreached_cost: float) -> float:
    """Compute cost / initial cost, both with the cost of what no step can reach."""
    total = initial_cost + unreached_cost
    return (cost + unreached_cost) / total if total else 0.0


def _unreached_cost(
    model: LanguageModel,
    constraints: Sequence[EditConstraint],
    keys: Keys,
    prefix_cache: PrefixCache | None,
) -> float:
    """Compute the cost of the answers to forget on which no unit is active, in nats²."""
    to_forget = [c for c in constraints if c.target_logodds is not None]
    unreached = [c for c in to_forget if not is_reached(c, prefix_cache)]
    if not unreached:
        return 0.0
    logodds = answer_logodds(model, unreached, layers=list(keys))
    residual = target_change(unreached, logodds, logodds)
    return float((torch.tensor([c.weight for c in unreached]) * residual.square()).sum())


def is_reached(constraint: EditConstraint, prefix_cache: PrefixCache | None) -> bool:
    """Tell whether the edit is active on a constraint; without a prefix cache it always is."""
    return prefix_cache is None or prefix_cache.first_active(constraint.ids) is not None


def _reachable(
    constraints: Sequence[EditConstraint], prefix_cache: PrefixCache | None
) -> list[EditConstraint]:
    """Return the constraints that the edit can reach: those on which a unit is active.

    Raises:
        UserError: There is none.
    """
    reachable = [c for c in constraints if is_reached(c, prefix_cache)]
    if not reachable:
        raise UserError("No unit is active on any of the prompts: try other layers.")
    return reachable


@dataclass(frozen=True)
class _TrialEdit:
    """The edit during the fit, as an intervention on the unchanged model.

    Attributes:
        model: The model.
        constraints: Constraints with the edit active at all positions.
        keys: Layer → units or key directions.
        prefix_cache: Cache of the sequences before their first active token, for units.
        layer_cache: Cache of the layers below the edit, for key directions.
    """

    model: LanguageModel
    constraints: Sequence[EditConstraint]
    keys: Keys
    prefix_cache: PrefixCache | None
    layer_cache: LayerCache | None

    def zero_values(self) -> Values:
        """Return values of zero for every key."""
        d_model = architecture_of(self.model).d_model
        return {i: torch.zeros(len(k.keys), d_model) for i, k in self.keys.items()}

    def evaluate(
        self, values: Values, *, include_gradients: bool
    ) -> tuple[Float[Tensor, " n"], Linearization | None]:
        """Compute log-odds of all constraints in nats, and on request their linearization."""
        arch = architecture_of(self.model)
        input_site = next(iter(self.keys.values())).input_site

        def edit_output(layer: int, mlp_in: Tensor, hidden: Tensor) -> Tensor:
            x = mlp_in if input_site == "mlp_in" else hidden
            activations = self.keys[layer].fire(arch.layers[layer].mlp, x)
            return activations @ values[layer].to(x)

        with use_layer_cache(self.model, self.layer_cache):
            compute = linearize if include_gradients else answer_logodds
            result = compute(
                self.model,
                self.constraints,
                layers=list(self.keys),
                edit_output=edit_output,
                site=input_site,
                prefix_cache=self.prefix_cache,
            )
        return (result.logodds, result) if isinstance(result, Linearization) else (result, None)


@dataclass(frozen=True)
class KernelSystem:
    """The kernel of all constraints at one linearization, and its factors.

    Attributes:
        kernel: K, float64.
        blocks: For every block of keys: layer, numbers of the keys, numbers of the constraints on
            which they are active, and G⁻¹ f there.
    """

    kernel: Float[Tensor, "n n"]
    blocks: Sequence[tuple[int, list[int], Int[Tensor, " some"], Float[Tensor, "some keys d"]]]

    @classmethod
    def build(
        cls,
        model: LanguageModel,
        constraints: Sequence[EditConstraint],
        keys: Keys,
        linearization: Linearization,
        *,
        active_eps: float,
    ) -> "KernelSystem":
        """Assemble the kernel layer by layer.

        A block contributes only to constraints on which one of its keys is active.

        Args:
            model: The model.
            constraints: The constraints.
            keys: Layer → units or key directions.
            linearization: Inputs and gradients of these layers.
            active_eps: Activations up to this size count as zero.
        """
        arch = architecture_of(model)
        kernel = torch.zeros(len(constraints), len(constraints), dtype=torch.float64)
        blocks = []
        for i, layer_keys in keys.items():
            inputs = linearization.keys[i].to(arch.head.weight.device)
            a = layer_keys.fire(arch.layers[i].mlp, inputs).float().cpu()  # (rows, keys)
            for block in layer_keys.gram_blocks():
                active, f = _features(a[:, block], linearization, i, active_eps)
                g = layer_keys.gram_solve(f)
                kernel[active[:, None], active] += (f.flatten(1) @ g.flatten(1).T).double()
                blocks.append((i, block, active, g))
        return cls(kernel, blocks)

    def apply_step(
        self,
        values: Values,
        target: Float[Tensor, " n"],
        constraints: Sequence[EditConstraint],
        *,
        damping: Float[Tensor, " n"],
    ) -> Values:
        """Return the values after the damped step that changes the log-odds by `target`.

        Args:
            values: Values before the step.
            target: Changes of log-odds, in nats.
            constraints: The constraints, for the message.
            damping: Damping of each constraint, relative to K's diagonal.

        Raises:
            UserError: Two prompts cannot be told apart, or an earlier step diverged.
        """
        alpha = fit_kernel_ridge(
            self.kernel, target.double(), ridge=damping, constraints=constraints
        ).float()
        new_values = {i: v.clone() for i, v in values.items()}
        for i, block, active, g in self.blocks:
            new_values[i][block] += torch.tensordot(alpha[active], g, 1)
        return new_values


def _features(
    a: Float[Tensor, "rows keys"], linearization: Linearization, layer: int, active_eps: float
) -> tuple[Int[Tensor, " some"], Float[Tensor, "some keys d"]]:
    """Return the constraints where one of the keys is active, and f = Σ a gᵀ over their rows."""
    gradients = linearization.gradients[layer]
    constraint_index = linearization.constraint_index
    is_active = a.abs() > active_eps
    any_active = is_active.any(-1)
    active, place = constraint_index[any_active].unique(return_inverse=True)
    feature_index = torch.empty_like(constraint_index).masked_scatter_(any_active, place)
    f = torch.zeros(len(active), a.shape[1], gradients.shape[1])
    for n, rows in enumerate(is_active.T):
        f[:, n].index_add_(0, feature_index[rows], a[rows, n, None] * gradients[rows])
    return active, f
