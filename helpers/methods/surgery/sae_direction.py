"""Project the directions of chosen SAE latents out of the MLP; and the control with random ones."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods.contrast import check_number, contrast, reading_matrices, stored
from helpers.methods.delta import Change, WeightDelta
from helpers.methods.protocol import method
from helpers.models import Anatomy, anatomy, model_hash
from helpers.tracing import selectivity

SITES = ("mlp_in", "mlp")  # read by W_in and the gate; written by W_out


@method("sae_direction", family="surgery")
def sae_direction(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    seed: int = 0,
    saes: tuple[str, ...] = (),
    n_latents: int = 1,
    n_subjects: int = 24,
) -> WeightDelta:
    """W_in ← W_in (I − D⁺D), or W_out ← (I − D⁺D) W_out, D the decoder rows of the latents.

    With an SAE of `mlp_in` the latents are the subject's, read at its last token, and leave the
    keys; with one of `mlp` they are the target's, read at the prompt's last token, and leave the
    values. A latent is the subject's when it tells its prompts from other subjects' (AUROC), the
    one that differs most in activation first.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        seed: Draws the subjects to compare with.
        saes: Folders of SAEs of the sites `mlp_in` or `mlp`; several of one layer and site add up.
        n_latents: Latents of each SAE.
        n_subjects: How many other subjects.

    Returns:
        The delta; its notes name the latents.

    Raises:
        UserError: No SAE is given, one is of another model or site, or it has too few latents.
    """
    return _erased(model, pair, saes, n_latents, n_subjects, seed, random=False)


@method("random_latents", family="control")
def random_latents(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    seed: int = 0,
    saes: tuple[str, ...] = (),
    n_latents: int = 1,
    n_subjects: int = 24,
) -> WeightDelta:
    """`sae_direction` with as many latents drawn among those active on any subject: its control.

    The change is scaled to the norm that `sae_direction` would have.

    Args:
        model: As there.
        pair: As there.
        seed: Draws the latents too.
        saes: As there.
        n_latents: As there.
        n_subjects: As there.
    """
    return _erased(model, pair, saes, n_latents, n_subjects, seed, random=True)


for _function in (sae_direction, random_latents):
    _function.reads = SITES


def load_fitting(
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
    from helpers.sae import load_sae

    if not folders:
        raise UserError(
            f"{name} needs SAEs: train some on the site {' or '.join(sites)} and give their "
            "folders as saes=(...)."
        )
    parts, here = anatomy(model), model_hash(model)
    found = []
    for folder in folders:
        sae = load_sae(folder)
        if sae.cfg.site not in sites or (sae.cfg.transcoder and not transcoders):
            kinds = "autoencoders and transcoders" if transcoders else "autoencoders"
            raise UserError(
                f"The SAE in {folder} reads '{sae.cfg.site}' for '{sae.cfg.target or 'itself'}'; "
                f"{name} takes {kinds} of {' or '.join(sites)}."
            )
        if sae.cfg.d_in != parts.d_model or (sae.cfg.model_hash and sae.cfg.model_hash != here):
            raise UserError(f"The SAE in {folder} was trained on another model than this one.")
        parts.check_layer(sae.cfg.layer)
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
    score = (a.mean(0) - b.mean(0)).clamp_min(0) * (2 * selectivity(a, b) - 1).clamp_min(0)
    best = score.topk(n).indices
    if not random:
        return best
    rest = active.clone()
    rest[best] = False
    pool = (rest if int(rest.sum()) >= n else active).nonzero()[:, 0]
    draw = torch.Generator().manual_seed(seed)
    return pool[torch.randperm(len(pool), generator=draw)[:n]]


def _erased(model, pair, folders, n_latents, n_subjects, seed, *, random: bool) -> WeightDelta:
    parts = anatomy(model)
    directions: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}
    notes = []
    for sae in load_fitting(model, folders, SITES, "sae_direction"):
        layer, site = parts.check_layer(sae.cfg.layer), sae.cfg.site
        inside, outside = sae_states(model, pair, sae, n_subjects=n_subjects, seed=seed)
        rows = []
        for draw in (False, True) if random else (False,):
            chosen = specific_latents(
                sae, inside, outside, n=n_latents, random=draw, seed=seed + layer
            )
            rows.append(sae.W_dec.detach()[chosen])
        directions.setdefault((site, layer), []).append((rows[0], rows[-1]))
        notes.append({"site": site, "layer": layer, "latents": chosen.tolist()})
    changes: dict[str, Change] = {}
    for (site, layer), pieces in directions.items():
        best, used = (torch.cat(rows) for rows in zip(*pieces, strict=True))
        made = erase(parts, layer, used, site=site)
        if random:  # equal norm
            for name, like in erase(parts, layer, best, site=site).items():
                share = like.matrix().norm() / made[name].matrix().norm()
                made[name] = Change(left=made[name].left * share, right=made[name].right)
        changes |= made
    return WeightDelta.of(model._module, changes, notes={"latents": notes})


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
    mlp = anatomy(model).layers[layer].mlp
    W_out, bias = mlp.W_out().detach().float().cpu(), getattr(mlp.out_module, "bias", None)
    shift = 0 if bias is None else bias.detach().float().cpu()
    return found.inside @ W_out.T + shift, found.outside @ W_out.T + shift


def erase(
    parts: Anatomy, layer: int, directions: Float[Tensor, "n d_model"], *, site: str
) -> dict[str, Change]:
    """Changes after which keys (`mlp_in`) or values (`mlp`) have nothing within the directions."""
    mlp = parts.layers[layer].mlp
    basis = torch.linalg.qr(directions.float().T).Q.T  # (n, d_model), orthonormal
    if site == "mlp_in":
        return {
            name: stored(mlp, -weight @ basis.T, basis) for name, weight in reading_matrices(mlp)
        }
    W_out = mlp.W_out().detach().float().cpu()
    return {mlp.out_name: stored(mlp, -basis.T, basis @ W_out)}
