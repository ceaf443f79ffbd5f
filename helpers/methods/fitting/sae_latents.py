"""SAEs that fit a method, and their latents that are specific to a subject."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.io.choices import check_number
from helpers.methods.fitting.contrast import contrast
from helpers.models import architecture_of, model_hash
from helpers.sae import SAE, load_sae
from helpers.stats.auroc import auroc_by_unit

SITES = ("mlp_in", "mlp")  # input of W_in and the gate; output of W_out
INPUT_SITE = "mlp_in"  # site of the SAEs of `sae_pair`


def load_saes_for(
    model: LanguageModel,
    folders: Sequence[str],
    sites: Sequence[str],
    name: str,
    *,
    transcoders: bool = False,
) -> list[SAE]:
    """Load SAEs from their folders and check that they fit the model and the method.

    Args:
        model: Any model of a known family.
        folders: Folders of the SAEs.
        sites: Sites that they may read.
        name: Name of the method.
        transcoders: The method takes transcoders too.

    Raises:
        UserError: There is none, or one is of another model, layer or site.
    """
    if not folders:
        raise UserError(
            f"{name} needs SAEs: train some on the site {' or '.join(sites)} and give their "
            "folders as saes=(...)."
        )
    arch, hash_of_model = architecture_of(model), model_hash(model)
    saes = []
    for folder in folders:
        sae = load_sae(folder)
        if sae.cfg.site not in sites or (sae.cfg.transcoder and not transcoders):
            kinds = "autoencoders and transcoders" if transcoders else "autoencoders"
            raise UserError(
                f"The SAE in {folder} reads '{sae.cfg.site}' for '{sae.cfg.target or 'itself'}'; "
                f"{name} takes {kinds} of {' or '.join(sites)}."
            )
        is_other_model = sae.cfg.model_hash and sae.cfg.model_hash != hash_of_model
        if sae.cfg.d_in != arch.d_model or is_other_model:
            raise UserError(f"The SAE in {folder} was trained on another model than this one.")
        arch.check_layer(sae.cfg.layer)
        saes.append(sae)
    return saes


def load_saes_by_layer(
    model: LanguageModel, folders: Sequence[str], *, preferred_layers: Sequence[int] = ()
) -> dict[int, SAE]:
    """Load the SAEs of `sae_pair` by layer: those in the preferred layers, or all if none is.

    Args:
        model: Any model of a known family.
        folders: Folders of the SAEs.
        preferred_layers: Layers that are best to edit.

    Raises:
        UserError: There is none, two are of one layer, or one does not fit the model.
    """
    arch, saes = architecture_of(model), {}
    for sae in load_saes_for(model, folders, (INPUT_SITE,), "sae_pair", transcoders=True):
        layer = arch.check_layer(sae.cfg.layer)
        if layer in saes:
            raise UserError(f"Two SAEs are of layer {layer}: give one a layer.")
        saes[layer] = sae
    return {i: sae for i, sae in saes.items() if i in preferred_layers} or saes


@torch.inference_mode()
def specific_latents(
    sae: SAE,
    positives: Float[Tensor, "n d_in"],
    negatives: Float[Tensor, "m d_in"],
    *,
    n: int,
    random: bool = False,
    seed: int = 0,
) -> Int[Tensor, " k"]:
    """Return the `n` latents most specific to the positives, or `n` random active ones.

    The score is (mean on positives − mean on negatives) · (2 · AUROC − 1), both factors clamped at
    zero.

    Args:
        sae: The SAE.
        positives: Its inputs at the subject.
        negatives: Its inputs at other subjects.
        n: Number of latents.
        random: Draw them among the other active latents instead: the control.
        seed: Seed that draws them.

    Raises:
        UserError: Fewer latents than `n` are ever active.
    """
    check_number("n_latents", n, 1, sae.cfg.d_sae)
    on_positives, on_negatives = sae.encode(positives), sae.encode(negatives)
    is_active = torch.cat([on_positives, on_negatives]).amax(0) > 0
    if int(is_active.sum()) < n:
        raise UserError(
            f"Only {int(is_active.sum())} latents of layer {sae.cfg.layer}'s SAE are active on "
            f"these prompts, and {n} are asked for."
        )
    difference = (on_positives.mean(0) - on_negatives.mean(0)).clamp_min(0)
    score = difference * (2 * auroc_by_unit(on_positives, on_negatives) - 1).clamp_min(0)
    best = score.topk(n).indices
    if not random:
        return best
    others = is_active.clone()
    others[best] = False
    pool = (others if int(others.sum()) >= n else is_active).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    return pool[torch.randperm(len(pool), generator=generator)[:n]]


def sae_states(
    model: LanguageModel, pair: ConceptPair, sae: SAE, *, n_subjects: int, seed: int
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "m d_in"]]:
    """Compute an SAE's inputs in prompts about the subject and about other subjects.

    An SAE of `mlp_in` is read at the subject's last token, one of `mlp` at the prompt's last token.

    Args:
        model: Any model of a known family.
        pair: The pair of the subject.
        sae: The SAE.
        n_subjects: Number of other subjects.
        seed: Seed that draws them.

    Returns:
        Positives and negatives.
    """
    layer = sae.cfg.layer
    reads_mlp_input = sae.cfg.site == "mlp_in"
    states = contrast(
        model,
        pair,
        layers=[layer],
        site="mlp_in" if reads_mlp_input else "neurons",
        position="subject" if reads_mlp_input else "last",
        n_subjects=n_subjects,
        seed=seed,
    )[layer]
    if reads_mlp_input:
        return states.positives, states.negatives
    mlp = architecture_of(model).layers[layer].mlp
    W_out, bias = mlp.W_out().detach().float().cpu(), getattr(mlp.out_module, "bias", None)
    shift = 0 if bias is None else bias.detach().float().cpu()
    return states.positives @ W_out.T + shift, states.negatives @ W_out.T + shift
