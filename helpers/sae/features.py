"""What single latents do in the model: what they add to an answer, what they write, how they share.

Three questions about the latents that are active at a subject's tokens. How much does the answer
lose without one (by gradient for all at once, and by intervention for a few)? Which tokens does it
promote? And does one concept have one latent, or several?
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts.prompts import Prompt, subject_span
from helpers.forward.batching import bucket_by_length
from helpers.forward.scoring import first_token
from helpers.forward.sites import site_value, token_ids
from helpers.models import MLPArchitecture, architecture_of, final_norm, model_hash, unembed
from helpers.sae.base import SAE
from helpers.sae.probing import f1_at
from helpers.tracing.patching import Patch, logits_of, run_patched
from helpers.tracing.states import cache_all_positions

AT_ONCE = 64  # writes pushed through the MLP in one go


def require_site(model: LanguageModel, sae: SAE) -> None:
    """Refuse an SAE of another model, or a transcoder, whose latents replace no activation.

    Raises:
        UserError: It is one.
    """
    if sae.cfg.model_hash and sae.cfg.model_hash != model_hash(model):
        raise UserError(
            f"This SAE was trained on another model ({sae.cfg.model or sae.cfg.model_hash}): train "
            "one on this model, or load that one."
        )
    if sae.cfg.transcoder:
        raise UserError(
            f"This is a transcoder from {sae.cfg.site} to {sae.cfg.target}: take an SAE, whose "
            "latents are part of what the model computes."
        )


def attribution(model: LanguageModel, sae: SAE, prompts: Sequence[Prompt]) -> pd.DataFrame:
    """What each latent at the subject's tokens adds to log P(answer), to first order.

    Σ over the subject's tokens of z_i · (∂ log P / ∂x · d_i): the change that taking the latent's
    part z_i d_i away would make, with its sign turned, were the model linear (attribution patching,
    as in Marks et al. 2024, "Sparse Feature Circuits").

    Args:
        model: Any model of a known family.
        sae: An SAE of one of its sites.
        prompts: Prompts that name their subject, with answers.

    Returns:
        One row per prompt and active latent: prompt, latent, activation (the largest over the
        subject's tokens), effect in nats.

    Raises:
        UserError: The SAE is of another model or is a transcoder, or no prompt has anything before
            its subject.
    """
    require_site(model, sae)
    tables = []
    for index, (x, gradient) in enumerate(_gradients(model, sae, prompts)):
        if not len(x):
            continue
        with torch.no_grad():
            z = sae.encode(x)  # (subject's tokens, d_sae)
            effect = (z * (gradient @ sae.W_dec.T)).sum(0)
        active = (z != 0).any(0).nonzero()[:, 0]
        tables.append(
            pd.DataFrame(
                {
                    "prompt": index,
                    "latent": active.numpy(),
                    "activation": z.amax(0)[active].numpy(),
                    "effect": effect[active].numpy(),
                }
            )
        )
    if not tables:
        raise UserError(
            "In every prompt the subject is the first token, and SAEs are not trained on first "
            "tokens: add a prompt in which something stands before it."
        )
    return pd.concat(tables, ignore_index=True)


def subject_tokens(model: LanguageModel, prompt: Prompt) -> range:
    """The subject's tokens but for a sequence's first one, on which SAEs are not trained."""
    start, end = subject_span(prompt, model.tokenizer)
    return range(max(start, 1), end)


def _gradients(
    model: LanguageModel, sae: SAE, prompts: Sequence[Prompt]
) -> list[tuple[Float[Tensor, "t d_in"], Float[Tensor, "t d_in"]]]:
    """The site at the subject's tokens, and the gradient of log P(answer's first token) there."""
    arch = architecture_of(model)
    ids = [token_ids(model, p) for p in prompts]
    found: list = [None] * len(ids)
    for batch in bucket_by_length([len(i) for i in ids]):
        width = max(len(ids[i]) for i in batch)
        tokens = torch.tensor([ids[i] + [0] * (width - len(ids[i])) for i in batch])
        with torch.enable_grad(), model.trace(tokens) as tracer:
            value = site_value(arch.layers[sae.cfg.layer], sae.cfg.site, len(batch))
            x = value.detach().clone().save()
            nudge = torch.zeros_like(x, requires_grad=True).save()
            value[:] = x + nudge
            final = arch.layers[-1].block.output.save()
            tracer.stop()
        with torch.enable_grad():
            last = torch.tensor([len(ids[i]) - 1 for i in batch])
            states = final.view(len(batch), width, -1)[torch.arange(len(batch)), last]
            logp = unembed(model, final_norm(model, states)).float().log_softmax(-1)
            answers = [first_token(model, prompts[i], prompts[i].answers[0]) for i in batch]
            wanted = logp[torch.arange(len(batch)), torch.tensor(answers)]
            (gradient,) = torch.autograd.grad(wanted.sum(), nudge)
        for row, i in enumerate(batch):
            span = list(subject_tokens(model, prompts[i]))
            found[i] = (x[row, span].float().cpu(), gradient[row, span].float().cpu())
    return found


def ablated_latents(
    model: LanguageModel, sae: SAE, prompt: Prompt, groups: Sequence[Sequence[int]]
) -> Float[np.ndarray, " groups"]:
    """Change of log P(answer) when latents are taken away at the subject's tokens.

    The activation keeps what the SAE does not explain: x − Σ z_i d_i over the group.

    Args:
        model: Any model of a known family.
        sae: An SAE of one of its sites.
        prompt: Names its subject, with answers.
        groups: Latents taken away together.

    Returns:
        For each group the change in nats; negative when the answer loses.

    Raises:
        UserError: The SAE is of another model or is a transcoder.
    """
    require_site(model, sae)
    ids, where = token_ids(model, prompt), subject_tokens(model, prompt)
    x = cache_all_positions(model, ids, [sae.cfg.site])[sae.cfg.site][
        sae.cfg.layer, list(where)
    ].float()
    with torch.no_grad():
        z = sae.encode(x.cpu())
        values = [x.cpu() - z[:, list(g)] @ sae.W_dec[list(g)] for g in groups]
    jobs = [[Patch(sae.cfg.site, sae.cfg.layer, where, v)] for v in values]
    logp = logits_of(model, run_patched(model, ids, [[], *jobs])).log_softmax(-1)
    change = logp[:, first_token(model, prompt, prompt.answers[0])]
    return (change[1:] - change[0]).double().cpu().numpy()


@torch.no_grad()
def writes(
    model: LanguageModel, sae: SAE, x: Float[Tensor, "n d_in"], latents: Sequence[int]
) -> Float[Tensor, "latents d_model"]:
    """What each latent makes its block add to the residual stream, mean over vectors.

    At the MLP's input that is MLP(x) − MLP(x − z_i d_i); at its hidden units z_i W_out d_i; at the
    other sites z_i d_i is itself what is added.

    Args:
        model: Any model of a known family.
        sae: An SAE of one of its sites.
        x: Activations at its site, of tokens in question.
        latents: Which.

    Raises:
        UserError: The SAE is of another model or is a transcoder.
    """
    require_site(model, sae)
    mlp = architecture_of(model).layers[sae.cfg.layer].mlp
    part = sae.encode(x)[:, list(latents)].T[..., None] * sae.W_dec[list(latents)][:, None]
    if sae.cfg.site == "neurons":
        return part.mean(1) @ mlp.W_out().float().cpu().T
    if sae.cfg.site != "mlp_in":
        return part.mean(1)  # (latents, d_model)
    whole = _mlp(mlp, x)
    return torch.stack([(whole - _mlp(mlp, x - p)).mean(0) for p in part])


def _mlp(mlp: MLPArchitecture, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """What the MLP's matrices make of `x`, on the CPU."""
    weight = mlp.in_module.weight
    out = []
    for rows in x.to(weight).split(AT_ONCE):
        hidden = mlp.in_module(rows)
        if mlp.gate_module is None:
            hidden = mlp.activation(hidden)
        else:
            hidden = mlp.activation(mlp.gate_module(rows)) * hidden
        out.append(mlp.out_module(hidden).float().cpu())
    return torch.cat(out)


