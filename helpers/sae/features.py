"""Effects of single latents: attribution to an answer, contributions, splitting and absorption.

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
from helpers.forward.activations import cache_activations
from helpers.forward.batching import bucket_by_length, right_padded
from helpers.forward.prompts import Prompt, first_token, subject_span, token_ids
from helpers.forward.sites import site_value
from helpers.models import MLPArchitecture, architecture_of, final_norm, model_hash, unembed
from helpers.sae.base import SAE
from helpers.tracing.patching import Patch, logits_of, run_patched

MLP_BATCH = 64  # vectors passed through the MLP at a time


def check_sae_of_model(model: LanguageModel, sae: SAE) -> None:
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


def latent_attribution(model: LanguageModel, sae: SAE, prompts: Sequence[Prompt]) -> pd.DataFrame:
    """Compute each latent's effect on log P(answer) at the subject's tokens, to first order.

    The effect is Σ over the subject's tokens of z_i · (∂ log P / ∂x · d_i): what the answer would
    lose without the latent's part z_i d_i, were the model linear (attribution patching, as in Marks
    et al. 2024, "Sparse Feature Circuits").

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
    check_sae_of_model(model, sae)
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
    """List the subject's tokens but for a sequence's first one, on which SAEs are not trained."""
    start, end = subject_span(prompt, model.tokenizer)
    return range(max(start, 1), end)


def _gradients(
    model: LanguageModel, sae: SAE, prompts: Sequence[Prompt]
) -> list[tuple[Float[Tensor, "t d_in"], Float[Tensor, "t d_in"]]]:
    """Compute activations at the subject's tokens and gradients of log P(answer's first token)."""
    arch = architecture_of(model)
    ids = [tuple(token_ids(model, p)) for p in prompts]
    results: list = [None] * len(ids)
    for batch in bucket_by_length([len(i) for i in ids]):
        tokens = right_padded([ids[i] for i in batch])
        with torch.enable_grad(), model.trace(tokens) as tracer:
            value = site_value(arch.layers[sae.cfg.layer], sae.cfg.site, len(batch))
            x = value.detach().clone().save()
            # A zero that is added to the activation: its gradient is the activation's.
            offset = torch.zeros_like(x, requires_grad=True).save()
            value[:] = x + offset
            final = arch.layers[-1].block.output.save()
            tracer.stop()
        with torch.enable_grad():
            rows = torch.arange(len(batch))
            last = torch.tensor([len(ids[i]) - 1 for i in batch])
            states = final.view(*tokens.shape, -1)[rows, last]  # OPT flattens batch and time
            logp = unembed(model, final_norm(model, states)).float().log_softmax(-1)
            answers = [first_token(model, prompts[i], prompts[i].answers[0]) for i in batch]
            # A prompt's gradient is its own: no activation of one changes another's answer.
            total = logp[rows, torch.tensor(answers)].sum()
            (gradient,) = torch.autograd.grad(total, offset)
        for row, i in enumerate(batch):
            span = list(subject_tokens(model, prompts[i]))
            results[i] = (x[row, span].float().cpu(), gradient[row, span].float().cpu())
    return results


def ablation_effects(
    model: LanguageModel, sae: SAE, prompt: Prompt, groups: Sequence[Sequence[int]]
) -> Float[np.ndarray, " groups"]:
    """Compute the change of log P(answer) when latents are ablated at the subject's tokens.

    The activation keeps what the SAE does not explain: x − Σ z_i d_i over the group.

    Args:
        model: Any model of a known family.
        sae: An SAE of one of its sites.
        prompt: Names its subject, with answers.
        groups: Latents that are ablated together.

    Returns:
        For each group the change in nats; negative when the answer loses.

    Raises:
        UserError: The SAE is of another model or is a transcoder.
    """
    check_sae_of_model(model, sae)
    site, layer = sae.cfg.site, sae.cfg.layer
    ids, positions = token_ids(model, prompt), subject_tokens(model, prompt)
    activations = cache_activations(
        model, [ids], sites=[site], layers=[layer], positions=[positions]
    )
    x = activations[site, layer]
    with torch.no_grad():
        z = sae.encode(x)
        values = [x - z[:, list(g)] @ sae.W_dec[list(g)] for g in groups]
    jobs = [[Patch(site, layer, positions, v)] for v in values]
    logp = logits_of(model, run_patched(model, ids, [[], *jobs])).log_softmax(-1)
    answer = logp[:, first_token(model, prompt, prompt.answers[0])]
    return (answer[1:] - answer[0]).double().cpu().numpy()


@torch.no_grad()
def latent_contributions(
    model: LanguageModel, sae: SAE, x: Float[Tensor, "n d_in"], latents: Sequence[int]
) -> Float[Tensor, "latents d_model"]:
    """Compute each latent's contribution to the residual stream, mean over vectors.

    At the MLP's input that is MLP(x) − MLP(x − z_i d_i); at its hidden units z_i W_out d_i; at the
    other sites z_i d_i is itself what is added.

    Args:
        model: Any model of a known family.
        sae: An SAE of one of its sites.
        x: Activations at its site.
        latents: Indices of latents.

    Raises:
        UserError: The SAE is of another model or is a transcoder.
    """
    check_sae_of_model(model, sae)
    mlp = architecture_of(model).layers[sae.cfg.layer].mlp
    part = sae.encode(x)[:, list(latents)].T[..., None] * sae.W_dec[list(latents)][:, None]
    if sae.cfg.site == "neurons":
        return part.mean(1) @ mlp.W_out().float().cpu().T
    if sae.cfg.site != "mlp_in":
        return part.mean(1)  # (latents, d_model)
    output = _mlp_output(mlp, x)
    return torch.stack([(output - _mlp_output(mlp, x - p)).mean(0) for p in part])


def _mlp_output(mlp: MLPArchitecture, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """Compute the MLP's output in batches, on the CPU."""
    rows = x.to(mlp.in_module.weight).split(MLP_BATCH)
    return torch.cat([mlp.forward(part).float().cpu() for part in rows])


def decoder_directions(
    model: LanguageModel, sae: SAE, latents: Sequence[int]
) -> Float[Tensor, "n d_model"]:
    """Convert decoder rows to directions of the residual stream, for the logit lens.

    At the MLP's input the norm before it has scaled every coordinate by its weight; dividing by
    the weight brings a row back to the residual stream's own coordinates.

    Args:
        model: Any model of a known family.
        sae: An SAE of one of its sites.
        latents: Indices of latents.
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
