"""The value `v*`: the MLP output at the subject with which the target becomes unlikely.

Meng et al. 2022 (ROME) optimise a vector that is added to one MLP's output at the subject's last
token. For unlearning nothing else need become likely: it is enough that the target becomes no
likelier than it is *without the subject*. `rome`, `memit` and `alphaedit` share this module.
"""

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.forward.batching import right_padded
from helpers.forward.prompts import answer_tokens, position_of, token_ids
from helpers.forward.scoring import answer_probability
from helpers.io.choices import check_number
from helpers.methods.fitting.contrast import other_subjects, subject_prompts
from helpers.methods.registry import Hyperparameters
from helpers.models import architecture_of, final_norm, model_hash, torch_module, unembed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VStarHparams(Hyperparameters):
    """Hyperparameters of the search for `v*`, in the words of ROME's and MEMIT's code.

    Defaults are ROME's for small models (Meng et al. 2022, appendix E.5). v is the MLP's output at
    the subject in ROME, and the residual stream there in MEMIT and AlphaEdit (`NORM_SITE`).

    Attributes:
        v_num_grad_steps: Largest number of Adam steps.
        v_lr: Adam's learning rate.
        kl_factor: Weight of KL(before ‖ after) at "{subject} is a", which preserves what else the
            subject is.
        v_weight_decay: Weight of ‖δ‖ / ‖v‖², with δ the change and v before it: the term of the
            authors' code, which weighs little (the paper writes its square).
        clamp_norm_factor: Largest ‖δ‖, in multiples of ‖v‖ (the papers': 4 for GPT-J, 0.75 in
            MEMIT).
        v_loss_threshold: The search stops at this excess of log P(target), in nats.
        n_baseline_subjects: Other subjects that give P(target) without this one.
        min_baseline_prob: No prompt is pushed below this probability.
    """

    NORM_SITE: ClassVar[str] = "mlp_output"  # or "residual"
    RENAMED: ClassVar = {
        "steps": "v_num_grad_steps",
        "lr": "v_lr",
        "kl": "kl_factor",
        "decay": "v_weight_decay",
        "clamp": "clamp_norm_factor",
    }

    v_num_grad_steps: int = 20
    v_lr: float = 0.5
    kl_factor: float = 0.0625
    v_weight_decay: float = 0.5
    clamp_norm_factor: float = 3.0
    v_loss_threshold: float = 0.05
    n_baseline_subjects: int = 8
    min_baseline_prob: float = 1e-4

    def __post_init__(self):
        """Refuse numbers with which nothing can be searched.

        Raises:
            UserError: A number is out of range.
        """
        check_number("v_num_grad_steps", self.v_num_grad_steps, 1, 1000)
        check_number("v_lr", self.v_lr, 1e-6, 100)
        check_number("clamp_norm_factor", self.clamp_norm_factor, 1e-3, 1e3)
        check_number("n_baseline_subjects", self.n_baseline_subjects, 1, 1000)
        check_number("min_baseline_prob", self.min_baseline_prob, 1e-12, 1)

    def v_star_settings(self) -> tuple[Any, ...]:
        """Return the values of these fields alone, without those of subclasses."""
        return (self.NORM_SITE, *(getattr(self, field.name) for field in fields(VStarHparams)))


def baseline_target_prob(
    model: LanguageModel, pair: ConceptPair, prompts: Sequence[Prompt], hparams: VStarHparams
) -> Float[Tensor, " n"]:
    """Compute P(target) of each prompt when it is not about the subject.

    It is the mean over the same prompt about other subjects. For a pair without neighbours it is
    that of the prompt with the subject left out.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        prompts: Training prompts of the pair.
        hparams: Gives the number of other subjects and the least probability that is returned.
    """
    if pair.neighbours(1):
        index = {str(p): i for i, p in enumerate(pair.prompts("train"))}
        subjects = other_subjects(pair, hparams.n_baseline_subjects)
        prompts_by_subject = [subject.prompts("train") for subject in subjects]
        texts = [[str(of_one[index[str(p)]]) for p in prompts] for of_one in prompts_by_subject]
    else:
        texts = [[p.without_subject() for p in prompts]]
    flat = [
        Prompt(t, answers=p.answers) for row in texts for t, p in zip(row, prompts, strict=True)
    ]
    probabilities = answer_probability(model, flat).reshape(len(texts), len(prompts))
    mean = torch.from_numpy(probabilities.mean(0)).float()
    return mean.clamp_min(hparams.min_baseline_prob)


_LAST_RESULT: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def compute_v_star(
    model: LanguageModel, pair: ConceptPair, *, layer: int, hparams: VStarHparams | None = None
) -> Float[Tensor, " d_model"]:
    """Compute δ = `v*` − v: what the MLP of `layer` should add at the subject's last token.

    δ minimises the mean over `subject_prompts` of max(0, log P(target) − log P(target without the
    subject)), plus the two penalties of `VStarHparams`. Layers below run once, and logits are
    computed at one position a prompt. The last result of a model is kept in memory, as `rome`,
    `memit` and `alphaedit` often need the same one.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        layer: The layer whose MLP writes it.
        hparams: Hyperparameters of the search.

    Raises:
        UserError: There is no such layer, or the target is unlikely with the subject too.
    """
    layer = architecture_of(model).check_layer(layer)
    hparams = hparams or VStarHparams()
    asked = tuple(map(str, pair.prompts("train")))
    key = (model_hash(model), pair, pair.others, asked, layer, hparams.v_star_settings())
    last = _LAST_RESULT.get(torch_module(model))
    if last is None or last[0] != key:
        last = _LAST_RESULT[torch_module(model)] = (key, _search(model, pair, layer, hparams))
    return last[1].clone()