@torch.inference_mode()
def readout(
    model: LanguageModel, directions: Float[Tensor, "n d_model"], *, k: int = 8
) -> list[dict[str, list[str]]]:
    """Tokens that directions in the residual stream promote and suppress, by the logit lens.

    Returns:
        For each direction `{"promotes": [...], "suppresses": [...]}`, strongest first, relative to
        the mean over the vocabulary.
    """
    device = architecture_of(model).head.weight.device
    dtype = architecture_of(model).head.weight.dtype
    logits = unembed(model, final_norm(model, directions.to(device, dtype))).float()
    decode = model.tokenizer.decode
    return [
        {
            "promotes": [decode([t]) for t in row.topk(k).indices.tolist()],
            "suppresses": [decode([t]) for t in (-row).topk(k).indices.tolist()],
        }
        for row in logits
    ]


@torch.inference_mode()
def target_rank(
    model: LanguageModel, prompt: Prompt, directions: Float[Tensor, "n d_model"]
) -> np.ndarray:
    """Rank of the answer's first token in what each direction promotes; 0 is the most promoted."""
    head = architecture_of(model).head.weight
    answer = first_token(model, prompt, prompt.answers[0])
    logits = unembed(model, final_norm(model, directions.to(head))).float()
    return (logits > logits[:, answer, None]).sum(-1).cpu().numpy()


