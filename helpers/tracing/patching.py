"""Change activations and see what moves: activation patching, path patching, ablation.

Activation patching runs a corrupted prompt with one state taken from a clean one, and asks how much
of the difference between the two answers comes back (Vig et al. 2020, Meng et al. 2022; the
normalised logit difference as in Wang et al. 2023, recommended by Zhang & Nanda 2024). Many patches
of one prompt run as one batch, and blocks below the lowest patch are skipped: there the batch would
only repeat the unpatched run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts.prompts import Prompt
from helpers.forward.batching import BATCH_TOKENS
from helpers.forward.scoring import first_token
from helpers.forward.sites import SITES, check_sites, site_value, token_ids
from helpers.models import architecture_of, final_norm, unembed
from helpers.tracing.states import cache_activations, cache_all_positions, position_of


@dataclass(frozen=True)
class Patch:
    """One replaced activation.

    Attributes:
        site: One of `SITES`.
        layer: Which block.
        positions: Token indices.
        value: What to put there, (positions, width); (positions, d_head) with `head`.
        head: Replace only this head's part of the site `heads`.
    """

    site: str
    layer: int
    positions: Sequence[int]
    value: Tensor
    head: int | None = None


def run_patched(
    model: LanguageModel,
    ids: Sequence[int],
    jobs: Sequence[Sequence[Patch]],
    *,
    read: tuple[str, int, int] | None = None,
) -> Float[Tensor, "jobs width"]:
    """Run one token sequence once per job, each with its patches.

    Args:
        model: Any model of a known family.
        ids: The tokens.
        jobs: For each run the patches to apply.
        read: (site, layer, position) to return; by default the last residual stream at the last
            token, which `logits_of` turns into logits.

    Returns:
        The activation read in each run, on the model's device.
    """
    arch = architecture_of(model)
    site, last, position = read or ("residual", arch.n_layers - 1, len(ids) - 1)
    last = arch.check_layer(last)
    base = cache_all_positions(model, ids, ["residual"])["residual"]  # (layers, T, d_model)
    order = sorted(range(len(jobs)), key=lambda i: _lowest(jobs[i], arch))
    out: list = [None] * len(jobs)
    for chunk in torch.tensor(order, dtype=torch.long).split(max(1, BATCH_TOKENS // len(ids))):
        batch = chunk.tolist()
        lowest = _lowest(jobs[batch[0]], arch)
        plan = _plan([jobs[i] for i in batch], arch)
        tokens = torch.tensor([list(ids)]).expand(len(batch), -1)
        with torch.inference_mode(), model.trace(tokens) as tracer:
            for i in range(lowest):
                arch.layers[i].block.skip(base[lowest - 1].expand(len(batch), -1, -1).clone())
            for i in range(lowest, last + 1):
                for name in SITES:
                    reads = (i, name) == (last, site)
                    if (i, name) not in plan and not reads:
                        continue
                    value = site_value(arch.layers[i], name, len(batch))
                    for where, new in plan.get((i, name), ()):
                        value[where] = new.to(value)
                    if reads:
                        kept = value[:, position].clone().save()
            tracer.stop()
        for row, i in enumerate(batch):
            out[i] = kept[row]
    return torch.stack(out)


def _lowest(job: Sequence[Patch], arch) -> int:
    return min((arch.check_layer(p.layer) for p in job), default=0)


def _plan(jobs: Sequence[Sequence[Patch]], arch) -> dict[tuple[int, str], list]:
    """For each (layer, site) what to write where: an index into (B, T, width), and the values."""
    plan: dict[tuple[int, str], list] = {}
    whole: dict[tuple[int, str], list] = {}
    for row, job in enumerate(jobs):
        for p in job:
            key = (arch.check_layer(p.layer), p.site)
            positions = torch.tensor(list(p.positions), dtype=torch.long)
            if p.head is not None:
                columns = slice(p.head * arch.d_head, (p.head + 1) * arch.d_head)
                plan.setdefault(key, []).append(((row, positions, columns), p.value))
            else:
                rows = torch.full_like(positions, row)
                whole.setdefault(key, []).append((rows, positions, p.value))
    for key, parts_of_key in whole.items():
        rows, positions, values = (torch.cat(x) for x in zip(*parts_of_key, strict=True))
        plan.setdefault(key, []).append(((rows, positions), values))
    return plan


@torch.inference_mode()
def logits_of(
    model: LanguageModel, residual: Float[Tensor, "n d_model"]
) -> Float[Tensor, "n vocab"]:
    """Logits of last-layer residual states."""
    return unembed(model, final_norm(model, residual)).float()


def logit_difference(
    model: LanguageModel, clean: Prompt, corrupt: Prompt, residual: Float[Tensor, "n d_model"]
) -> Float[Tensor, " n"]:
    """logit(the clean answer's first token) − logit(the corrupted answer's), for each state.

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
    """Share of the answer that each state of the clean run moves into the corrupted run.

    0 is the corrupted run's logit difference and 1 the clean run's; a share over 1 or under 0 is
    possible, and so is a sum over 1: paths overlap.

    Args:
        model: Any model of a known family.
        clean: The prompt whose answer should come back, "The capital of France is".
        corrupt: The same prompt about another subject, of as many tokens.
        sites: Any of `SITES`; with `by_head` only `heads` makes sense.
        layers: Which layers, all by default.
        positions: Named groups of token indices patched together; by default every token from the
            first that differs, by itself.
        by_head: Patch one head at a time.

    Returns:
        One row per site, layer, position (and head): site, layer, position, tokens, head, share.

    Raises:
        UserError: The prompts differ in length or not at all, or share the answer's first token.
    """
    arch = architecture_of(model)
    sites = check_sites(("heads",) if by_head else sites)
    layers = [arch.check_layer(i) for i in (range(arch.n_layers) if layers is None else layers)]
    clean_ids, corrupt_ids = _aligned(model, clean, corrupt)
    if positions is None:
        first = next(
            i for i, (a, b) in enumerate(zip(clean_ids, corrupt_ids, strict=True)) if a != b
        )
        positions = {str(i): [i] for i in range(first, len(clean_ids))}
    source = cache_all_positions(model, clean_ids, sites)
    heads = range(arch.n_heads) if by_head else [None]
    rows, jobs = [], []
    for site in sites:
        for layer in layers:
            for name, where in positions.items():
                for head in heads:
                    value = source[site][layer, list(where)]
                    if head is not None:
                        value = value[:, head * arch.d_head : (head + 1) * arch.d_head]
                    jobs.append([Patch(site, layer, where, value, head)])
                    tokens = model.tokenizer.decode([clean_ids[i] for i in where])
                    rows.append((site, layer, name, tokens, head))
    low, high = _ends(model, clean, corrupt, clean_ids, corrupt_ids)
    moved = logit_difference(model, clean, corrupt, run_patched(model, corrupt_ids, jobs))
    table = pd.DataFrame(rows, columns=["site", "layer", "position", "tokens", "head"])
    return table.assign(share=((moved - low) / (high - low)).cpu().numpy())


