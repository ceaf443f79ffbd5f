"""A table of the latents that detect concepts, for a reader who searches it by a word."""

from collections.abc import Sequence

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from helpers.plots.dashboards import Context, Dashboard

BEFORE, AFTER = 8, 4  # tokens shown around the strongest


def best_latents(
    f1: Float[Tensor, "concepts latents"], names: Sequence[str], *, k: int = 3
) -> pd.DataFrame:
    """Choose the latents that detect each concept best.

    Args:
        f1: F1 of each latent as a detector of each concept.
        names: Name of each concept.
        k: Latents of each concept.

    Returns:
        latent, concept, F1; one row a latent, with the concept that it detects best among those
        that chose it. The first concept's latents stand first, then the others by F1.
    """
    values, latents = f1.topk(min(k, f1.shape[1]), dim=1)
    rows = [
        (latent, names[i], score)
        for i in range(len(names))
        for latent, score in zip(latents[i].tolist(), values[i].tolist(), strict=True)
        if score > 0
    ]
    table = pd.DataFrame(rows, columns=["latent", "concept", "F1"])
    table = table.sort_values("F1", ascending=False, kind="stable").drop_duplicates("latent")
    is_first = table["concept"] == names[0]
    return pd.concat([table[is_first], table[~is_first]], ignore_index=True)


def latent_table(chosen: pd.DataFrame, boards: Sequence[Dashboard]) -> pd.DataFrame:
    """Describe latents in words, as text for `helpers.book.sortable.sortable`.

    Args:
        chosen: From `best_latents`.
        boards: The dashboard of each of its latents.

    Returns:
        latent, concept, F1, active (% of the tokens), highest (activation), strongest on (a line a
        context, the token at the peak in angle quotes), promotes.
    """
    return pd.DataFrame(
        {
            "latent": chosen["latent"].astype(str),
            "concept": chosen["concept"],
            "F1": [f"{score:.2f}" for score in chosen["F1"]],
            "active": [f"{board.active:.2%}" for board in boards],
            "highest": [f"{board.edges[-1]:.2f}" if board.contexts else "–" for board in boards],
            "strongest on": ["\n".join(map(_line, board.contexts)) or "–" for board in boards],
            "promotes": [" ".join(t.strip() or "␣" for t in board.promotes) for board in boards],
        }
    )


def _line(context: Context) -> str:
    """Write a context as one line: `… the capital of «France» is Paris …`."""
    start = max(0, context.peak - BEFORE)
    before = "".join(context.tokens[start : context.peak])
    after = "".join(context.tokens[context.peak + 1 : context.peak + 1 + AFTER])
    token = context.tokens[context.peak]
    space = " " if token[:1].isspace() else ""
    return " ".join(f"… {before}{space}«{token.strip()}»{after} …".split())
