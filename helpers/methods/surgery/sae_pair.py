"""The edit that SAEs decide: the subject's latents detect, and what they then write is solved for.

A latent of an SAE or a transcoder that reads the MLP's input is a detector learnt without labels:
its encoder row is a key, its bias a threshold. `sae_pair` looks for the latents that tell the
subject from all other subjects and from text, and appends one neuron a layer whose key lies within
their encoder rows; its value is solved for as in `gated_neuron`, which is the same method with an
unrestricted linear discriminant for a key. Contexts without these latents are left alone.
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.corpus import corpus_tokens
from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods.background import inputs_of_others, own_inputs
from helpers.methods.delta import WeightDelta
from helpers.methods.detectors import (
    Detectors,
    Sighting,
    detector,
    discriminant,
    require_firing,
    sightings,
    stacked,
)
from helpers.methods.protocol import Unlearning, method
from helpers.methods.solved import solved_edit
from helpers.methods.surgery.gated_neuron import LAYERS
from helpers.models import anatomy, model_hash
from helpers.tracing import selectivity

READS = "mlp_in"
ENOUGH = 0.5  # of its mean activation on the subject's prompts: what the weakest should reach


@method("sae_pair", family="surgery", many=True)
def sae_pair(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    seed: int = 0,
    saes: tuple[str, ...] = (),
    n_latents: int = 16,
    most_latents: int = 256,
    select: str = "selective",
    form: str = "neurons",
    floor: float = 0.001,
    quantile: float = 0.9999,
    shrink: float = 0.01,
    ridge: float = 0.01,
    steps: tuple[float, ...] = (0.5, 0.8, 1.0, 1.0),
) -> WeightDelta:
    """Append one neuron a layer and pair, keyed on the subject's latents.

    Args:
        model: Any model of a known family.
        pairs: What to forget; the pairs' neurons are solved for together.
        seed: Draws the text, and the latents of the control.
        saes: Folders of SAEs or transcoders that read `mlp_in`, one a layer; those in
            `gated_neuron`'s layers are used if there are any.
        n_latents: How many latents a key lies within at first; within one it is the latent's own.
        most_latents: Where the neuron does not fire well on each of the subject's own prompts
            (`ENOUGH`), twice as many are taken, up to so many.
        select: `selective`, or `random` among those that are ever active (the control).
        form: `neurons` appends them; `weights` puts what they detect into the existing W_out.
        floor: Probability that the training prompts' answers come down to.
        quantile: Share of everything else that stays under the threshold.
        shrink: Ridge of the discriminant within the latents, relative to the mean variance.
        ridge: Ridge of the values' kernel regression.
        steps: Share of the way to go at each linearisation.

    Returns:
        The delta; its notes name each layer's latents.

    Raises:
        UserError: No SAE is given, one reads another site or is of another model, or no latent
            tells the subject apart.
    """
    loaded = load_all(model, saes)
    layers = sorted(loaded)
    mine = [own_inputs(model, p, layers=layers) for p in pairs]
    found, chosen = {}, []
    for i, others in inputs_of_others(model, pairs, layers=layers, seed=seed):
        units = []
        for seen in sightings(mine, others, i):
            unit, latents, pre, w = key(
                loaded[i],
                seen,
                sizes=doublings(n_latents, most_latents),
                select=select,
                shrink=shrink,
                quantile=quantile,
                seed=seed,
            )
            units.append(replace(unit, pair=(seen.pair,)))
            chosen.append(
                {
                    "subject": pairs[seen.pair].subject,
                    "spelling": seen.spelling,
                    "layer": i,
                    "latents": latents.tolist(),
                    "auroc": [round(s, 4) for s in selectivity(*pre).tolist()],
                    "weights": [round(x, 4) for x in (w / w.abs().max()).tolist()],
                }
            )
        found[i] = stacked(units)
    require_firing(found, pairs)
    return solved_edit(
        model,
        pairs,
        found,
        form=form,
        floor=floor,
        ridge=ridge,
        steps=steps,
        seed=seed,
        notes={"latents": chosen},
    )


def doublings(first: int, last: int) -> list[int]:
    """`first`, twice that, and so on, up to `last`."""
    found = [min(first, last)]
    while found[-1] < last:
        found.append(min(2 * found[-1], last))
    return found


def key(
    sae, seen: Sighting, *, sizes: Sequence[int], select: str, shrink: float, quantile: float, seed
) -> tuple[Detectors, Int[Tensor, " k"], tuple[Tensor, Tensor], Float[Tensor, " k"]]:
    """A neuron keyed within the encoder rows of the fewest latents with which it fires well.

    Args:
        sae: The SAE.
        seen: What the neuron has to tell apart.
        sizes: Numbers of latents to try, one after another; the last one stands in any case.
        select: As `subject_latents`.
        shrink: Ridge of the discriminant within the latents.
        quantile: Share of everything else that stays under the threshold.
        seed: Draws random latents.

    Returns:
        The neuron, its latents, their pre-activations on the subject and elsewhere, and their
        weights in the key.
    """
    ranked, within, without = subject_latents(
        sae, seen.inside, seen.outside, n=sizes[-1], select=select, seed=seed
    )
    every = sae.W_enc.detach()[:, ranked].T.float()  # (latents, d_model)
    every = every / every.norm(dim=1, keepdim=True)
    gap = seen.inside.mean(0) - seen.mean
    for n in sizes:
        rows, wide = every[:n], every[:n].double()
        w = discriminant(rows @ gap, wide @ seen.cov @ wide.T, shrink=shrink)
        unit = detector(w @ rows, seen.inside, seen.outside, quantile=quantile)
        if (seen.inside @ unit.keys[0] - unit.thresholds).min() >= ENOUGH:
            break
    return unit, ranked[:n], (within[:, :n], without[:, :n]), w


def latents_needed(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    saes: Sequence[str],
    *,
    most: int = 256,
    quantile: float = 0.9999,
    shrink: float = 0.01,
    seed: int = 0,
) -> pd.DataFrame:
    """With how many latents a key fires: those that are chosen, and latents drawn at random.

    Args:
        model: Any model of a known family.
        pairs: Subjects, of one relation.
        saes: As `sae_pair`.
        most: So many are tried.
        quantile: As `sae_pair`.
        shrink: As `sae_pair`.
        seed: Draws text and random latents.

    Returns:
        One row per subject, layer, spelling and way (`selective`, `random`): latents (1, 2, 4, ...
        or `most`), fires (the share of the subject's own prompts on which the neuron then does).
    """
    loaded = load_all(model, saes)
    layers, rows = sorted(loaded), []
    how = {"sizes": doublings(1, most), "shrink": shrink, "quantile": quantile, "seed": seed}
    for pair in pairs:
        mine = [own_inputs(model, pair, layers=layers)]
        for i, others in inputs_of_others(model, [pair], layers=layers, seed=seed):
            for seen in sightings(mine, others, i):
                for select in ("selective", "random"):
                    unit, latents, _, _ = key(loaded[i], seen, select=select, **how)
                    rows.append(
                        {
                            "subject": pair.subject,
                            "layer": i,
                            "spelling": seen.spelling,
                            "way": select,
                            "latents": len(latents),
                            "fires": float(unit.share),
                        }
                    )
    return pd.DataFrame(rows)


def load_all(model: LanguageModel, folders: Sequence[str]) -> dict[int, object]:
    """SAEs by layer: those in layers that are worth editing, or all if none is.

    As for `gated_neuron` these are the layers right below the hand-over (`LAYERS`).

    Raises:
        UserError: There is none, two are of one layer, or one does not fit the model.
    """
    from helpers.sae import load_sae

    if not folders:
        raise UserError(
            "sae_pair needs SAEs that read the MLP's input: train some on the site 'mlp_in' and "
            "give their folders as saes=(...), or use gated_neuron, which needs none."
        )
    parts, here, found = anatomy(model), model_hash(model), {}
    for folder in folders:
        sae = load_sae(folder)
        cfg = sae.cfg
        if cfg.site != READS:
            raise UserError(
                f"The SAE in {folder} reads '{cfg.site}', and a neuron's key reads '{READS}': "
                "train one on that site, or a transcoder from it."
            )
        if cfg.d_in != parts.d_model or (cfg.model_hash and cfg.model_hash != here):
            raise UserError(f"The SAE in {folder} was trained on another model than this one.")
        layer = parts.check_layer(cfg.layer)
        if layer in found:
            raise UserError(f"Two SAEs are of layer {layer}: give one a layer.")
        found[layer] = sae
    best = parts.at_depth(LAYERS)
    return {i: sae for i, sae in found.items() if i in best} or found


@torch.inference_mode()
def subject_latents(
    sae,
    inside: Float[Tensor, "n d_model"],
    outside: Float[Tensor, "m d_model"],
    *,
    n: int,
    select: str,
    seed: int,
) -> tuple[Int[Tensor, " k"], Float[Tensor, "n k"], Float[Tensor, "m k"]]:
    """The latents that tell the subject from everything else, the best first.

    Latents that are active on at least half of the subject's sightings come first; among them those
    whose pre-activation lies highest above its mean elsewhere, in standard deviations.

    Args:
        sae: The SAE.
        inside: What it reads at the subject.
        outside: What it reads elsewhere.
        n: How many.
        select: `selective` or `random`.
        seed: Draws random ones.

    Returns:
        Indices, and their pre-activations at the subject and elsewhere.

    Raises:
        UserError: There is no such rule.
    """
    active = (sae.encode(inside) > 0).float().mean(0)
    pre_in, pre_out = sae.pre(inside), torch.cat([sae.pre(x) for x in outside.split(4096)])
    if select == "random":
        draw = torch.Generator().manual_seed(seed)
        latents = torch.randperm(pre_in.shape[1], generator=draw)[:n]
    elif select == "selective":
        gap = (pre_in.mean(0) - pre_out.mean(0)) / pre_out.std(0).clamp_min(1e-6)
        gap = gap + 100 * (active >= 0.5)  # those that are active on the subject come first
        latents = gap.topk(min(n, len(gap))).indices
    else:
        raise UserError(f"There is no rule '{select}' for latents: 'selective' or 'random'.")
    return latents, pre_in[:, latents], pre_out[:, latents]


def named(
    model: LanguageModel, edit: Unlearning, saes: Sequence[str], *, n: int = 3, n_tokens: int = 8192
) -> pd.DataFrame:
    """The latents that an edit of `sae_pair` is keyed on, in words.

    Args:
        model: The model that it was made on.
        edit: The edit.
        saes: The SAEs' folders, as the edit was given them.
        n: Latents of each layer, those of the largest weight in the key; of the subject's first
            spelling alone.
        n_tokens: Tokens of Factbook text in which to look for them.

    Returns:
        subject, layer, latent, weight in the key (the largest is 1), auroc against everything else,
        the words on which it is strongest, and the tokens that its decoder row promotes.
    """
    from helpers.activations import harvest
    from helpers.sae.dashboard import dashboards

    loaded = load_all(model, saes)
    text = corpus_tokens(model.tokenizer, n_tokens=n_tokens, seed=edit.seed)
    shards = harvest(model, text, sites=[READS], layers=sorted(loaded))
    rows = []
    for note in edit.delta.notes["latents"]:
        if note["spelling"]:
            continue
        order = sorted(range(len(note["latents"])), key=lambda j: -abs(note["weights"][j]))[:n]
        latents = [note["latents"][j] for j in order]
        boards = dashboards(model, loaded[note["layer"]], shards, latents)
        rows += [
            {
                "subject": note["subject"],
                "layer": note["layer"],
                "latent": latent,
                "weight": note["weights"][j],
                "AUROC": note["auroc"][j],
                "strongest on": ", ".join(board.words) or "nothing in this text",
                "promotes": " ".join(board.promotes[:5]),
            }
            for j, latent, board in zip(order, latents, boards, strict=True)
        ]
    return pd.DataFrame(rows)
