"""Latents of SAEs that stand for a subject: which SAEs fit, which latents are selective."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods.fitting.contrast import check_number, contrast
from helpers.methods.fitting.units import (
    ContrastiveSet,
    ridged,
)
from helpers.models import architecture_of, model_hash
from helpers.sae import load_sae
from helpers.stats.auroc import auroc_by_unit

READS = "mlp_in"
SELECT = ("selective", "random", "untrained")
ENOUGH = 0.5  # of its mean activation on the subject's prompts: what the weakest should reach
SITES = ("mlp_in", "mlp")  # read by W_in and the gate; written by W_out


def load_saes_for(
    model: LanguageModel,
    folders: Sequence[str],
    sites: Sequence[str],
    name: str,
    *,
    transcoders: bool = False,
):
    """SAEs from their folders.

    Args:
        model: Any model of a known family.
        folders: Where they lie.
        sites: What they may read.
        name: Of the method that takes them.
        transcoders: Whether it takes those too.

    Raises:
        UserError: There is none, or one is of another model, layer or site.
    """
    if not folders:
        raise UserError(
            f"{name} needs SAEs: train some on the site {' or '.join(sites)} and give their "
            "folders as saes=(...)."
        )
    arch, here = architecture_of(model), model_hash(model)
    found = []
    for folder in folders:
        sae = load_sae(folder)
        if sae.cfg.site not in sites or (sae.cfg.transcoder and not transcoders):
            kinds = "autoencoders and transcoders" if transcoders else "autoencoders"
            raise UserError(
                f"The SAE in {folder} reads '{sae.cfg.site}' for '{sae.cfg.target or 'itself'}'; "
                f"{name} takes {kinds} of {' or '.join(sites)}."
            )
        if sae.cfg.d_in != arch.d_model or (sae.cfg.model_hash and sae.cfg.model_hash != here):
            raise UserError(f"The SAE in {folder} was trained on another model than this one.")
        arch.check_layer(sae.cfg.layer)
        found.append(sae)
    return found


@torch.inference_mode()
def specific_latents(
    sae,
    inside: Float[Tensor, "n d_in"],
    outside: Float[Tensor, "m d_in"],
    *,
    n: int,
    random: bool = False,
    seed: int = 0,
) -> Tensor:
    """Indices of the `n` latents most specific to what is inside, or of `n` random active ones.

    The score is (mean inside − mean outside) · (2 · AUROC − 1), both positive.

    Raises:
        UserError: Fewer latents than `n` are ever active.
    """
    check_number("n_latents", n, 1, sae.cfg.d_sae)
    a, b = sae.encode(inside), sae.encode(outside)
    active = torch.cat([a, b]).amax(0) > 0
    if int(active.sum()) < n:
        raise UserError(
            f"Only {int(active.sum())} latents of layer {sae.cfg.layer}'s SAE are active on these "
            f"prompts, and {n} are asked for."
        )
    score = (a.mean(0) - b.mean(0)).clamp_min(0) * (2 * auroc_by_unit(a, b) - 1).clamp_min(0)
    best = score.topk(n).indices
    if not random:
        return best
    rest = active.clone()
    rest[best] = False
    pool = (rest if int(rest.sum()) >= n else active).nonzero()[:, 0]
    draw = torch.Generator().manual_seed(seed)
    return pool[torch.randperm(len(pool), generator=draw)[:n]]


def sae_states(
    model: LanguageModel, pair: ConceptPair, sae, *, n_subjects: int, seed: int
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "m d_in"]]:
    """What an SAE of `mlp_in` reads at the subject, or one of `mlp` at the last token."""
    layer = sae.cfg.layer
    keys = sae.cfg.site == "mlp_in"
    found = contrast(
        model,
        pair,
        layers=[layer],
        site="mlp_in" if keys else "neurons",
        position="subject" if keys else "last",
        n_subjects=n_subjects,
        seed=seed,
    )[layer]
    if keys:
        return found.inside, found.outside
    mlp = architecture_of(model).layers[layer].mlp
    W_out, bias = mlp.W_out().detach().float().cpu(), getattr(mlp.out_module, "bias", None)
    shift = 0 if bias is None else bias.detach().float().cpu()
    return found.inside @ W_out.T + shift, found.outside @ W_out.T + shift


def load_saes_by_layer(
    model: LanguageModel, folders: Sequence[str], *, best: Sequence[int] = ()
) -> dict[int, object]:
    """SAEs by layer: those in the layers that are best to edit, or all if none is.

    Args:
        model: Any model of a known family.
        folders: Where they lie.
        best: Layers.

    Raises:
        UserError: There is none, two are of one layer, or one does not fit the model.
    """
    arch, found = architecture_of(model), {}
    for sae in load_saes_for(model, folders, (READS,), "sae_pair", transcoders=True):
        layer = arch.check_layer(sae.cfg.layer)
        if layer in found:
            raise UserError(f"Two SAEs are of layer {layer}: give one a layer.")
        found[layer] = sae
    return {i: sae for i, sae in found.items() if i in best} or found


@torch.inference_mode()
def rank_encoder_rows(
    sae, seen: ContrastiveSet, *, n: int, select: str, shrink: float, seed: int
) -> tuple[Float[Tensor, "d_sae d_model"], Int[Tensor, " k"]]:
    """Directions that a key may lie within, and which of them come first.

    Args:
        sae: The SAE.
        seen: What the neuron has to tell apart.
        n: So many are ranked.
        select: `selective`: latents by `orthogonal_matching_pursuit`; `random`: latents as they are drawn; `untrained`:
            as many directions drawn at random as there are latents, by `orthogonal_matching_pursuit`.
        shrink: As `orthogonal_matching_pursuit`.
        seed: Draws.

    Returns:
        The directions, of length 1, and the numbers of the first `n`.

    Raises:
        UserError: There is no such rule.
    """
    if select not in SELECT:
        raise UserError(f"There is no rule '{select}' for latents: choose {' or '.join(SELECT)}.")
    draw = torch.Generator().manual_seed(seed)
    rows = sae.W_enc.detach().T.float()
    if select == "untrained":
        rows = torch.randn(rows.shape, generator=draw)
    rows = rows / rows.norm(dim=1, keepdim=True)
    if select == "random":
        return rows, torch.randperm(len(rows), generator=draw)[:n]
    return rows, orthogonal_matching_pursuit(
        rows, seen.inside.mean(0) - seen.mean, seen.cov, n=n, shrink=shrink
    )


def orthogonal_matching_pursuit(
    rows: Float[Tensor, "m d"],
    gap: Float[Tensor, " d"],
    cov: Float[Tensor, "d d"],
    *,
    n: int,
    shrink: float,
) -> Int[Tensor, " k"]:
    """The rows within whose span a discriminant does best, one after another.

    Fisher's ratio (w·gap)² / wᵀΣw is at most the squared length of Σ^(-½) gap; for w within the
    span of some rows r it is that of its projection on their Σ^½ r. So the next row is the one that
    is most alike to what is left of it: orthogonal matching pursuit (Pati et al. 1993).

    Args:
        rows: Directions.
        gap: Difference of the means that are to be told apart.
        cov: Σ, float64.
        n: How many; at most as many as there are rows or dimensions.
        shrink: Ridge of Σ, relative to the mean variance.
    """
    root = torch.linalg.cholesky(ridged(cov, shrink))
    left = torch.linalg.solve_triangular(root, gap.double()[:, None], upper=False)[:, 0].float()
    atoms = rows @ root.float()
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    n = min(n, *rows.shape)
    basis, chosen = torch.zeros(n, len(gap)), []
    free = torch.ones(len(atoms))
    for k in range(n):
        best = int(((atoms @ left).abs() * free).argmax())
        new = atoms[best]
        for _ in range(2):  # once more, for what rounding left
            new = new - (basis[:k] @ new) @ basis[:k]
        basis[k] = new / new.norm().clamp_min(1e-6)
        left = left - (basis[k] @ left) * basis[k]
        chosen.append(best)
        free[best] = 0
    return torch.tensor(chosen)
