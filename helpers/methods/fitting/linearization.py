"""First-order model of answers' log-odds in the weights: keys and gradients of every constraint.

To first order a change ΔW_l of W_out moves the log-odds log P/(1 − P) of an answer by
Σ_l Σ_p g_pᵀ ΔW_l k_p. The sum runs over positions p, with k the key (the input of W_out) and g the
gradient of the log-odds with respect to W_out's output: the features of the empirical neural
tangent kernel (Jacot et al. 2018). The log-probability itself is flat where the model is sure, and
steps along it overshoot several times. The trial edit is added as an intervention, so the model's
weights stay untouched.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.forward.batching import bucket_by_length, right_padded
from helpers.forward.layer_cache import cached_forward
from helpers.forward.prefix_cache import PrefixCache
from helpers.methods.fitting.edit_constraint import EditConstraint, Run
from helpers.methods.fitting.linear_model import Linearization
from helpers.models import architecture_of, final_norm, torch_module, unembed

EditHook = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, input of W_in, input of W_out) → what the trial edit adds to W_out's output."""
BATCH_TOKENS = 512  # tokens of one forward pass whose graph is kept


def linearize(
    model: LanguageModel,
    constraints: Sequence[EditConstraint],
    *,
    layers: Sequence[int],
    edit_output: EditHook | None = None,
    site: str = "neurons",
    prefix_cache: PrefixCache | None = None,
) -> Linearization:
    """Compute log-odds, keys and gradients of all constraints.

    Each sequence has one forward pass, each constraint one backward pass. Sequences are batched by
    length, and only the target positions are unembedded. Gradients stop at the first edited layer,
    and at the end of a cached prefix.

    Args:
        model: Any model of a known family.
        constraints: The constraints.
        layers: The edited layers.
        edit_output: Hook that adds the trial edit to W_out's output.
        site: Where keys are read: `neurons` (input of W_out) or `mlp_in` (input of W_in).
        prefix_cache: Cache for the same layers that holds every constraint's sequence, on each of
            which the edit is active. Only the suffixes are run, from the first edited layer on.
    """
    arch = architecture_of(model)
    layers = sorted({arch.check_layer(i) for i in layers})
    logodds = torch.zeros(len(constraints))
    constraint_index: list[int] = []
    keys: dict[int, list[Tensor]] = {i: [] for i in layers}
    gradients: dict[int, list[Tensor]] = {i: [] for i in layers}
    with torch.enable_grad():
        for forward in _forward_passes(model, constraints, layers, edit_output, site, prefix_cache):
            n_tokens = forward.final_residual.shape[1]
            for indices in forward.constraint_rounds:
                row_constraints = [constraints[n] for n in indices]
                scores = _scores(model, forward, row_constraints)
                is_last = indices is forward.constraint_rounds[-1]
                output_gradients = torch.autograd.grad(
                    scores.sum(),
                    [forward.outputs[i] for i in layers],
                    retain_graph=not is_last,
                    materialize_grads=True,  # the lens reads below some of the layers
                )
                logodds[indices] = scores.detach().float().cpu()
                # A row of the batch and a position of its suffix, for every edit position
                places = [
                    (r, p - offset)
                    for r, offset in enumerate(forward.offsets)
                    for p in row_constraints[r].edit_positions
                    if p >= offset
                ]
                constraint_index += [indices[r] for r, _ in places]
                flat = torch.tensor([r * n_tokens + p for r, p in places])
                for i, gradient in zip(layers, output_gradients, strict=True):
                    key = forward.inputs[i].detach().flatten(0, -2)[flat]
                    keys[i].append(key.float().cpu())
                    gradients[i].append(gradient.flatten(0, -2)[flat].float().cpu())
    width = arch.d_mlp if site == "neurons" else arch.d_model  # of no constraint at all
    return Linearization(
        logodds,
        torch.tensor(constraint_index, dtype=torch.long),
        {i: torch.cat(x) if x else torch.zeros(0, width) for i, x in keys.items()},
        {i: torch.cat(x) if x else torch.zeros(0, arch.d_model) for i, x in gradients.items()},
    )


@torch.no_grad()
def answer_logodds(
    model: LanguageModel,
    constraints: Sequence[EditConstraint],
    *,
    layers: Sequence[int],
    edit_output: EditHook | None = None,
    site: str = "neurons",
    prefix_cache: PrefixCache | None = None,
) -> Float[Tensor, " n"]:
    """Compute log-odds of all constraints, in nats, by forward passes alone.

    Args:
        model: Any model of a known family.
        constraints: The constraints.
        layers: The edited layers.
        edit_output: Hook that adds the trial edit to W_out's output.
        site: Where keys are read: `neurons` (input of W_out) or `mlp_in` (input of W_in).
        prefix_cache: Cache that holds every constraint's sequence, on each of which the edit is
            active.
    """
    logodds = torch.zeros(len(constraints))
    for forward in _forward_passes(model, constraints, layers, edit_output, site, prefix_cache):
        for indices in forward.constraint_rounds:
            row_constraints = [constraints[n] for n in indices]
            scores = _scores(model, forward, row_constraints)
            logodds[indices] = scores.float().cpu()
    return logodds


