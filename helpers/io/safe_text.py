"""Safe display of text that comes from users, files and models.

A name, a prompt or a token may hold characters that a terminal, Markdown, a template engine or a
drawing library takes for an instruction. Code that shows such text escapes it by these functions.
`name_pattern` finds names in texts as whole words.
"""

import html
import re
import unicodedata

# Marks that change the direction of writing, so that text would be shown in another order.
DIRECTION_MARKS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
RIGHT_TO_LEFT = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc"  # Hebrew, Arabic and their kin
ARROW = re.compile(rf"(?<=[{RIGHT_TO_LEFT}])([*`_]*\s*→)(?=\s*[*`_]*[{RIGHT_TO_LEFT}])")
MARKUP = re.compile(r"[!-/:-@\[-`{-~]")  # ASCII punctuation: all that Markdown and MyST read


def is_control(character: str) -> bool:
    """Tell whether a terminal or a page would obey a character instead of showing it."""
    return character in DIRECTION_MARKS or unicodedata.category(character) in (
        "Cc",
        "Cs",
        "Zl",
        "Zp",
    )


def visible(text: object, *, allowed: str = "") -> str:
    r"""Write out control characters: an escape becomes `\x1b`, the end of a line `\n`.

    Args:
        text: The text to show; another object is shown by its `str`.
        allowed: Control characters that stay as they are.
    """
    return "".join(
        c.encode("unicode_escape", "surrogatepass").decode()
        if is_control(c) and c not in allowed
        else c
        for c in str(text)
    )


def with_arrows_kept(text: str) -> str:
    """Mark arrows between names in right-to-left script, so that they are shown as in other names.

    Otherwise the whole of "subject → target" is laid out from right to left, and the arrow, which
    no browser mirrors, leads from the target to the subject.
    """
    return ARROW.sub("\\1\u200e", text)


def escape_markdown(text: object) -> str:
    """Escape text for Markdown with MyST's directives and Jinja's templates.

    Punctuation becomes numeric entities, which no parser reads as markup. Backslashes would not
    do: Jinja reads `{{` before Markdown does, and MathJax reads `\\$` afterwards.
    """
    return MARKUP.sub(lambda match: f"&#{ord(match[0])};", visible(text))


def inline_code(text: object, *, in_table: bool = False) -> str:
    """Write any text as inline code of Markdown; empty text stays empty.

    Args:
        text: The text to show.
        in_table: Escape bars, which would end the cell of a table.
    """
    shown = visible(text)
    if not shown:
        return ""
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if shown[0] in "` " or shown[-1] in "` " else ""
    return f"{fence}{space}{shown.replace('|', chr(92) + '|') if in_table else shown}{space}{fence}"


def escape_html(text: object) -> str:
    """Escape text for HTML, between tags or inside an attribute's quotes."""
    return html.escape(visible(text, allowed="\n"))


# Scripts without spaces between words, by the first words of their characters' Unicode names.
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
    """Tell whether a character belongs to a script without spaces between words."""
    return unicodedata.name(character, "").startswith(UNSPACED)


def name_pattern(*names: str) -> re.Pattern:
    """Compile a pattern that finds any of the names as a whole word; the longest name wins.

    "Japan" is in "Japan's" and not in "Japanese". In scripts without spaces a name is found inside
    other words too.
    """

    def bounded(name: str) -> str:
        left_edge = "" if is_unspaced(name[0]) else r"(?<!\w)"
        right_edge = "" if is_unspaced(name[-1]) else r"(?!\w)"
        return f"{left_edge}{re.escape(name)}{right_edge}"

    longest_first = sorted((name for name in names if name), key=len, reverse=True)
    return re.compile("|".join(map(bounded, longest_first)) or r"(?!)")
