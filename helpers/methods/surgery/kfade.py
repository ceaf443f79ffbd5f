"""K-FADE: a few uphill Gauss-Newton steps on the text to forget, by K-FAC of what must stay.

McKinney et al. 2026, "Gauss-Newton Unlearning for the LLM Era" (arXiv 2602.10568). This follows the
paper's abstract, which describes the update in words. The damping, the step sizes and the stopping
rule are this project's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.io.choices import check_number
from helpers.methods.change import Change
from helpers.methods.fitting.kfac import KroneckerFactors, kfac_factors, mlp_matrices
from helpers.methods.fitting.retain_budget import Losses, RetainBudget, TextHparams
from helpers.methods.registry import method
from helpers.methods.snapshots import ParameterSnapshot, preserved_parameters, set_changed
from helpers.methods.weight_edit import WeightEdit
from helpers.models import architecture_of, torch_module
from helpers.models.parameters import trainable
from helpers.requests import TextRequest
from helpers.training.examples import Example, in_batches, label_logits, token_losses

LAYERS = (8, 9, 10, 11, 12, 13)  # of the default model, chosen on development text in French
BATCH_SIZE = 4  # sequences of a pass
SCALES = tuple(2.0 ** (k / 2) for k in range(-28, 5))  # of the step that the curvature predicts


@dataclass(frozen=True)
class KfadeHparams(TextHparams):
    """Hyperparameters of `kfade`.

    Attributes:
        layers: Edited blocks; by default `LAYERS` at the model's relative depth.
        n_steps: Gauss-Newton steps, which share the budget equally.
        damping: Share of the mean curvature that is added to the curvature of every direction.
    """

    layers: Sequence[int] | None = None
    n_steps: int = 3
    damping: float = 0.01


@method("kfade", family="surgery", takes=("text",))
def kfade(
    model: LanguageModel, request: TextRequest, hparams: KfadeHparams, *, seed: int = 0
) -> WeightEdit:
    """Move each MLP matrix by s · G_r⁻¹ (∂L_f/∂W) A_r⁻¹, a few times.

    L_f is the mean loss on the text to forget. A_r and G_r are the K-FAC factors on retained text,
    of the original model and damped. So the loss goes up where retained text bends least. Each step
    takes the largest s that its part of the budget allows.

    Args:
        model: Any model of a known family.
        request: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the labels of the curvature.

    Raises:
        UserError: A number is out of range, or the first step passes the budget already.
    """
    check_number("n_steps", hparams.n_steps, 1, 1000)
    check_number("damping", hparams.damping, 1e-12, 1e12)
    arch, module = architecture_of(model), torch_module(model)
    chosen = hparams.layers or arch.relative_layers(LAYERS)
    layers = sorted({arch.check_layer(i) for i in chosen})
    budget = RetainBudget(model, request, hparams, layers=layers)
    mean_retain_loss = sum(budget.before.retain.values()) / len(budget.before.retain)
    preconditioners: dict[str, Preconditioner] = {}
    for i, factors in kfac_factors(model, budget.retain, layers=layers, seed=seed):
        for role, (name, _) in mlp_matrices(arch.layers[i].mlp).items():
            preconditioners[name] = Preconditioner.of(factors[role], hparams.damping)
    transposed = arch.layers[0].mlp.transposed
    deltas = {name: torch.zeros(()) for name in preconditioners}
    scales: list[float] = []
    losses: Losses | None = None
    with preserved_parameters(module, deltas) as snapshots:
        for step in range(hparams.n_steps):
            gradients = forget_gradients(model, list(deltas), budget.forget)
            directions = {
                name: preconditioners[name].solve(g.T).T.contiguous()
                if transposed
                else preconditioners[name].solve(g)
                for name, g in gradients.items()
            }
            # By the damped curvature H, dᵀ H d = dᵀ ∇ for d = H⁻¹ ∇.
            curvature = sum(float((directions[n] * g).sum()) for n, g in gradients.items())
            # Retained loss bends by s² dᵀ H d / 2: this s would use up the step's budget.
            part = (step + 1) / hparams.n_steps
            allowed_rise = hparams.retain_rise / hparams.n_steps * mean_retain_loss
            predicted = (2 * allowed_rise / max(curvature, 1e-30)) ** 0.5
            measure = partial(_losses_at, budget, snapshots, deltas, directions)
            strongest = budget.strongest([predicted * x for x in SCALES], measure, part=part)
            if strongest is None:
                break
            scale, losses = strongest
            deltas = _moved(deltas, directions, scale)
            set_changed(snapshots, deltas.items())
            scales.append(scale)
    if losses is None:
        raise budget.nothing_allowed("kfade")
    notes = budget.notes(losses) | {"layers": layers, "scales": scales}
    changes = {name: Change(dense=delta) for name, delta in deltas.items()}
    return WeightEdit.of(module, changes, notes=notes)


@dataclass(frozen=True)
class Preconditioner:
    """Inverses of the damped K-FAC factors of one matrix.

    Attributes:
        G_inverse: (G + √δ mean(λ_G))⁻¹.
        A_inverse: (A + √δ mean(λ_A))⁻¹.
    """

    G_inverse: Float[Tensor, "outputs outputs"]
    A_inverse: Float[Tensor, "inputs inputs"]

    @classmethod
    def of(cls, factors: KroneckerFactors, damping: float) -> "Preconditioner":
        """Invert the factors, each damped in proportion to its mean eigenvalue.

        It is the damping of Martens & Grosse 2015 (section 6.3), with their π from the traces.
        """
        return cls(_damped_inverse(factors.G, damping), _damped_inverse(factors.A, damping))

    def solve(self, gradient: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
        """Return G⁻¹ ∇ A⁻¹."""
        return self.G_inverse @ gradient @ self.A_inverse


def _damped_inverse(factor: Float[Tensor, "n n"], damping: float) -> Float[Tensor, "n n"]:
    """Invert a factor with √damping times its mean eigenvalue added, in float64."""
    F = factor.double()
    # A factor of zeros, of an MLP that nothing reaches, has no scale of its own.
    added = (damping**0.5 * F.diagonal().mean()).clamp_min(1e-30)
    F = F + added * torch.eye(len(F), dtype=F.dtype)
    return torch.cholesky_inverse(torch.linalg.cholesky(F)).float()


def forget_gradients(
    model: LanguageModel, names: Sequence[str], examples: Sequence[Example]
) -> dict[str, Float[Tensor, "rows columns"]]:
    """Compute the gradient of the mean loss over all labels, in float32 on the CPU.

    Args:
        model: The model; it is left as it was.
        names: The matrices.
        examples: The text.
    """
    sums: dict[str, Tensor] = {}
    n_labels = 0
    with trainable(torch_module(model), names) as parameters, torch.enable_grad():
        for batch in in_batches(examples, BATCH_SIZE):
            loss = token_losses(label_logits(model, batch), batch).sum()
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            for name, gradient in zip(parameters, gradients, strict=True):
                part = gradient.float().cpu()
                sums[name] = sums[name] + part if name in sums else part
            n_labels += len(batch.label_ids)
    return {name: total / n_labels for name, total in sums.items()}


def _losses_at(
    budget: RetainBudget,
    snapshots: Mapping[str, ParameterSnapshot],
    deltas: Mapping[str, Tensor],
    directions: Mapping[str, Tensor],
    scale: float,
) -> Losses:
    """Measure the model with the steps so far, and a scale of the next one."""
    set_changed(snapshots, _moved(deltas, directions, scale).items())
    return budget.losses()


def _moved(
    deltas: Mapping[str, Tensor], directions: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """Return the changes with one step more."""
    return {name: deltas[name] + scale * d for name, d in directions.items()}
