"""The context length of a model, and its padding token."""

from nnsight import LanguageModel
from torch import nn

from helpers.errors import UserError
from helpers.models.strict_loading import context_length, valid_id

POSITIONS = ("wpe", "embed_positions")  # tables of learned positions


def check_length(model: LanguageModel, n: int, what: str = "A text") -> None:
    """Check that a model reads `n` tokens at once.

    Args:
        model: Any causal model.
        n: Number of tokens.
        what: Beginning of the error sentence: what has so many tokens.

    Raises:
        UserError: It reads fewer: nothing was learnt for positions so far on.
    """
    _check_length_of(model._module, n, what)


def _check_length_of(module: nn.Module, n: int, what: str) -> None:
    limit = context_length(module)
    if limit is not None and n > limit:
        raise UserError(f"{what} has {n} tokens, and this model reads {limit} at once: shorten it.")


def text_length(model: LanguageModel, n_tokens: int = 128) -> int:
    """Return `n_tokens`, or the context length if that is shorter."""
    return min(n_tokens, context_length(model._module) or n_tokens)


def _check_pass(body: nn.Module, args: tuple, kwargs: dict) -> None:
    """Refuse positions that a model's table of positions does not have, before a forward pass.

    Models that compute their positions can run a longer text. The suite checks its prompts and
    texts earlier.
    """
    inputs = args[0] if args else kwargs.get("input_ids")
    inputs = kwargs["inputs_embeds"] if inputs is None else inputs
    cache = kwargs.get("past_key_values")
    n_cached = 0 if cache is None else cache.get_seq_length()
    _check_length_of(body, n_cached + inputs.shape[1], "A text")


def padding(model: LanguageModel) -> int:
    """Return the padding token: the tokenizer's own if it has an embedding, else 0."""
    token = model.tokenizer.pad_token_id
    rows = model._module.get_input_embeddings().weight.shape[0]
    return token if valid_id(token, rows) else 0