def decoder_directions(
    model: LanguageModel, sae: SAE, latents: Sequence[int]
) -> Float[Tensor, "n d_model"]:
    """Decoder rows as directions of the residual stream, for the logit lens.

    At the MLP's input the norm before it has scaled every coordinate by its weight; dividing by
    the weight brings a row back to the residual stream's own coordinates.
    """
    rows = sae.W_dec[list(latents)].detach().float()
    layer = architecture_of(model).layers[sae.cfg.layer]
    if sae.cfg.site == "neurons":
        return rows @ layer.mlp.W_out().float().cpu().T
    weight = _norm_before_mlp(layer.block) if sae.cfg.site == "mlp_in" else None
    if weight is None or weight.shape != rows.shape[1:]:
        return rows
    return rows / torch.where(weight.abs() < 1e-3, torch.ones_like(weight), weight)


def _norm_before_mlp(block) -> Tensor | None:
    names = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "final_layer_norm")
    module = block._module
    norm = next((getattr(module, n) for n in names if hasattr(module, n)), None)
    return None if norm is None else norm.weight.detach().float().cpu()


def splitting(
    z: Float[Tensor, "n d_sae"],
    inside: Float[Tensor, " n"],
    ranked: Sequence[int],
    thresholds: Sequence[float],
) -> pd.DataFrame:
    """What further latents add to the first: F1 of "any of the first k is at its threshold".

    Where one concept is split over several latents the F1 rises with k.

    Args:
        z: Latents at sightings.
        inside: Which are of the concept.
        ranked: Latents, the best detector first.
        thresholds: Of each.

    Returns:
        One row for k = 1, 2, ...: k, f1, found (share of the concept's sightings that are told).
    """
    told = z[:, list(ranked)] >= torch.as_tensor(thresholds, dtype=z.dtype)
    rows = []
    for k in range(1, len(ranked) + 1):
        any_of = told[:, :k].any(1).float()
        found = float((any_of * inside).sum() / inside.sum())
        rows.append((k, float(f1_at(any_of, inside)), found))
    return pd.DataFrame(rows, columns=["k", "f1", "found"])


def absorbed(
    z: Float[Tensor, "n d_sae"],
    sae: SAE,
    inside: Float[Tensor, " n"],
    main: int,
    threshold: float,
    direction: Float[Tensor, " d_in"],
    *,
    share: float = 0.5,
) -> dict[str, float]:
    """How often the main latent misses its concept, and another latent carries it instead.

    After Chanin et al. 2024 ("A is for Absorption"), simplified: a sighting that the main latent
    misses is absorbed when one other latent alone makes up at least `share` of what a typical
    sighting of the concept has along the concept's direction.

    Args:
        z: Latents at sightings.
        sae: Whose they are.
        inside: Which sightings are of the concept.
        main: The concept's best latent.
        threshold: From which value on it tells the concept.
        direction: Of the concept in what the SAE writes: a difference of means, say.
        share: What counts as carrying the concept.

    Returns:
        missed (share of the concept's sightings) and absorbed (likewise).
    """
    members = z[inside.bool()]
    along = members * (sae.W_dec.detach() @ torch.nn.functional.normalize(direction, dim=0))
    typical = along.sum(1).median()
    others = along.clone()
    others[:, main] = 0
    missed = members[:, main] < threshold
    carried = others.amax(1) >= share * typical.clamp_min(1e-6)
    return {
        "missed": float(missed.float().mean()),
        "absorbed": float((missed & carried).float().mean()),
    }
