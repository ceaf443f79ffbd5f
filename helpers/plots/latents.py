"""The latents that an edit is keyed on, in words."""

from collections.abc import Sequence

import pandas as pd
from nnsight import LanguageModel

from helpers.facts.corpus import corpus_tokens
from helpers.forward.harvest import harvest
from helpers.methods.edit import Edit
from helpers.methods.fitting.sae_latents import READS, load_saes_by_layer
from helpers.models import text_length
from helpers.plots.dashboards import dashboards


def describe_latents(
    model: LanguageModel, edit: Edit, saes: Sequence[str], *, n: int = 3, n_tokens: int = 8192
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
    notes = edit.delta.notes["latents"]
    loaded = load_saes_by_layer(model, saes)
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
