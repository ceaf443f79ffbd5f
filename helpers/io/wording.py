"""Numbers in words, for sentences that are made from data."""


def number_of(n: int, noun: str, plural: str = "") -> str:
    """Count things in words: `1 fact`, `3 facts`, `0 countries`.

    Args:
        n: The number.
        noun: What is counted, in the singular.
        plural: Its plural; by default the noun with an s.
    """
    return f"{n} {noun if n == 1 else plural or noun + 's'}"
