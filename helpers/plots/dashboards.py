"""Dashboard of a feature on one small page: contexts, activations, promoted tokens.

Plain HTML with its style inline: no scripts, nothing loaded, legible on white and on black. In a
notebook the object shows itself; `save` writes a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.forward.shards import Shards
from helpers.io.files import atomic_path
from helpers.io.safe_text import escape_html
from helpers.sae.base import SAE
from helpers.sae.features import check_sae_of_model, decoder_directions
from helpers.tracing.neurons import direction_logit_tokens

BEFORE, AFTER = 16, 6  # tokens shown around the strongest
N_BARS = 30
ORANGE, BLUE = "213, 94, 0", "0, 114, 178"  # Okabe and Ito's, as in the figures
FAINT, STRONG = 0.15, 0.6  # opacity behind a token: text can be read on it, black or white


@dataclass(frozen=True)
class Context:
    """A stretch of text with the feature's activation on each token.

    Attributes:
        tokens: The tokens.
        values: Activation on each token.
        peak: Index of the token with the strongest activation.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    peak: int

    @property
    def word(self) -> str:
        """The whole word at the peak."""
        start = end = self.peak
        while start and self.tokens[start][:1].isalnum():
            start -= 1
        while end + 1 < len(self.tokens) and self.tokens[end + 1][:1].isalnum():
            end += 1
        return "".join(self.tokens[start : end + 1]).strip()


@dataclass(frozen=True)
class Dashboard:
    """Dashboard of one feature.

    Attributes:
        title: Name of the feature.
        contexts: Contexts of its strongest activations, strongest first.
        edges: Edges of the histogram of its activations where it is active.
        counts: Counts of that histogram.
        active: Fraction of the tokens on which it is active.
        n_tokens: Number of tokens.
        promotes: Tokens that it promotes, by the logit lens on its decoder row.
        suppresses: Tokens that it suppresses.
    """

    title: str
    contexts: tuple[Context, ...]
    edges: Float[np.ndarray, " bars+1"]
    counts: Float[np.ndarray, " bars"]
    active: float
    n_tokens: int
    promotes: tuple[str, ...]
    suppresses: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The words on which it is strongest, each once."""
        return tuple(dict.fromkeys(c.word for c in self.contexts))

    def html(self) -> str:
        """Write the page's body, without scripts or anything from elsewhere."""
        top = max((max(c.values) for c in self.contexts), default=0.0)
        contexts = "".join(f"<li>{_context_html(c, top)}</li>" for c in self.contexts)
        return (
            '<div style="font: 13px/1.5 sans-serif; max-width: 46em; margin: 0 0 1.6em; '
            'border-left: 3px solid rgba(128,128,128,.5); padding-left: .9em">'
            f"<strong>{escape_html(self.title)}</strong> "
            f"<span>active on {self.active:.2%} of {self.n_tokens:,} tokens</span>"
            f"{_histogram(self.edges, self.counts)}"
            f"<div>promotes {_words(self.promotes, BLUE)}</div>"
            f"<div>suppresses {_words(self.suppresses, ORANGE)}</div>"
            f'<ol style="padding-left: 1.6em; margin: .5em 0 0">{contexts}</ol></div>'
        )

    def _repr_html_(self) -> str:
        return self.html()

    def save(self, path: str | Path) -> None:
        """Write the page to a file."""
        page = (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            '<meta name="color-scheme" content="light dark">'
            f"<title>{escape_html(self.title)}</title><body>{self.html()}</body></html>"
        )
        with atomic_path(path) as temporary:
            temporary.write_text(page, encoding="utf-8")


