"""In context: put a request to forget in front of every text."""

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
POSITION_TABLES = ("wpe", "embed_positions")  # learned absolute positions of GPT-2 and OPT
MAX_CHARACTERS = 10_000  # of a request: a longer one leaves a model no room for the text
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
        request: The request; `{subject}` and `{target}` in it are replaced by the names.
    """

    request: str = REQUESTS[0]


@method(KIND, family="inference")
def in_context(
    model: LanguageModel, pair: ConceptPair, hparams: InContextHparams, *, seed: int = 0
) -> HookIntervention:
    """Put a request in front of every text (after Pawelczyk et al. 2024 and Thaker et al. 2024).

    The request stands before the model's input, chat template included. Tracing reads the positions
    of the longer text.

    Args:
        model: Any causal model.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Unused: nothing is random.

    Raises:
        UserError: The request is empty or names something else.
    """
    names = {"{subject}": pair.subject, "{target}": pair.target}
    fields = re.findall(r"\{[^{}]*\}", hparams.request)
    if unknown := [field for field in fields if field not in names]:
        raise UserError(
            f"The request '{visible(hparams.request)}' may name {{subject}} and {{target}} only, "
            f"not {visible(unknown[0])}."
        )
    # Replaced literally and all at once: `format` would read attributes that a request names, and a
    # subject may hold braces itself.
    text = re.sub(r"\{(?:subject|target)\}", lambda field: names[field[0]], hparams.request)
    if not text.strip():
        raise UserError("The request is empty: say what the model should do.")
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"The request has {len(text)} characters: write one of at most {MAX_CHARACTERS:,}."
        )
    return HookIntervention(KIND, {"text": text}, notes={"request": text})


@intervention_kind(KIND)
class Request(Settings):
    """Settings of `in_context`: a text in front, whose states are removed again."""

    text: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]

    def hooks(self, model: LanguageModel, parts: Mapping[str, Tensor]) -> list[Hook]:
        """Return hooks before and after the body.

        Raises:
            UserError: The request has no tokens, or leaves no room for a text.
        """
        ids = model.tokenizer(self.text, add_special_tokens=False).input_ids
        if not ids:
            raise UserError("The request has no tokens that this model knows: write another one.")
        check_length(model, len(ids) + 1, "The request with a text after it")
        return _prefix_hooks(model, torch.tensor([ids]))


def _prefix_hooks(model: LanguageModel, request: Int[Tensor, "1 n"]) -> list[Hook]:
    """Return hooks that put tokens in front of the body's inputs and remove their states.

    Args:
        model: Any causal model.
        request: The tokens.
    """
    tokenizer, body, n_tokens = model.tokenizer, body_of(model), request.shape[1]
    has_table = any(isinstance(getattr(body, name, None), nn.Embedding) for name in POSITION_TABLES)

    def insert_position(ids: Tensor) -> int:
        """Return 1 after a beginning-of-text token at the start of every sequence, else 0."""
        bos = tokenizer.bos_token_id
        return int(opening(tokenizer) == [bos] and bool((ids[:, 0] == bos).all()))

    def add_request(module, args, kwargs):
        ids = args[0] if args else kwargs["input_ids"]
        at = insert_position(ids)
        rows = request.to(ids.device).expand(len(ids), -1)
        ids = torch.cat([ids[:, :at], rows, ids[:, at:]], 1)
        # Other models run on past their context, less well: so passages of the whole length can
        # still be compared.
        if has_table:
            check_length(model, ids.shape[1], "A text with the request before it")
        replaced = ("input_ids", "attention_mask", "position_ids", "cache_position")
        others = {k: v for k, v in kwargs.items() if k not in replaced}
        return (), others | {"input_ids": ids}

    def remove_states(module, args, kwargs, output):
        at = insert_position(kwargs["input_ids"])
        states = output.last_hidden_state
        output.last_hidden_state = torch.cat([states[:, :at], states[:, at + n_tokens :]], 1)
        return output

    return [
        Hook(body, add_request, before=True, with_kwargs=True),
        Hook(body, remove_states, with_kwargs=True),
    ]