def _search(
    model: LanguageModel, pair: ConceptPair, layer: int, hparams: VStarHparams
) -> Float[Tensor, " d_model"]:
    """Minimise the loss of `compute_v_star` by Adam."""
    prompts = subject_prompts(pair)
    baseline = (
        baseline_target_prob(model, pair, prompts, hparams).log().to(torch_module(model).device)
    )
    essence = Prompt(f"{pair.subject} is a", subject=pair.subject)
    upper = UpperLayers(model, [*prompts, essence], layer)
    answers = [torch.tensor(answer_tokens(model, p)) for p in prompts]
    delta = torch.zeros(
        upper.mlp_output.shape[-1], device=upper.mlp_output.device, requires_grad=True
    )
    v = upper.mlp_output if hparams.NORM_SITE == "mlp_output" else upper.residual
    v_norm = v[:-1].norm(dim=-1).mean()

    def target_logprobs(logprobs: Float[Tensor, "n vocab"]) -> Float[Tensor, " n"]:
        # The probabilities of the target and of its aliases add up.
        return torch.stack(
            [row[ids].logsumexp(0) for row, ids in zip(logprobs, answers, strict=False)]
        )

    with torch.no_grad():
        logprobs_before = upper.logprobs(delta)
    if bool((target_logprobs(logprobs_before) <= baseline).all()):
        raise UserError(
            f"'{pair.target}' is no likelier with {pair.subject} than without: there is nothing "
            "to take away."
        )
    adam = torch.optim.Adam([delta], lr=hparams.v_lr)
    for step in range(hparams.v_num_grad_steps + 1):
        logprobs = upper.logprobs(delta)
        # Only an excess over the baseline counts: nothing is gained below it.
        excess = (target_logprobs(logprobs) - baseline).relu().mean()
        kl = (logprobs_before[-1].exp() * (logprobs_before[-1] - logprobs[-1])).sum()
        decay = hparams.v_weight_decay * delta.norm() / v_norm**2
        loss = excess + hparams.kl_factor * kl + decay
        if excess.item() < hparams.v_loss_threshold or step == hparams.v_num_grad_steps:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():  # project back onto the ball of the largest norm, as in ROME's code
            delta *= (hparams.clamp_norm_factor * v_norm / delta.norm()).clamp(max=1)
    log.info("v* of layer %d: %d steps, %.2f nats in excess", layer, step, excess.item())
    return delta.detach().cpu()


class UpperLayers:
    """The layers from `layer` on, which run repeatedly on the same prompts.

    Attributes:
        mlp_output: Output of the MLP of `layer` at each prompt's subject, (n, d_model).
        residual: Residual stream after `layer` there, (n, d_model).
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[Prompt], layer: int):
        """Run the layers below once.

        Args:
            model: Any model of a known family.
            prompts: Prompts with a subject.
            layer: The lowest layer that runs repeatedly.
        """
        self.model, self.arch, self.layer = model, architecture_of(model), layer
        ids = [tuple(token_ids(model, p)) for p in prompts]
        self.tokens = right_padded(ids)  # (n, t)
        self.rows = torch.arange(len(ids))
        self.subject = torch.tensor([position_of(model, p, "subject") for p in prompts])
        self.last = torch.tensor([len(i) - 1 for i in ids])
        with torch.no_grad(), model.trace(self.tokens) as tracer:
            saved = {}.save()  # type: ignore[attr-defined]
            if layer:
                saved["below"] = self.arch.layers[layer - 1].block.output.clone()
            output = self.arch.layers[layer].mlp.out_envoy.output
            by_position = output.view(*self.tokens.shape, -1)  # OPT flattens batch and time
            saved["mlp_output"] = by_position[self.rows, self.subject].clone()
            residual = self.arch.layers[layer].block.output
            saved["residual"] = residual.view(*self.tokens.shape, -1)[self.rows, self.subject]
            tracer.stop()
        self.below, self.mlp_output = saved.get("below"), saved["mlp_output"].float()
        self.residual = saved["residual"].float()

    def logprobs(self, delta: Float[Tensor, " d_model"]) -> Float[Tensor, "n vocab"]:
        """Compute log P(next token) at each prompt's end with `delta` added to the MLP's output."""
        with self.model.trace(self.tokens) as tracer:
            for i in range(self.layer):
                self.arch.layers[i].block.skip(self.below.clone())
            envoy = self.arch.layers[self.layer].mlp.out_envoy
            output = envoy.output.clone()
            by_position = output.view(*self.tokens.shape, -1)
            by_position[self.rows, self.subject] += delta.to(output.dtype)
            envoy.output = output
            final = self.arch.layers[-1].block.output[self.rows, self.last].save()
            tracer.stop()
        return unembed(self.model, final_norm(self.model, final)).float().log_softmax(-1)