@torch.inference_mode()
def dashboards(
    model: LanguageModel,
    sae: SAE,
    shards: Shards,
    latents: Sequence[int],
    *,
    titles: Sequence[str] | None = None,
    n_contexts: int = 8,
    k: int = 8,
) -> list[Dashboard]:
    """Make dashboards of a few latents over harvested text.

    Args:
        model: Any model of a known family.
        sae: An SAE of one of its sites.
        shards: Activations that hold the SAE's site and layer.
        latents: Indices of latents.
        titles: Their names; site, layer and index by default.
        n_contexts: Contexts of each latent, at most one from a sequence.
        k: Promoted and suppressed tokens of each latent.

    Raises:
        UserError: The SAE or the activations are of another model, or there is no such latent.
    """
    check_sae_of_model(model, sae)
    shards.check(model)
    cfg = sae.cfg
    for latent in latents:
        if not 0 <= latent < cfg.d_sae:
            raise UserError(f"There is no latent {latent}: this SAE has 0 to {cfg.d_sae - 1}.")
    values = _activations(sae, shards, latents)  # (n, latents)
    logit_tokens = direction_logit_tokens(model, decoder_directions(model, sae, latents), k=k)
    titles = titles or [f"{cfg.site} {cfg.layer}, latent {i}" for i in latents]
    n, sequences = len(values), shards.rows // shards.tokens.shape[1]
    boards = []
    for i, (title, tokens) in enumerate(zip(titles, logit_tokens, strict=True)):
        column = values[:, i]
        on = column[column > 0]
        counts, edges = np.histogram(on, N_BARS, (0.0, max(float(column.max()), 1e-6)))
        boards.append(
            Dashboard(
                title=title,
                contexts=_contexts(model, shards, column, sequences, n_contexts),
                edges=edges,
                counts=counts.astype(float),
                active=len(on) / n,
                n_tokens=n,
                promotes=tuple(tokens["promotes"]),
                suppresses=tuple(tokens["suppresses"]),
            )
        )
    return boards


def _activations(sae: SAE, shards: Shards, latents: Sequence[int]) -> np.ndarray:
    data = shards[sae.cfg.site, sae.cfg.layer]
    parts = []
    for start in range(0, len(data), 4096):
        x = torch.from_numpy(data[start : start + 4096].astype(np.float32))
        parts.append(sae.encode(x)[:, list(latents)])
    return torch.cat(parts).numpy()


def _contexts(
    model: LanguageModel, shards: Shards, column: np.ndarray, sequences: np.ndarray, n: int
) -> tuple[Context, ...]:
    """Find the strongest activations, one a sequence, with the tokens around them."""
    contexts, used = [], set()
    for row in np.argsort(-column, kind="stable"):
        if len(contexts) == n or column[row] <= 0:
            break
        sequence, position = shards.source(row)
        if sequence in used:
            continue
        used.add(sequence)
        begin = max(0, position - BEFORE)
        ids = shards.tokens[sequence, begin : position + AFTER + 1].tolist()
        in_sequence = sequences == sequence
        positions = shards.rows[in_sequence] % shards.tokens.shape[1]
        by_position = dict(zip(positions, column[in_sequence], strict=True))
        values = tuple(float(by_position.get(begin + j, 0.0)) for j in range(len(ids)))
        tokens = tuple(model.tokenizer.decode([t]) for t in ids)
        contexts.append(Context(tokens, values, position - begin))
    return tuple(contexts)


def _context_html(context: Context, top: float) -> str:
    parts = []
    for i, (token, value) in enumerate(zip(context.tokens, context.values, strict=True)):
        text = escape_html(token.replace("\n", "↵"))
        if value > 0 and top > 0:
            shade = f"background: rgba({ORANGE}, {FAINT + (STRONG - FAINT) * value / top:.2f})"
            weight = "; font-weight: bold" if i == context.peak else ""
            parts.append(f'<span style="{shade}{weight}" title="{value:.2f}">{text}</span>')
        else:
            parts.append(text)
    return "".join(parts)


def _histogram(edges: np.ndarray, counts: np.ndarray) -> str:
    """Draw bars as inline SVG, the tallest as high as the picture."""
    width, height = 300, 44
    step, tallest = width / len(counts), max(counts.max(), 1)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - h:.1f}" width="{step - 1:.1f}" height="{h:.1f}"/>'
        for i, h in enumerate(counts / tallest * height)
        if h > 0
    )
    return (
        f'<div><svg viewBox="0 0 {width} {height + 14}" width="{width}" height="{height + 14}" '
        f'role="img" aria-label="Histogram of {int(counts.sum())} activations up to '
        f'{edges[-1]:.2f}"><g fill="rgb({BLUE})">{bars}</g>'
        f'<text x="0" y="{height + 12}" font-size="11" fill="currentColor">0</text>'
        f'<text x="{width}" y="{height + 12}" font-size="11" fill="currentColor" '
        f'text-anchor="end">{edges[-1]:.2f}</text></svg></div>'
    )


def _words(words: Sequence[str], colour: str) -> str:
    style = f"background: rgba({colour}, .18); border-radius: 3px; padding: 0 .3em"
    return " ".join(
        f'<code style="{style}">{escape_html(w.replace(chr(10), "↵")) or "␣"}</code>' for w in words
    )
