"""The edit that SAEs decide: the subject's latents detect, and what they then write is solved for.

A latent of an SAE or a transcoder that reads the MLP's input is a detector learnt without labels:
its encoder row is a key, its bias a threshold. `sae_pair` looks for the few latents that together
tell the subject from all other subjects and from text, and appends to each layer, for each way in
which the subject is read, a neuron whose key lies within their encoder rows; its value is solved
for as in `gated_neuron`, the same method with an unrestricted linear discriminant for a key.
Contexts without these latents are left alone.
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
    ridged,
    sightings,
    stacked,
)
from helpers.methods.handover import place
from helpers.methods.protocol import Unlearning, method
from helpers.methods.solved import check_form, solved_edit
from helpers.methods.surgery.gated_neuron import WIDTH
from helpers.methods.surgery.sae_direction import load_fitting
from helpers.models import anatomy, text_length
from helpers.tracing import selectivity

READS = "mlp_in"
SELECT = ("selective", "random", "untrained")
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
    floor: float | None = None,
    quantile: float = 0.9999,
    shrink: float = 0.01,
    ridge: float = 0.01,
    steps: tuple[float, ...] = (0.5, 0.8, 1.0, 1.0),
) -> WeightDelta:
    """Append neurons as `gated_neuron` does, each keyed on the subject's latents.

    Args:
        model: Any model of a known family.
        pairs: What to forget; the pairs' neurons are solved for together.
        seed: Draws the text, and the latents of the control.
        saes: Folders of SAEs or transcoders that read `mlp_in`, one a layer; those in
            `gated_neuron`'s layers for the form are used if there are any.
        n_latents: How many latents a key lies within at first; within one it is the latent's own.
        most_latents: Where the neuron does not fire well on each of the subject's own prompts
            (`ENOUGH`), twice as many are taken, up to so many.
        select: As `ranked_rows`; all but `selective` are controls.
        form: `neurons` appends them; `weights` puts what they detect into the existing W_out.
        floor: Probability that the training prompts' answers come down to; by default 0.001 for
            `neurons`, and 0.004 for `weights`, which other subjects share.
        quantile: Share of everything else that stays under the threshold.
        shrink: Ridge of the discriminant within the latents, relative to the mean variance.
        ridge: Ridge of the values' kernel regression.
        steps: Share of the way to go at the first linearisations; after them the whole.

    Returns:
        The delta; its notes name each layer's latents.

    Raises:
        UserError: No SAE is given, one reads another site or is of another model, or no latent
            tells the subject apart.
    """
    where = place(model, pairs, width=WIDTH[check_form(form)])
    loaded = load_all(model, saes, best=where.layers)
    layers = sorted(loaded)
    how = {"layers": layers, "first": form == "neurons", "every": where.every}
    mine = own_inputs(model, pairs, **how)
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
        select: As `ranked_rows`.
        shrink: Ridge of the discriminant within the latents.
        quantile: Share of everything else that stays under the threshold.
        seed: Draws random latents.

    Returns:
        The neuron, its latents, what their encoder rows read at the subject and elsewhere, and
        their weights in the key.
    """
    rows, ranked = ranked_rows(sae, seen, n=sizes[-1], select=select, shrink=shrink, seed=seed)
    gap = seen.inside.mean(0) - seen.mean
    for n in sizes:
        within, wide = rows[ranked[:n]], rows[ranked[:n]].double()
        w = discriminant(within @ gap, wide @ seen.cov @ wide.T, shrink=shrink)
        unit = detector(w @ within, seen.inside, seen.outside, quantile=quantile)
        if (seen.inside @ unit.keys[0] - unit.thresholds).min() >= ENOUGH:
            break
    return unit, ranked[:n], (seen.inside @ within.T, seen.outside @ within.T), w


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
    """With how many latents a key fires well: chosen ones, and the controls of `ranked_rows`.

    Args:
        model: Any model of a known family.
        pairs: Subjects, of one relation.
        saes: As `sae_pair`.
        most: So many are tried.
        quantile: As `sae_pair`.
        shrink: As `sae_pair`.
        seed: Draws text and random latents.

    Returns:
        One row per subject, layer, spelling and way (`SELECT`): latents (1, 2, 4, ... or `most`),
        fires (the share of the subject's own prompts on which the neuron then does).
    """
    where = place(model, pairs, width=WIDTH["neurons"])
    loaded = load_all(model, saes, best=where.layers)
    layers, rows = sorted(loaded), []
    how = {"sizes": doublings(1, most), "shrink": shrink, "quantile": quantile, "seed": seed}
    for pair in pairs:
        mine = own_inputs(model, [pair], layers=layers, every=where.every)
        for i, others in inputs_of_others(model, [pair], layers=layers, seed=seed):
            for seen in sightings(mine, others, i):
                for select in SELECT:
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


def load_all(
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
    parts, found = anatomy(model), {}
    for sae in load_fitting(model, folders, (READS,), "sae_pair", transcoders=True):
        layer = parts.check_layer(sae.cfg.layer)
        if layer in found:
            raise UserError(f"Two SAEs are of layer {layer}: give one a layer.")
        found[layer] = sae
    return {i: sae for i, sae in found.items() if i in best} or found


@torch.inference_mode()
def ranked_rows(
    sae, seen: Sighting, *, n: int, select: str, shrink: float, seed: int
) -> tuple[Float[Tensor, "d_sae d_model"], Int[Tensor, " k"]]:
    """Directions that a key may lie within, and which of them come first.

    Args:
        sae: The SAE.
        seen: What the neuron has to tell apart.
        n: So many are ranked.
        select: `selective`: latents by `pursuit`; `random`: latents as they are drawn; `untrained`:
            as many directions drawn at random as there are latents, by `pursuit`.
        shrink: As `pursuit`.
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
    return rows, pursuit(rows, seen.inside.mean(0) - seen.mean, seen.cov, n=n, shrink=shrink)


def pursuit(
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

    notes = edit.delta.notes["latents"]
    loaded = load_all(model, saes)
    seq_len = text_length(model)
    text = corpus_tokens(model.tokenizer, seq_len=seq_len, n_tokens=n_tokens, seed=edit.seed)
    shards = harvest(model, text, sites=[READS], layers=sorted({x["layer"] for x in notes}))
    rows = []
    for note in notes:
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
