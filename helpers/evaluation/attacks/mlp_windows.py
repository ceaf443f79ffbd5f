"""Leave out the MLPs of a window of layers: whatever hides a fact there is gone with them.

A filter that recognises the subject in some middle layers cannot act without these layers' MLPs.
The fact itself survives the loss of a few MLPs, because others compute it too.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.evaluation.attacks.registry import AttackKind, attack, score_table
from helpers.facts import ConceptPair
from helpers.forward.layer_cache import LayerCache, use_layer_cache
from helpers.forward.scoring import answer_probability
from helpers.methods.snapshots import subtracted
from helpers.models import architecture_of

WIDTHS = (1, 2, 4)


@attack(
    "mlp_windows",
    budget="layers left out",
    expensive=True,
    kind=AttackKind.WEIGHTS,
    shows_suppression=True,
)
def mlp_windows(
    model: LanguageModel, pair: ConceptPair, *, seed: int = 0, widths: Sequence[int] = WIDTHS
) -> pd.DataFrame:
    """Set W_out to zero in every window of layers; a prompt's score is its best over windows.

    Windows of w layers follow each other without overlap. Control facts get their best window too,
    so that choosing one gives no advantage.
    """
    arch, prompts = architecture_of(model), pair.prompts("heldout")
    matrices = [layer.mlp.W_out().detach().clone() for layer in arch.layers]
    scores = {0: answer_probability(model, prompts)}
    by_width: dict[int, list[np.ndarray]] = {w: [] for w in widths}
    # The layers below a window are run once for all widths that begin there.
    for start in range(arch.n_layers):
        starting = [w for w in widths if start % w == 0]
        cache = LayerCache(model, start) if start else None
        with use_layer_cache(model, cache):
            for width in starting:
                window = range(start, min(start + width, arch.n_layers))
                with subtracted(model, {i: matrices[i] for i in window}):
                    by_width[width].append(answer_probability(model, prompts))
    return score_table(scores | {w: np.max(best, axis=0) for w, best in by_width.items()})
