"""Words of users, files and models, shown as they are and never read as anything else.

A name, a prompt or a token may hold what a terminal, a page's Markdown, a template engine or a
drawing library takes for an instruction. Whatever shows such words passes them through here. Names
are looked for in texts as words, not as letters: `name_pattern`.
"""

import html
import re
import unicodedata

# Marks that turn the direction of what follows: text could be shown in another order than it has.
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
MARKUP = re.compile(r"[!-/:-@\[-`{-~]")  # ASCII punctuation: all that Markdown and MyST read


def is_control(character: str) -> bool:
    """Whether a terminal or a page would obey it instead of showing it."""
    return character in TURNING or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def visible(text: object, *, allowed: str = "") -> str:
    r"""`text` with control characters written out: an escape becomes `\x1b`, a line's end `\n`.

    Args:
        text: What is to be shown; anything but text by its `str`.
        allowed: Control characters that stay as they are.
    """
    return "".join(
        c.encode("unicode_escape", "surrogatepass").decode()
        if is_control(c) and c not in allowed
        else c
        for c in str(text)
    )


def escape_markdown(text: object) -> str:
    """`text` as Markdown, MyST's directives and Jinja included, that shows it as it is.

    Punctuation becomes numeric entities, which no parser reads as markup: a backslash would not
    do, as `{{` is a template's before Markdown sees it and `\\$` a formula's after.
    """
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", visible(text))


def inline_code(text: object, *, in_table: bool = False) -> str:
    """`text` as inline code of Markdown, whatever is in it; nothing for nothing.

    Args:
        text: What is shown.
        in_table: It stands in a table's cell, where a bar would end the cell.
    """
    shown = visible(text)
    if not shown:
        return ""
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if shown[0] in "` " or shown[-1] in "` " else ""
    return f"{fence}{space}{shown.replace('|', chr(92) + '|') if in_table else shown}{space}{fence}"


def escape_html(text: object) -> str:
    """`text` for an HTML page, between tags or inside an attribute's quotes."""
    return html.escape(visible(text, allowed="\n"))


# Scripts that set no spaces between words, by how Unicode's names of their characters begin.
UNSPACED = (
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
    "IDEOGRAPHIC",
    "FULLWIDTH",
)


def is_unspaced(character: str) -> bool:
    """Whether it belongs to a script that sets no spaces between words."""
    return unicodedata.name(character, "").startswith(UNSPACED)


def name_pattern(*names: str) -> re.Pattern:
    """A pattern that finds any of the names as words of their own, the longest that fits.

    "Japan" is in "Japan's" and not in "Japanese". In scripts without spaces letters are all there
    is to go by.
    """

    def bounded(name: str) -> str:
        before = "" if is_unspaced(name[0]) else r"(?<!\w)"
        after = "" if is_unspaced(name[-1]) else r"(?!\w)"
        return f"{before}{re.escape(name)}{after}"

    longest_first = sorted((name for name in names if name), key=len, reverse=True)
    return re.compile("|".join(map(bounded, longest_first)) or r"(?!)")
