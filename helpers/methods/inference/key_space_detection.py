"""Key Space Detection: abstain where an MLP's keys lie in the region of the text to forget.

Li, Sun & Weng 2025, "Effective Skill Unlearning through Intervention and Abstention" (NAACL, arXiv
2503.21730).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from nnsight import LanguageModel
from pydantic import Field
from torch import Tensor, nn

from helpers.errors import UserError
from helpers.forward.activations import cache_activations
from helpers.io.safe_text import visible
from helpers.methods.fitting.retain_budget import RetainBudget, TextHparams
from helpers.methods.hook_intervention import HookIntervention, Settings, intervention_kind
from helpers.methods.registry import method
from helpers.models import architecture_of, body_of, torch_module
from helpers.models.hooks import Hook
from helpers.requests import TextRequest
from helpers.training.examples import Example

KIND = "key_space_detection"
LAYER = 24  # of the default model, chosen on development text in French
MIN_TOKENS = 4  # after which a text is looked at: a mean of fewer keys tells little
MIN_STD = 1e-6  # of keys that never change
RADII = np.geomspace(1, 64, 32)  # in deviations of the forget keys


@dataclass(frozen=True)
class KeySpaceDetectionHparams(TextHparams):
    """Hyperparameters of `key_space_detection`.

    Attributes:
        layer: The layer whose keys are looked at; by default `LAYER` at the model's relative depth.
    """

    layer: int | None = None


@method(KIND, family="inference", takes=("text",))
def key_space_detection(
    model: LanguageModel, request: TextRequest, hparams: KeySpaceDetectionHparams, *, seed: int = 0
) -> HookIntervention:
    """Predict nothing where |k − μ| ≤ r σ in every dimension, μ and σ those of keys of forget text.

    A key is here the MLP's input, averaged over the tokens of the text so far without the first.
    The radius r is the largest that the budget allows. Abstaining is a uniform prediction, so text
    that is recognised has no floor: it betrays that something is blocked, and the weights still
    have all of it.

    Args:
        model: Any model of a known family.
        request: What to forget.
        hparams: Its hyperparameters.
        seed: Unused: nothing is random.

    Raises:
        UserError: A number is out of range, there is no such layer, or the smallest radius passes
            the budget already.
    """
    arch = architecture_of(model)
    layer = arch.relative_layers((LAYER,))[0] if hparams.layer is None else hparams.layer
    layer = arch.check_layer(layer)
    budget = RetainBudget(model, request, hparams, has_floor=False)
    keys = mean_keys_of(model, budget.forget, layer)
    std = keys.std(0, correction=0).clamp_min(MIN_STD)
    parts = {"mean": keys.mean(0), "std": std}

    def detection(radius: float) -> HookIntervention:
        return HookIntervention(KIND, {"layer": layer, "radius": radius}, parts)

    return budget.strongest_intervention(KIND, RADII.tolist(), detection)[1]


def running_means(x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
    """Average over the tokens so far, without the first; zeros at the first."""
    later = x.float().cumsum(1) - x[:, :1].float()
    return later / torch.arange(x.shape[1], device=x.device).clamp_min(1)[:, None]


def mean_keys_of(
    model: LanguageModel, examples: Sequence[Example], layer: int
) -> Float[Tensor, "n d_model"]:
    """Return the running means of a layer's MLP inputs, from the token `MIN_TOKENS` of each text.

    Args:
        model: Any model of a known family.
        examples: The text; of one that is shorter its last token counts.
        layer: The layer.
    """
    ids = [e.ids for e in examples]
    cached = cache_activations(model, ids, sites=["mlp_in"], layers=[layer], positions="all")
    by_text = cached["mlp_in", layer].split([len(i) for i in ids])
    return torch.cat([running_means(x[None])[0, min(MIN_TOKENS, len(x) - 1) :] for x in by_text])


@intervention_kind(KIND)
class Detecting(Settings):
    """Settings of `key_space_detection`: layer and radius of the box; its parts are μ and σ."""

    layer: Annotated[int, Field(ge=0)]
    radius: Annotated[float, Field(gt=0)]

    def check_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Refuse a box that is not given by two vectors of one length.

        Raises:
            UserError: One is missing, not known, or of another shape, or a deviation is not
                positive.
        """
        for name in sorted({"mean", "std"} | parts.keys()):
            if name not in parts or name not in ("mean", "std") or parts[name].ndim != 1:
                raise UserError(f"its '{visible(name)}' is not what a box has")
        if len(parts["mean"]) != len(parts["std"]) or not bool((parts["std"] > 0).all()):
            raise UserError("its 'std' is not positive, or of another length than its 'mean'")

    def hooks(self, model: LanguageModel, parts: Mapping[str, Tensor]) -> list[Hook]:
        """Return hooks that look at the keys, and blank the final states of recognised text.

        Raises:
            UserError: The model has another width, or no such layer.
        """
        arch = architecture_of(model)
        layer = arch.layers[arch.check_layer(self.layer)]
        if len(parts["mean"]) != arch.d_model:
            raise UserError("This intervention was made for a model of another width.")
        device = torch_module(model).device
        mean, std = (parts[name].float().to(device) for name in ("mean", "std"))
        box = Box(mean, self.radius * std)
        reader = layer.mlp.in_module if layer.mlp.gate_module is None else layer.mlp.gate_module
        return [
            Hook(layer.block._module, box.note_batch_size, before=True, with_kwargs=True),
            Hook(reader, box.look, before=True),
            Hook(body_of(model), box.abstain),
        ]


class Box:
    """A box in the space of keys, and the tokens of the current pass at which a text is in it."""

    def __init__(self, mean: Float[Tensor, " d"], half_width: Float[Tensor, " d"]):
        """Prepare the box.

        Args:
            mean: Its centre.
            half_width: Half its width in every dimension.
        """
        self.mean, self.half_width = mean, half_width
        self._batch_size = 1
        self._inside: Tensor | None = None

    def note_batch_size(self, block: nn.Module, args: tuple, kwargs: dict) -> None:
        """Note how many sequences there are: OPT flattens batch and time inside its blocks."""
        self._batch_size = len(args[0] if args else kwargs["hidden_states"])

    def contains(self, x: Float[Tensor, "b t d"]) -> Bool[Tensor, "b t"]:
        """Tell at which tokens the mean key so far lies in the box."""
        inside = ((running_means(x) - self.mean).abs() <= self.half_width).all(-1)
        inside[:, :MIN_TOKENS] = False
        return inside

    def look(self, module: nn.Module, args: tuple) -> None:
        """Look at the MLP's input, as a hook before its first layer."""
        x = args[0].detach()
        self._inside = self.contains(x.view(self._batch_size, -1, x.shape[-1]))

    def abstain(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Set final states to zero where a text is recognised: all tokens are then as likely."""
        if self._inside is not None:
            states = output.last_hidden_state
            output.last_hidden_state = states.masked_fill(self._inside[..., None], 0.0)
            self._inside = None
        return output
