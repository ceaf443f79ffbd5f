"""A model's answers as linear functions of what its MLPs write: keys, gradients, least change.

To first order a change ΔW_l of W_out moves the log-odds log P/(1 − P) of an answer by
Σ_l Σ_p g_pᵀ ΔW_l k_p: over positions p, k the key (what W_out reads), g the gradient of the
log-odds at W_out's output. (The log-probability itself is flat where the model is sure: steps taken
along it overshoot several times.) `linearize` takes both for many prompts; the edit so far is put
in as an intervention, so the model itself is never touched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.batching import bucket_by_length, right_padded
from helpers.forward.layer_cache import cached_forward
from helpers.forward.prefix_cache import PrefixCache
from helpers.models import architecture_of, final_norm, unembed

Extra = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, what W_in reads, what W_out reads) → what is added to W_out's output."""
BATCH = 512  # tokens a pass


@dataclass(frozen=True)
class EditConstraint:
    """An answer whose log-odds are steered.

    Attributes:
        ids: Tokens of the prompt, and of all but the last of the answer's.
        scored: (position, tokens): the next token's probability, summed over `tokens`, counts.
        acts: Positions at which the edit counts as acting; all others' derivatives are dropped.
        goal: Log-odds to come down to; None to stay at what they were.
        name: For messages.
        weight: How firmly `fit_values_lm` holds it, up to 1.
    """

    ids: tuple[int, ...]
    scored: tuple[tuple[int, tuple[int, ...]], ...]
    acts: tuple[int, ...]
    goal: float | None = None
    name: str = ""
    weight: float = 1.0


def at_all_positions(asks: Sequence[EditConstraint]) -> list[EditConstraint]:
    """The same asks, the edit acting at every position."""
    return [replace(a, acts=tuple(range(len(a.ids)))) for a in asks]


@dataclass(frozen=True)
class Linearization:
    """Log-odds of asks and their derivatives at some layers.

    Attributes:
        logodds: Of each ask, in nats.
        owner: For every row (an ask at a position where it acts) the ask's number.
        keys: Layer → what W_out (or W_in) reads, a row each.
        gradients: Layer → derivative of the ask's log-odds by W_out's output.
    """

    logodds: Float[Tensor, " n"]
    owner: Int[Tensor, " rows"]
    keys: dict[int, Float[Tensor, "rows width"]]
    gradients: dict[int, Float[Tensor, "rows d_model"]]


def linearize(
    model: LanguageModel,
    asks: Sequence[EditConstraint],
    *,
    layers: Sequence[int],
    extra: Extra | None = None,
    site: str = "neurons",
    beginnings: PrefixCache | None = None,
) -> Linearization:
    """Keys and gradients of all asks, by a forward pass a sequence and a backward pass an ask.

    Sequences are batched by length, each runs once for all that is asked about it, only the scored
    positions are unembedded, and no gradient is taken below the first layer, nor within a
    beginning.

    Args:
        model: Any model of a known family.
        asks: What is asked.
        layers: The layers that are edited.
        extra: The edit so far, as what it adds to W_out's output.
        site: Whose input the keys are: `neurons` (W_out's) or `mlp_in` (W_in's).
        beginnings: Of all asks, where the edit acts on something in each, for the same layers: only
            what follows them is run, from the first layer on.
    """
    layers = sorted({architecture_of(model).check_layer(i) for i in layers})
    logodds = torch.zeros(len(asks))
    owner: list[int] = []
    keys: dict[int, list[Tensor]] = {i: [] for i in layers}
    gradients: dict[int, list[Tensor]] = {i: [] for i in layers}
    with torch.enable_grad():
        for run in _passes(model, asks, layers, extra, site, beginnings):
            width = run.last.shape[1]
            for turn in run.turns:
                scores = _scores(model, run.last, [asks[n] for n in turn], run.starts)
                more = turn is not run.turns[-1]
                found = torch.autograd.grad(
                    scores.sum(), [run.written[i] for i in layers], retain_graph=more
                )
                logodds[turn] = scores.detach().float().cpu()
                rows = [
                    (r, p - start)
                    for r, (n, start) in enumerate(zip(turn, run.starts, strict=True))
                    for p in asks[n].acts
                    if p >= start
                ]
                owner += [turn[r] for r, _ in rows]
                flat = torch.tensor([r * width + p for r, p in rows])
                for i, gradient in zip(layers, found, strict=True):
                    keys[i].append(run.read[i].detach().flatten(0, -2)[flat].float().cpu())
                    gradients[i].append(gradient.flatten(0, -2)[flat].float().cpu())
    return Linearization(
        logodds,
        torch.tensor(owner),
        {i: torch.cat(x) for i, x in keys.items()},
        {i: torch.cat(x) for i, x in gradients.items()},
    )


