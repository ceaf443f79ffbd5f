"""Change activations and measure the effect: activation patching, path patching, ablation.

Activation patching runs a corrupted prompt with one state taken from a clean one. The *patching
effect* is how much of the difference between the two answers it restores (Vig et al. 2020, Meng et
al. 2022): the normalised logit difference of Wang et al. 2023, which Zhang & Nanda 2024 recommend.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.activations import Position, cache_activations
from helpers.forward.batching import BATCH_TOKENS
from helpers.forward.prompts import Prompt, first_token, position_of, token_ids
from helpers.forward.sites import SITES, check_sites, site_value
from helpers.models import Architecture, architecture_of, final_norm, unembed


@dataclass(frozen=True)
class Patch:
    """One replaced activation.

    Attributes:
        site: One of `SITES`.
        layer: Index of the block.
        positions: Token indices.
        value: The new activation, (positions, width); (positions, d_head) with `head`.
        head: Replace only this head's part of the site `heads`.
    """

    site: str
    layer: int
    positions: Sequence[int]
    value: Float[Tensor, "positions width"]
    head: int | None = None


def run_patched(
    model: LanguageModel,
    ids: Sequence[int],
    jobs: Sequence[Sequence[Patch]],
    *,
    read: tuple[str, int, int] | None = None,
) -> Float[Tensor, "jobs width"]:
    """Run one token sequence once per job, each with its own patches.

    Many jobs run as one batch. Blocks below the lowest patch are skipped: there the batch would
    only repeat the unpatched run.

    Args:
        model: Any model of a known family.
        ids: The token sequence.
        jobs: For each run its patches.
        read: (site, layer, position) to return; by default the last residual stream at the last
            token, which `logits_of` turns into logits.

    Returns:
        The requested activation of each run, on the model's device.
    """
    arch = architecture_of(model)
    site, last, position = read or ("residual", arch.n_layers - 1, len(ids) - 1)
    last = arch.check_layer(last)
    unpatched = cache_activations(model, [ids], sites=["residual"], positions="all")
    order = sorted(range(len(jobs)), key=lambda i: _lowest(jobs[i], arch))
    out: list = [None] * len(jobs)
    for chunk in torch.tensor(order, dtype=torch.long).split(max(1, BATCH_TOKENS // len(ids))):
        batch = chunk.tolist()
        lowest = _lowest(jobs[batch[0]], arch)
        plan = _plan([jobs[i] for i in batch], arch)
        tokens = torch.tensor([list(ids)]).expand(len(batch), -1)
        with torch.inference_mode(), model.trace(tokens) as tracer:
            for i in range(lowest):
                entry = unpatched["residual", lowest - 1].to(arch.layers[i].mlp.out_module.weight)
                arch.layers[i].block.skip(entry.expand(len(batch), -1, -1).clone())
            for i in range(lowest, last + 1):
                for name in SITES:
                    reads = (i, name) == (last, site)
                    if (i, name) not in plan and not reads:
                        continue
                    value = site_value(arch.layers[i], name, len(batch))
                    for where, new in plan.get((i, name), ()):
                        value[where] = new.to(value)
                    if reads:
                        requested = value[:, position].clone().save()
            tracer.stop()
        for row, i in enumerate(batch):
            out[i] = requested[row]
    return torch.stack(out)


def _lowest(job: Sequence[Patch], arch: Architecture) -> int:
    """Return the lowest layer that a job patches; 0 without patches."""
    return min((arch.check_layer(p.layer) for p in job), default=0)


def _plan(jobs: Sequence[Sequence[Patch]], arch: Architecture) -> dict[tuple[int, str], list]:
    """Collect for each (layer, site) the indices into (b, t, width) and the values to write.

    Patches of the whole width are joined into one index: one write a site instead of one a job.
    """
    plan: dict[tuple[int, str], list] = {}
    full_width: dict[tuple[int, str], list] = {}
    for row, job in enumerate(jobs):
        for p in job:
            key = (arch.check_layer(p.layer), p.site)
            positions = torch.tensor(list(p.positions), dtype=torch.long)
            if p.head is not None:
                columns = slice(p.head * arch.d_head, (p.head + 1) * arch.d_head)
                plan.setdefault(key, []).append(((row, positions, columns), p.value))
            else:
                rows = torch.full_like(positions, row)
                full_width.setdefault(key, []).append((rows, positions, p.value))
    for key, patches in full_width.items():
        rows, positions, values = (torch.cat(x) for x in zip(*patches, strict=True))
        plan.setdefault(key, []).append(((rows, positions), values))
    return plan


@torch.inference_mode()
def logits_of(
    model: LanguageModel, residual: Float[Tensor, "n d_model"]
) -> Float[Tensor, "n vocab"]:
    """Return the logits of residual states after the last block, in float32."""
    return unembed(model, final_norm(model, residual)).float()


def logit_difference(
    model: LanguageModel, clean: Prompt, corrupt: Prompt, residual: Float[Tensor, "n d_model"]
) -> Float[Tensor, " n"]:
    """Return logit(clean answer's first token) − logit(corrupted answer's), for each state.

    Raises:
        UserError: Both answers begin with the same token.
    """
    a, b = (first_token(model, p, p.answers[0]) for p in (clean, corrupt))
    if a == b:
        raise UserError(
            f"'{clean.answers[0]}' and '{corrupt.answers[0]}' begin with the same token, so their "
            "logits cannot be told apart: choose another subject to compare with."
        )
    logits = logits_of(model, residual)
    return logits[:, a] - logits[:, b]


def activation_patching(
    model: LanguageModel,
    clean: Prompt,
    corrupt: Prompt,
    *,
    sites: Sequence[str] = ("attention", "mlp", "residual"),
    layers: Sequence[int] | None = None,
    positions: dict[str, Sequence[int]] | None = None,
    by_head: bool = False,
) -> pd.DataFrame:
    """Measure the patching effect of each state of the clean run on the corrupted run.

    An effect of 0 is the corrupted run's logit difference and 1 the clean run's. Effects over 1 and
    under 0 are possible, and so is a sum over 1, because paths overlap.

    Args:
        model: Any model of a known family.
        clean: The prompt whose answer is to be restored, "The capital of France is".
        corrupt: The same prompt about another subject, of as many tokens.
        sites: Any of `SITES`; ignored with `by_head`.
        layers: Layers that are patched; all by default.
        positions: Named groups of token indices patched together; by default every token from the
            first that differs, by itself.
        by_head: Patch one head at a time at the site `heads`.

    Returns:
        One row per site, layer, position (and head): site, layer, position, tokens, head,
        patching_effect.

    Raises:
        UserError: The prompts differ in length or not at all, or share the answer's first token.
    """
    arch = architecture_of(model)
    sites = check_sites(("heads",) if by_head else sites)
    layers = [arch.check_layer(i) for i in (range(arch.n_layers) if layers is None else layers)]
    clean_ids, corrupt_ids = _aligned(model, clean, corrupt)
    if positions is None:
        first_difference = _differences(clean_ids, corrupt_ids)[0]
        positions = {str(i): [i] for i in range(first_difference, len(clean_ids))}
    source = cache_activations(model, [clean_ids], sites=sites, layers=layers, positions="all")
    heads = range(arch.n_heads) if by_head else [None]
    rows, jobs = [], []
    for site in sites:
        for layer in layers:
            for name, where in positions.items():
                for head in heads:
                    value = source[site, layer][list(where)]
                    if head is not None:
                        value = value[:, head * arch.d_head : (head + 1) * arch.d_head]
                    jobs.append([Patch(site, layer, where, value, head)])
                    tokens = model.tokenizer.decode([clean_ids[i] for i in where])
                    rows.append((site, layer, name, tokens, head))
    effect = _patching_effect(model, clean, corrupt, clean_ids, corrupt_ids, jobs)
    table = pd.DataFrame(rows, columns=["site", "layer", "position", "tokens", "head"])
    return table.assign(patching_effect=effect)


def path_patching(
    model: LanguageModel,
    clean: Prompt,
    corrupt: Prompt,
    *,
    receiver: tuple[int, int],
) -> pd.DataFrame:
    """Measure the effect of each MLP's write at the subject that goes through one head.

    For each layer below the receiver, the corrupted run takes the clean write of the MLP at the
    subject's tokens. The output of the receiving head at the last token is then patched into an
    otherwise corrupted run (path patching, Wang et al. 2023), so that all other paths are blocked.

    Args:
        model: Any model of a known family.
        clean: The prompt whose answer is to be restored.
        corrupt: The same prompt about another subject, of as many tokens.
        receiver: (layer, head) of the attention head that moves the answer.

    Returns:
        One row per sending layer: layer, patching_effect; layer -1 for all senders together.
    """
    arch = architecture_of(model)
    layer, head = arch.check_layer(receiver[0]), receiver[1]
    clean_ids, corrupt_ids = _aligned(model, clean, corrupt)
    where, last = _differences(clean_ids, corrupt_ids), len(clean_ids) - 1
    source = cache_activations(
        model, [clean_ids], sites=["mlp"], layers=range(layer), positions=[where]
    )
    senders = [Patch("mlp", i, where, source["mlp", i]) for i in range(layer)]
    received = run_patched(
        model, corrupt_ids, [*([s] for s in senders), senders], read=("heads", layer, last)
    )
    columns = slice(head * arch.d_head, (head + 1) * arch.d_head)
    jobs = [[Patch("heads", layer, [last], row[None, columns], head)] for row in received]
    effect = _patching_effect(model, clean, corrupt, clean_ids, corrupt_ids, jobs)
    return pd.DataFrame({"layer": [*range(layer), -1], "patching_effect": effect})


def ablation(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    sites: Sequence[str] = ("attention", "mlp"),
    layers: Sequence[int] | None = None,
    position: Position = "subject",
    reference: Sequence[Prompt] | None = None,
) -> pd.DataFrame:
    """Measure how much log-probability the answer loses when one write is removed at one token.

    Args:
        model: Any model of a known family.
        prompts: Prompts with answers.
        sites: Any of `SITES`.
        layers: Layers that are ablated; all by default.
        position: `subject` (its last token) or `last` (the prompt's last token).
        reference: Prompts over which the write's mean at the same token replaces it (mean
            ablation); without them zero does.

    Returns:
        One row per prompt, site and layer: prompt, site, layer, change (of log P of the answer's
        first token, in nats).
    """
    arch = architecture_of(model)
    sites = check_sites(sites)
    layers = [arch.check_layer(i) for i in (range(arch.n_layers) if layers is None else layers)]
    source = cache_activations(
        model, reference or prompts[:1], sites=sites, layers=layers, positions=position
    )
    values = {k: x.mean(0) if reference else torch.zeros(x.shape[1]) for k, x in source.items()}
    tables = []
    for index, prompt in enumerate(prompts):
        ids, where = token_ids(model, prompt), [position_of(model, prompt, position)]
        jobs = [[Patch(s, i, where, values[s, i][None])] for s in sites for i in layers]
        states = run_patched(model, ids, [[], *jobs])
        answer = first_token(model, prompt, prompt.answers[0])
        logp = logits_of(model, states).log_softmax(-1)[:, answer].cpu().numpy()
        tables.append(
            pd.DataFrame(
                {
                    "prompt": index,
                    "site": [s for s in sites for _ in layers],
                    "layer": [i for _ in sites for i in layers],
                    "change": logp[1:] - logp[0],
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _aligned(model: LanguageModel, clean: Prompt, corrupt: Prompt) -> tuple[list[int], list[int]]:
    """Return the tokens of both prompts, which are as many and not the same."""
    a, b = token_ids(model, clean), token_ids(model, corrupt)
    if len(a) != len(b):
        raise UserError(
            f"'{clean}' has {len(a)} tokens and '{corrupt}' has {len(b)}: patching needs two "
            "subjects of as many tokens."
        )
    if a == b:
        raise UserError(f"The clean and the corrupted prompt are the same: '{clean}'.")
    return a, b


def _differences(clean_ids: Sequence[int], corrupt_ids: Sequence[int]) -> list[int]:
    """Return the positions at which two sequences of one length differ."""
    return [i for i, (a, b) in enumerate(zip(clean_ids, corrupt_ids, strict=True)) if a != b]


def _patching_effect(
    model: LanguageModel,
    clean: Prompt,
    corrupt: Prompt,
    clean_ids: Sequence[int],
    corrupt_ids: Sequence[int],
    jobs: Sequence[Sequence[Patch]],
) -> Float[np.ndarray, " jobs"]:
    """Run the corrupted prompt with each job's patches and normalise the logit differences."""
    unpatched = [run_patched(model, ids, [[]]) for ids in (corrupt_ids, clean_ids)]
    low, high = logit_difference(model, clean, corrupt, torch.cat(unpatched))
    patched = logit_difference(model, clean, corrupt, run_patched(model, corrupt_ids, jobs))
    return ((patched - low) / (high - low)).cpu().numpy()
