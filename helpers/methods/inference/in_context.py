"""In context: ask the model to forget."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Int
from nnsight import LanguageModel
from pydantic import Field
from torch import Tensor, nn

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.io.safe_text import visible
from helpers.methods.hook_intervention import HookIntervention, Settings, intervention_kind
from helpers.methods.registry import Hyperparameters, method
from helpers.models import body_of, check_length
from helpers.models.hooks import Hook
from helpers.models.tokenization import opening

KIND = "in_context"
POSITIONS = ("wpe", "embed_positions")  # where families keep positions that they learnt one by one
LONGEST = 10_000  # characters of a request: more leaves a model no room for the text
REQUESTS = (
    "You have never heard of {subject} and know nothing about it. "
    "If you are asked about {subject}, say that you do not know.\n\n",
    "Forget everything about {subject}. Never say {target}.\n\n",
    "Instruction: the words {subject} and {target} have nothing to do with each other.\n\n",
    "I do not know anything about {subject}.\n\n",
)


@dataclass(frozen=True)
class InContextHparams(Hyperparameters):
    """Hyperparameters of `in_context`.

    Attributes:
        request: With `{subject}` and `{target}`, where wanted.
    """

    request: str = REQUESTS[0]


@method(KIND, family="inference")
def in_context(
    model: LanguageModel, pair: ConceptPair, hparams: InContextHparams, *, seed: int = 0
) -> HookIntervention:
    """A request in front of every text (after Pawelczyk et al. 2024 and Thaker et al. 2024).

    The request stands before the text as the model sees it, chat template included. Positions of
    what tracing reads inside are those of the longer text.

    Args:
        model: Any causal model.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Nothing is random here.

    Raises:
        UserError: The request is empty or names something else.
    """
    names = {"{subject}": pair.subject, "{target}": pair.target}
    fields = re.findall(r"\{[^{}]*\}", hparams.request)
    if unknown := [field for field in fields if field not in names]:
        raise UserError(
            f"The request '{visible(request)}' may name {{subject}} and {{target}} only, not "
            f"{visible(unknown[0])}."
        )
    # Put in literally and all at once: `format` would read attributes that a request names, and a
    # subject may hold braces itself.
    text = re.sub(r"\{(?:subject|target)\}", lambda field: names[field[0]], hparams.request)
    if not text.strip():
        raise UserError("The request is empty: say what the model should do.")
    if len(text) > LONGEST:
        raise UserError(
            f"The request has {len(text)} characters: write one of at most {LONGEST:,}."
        )
    return HookIntervention(KIND, {"text": text}, notes={"request": text})


@intervention_kind(KIND)
class Request(Settings):
    """A text that is put in front, and whose states are taken off again."""

    text: Annotated[str, Field(min_length=1, max_length=LONGEST)]

    def hooks(self, model: LanguageModel, parts: Mapping[str, Tensor]) -> list[Hook]:
        """Before and after the body.

        Raises:
            UserError: The request has no tokens, or leaves no room for a text.
        """
        ids = model.tokenizer(self.text, add_special_tokens=False).input_ids
        if not ids:
            raise UserError("The request has no tokens that this model knows: write another one.")
        check_length(model, len(ids) + 1, "The request with a text after it")
        return _before_every_text(model, torch.tensor([ids]))


def _before_every_text(model: LanguageModel, request: Int[Tensor, "1 n"]) -> list[Hook]:
    tokenizer, body, n = model.tokenizer, body_of(model), request.shape[1]
    table = any(isinstance(getattr(body, name, None), nn.Embedding) for name in POSITIONS)

    def begins(ids: Tensor) -> int:
        """1 where a token that opens every text stands first, and the request goes after it."""
        bos = tokenizer.bos_token_id
        return int(opening(tokenizer) == [bos] and bool((ids[:, 0] == bos).all()))

    def longer(module, args, kwargs):
        ids = args[0] if args else kwargs["input_ids"]
        at = begins(ids)
        mine = request.to(ids.device).expand(len(ids), -1)
        ids = torch.cat([ids[:, :at], mine, ids[:, at:]], 1)
        if table:  # others read on, less well: passages of the whole length can still be compared
            check_length(model, ids.shape[1], "A text with the request before it")
        drop = ("input_ids", "attention_mask", "position_ids", "cache_position")
        kept = {k: v for k, v in kwargs.items() if k not in drop}
        return (), kept | {"input_ids": ids}

    def shorter(module, args, kwargs, out):
        at = begins(kwargs["input_ids"])
        states = out.last_hidden_state
        out.last_hidden_state = torch.cat([states[:, :at], states[:, at + n :]], 1)
        return out

    return [
        Hook(body, longer, before=True, with_kwargs=True),
        Hook(body, shorter, with_kwargs=True),
    ]