@torch.no_grad()
def answer_logodds(
    model: LanguageModel,
    asks: Sequence[EditConstraint],
    *,
    layers: Sequence[int],
    extra: Extra | None = None,
    site: str = "neurons",
    beginnings: PrefixCache | None = None,
) -> Float[Tensor, " n"]:
    """Log-odds of all asks without derivatives, by a forward pass a sequence.

    Args are those of `linearize`.
    """
    found = torch.zeros(len(asks))
    for run in _passes(model, asks, layers, extra, site, beginnings):
        for turn in run.turns:
            scores = _scores(model, run.last, [asks[n] for n in turn], run.starts)
            found[turn] = scores.float().cpu()
    return found


@dataclass(frozen=True)
class _Pass:
    """One forward pass: different sequences, about each of which as many asks.

    Attributes:
        read: Layer → what the edited MLP reads.
        written: Layer → what it writes.
        last: The last residual stream.
        turns: In each one ask of every row.
        starts: Of every row, at which position of the ask it begins.
    """

    read: dict[int, Tensor]
    written: dict[int, Tensor]
    last: Float[Tensor, "b t d_model"]
    turns: list[list[int]]
    starts: list[int]


def _passes(model, asks, layers, extra, site, beginnings) -> Iterator[_Pass]:
    about: dict[tuple[int, ...], list[int]] = {}
    for n, ask in enumerate(asks):
        about.setdefault(ask.ids, []).append(n)
    start = {ids: beginnings.start(ids) or 0 if beginnings else 0 for ids in about}
    alike: dict[int, list[tuple[int, ...]]] = {}
    for ids, mine in about.items():
        alike.setdefault(len(mine), []).append(ids)
    for group in alike.values():
        for batch in bucket_by_length([len(ids) - start[ids] for ids in group], max_tokens=BATCH):
            whole = [group[i] for i in batch]
            rest = [ids[start[ids] :] for ids in whole]
            tokens = right_padded(rest)
            width = tokens.shape[1]
            if beginnings:
                before = beginnings.before(whole, width)
                shortened = beginnings.above(whole, width)
            else:
                before, shortened = {}, cached_forward(model._module, (tokens.shape, tuple(whole)))
            with shortened:
                read, written, last = _forward(model, tokens, layers, extra, site, before)
            yield _Pass(
                read,
                written,
                last.reshape(len(whole), width, -1),
                [list(turn) for turn in zip(*(about[ids] for ids in whole), strict=True)],
                [start[ids] for ids in whole],
            )


def _forward(model, tokens, layers, extra, site, before):
    """Reads and writes of the edited MLPs, and the last residual stream, with the graph kept."""
    arch = architecture_of(model)
    with model.trace(tokens, **before) as tracer:
        read, written = {}.save(), {}.save()
        for i in layers:
            mlp = arch.layers[i].mlp
            into = mlp.in_envoy.input
            hidden = mlp.out_envoy.input
            out = mlp.out_envoy.output
            if extra is not None:
                out = out + extra(i, into, hidden)
            if not out.requires_grad:
                out = out.detach().requires_grad_()
            mlp.out_envoy.output = out
            read[i] = into if site == "mlp_in" else hidden
            written[i] = out
        last = arch.layers[-1].block.output.save()
        tracer.stop()
    return read, written, last


def _scores(
    model: LanguageModel,
    last: Float[Tensor, "b t d_model"],
    asks: Sequence[EditConstraint],
    starts: Sequence[int],
) -> Float[Tensor, " b"]:
    """Log-odds of each row's answer; a row begins at its start within the ask."""
    pairs = zip(asks, starts, strict=True)
    where = [(r, p - s, t) for r, (ask, s) in enumerate(pairs) for p, t in ask.scored]
    rows = torch.tensor([r for r, _, _ in where])
    states = last[rows, torch.tensor([p for _, p, _ in where])]
    logits = unembed(model, final_norm(model, states)).float().log_softmax(-1)
    counts = [len(tokens) for _, _, tokens in where]
    every = torch.tensor([t for _, _, tokens in where for t in tokens])
    # one index for all: the derivative of each by itself would be as large as the logits
    picked = logits[torch.arange(len(where)).repeat_interleave(torch.tensor(counts)), every]
    each = [x.logsumexp(-1) for x in picked.split(counts)]
    total = torch.zeros(len(asks), device=last.device)
    total = total.index_add(0, rows.to(last.device), torch.stack(each))
    return log_odds(total)


