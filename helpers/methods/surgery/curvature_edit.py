"""Curvature edit: keep of each matrix what the loss on retained text bends on, drop the rest.

Merullo, Vatsavaya, Bushnaq & Lewis 2025, "From Memorization to Reasoning in the Spectrum of Loss
Curvature" (arXiv 2510.24256). The paper takes the curvature of general text and has no forget set:
what goes is recitation, fact recall and arithmetic, which few texts use. Here the text is what a
request retains, so that what only other text uses goes. What retained text recites goes with it,
and may use up the budget before anything of the text to forget does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.methods.change import Change
from helpers.methods.fitting.kfac import KroneckerFactors, kfac_factors, mlp_matrices
from helpers.methods.fitting.retain_budget import Losses, RetainBudget, TextHparams
from helpers.methods.registry import method
from helpers.methods.snapshots import preserved_parameters, set_changed
from helpers.methods.weight_edit import WeightEdit
from helpers.models import architecture_of, torch_module
from helpers.requests import TextRequest

LAYERS = (18, 19, 20, 21, 22, 23)  # of the default model, late ones
DROPPED = np.geomspace(1e-7, 0.5, 32)  # shares of a matrix's curvature mass that are tried


@dataclass(frozen=True)
class CurvatureEditHparams(TextHparams):
    """Hyperparameters of `curvature_edit`.

    Attributes:
        layers: Edited blocks; by default `LAYERS` at the model's relative depth.
    """

    layers: Sequence[int] | None = None


@method("curvature_edit", family="surgery", takes=("text",))
def curvature_edit(
    model: LanguageModel, request: TextRequest, hparams: CurvatureEditHparams, *, seed: int = 0
) -> WeightEdit:
    """Drop the entries of C = U_Gᵀ W U_A with the least curvature λ_G λ_A on retained text.

    U and λ are the eigenvectors and eigenvalues of the K-FAC factors G and A of W. An entry's
    curvature is its mass. The kept share of each matrix's mass is the least that the budget allows.

    Args:
        model: Any model of a known family.
        request: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the labels of the curvature.

    Raises:
        UserError: A number is out of range, or the least change passes the budget already.
    """
    arch, module = architecture_of(model), torch_module(model)
    chosen = hparams.layers or arch.relative_layers(LAYERS)
    layers = sorted({arch.check_layer(i) for i in chosen})
    budget = RetainBudget(model, request, hparams, layers=layers)
    bases: dict[str, CurvatureBasis] = {}
    transposed = arch.layers[0].mlp.transposed
    for i, factors in kfac_factors(model, budget.retain, layers=layers, seed=seed):
        for role, (name, linear) in mlp_matrices(arch.layers[i].mlp).items():
            W = linear.weight.detach().float().cpu()
            bases[name] = CurvatureBasis.of(W.T if transposed else W, factors[role])

    def change(name: str, dropped: float) -> Float[Tensor, "rows columns"]:
        removed = bases[name].low_curvature_part(dropped)
        return -(removed.T.contiguous() if transposed else removed)

    with preserved_parameters(module, bases) as snapshots:

        def measure(dropped: float) -> Losses:
            set_changed(snapshots, ((name, change(name, dropped)) for name in bases))
            return budget.losses()

        strongest = budget.strongest(DROPPED.tolist(), measure)
    if strongest is None:
        raise budget.nothing_allowed("curvature_edit")
    dropped, losses = strongest
    entries = [basis.is_low(dropped) for basis in bases.values()]
    changes = {name: Change(dense=change(name, dropped)) for name in bases}
    notes = budget.notes(losses) | {
        "layers": layers,
        "kept_mass": 1 - dropped,
        "kept_entries": 1 - sum(int(x.sum()) for x in entries) / sum(x.numel() for x in entries),
    }
    return WeightEdit.of(module, changes, notes=notes)


@dataclass(frozen=True)
class CurvatureBasis:
    """A matrix in the eigenbases of its K-FAC factors: W = U_G C U_Aᵀ.

    Attributes:
        U_G: Eigenvectors of G, one a column.
        U_A: Eigenvectors of A, one a column.
        C: The matrix in these bases.
        mass: λ_G λ_A of each entry of C.
    """

    U_G: Float[Tensor, "outputs outputs"]
    U_A: Float[Tensor, "inputs inputs"]
    C: Float[Tensor, "outputs inputs"]
    mass: Float[Tensor, "outputs inputs"]

    @classmethod
    def of(cls, W: Float[Tensor, "outputs inputs"], factors: KroneckerFactors) -> "CurvatureBasis":
        """Find the bases, in float64: small eigenvalues decide what goes."""
        lambda_G, U_G = torch.linalg.eigh(factors.G.double())
        lambda_A, U_A = torch.linalg.eigh(factors.A.double())
        mass = lambda_G.clamp_min(0)[:, None] * lambda_A.clamp_min(0)
        C = U_G.T @ W.double() @ U_A
        return cls(U_G.float(), U_A.float(), C.float(), mass.float())

    def is_low(self, dropped: float) -> Float[Tensor, "outputs inputs"]:
        """Mark the entries of least curvature that hold at most a share of the mass together."""
        ordered = self.mass.flatten().double().sort().values
        below = ordered.cumsum(0) <= dropped * ordered.sum()
        n_dropped = int(below.sum()) if dropped > 0 else 0
        if n_dropped == len(ordered):
            return torch.ones_like(self.mass, dtype=torch.bool)
        return self.mass < ordered[n_dropped]

    def low_curvature_part(self, dropped: float) -> Float[Tensor, "outputs inputs"]:
        """Return the part of W in those entries."""
        return self.U_G @ (self.C * self.is_low(dropped)) @ self.U_A.T
