"""The proposed edit of one pair and of many: its time, and the remaining P(target).

Facts that the model knows are forgotten together by `gated_neuron`. The model is loaded and what
all pairs of a relation share (the keys of other subjects and of text) is in the cache, as it is
after the first pair.
"""

import time

from report import report

from helpers.evaluation.evaluation_pairs import known_pairs
from helpers.forward.scoring import answer_probability
from helpers.methods import unlearn
from helpers.models import load_model

METHOD, SIZES = "gated_neuron", (1, 10)


def main() -> None:
    model = load_model()
    pairs = [p for split in ("dev", "heldout") for p in known_pairs(model, "capital", split, n=99)]
    first, rest = pairs[0], pairs[1:]
    unlearn(model, first, METHOD)  # fills the cache
    rows = []
    for n in SIZES:
        some = rest[:n]
        prompts = [q for p in some for q in p.prompts("heldout")]
        before = answer_probability(model, prompts)
        began = time.perf_counter()
        edit = unlearn(model, some, METHOD)
        seconds = time.perf_counter() - began
        with edit.applied(model):
            after = answer_probability(model, prompts)
        rows.append(
            {
                "pairs": len(some),
                "seconds": seconds,
                "seconds a pair": seconds / len(some),
                "P(target) before": float(before.mean()),
                "P(target) after": float(after.mean()),
                "worst wording": float(after.max()),
            }
        )
        print(rows[-1], flush=True)
    result = {
        "title": "Forgetting many pairs at once",
        "how": f"`{METHOD}` with its defaults, all pairs solved for together; one run each. "
        "P(target) is the mean over held-out wordings of all pairs.",
        "rows": rows,
    }
    report("edits", result)


if __name__ == "__main__":
    main()
