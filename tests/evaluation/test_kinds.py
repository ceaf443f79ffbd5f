"""Methods by the kind of request, from published tables."""

import json

import numpy as np
import pandas as pd

from helpers.evaluation.kinds import COLUMNS, by_kind

BOARD = pd.DataFrame(
    {
        "method": ["rome", "refused", "gated_neuron"],
        "facts": [5, 0, 7],
        "forgetting": [0.5, np.nan, 0.9],
        "forgetting low": [0.4, np.nan, 0.8],
        "forgetting high": [0.6, np.nan, 1.0],
        "retention": [0.7, np.nan, 0.99],
        "retention low": [0.6, np.nan, 0.98],
        "retention high": [0.8, np.nan, 1.0],
        "seconds": [3.0, np.nan, np.nan],
    }
)
ENTITIES = [
    {
        "method": name,
        "entities": n,
        "named": named,
        "before": "0.400 [0.300, 0.500]",
        "neighbours": "0.990 [0.980, 1.000]",
        "seconds": "40",
    }
    for name, n, named in (
        ("npo", 3, "0.200 [0.1, 0.3]"),
        ("gated_neuron", 3, "0.004"),
        ("x", 0, "–"),
    )
]
CAPABILITIES = [
    {
        "capability": skill,
        "method": name,
        "forgotten": forgotten,
        "largest change elsewhere": "+1.9%",
        "seconds": "90",
    }
    for skill, name, forgotten in (
        ("french", "kfade", "0.300 [0.2, 0.4]"),
        ("french", "selective_pruning", "0.950 [0.9, 1.0]"),
        ("french", "repselect", "–"),
        ("python", "kfade", "0.100"),
    )
]


def test_methods_are_in_order_within_each_kind(tmp_path):
    for name, rows in (("entities", ENTITIES), ("capabilities", CAPABILITIES)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    table = by_kind(BOARD, folder=tmp_path)
    assert list(table) == COLUMNS
    order = [(row["kind"], row["method"]) for _, row in table.iterrows()]
    assert order == [
        ("pair", "gated_neuron"),
        ("pair", "rome"),
        ("entity", "gated_neuron"),
        ("entity", "npo"),
        ("french", "selective_pruning"),
        ("french", "kfade"),
        ("python", "kfade"),
    ]
    entity = table[table["kind"] == "entity"].iloc[1]
    assert entity["forgotten"] == "0.500" and entity["requests"] == 3
    assert table.iloc[0]["seconds"] == "–" and table.iloc[1]["seconds"] == "3.0"


def test_a_kind_that_was_not_measured_is_left_out(tmp_path):
    assert set(by_kind(BOARD, folder=tmp_path)["kind"]) == {"pair"}
    assert by_kind(BOARD[1:2], folder=tmp_path).empty
