"""Small constraints for tests of the fit."""

from helpers.methods.fitting.edit_constraint import EditConstraint

SEQUENCES = ((5, 9, 14, 22), (7, 8, 30), (11, 12, 13, 14, 15, 16))


def constraints_of(sequences=SEQUENCES, token=20):
    """One constraint a sequence: `token` follows; the edit is active everywhere."""
    return [
        EditConstraint(ids, ((len(ids) - 1, (token,)),), tuple(range(len(ids))), name=str(ids))
        for ids in sequences
    ]
