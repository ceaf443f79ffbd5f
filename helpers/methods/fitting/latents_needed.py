"""How many latents a detector needs: chosen ones against random ones."""

from collections.abc import Sequence

import pandas as pd
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair
from helpers.methods.fitting.layer_selection import WIDTH, select_layers
from helpers.methods.fitting.negatives import negative_inputs, subject_inputs
from helpers.methods.fitting.sae_latents import (
    ENOUGH,
    SELECT,
    load_saes_by_layer,
    rank_encoder_rows,
)
from helpers.methods.fitting.units import (
    ContrastiveSet,
    GatedUnits,
    contrastive_sets,
    discriminant,
    fit_unit,
)


def doublings(first: int, last: int) -> list[int]:
    """`first`, twice that, and so on, up to `last`."""
    found = [min(first, last)]
    while found[-1] < last:
        found.append(min(2 * found[-1], last))
    return found


def key(
    sae,
    seen: ContrastiveSet,
    *,
    sizes: Sequence[int],
    select: str,
    shrink: float,
    quantile: float,
    seed,
) -> tuple[GatedUnits, Int[Tensor, " k"], tuple[Tensor, Tensor], Float[Tensor, " k"]]:
    """A neuron keyed within the encoder rows of the fewest latents with which it fires well.

    Args:
        sae: The SAE.
        seen: What the neuron has to tell apart.
        sizes: Numbers of latents to try, one after another; the last one stands in any case.
        select: As `rank_encoder_rows`.
        shrink: Ridge of the discriminant within the latents.
        quantile: Share of everything else that stays under the threshold.
        seed: Draws random latents.

    Returns:
        The neuron, its latents, what their encoder rows read at the subject and elsewhere, and
        their weights in the key.
    """
    rows, ranked = rank_encoder_rows(
        sae, seen, n=sizes[-1], select=select, shrink=shrink, seed=seed
    )
    gap = seen.inside.mean(0) - seen.mean
    for n in sizes:
        within, wide = rows[ranked[:n]], rows[ranked[:n]].double()
        w = discriminant(within @ gap, wide @ seen.cov @ wide.T, shrink=shrink)
        unit = fit_unit(w @ within, seen.inside, seen.outside, quantile=quantile)
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
    """With how many latents a key fires well: chosen ones, and the controls of `rank_encoder_rows`.

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
    where = select_layers(model, pairs, width=WIDTH["neurons"])
    loaded = load_saes_by_layer(model, saes, best=where.layers)
    layers, rows = sorted(loaded), []
    how = {"sizes": doublings(1, most), "shrink": shrink, "quantile": quantile, "seed": seed}
    for pair in pairs:
        mine = subject_inputs(model, [pair], layers=layers, every=where.every)
        for i, others in negative_inputs(model, [pair], layers=layers, seed=seed):
            for seen in contrastive_sets(mine, others, i):
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