@dataclass(frozen=True)
class BatchedForward:
    """One forward pass over distinct sequences that have equally many constraints.

    Attributes:
        inputs: Layer → input of the edited MLP.
        outputs: Layer → output of the edited MLP, with the trial edit.
        final_residual: Residual stream after the last layer.
        read: Layer → residual stream after it, for the layers that the lens reads.
        constraint_rounds: Lists of constraint numbers, each with one constraint of every row.
        offsets: Position within its sequence at which each row's suffix begins.
    """

    inputs: dict[int, Tensor]
    outputs: dict[int, Tensor]
    final_residual: Float[Tensor, "b t d_model"]
    read: dict[int, Float[Tensor, "b t d_model"]]
    constraint_rounds: list[list[int]]
    offsets: list[int]


def _forward_passes(
    model: LanguageModel,
    constraints: Sequence[EditConstraint],
    layers: Sequence[int],
    edit_output: EditHook | None,
    site: str,
    prefix_cache: PrefixCache | None,
) -> Iterator[BatchedForward]:
    """Run every distinct sequence once, in batches of similar length."""
    by_run: dict[Run, list[int]] = {}
    for n, constraint in enumerate(constraints):
        by_run.setdefault(constraint.run, []).append(n)
    offset = {
        ids: prefix_cache.first_active(ids) or 0 if prefix_cache else 0 for ids, _, _ in by_run
    }
    # Rows of one batch need equally many constraints, so that rounds of them fill every row.
    by_count: dict[int, list[Run]] = {}
    for run, numbers in by_run.items():
        by_count.setdefault(len(numbers), []).append(run)
    for group in by_count.values():
        lengths = [len(ids) - offset[ids] for ids, _, _ in group]
        for batch in bucket_by_length(lengths, max_tokens=BATCH_TOKENS):
            runs = [group[i] for i in batch]
            sequences = [ids for ids, _, _ in runs]
            read_by = [constraints[n].lens for run in runs for n in by_run[run]]
            lenses = {lens.layer for lens in read_by if lens}
            tokens = right_padded([ids[offset[ids] :] for ids in sequences])
            width = tokens.shape[1]
            if prefix_cache:
                kwargs = prefix_cache.forward_kwargs(sequences, width)
                shortened: Any = prefix_cache.resume_above(sequences, width)
            else:
                kwargs = {}
                shortened = cached_forward(torch_module(model), (tokens.shape, tuple(sequences)))
            with shortened:
                inputs, outputs, final, read = forward_with_outputs(
                    model, tokens, layers, edit_output, site, kwargs, runs, lenses
                )
            rounds = zip(*(by_run[run] for run in runs), strict=True)
            yield BatchedForward(
                inputs,
                outputs,
                final.reshape(len(sequences), width, -1),
                {i: x.reshape(len(sequences), width, -1) for i, x in read.items()},
                [list(indices) for indices in rounds],
                [offset[ids] for ids in sequences],
            )


def forward_with_outputs(
    model: LanguageModel,
    tokens: Int[Tensor, "b t"],
    layers: Sequence[int],
    edit_output: EditHook | None,
    site: str,
    kwargs: dict,
    runs: Sequence[Run] = (),
    lens_layers: Collection[int] = (),
) -> tuple[dict[int, Tensor], dict[int, Tensor], Tensor, dict[int, Tensor]]:
    """Return inputs and outputs of the edited MLPs and residual streams, with the graph.

    Args:
        model: The model.
        tokens: Token ids, a row for each run.
        layers: The edited layers.
        edit_output: Hook that adds the trial edit.
        site: Where inputs are read.
        kwargs: Arguments of the forward pass.
        runs: Says which neurons of each row are at zero; none by default.
        lens_layers: Layers after which the residual stream is returned.

    Returns:
        Layer → input, layer → output, the last residual stream, and those of `lens_layers`.
    """
    arch = architecture_of(model)
    cut = _cut_neurons(runs)
    with model.trace(tokens, **kwargs) as tracer:
        inputs, outputs, read = {}.save(), {}.save(), {}.save()  # type: ignore[attr-defined]
        for i in sorted({*layers, *cut, *lens_layers}):
            mlp = arch.layers[i].mlp
            if i in layers:
                mlp_in = mlp.in_envoy.input
            if i in cut:
                mlp.out_envoy.input = _with_zeros(mlp.out_envoy.input, cut[i], len(tokens))
            if i not in layers:
                if i in lens_layers:
                    read[i] = arch.layers[i].block.output
                continue
            hidden = mlp.out_envoy.input
            out = mlp.out_envoy.output
            if edit_output is not None:
                out = out + edit_output(i, mlp_in, hidden)
            if not out.requires_grad:  # the first edited layer: nothing below it needs a gradient
                out = out.detach().requires_grad_()
            mlp.out_envoy.output = out
            inputs[i] = mlp_in if site == "mlp_in" else hidden
            outputs[i] = out
            if i in lens_layers:
                read[i] = arch.layers[i].block.output
        final = arch.layers[-1].block.output.save()
        tracer.stop()
    return inputs, outputs, final, read