def log_odds(logprob: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
    """log P/(1 − P) from log P; at most 16, what float32 can tell from certainty."""
    logprob = logprob.clamp_max(-1e-7)
    return logprob - torch.log(-torch.expm1(logprob))


def min_norm_update(
    tangent: Linearization,
    wanted: Float[Tensor, " n"],
    factors: Mapping[int, Float[Tensor, "width width"]],
    *,
    ridge: float,
    asks: Sequence[EditConstraint],
) -> dict[int, Float[Tensor, "d_model width"]]:
    """The ΔW that changes each answer's log-odds by `wanted` at the least Σ_l tr(ΔW_l A_l ΔW_lᵀ).

    α = (K + Λ)⁻¹ wanted with K_ij = Σ_l Σ_pq (g_ip · g_jq)(k_ipᵀ A_l⁻¹ k_jq), and
    ΔW_l = Σ_i α_i Σ_p g_ip (A_l⁻¹ k_ip)ᵀ: kernel regression with the tangent kernel.

    Args:
        tangent: Keys and gradients.
        wanted: Changes of log-odds, nats.
        factors: Layer → lower Cholesky factor of A_l.
        ridge: Λ, relative to each ask's own K_ii; 0 reaches `wanted` exactly.
        asks: For the message.

    Raises:
        UserError: The system is singular; names the prompts that coincide.
    """
    n = len(wanted)
    kernel = torch.zeros(n, n, dtype=torch.float64)
    solved = {}
    for i, keys in tangent.keys.items():
        white = torch.linalg.solve_triangular(factors[i], keys.T, upper=False)  # (width, rows)
        solved[i] = white
        g = tangent.gradients[i]
        by_row = ((g @ g.T) * (white.T @ white)).double()
        half = torch.zeros(n, by_row.shape[1], dtype=torch.float64)
        half.index_add_(0, tangent.owner, by_row)
        kernel.index_add_(1, tangent.owner, half)
    alpha = fit_kernel_ridge(kernel, wanted.double(), ridge=ridge, asks=asks)[tangent.owner].float()
    return {
        i: (
            torch.linalg.solve_triangular(
                factors[i].T, white @ (alpha[:, None] * tangent.gradients[i]), upper=True
            ).T
        )
        for i, white in solved.items()
    }


def fit_kernel_ridge(
    kernel: Float[Tensor, "n n"],
    wanted: Float[Tensor, " n"],
    *,
    ridge: float | Float[Tensor, " n"],
    asks: Sequence[EditConstraint],
) -> Float[Tensor, " n"]:
    """α = (K + Λ)⁻¹ wanted in float64, Λ = `ridge` (one, or one an ask) times K's diagonal.

    Raises:
        UserError: K + Λ is singular; names the two prompts that are most alike. Or the steps
            before this one ran away.
    """
    if not torch.isfinite(kernel).all() or not kernel.diagonal().max() > 1e-24:
        raise UserError(
            "No change moves the answers (any more): the steps ran away. Take smaller steps, a "
            "floor closer to what the model says now, or other layers."
        )
    diagonal = kernel.diagonal()
    moves = diagonal > 1e-12 * diagonal.max()  # what no change reaches is left out
    index = moves.nonzero()[:, 0]
    rest = kernel[index][:, index]
    factor, failed = torch.linalg.cholesky_ex(rest + torch.diag((ridge * diagonal)[index]))
    if failed or factor.diagonal().min() ** 2 < 1e-12 * diagonal[index].min():
        scale = diagonal[index].rsqrt()
        alike = (rest * scale[:, None] * scale).abs().fill_diagonal_(0)
        a, b = (int(index[i]) for i in divmod(int(alike.argmax()), len(index)))
        raise UserError(
            f"The prompts cannot be told apart by what the edit may change: '{asks[a].name}' and "
            f"'{asks[b].name}' coincide; drop one of them, or raise the ridge."
        )
    alpha = torch.zeros_like(wanted)
    alpha[index] = torch.cholesky_solve(wanted[index, None], factor)[:, 0]
    return alpha


def predicted_change(
    tangent: Linearization, change: Mapping[int, Float[Tensor, "d_model width"]]
) -> Float[Tensor, " n"]:
    """What `change` does to each answer's log-odds, to first order."""
    total = torch.zeros(len(tangent.logodds))
    for i, delta in change.items():
        by_row = ((tangent.keys[i] @ delta.T) * tangent.gradients[i]).sum(-1)
        total.index_add_(0, tangent.owner, by_row)
    return total