def path_patching(
    model: LanguageModel,
    clean: Prompt,
    corrupt: Prompt,
    *,
    receiver: tuple[int, int],
    sender: str = "mlp",
) -> pd.DataFrame:
    """How much of the answer goes from each layer's write at the subject through one head.

    For each layer below the receiver, the corrupted run takes the clean write at the subject's
    tokens; what the receiving head then outputs at the last token is put into an otherwise
    corrupted run (path patching, Wang et al. 2023). What the sender does on other paths is dropped.

    Args:
        model: Any model of a known family.
        clean: As in `activation_patching`.
        corrupt: As in `activation_patching`.
        receiver: (layer, head) of the attention head that moves the answer.
        sender: The site that sends: `mlp` or `attention`.

    Returns:
        One row per sending layer: layer, share; and layer -1 for all senders together.
    """
    arch = architecture_of(model)
    layer, head = arch.check_layer(receiver[0]), receiver[1]
    clean_ids, corrupt_ids = _aligned(model, clean, corrupt)
    where = [i for i, (a, b) in enumerate(zip(clean_ids, corrupt_ids, strict=True)) if a != b]
    last = len(clean_ids) - 1
    source = cache_all_positions(model, clean_ids, [sender])[sender]
    sends = [Patch(sender, i, where, source[i, where]) for i in range(layer)]
    received = run_patched(
        model, corrupt_ids, [*([s] for s in sends), sends], read=("heads", layer, last)
    )
    columns = slice(head * arch.d_head, (head + 1) * arch.d_head)
    jobs = [[Patch("heads", layer, [last], row[None, columns], head)] for row in received]
    low, high = _ends(model, clean, corrupt, clean_ids, corrupt_ids)
    moved = logit_difference(model, clean, corrupt, run_patched(model, corrupt_ids, jobs))
    share = ((moved - low) / (high - low)).cpu().numpy()
    return pd.DataFrame({"layer": [*range(layer), -1], "share": share})


def ablation(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    sites: Sequence[str] = ("attention", "mlp"),
    layers: Sequence[int] | None = None,
    position: str = "subject",
    reference: Sequence[Prompt] | None = None,
) -> pd.DataFrame:
    """What the answer loses when one write is removed at one token.

    Args:
        model: Any model of a known family.
        prompts: Prompts with answers.
        sites: Any of `SITES`.
        layers: Which layers, all by default.
        position: At the subject's last token or at the prompt's last token.
        reference: Replace the write by its mean over these prompts at the same place (mean
            ablation); by zero without them.

    Returns:
        One row per prompt, site and layer: prompt, site, layer, change of log P(first answer
        token) in nats.
    """
    arch = architecture_of(model)
    sites = check_sites(sites)
    layers = [arch.check_layer(i) for i in (range(arch.n_layers) if layers is None else layers)]
    widths = {s: cache_activations(model, prompts[:1], sites=[s], layers=[0]) for s in sites}
    values = {s: torch.zeros(len(layers), widths[s][s].shape[-1]) for s in sites}
    if reference:
        seen = cache_activations(model, reference, sites=sites, layers=layers, position=position)
        values = {s: seen[s].mean(0) for s in sites}
    tables = []
    for index, prompt in enumerate(prompts):
        ids, at = token_ids(model, prompt), position_of(model, prompt, position)
        jobs = [
            [Patch(s, i, [at], values[s][k][None])] for s in sites for k, i in enumerate(layers)
        ]
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
    a, b = token_ids(model, clean), token_ids(model, corrupt)
    if len(a) != len(b):
        raise UserError(
            f"'{clean}' has {len(a)} tokens and '{corrupt}' has {len(b)}: patching needs two "
            "subjects of as many tokens."
        )
    if a == b:
        raise UserError(f"The clean and the corrupted prompt are the same: '{clean}'.")
    return a, b


def _ends(model, clean, corrupt, clean_ids, corrupt_ids) -> tuple[Tensor, Tensor]:
    """Logit differences of the unpatched corrupted and clean runs."""
    states = [run_patched(model, ids, [[]]) for ids in (corrupt_ids, clean_ids)]
    low, high = logit_difference(model, clean, corrupt, torch.cat(states))
    return low, high