def _cut_neurons(runs: Sequence[Run]) -> dict[int, list[tuple[int, int | slice]]]:
    """List (row, neuron or all of them) that are at zero, for the layers where there are any."""
    cut: dict[int, list[tuple[int, int | slice]]] = {}
    for row, (_, left_out, neurons) in enumerate(runs):
        for i in left_out:
            cut.setdefault(i, []).append((row, slice(None)))
        for i, neuron in neurons:
            cut.setdefault(i, []).append((row, neuron))
    return cut


def _with_zeros(hidden: Tensor, cut: Sequence[tuple[int, int | slice]], n_rows: int) -> Tensor:
    """Return W_out's input with some neurons of each row at zero."""
    by_row = hidden.view(n_rows, -1, hidden.shape[-1])  # some families flatten rows and tokens
    mask = torch.zeros(n_rows, hidden.shape[-1], dtype=torch.bool, device=hidden.device)
    for row, which in cut:
        mask[row, which] = True
    return by_row.masked_fill(mask[:, None], 0).view_as(hidden)


def _scores(
    model: LanguageModel, forward: BatchedForward, constraints: Sequence[EditConstraint]
) -> Float[Tensor, " b"]:
    """Compute each row's score, one constraint a row: log-odds, or what the lens reads."""
    plain = [row for row, c in enumerate(constraints) if c.lens is None]
    if len(plain) == len(constraints):  # nearly always: all rows, without a copy of the states
        return _answer_scores(model, forward.final_residual, constraints, forward.offsets)
    scores = torch.zeros(len(constraints), device=forward.final_residual.device)
    if plain:
        answers = _answer_scores(
            model,
            forward.final_residual[plain],
            [constraints[row] for row in plain],
            [forward.offsets[row] for row in plain],
        )
        scores = scores.index_add(0, torch.tensor(plain, device=scores.device), answers)
    for row, constraint in enumerate(constraints):
        if lens := constraint.lens:
            state = forward.read[lens.layer][row, lens.position - forward.offsets[row]]
            logits = unembed(model, final_norm(model, state[None]))[0].float()
            [(_, tokens)] = constraint.target_tokens
            reading = logits[list(tokens)].mean() - logits[list(lens.against)].mean()
            scores = scores.index_add(0, torch.tensor([row], device=scores.device), reading[None])
    return scores


def _answer_scores(
    model: LanguageModel,
    final_residual: Float[Tensor, "b t d_model"],
    constraints: Sequence[EditConstraint],
    offsets: Sequence[int],
) -> Float[Tensor, " b"]:
    """Compute log-odds of each row's answer, in nats, with the graph.

    Args:
        model: The model.
        final_residual: Residual stream after the last layer.
        constraints: One constraint for each row.
        offsets: Position within its sequence at which each row begins.
    """
    rows_offsets = zip(constraints, offsets, strict=True)
    targets = [(r, p - o, t) for r, (c, o) in enumerate(rows_offsets) for p, t in c.target_tokens]
    rows = torch.tensor([r for r, _, _ in targets])
    states = final_residual[rows, torch.tensor([p for _, p, _ in targets])]
    logprobs = unembed(model, final_norm(model, states)).float().log_softmax(-1)
    counts = [len(tokens) for _, _, tokens in targets]
    flat_tokens = torch.tensor([t for _, _, tokens in targets for t in tokens])
    # One index for all tokens: each index by itself would have a gradient as large as the logits.
    flat_rows = torch.arange(len(targets)).repeat_interleave(torch.tensor(counts))
    token_logprobs = logprobs[flat_rows, flat_tokens]
    # Alternatives at one position add up as probabilities, positions of one answer as logs.
    position_logprobs = [x.logsumexp(-1) for x in token_logprobs.split(counts)]
    total = torch.zeros(len(constraints), device=final_residual.device)
    total = total.index_add(0, rows.to(final_residual.device), torch.stack(position_logprobs))
    return log_odds(total)


def log_odds(logprob: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
    """Compute log P/(1 − P) from log P; at most 16, since float32 cannot resolve more."""
    logprob = logprob.clamp_max(-1e-7)
    return logprob - torch.log(-torch.expm1(logprob))
