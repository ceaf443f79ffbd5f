"""Description of the latents that are an edit's key."""

from collections.abc import Sequence

import pandas as pd
from nnsight import LanguageModel

from helpers.facts.corpus import corpus_tokens
from helpers.forward.harvest import harvest
from helpers.methods.edit import Edit
from helpers.methods.fitting.sae_latents import INPUT_SITE, load_saes_by_layer
from helpers.models import text_length
from helpers.plots.dashboards import dashboards


def describe_latents(
    model: LanguageModel, edit: Edit, saes: Sequence[str], *, n: int = 3, n_tokens: int = 8192
) -> pd.DataFrame:
    """Describe the latents of an edit's key by the words and tokens that go with them.

    Args:
        model: The model that it was made on.
        edit: An edit of `sae_pair`.
        saes: Folders of the SAEs that it was made with.
        n: Latents of each layer, those of the largest weight in the key; of the subject's first
            token variant alone.
        n_tokens: Tokens of Factbook text in which activations are searched.

    Returns:
        One row a latent: subject, layer, latent, weight in the key (the largest is 1), AUROC
        against the negatives, the words on which it is strongest, and the tokens that its decoder
        row promotes.
    """
    notes = edit.delta.notes["latents"]
    by_layer = load_saes_by_layer(model, saes)
    seq_len = text_length(model)
    text = corpus_tokens(model.tokenizer, seq_len=seq_len, n_tokens=n_tokens, seed=edit.seed)
    shards = harvest(model, text, sites=[INPUT_SITE], layers=sorted({x["layer"] for x in notes}))
    rows = []
    for note in notes:
        if note["token_variant"]:
            continue
        order = sorted(range(len(note["latents"])), key=lambda j: -abs(note["weights"][j]))[:n]
        latents = [note["latents"][j] for j in order]
        boards = dashboards(model, by_layer[note["layer"]], shards, latents)
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
