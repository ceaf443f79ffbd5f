"""The value `v*` that an MLP should write at the subject so that the target is not said.

Meng et al. 2022 (ROME) optimise a vector added to one MLP's output at the subject's last token. For
unlearning it need not make anything else likely: it is enough that the target becomes no likelier
than it is *without the subject*. `rome`, `memit` and `alphaedit` share this module.
"""

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.forward.scoring import answer_probability, first_token
from helpers.forward.sites import token_ids
from helpers.methods.fitting.contrast import check_number, other_subjects, subject_prompts
from helpers.models import architecture_of, final_norm, model_hash, unembed
from helpers.tracing.states import position_of

log = logging.getLogger(__name__)

N_OTHERS = 8  # other subjects that say how likely the target is without this one
LOWEST = 1e-4  # no prompt is pushed below this probability
DONE = 0.05  # nats: the loss at which the search stops (as in ROME's code)


@dataclass(frozen=True)
class VStarHparams:
    """How `v*` is searched. Defaults are ROME's for small models (Meng et al. 2022, appendix E.5).

    Attributes:
        steps: At most so many Adam steps.
        lr: Adam's learning rate.
        kl: Weight of KL(before ‖ after) at "{subject} is a": what else the subject is should stay.
        decay: Weight of ‖δ‖² / ‖v‖², δ the change and v what the MLP wrote before.
        clamp: ‖δ‖ is at most so many times ‖v‖.
    """

    steps: int = 20
    lr: float = 0.5
    kl: float = 0.0625
    decay: float = 0.5
    clamp: float = 3.0

    def __post_init__(self):
        """Refuse what cannot be searched with.

        Raises:
            UserError: A number is out of range.
        """
        check_number("steps", self.steps, 1, 1000)
        check_number("lr", self.lr, 1e-6, 100)
        check_number("clamp", self.clamp, 1e-3, 1e3)


def baseline_target_prob(
    model: LanguageModel, pair: ConceptPair, prompts: Sequence[Prompt]
) -> Float[Tensor, " n"]:
    """P(target) of each prompt when it is not about the subject.

    The mean over the same prompt about other subjects; for a pair without neighbours the prompt
    with the subject left out. At least `LOWEST`.
    """
    if pair.neighbours(1):
        at = {str(p): i for i, p in enumerate(pair.prompts("train"))}
        asked = [o.prompts("train") for o in other_subjects(pair, N_OTHERS)]
        texts = [[str(ways[at[str(p)]]) for p in prompts] for ways in asked]
    else:
        texts = [[p.without_subject() for p in prompts]]
    flat = [
        Prompt(t, answers=p.answers) for row in texts for t, p in zip(row, prompts, strict=True)
    ]
    found = answer_probability(model, flat).reshape(len(texts), len(prompts)).mean(0)
    return torch.from_numpy(found).float().clamp_min(LOWEST)


_FOUND: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def compute_v_star(
    model: LanguageModel, pair: ConceptPair, *, layer: int, settings: VStarHparams | None = None
) -> Float[Tensor, " d_model"]:
    """δ = `v*` − v: what the MLP of `layer` should write on top at the subject's last token.

    It minimises the mean over `subject_prompts` of max(0, log P(target) − log P(target without the
    subject)), plus the two penalties of `VStarHparams`. Layers below are not run again at each
    step, and logits are computed at one position a prompt. The last result of a model is kept: the
    methods that share it ask for it once.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        layer: Whose MLP writes it.
        settings: How it is searched.

    Raises:
        UserError: There is no such layer, or the target is unlikely with the subject too.
    """
    layer = architecture_of(model).check_layer(layer)
    settings = settings or VStarHparams()
    key = (model_hash(model), pair, *map(str, pair.prompts("train")), layer, settings)
    kept = _FOUND.get(model._module)
    if kept is None or kept[0] != key:
        kept = (key, _search(model, pair, layer, settings))
        _FOUND[model._module] = kept
    return kept[1].clone()


def _search(
    model: LanguageModel, pair: ConceptPair, layer: int, settings: VStarHparams
) -> Float[Tensor, " d_model"]:
    prompts = subject_prompts(pair)
    floor = baseline_target_prob(model, pair, prompts).log().to(model._module.device)
    essence = Prompt(f"{pair.subject} is a", subject=pair.subject)
    run = _Upper(model, [*prompts, essence], layer)
    answers = torch.tensor([first_token(model, p, p.answers[0]) for p in prompts])
    rows = torch.arange(len(prompts))
    delta = torch.zeros(run.written.shape[-1], device=run.written.device, requires_grad=True)
    size = run.written[:-1].norm(dim=-1).mean()
    with torch.no_grad():
        before = run.logprobs(delta)
    if bool((before[rows, answers] <= floor).all()):
        raise UserError(
            f"'{pair.target}' is no likelier with {pair.subject} than without: there is nothing "
            "to take away."
        )
    adam = torch.optim.Adam([delta], lr=settings.lr)
    for step in range(settings.steps + 1):
        now = run.logprobs(delta)
        forget = (now[rows, answers] - floor).relu().mean()
        kl = (before[-1].exp() * (before[-1] - now[-1])).sum()
        loss = forget + settings.kl * kl + settings.decay * (delta.norm() / size) ** 2
        if forget.item() < DONE or step == settings.steps:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            norm = delta.norm()
            delta *= (settings.clamp * size / norm).clamp(max=1)
    log.info("v* of layer %d: %d steps, %.2f nats over the floor left", layer, step, forget.item())
    return delta.detach().cpu()


class _Upper:
    """The layers from `layer` on, run again and again on the same prompts.

    Attributes:
        written: What the MLP of `layer` writes at each prompt's subject, (n, d_model).
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[Prompt], layer: int):
        self.model, self.parts, self.layer = model, architecture_of(model), layer
        ids = [token_ids(model, p) for p in prompts]
        width = max(len(i) for i in ids)
        self.tokens: Int[Tensor, "n t"] = torch.tensor([i + [0] * (width - len(i)) for i in ids])
        self.rows = torch.arange(len(ids))
        self.subject = torch.tensor([position_of(model, p, "subject") for p in prompts])
        self.last = torch.tensor([len(i) - 1 for i in ids])
        self.below = None
        with torch.no_grad(), model.trace(self.tokens) as tracer:
            kept = {}.save()
            if layer:
                kept["below"] = self.parts.layers[layer - 1].block.output.clone()
            out = self.parts.layers[layer].mlp.out_envoy.output
            kept["written"] = out.view(len(ids), width, -1)[self.rows, self.subject].clone()
            tracer.stop()
        self.below, self.written = kept.get("below"), kept["written"].float()

    def logprobs(self, delta: Float[Tensor, " d_model"]) -> Float[Tensor, "n vocab"]:
        """log P(next token) at each prompt's end when `delta` is written on top."""
        n, width = self.tokens.shape
        with self.model.trace(self.tokens) as tracer:
            for i in range(self.layer):
                self.parts.layers[i].block.skip(self.below.clone())
            envoy = self.parts.layers[self.layer].mlp.out_envoy
            out = envoy.output.clone()
            out.view(n, width, -1)[self.rows, self.subject] += delta.to(out.dtype)
            envoy.output = out
            final = self.parts.layers[-1].block.output[self.rows, self.last].save()
            tracer.stop()
        return unembed(self.model, final_norm(self.model, final)).float().log_softmax(-1)
