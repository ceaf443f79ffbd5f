"""How many tokens a model reads at once, and what it is padded with."""

from nnsight import LanguageModel
from torch import nn

from helpers.errors import UserError
from helpers.models.strict_loading import context_length, valid_id

POSITIONS = ("wpe", "embed_positions")  # tables of learned positions


def check_length(model: LanguageModel, n: int, what: str = "A text") -> None:
    """See that a model reads so many tokens at once.

    Raises:
        UserError: It does not; whatever was learnt, it was not for places so far on.
    """
    _check_length_of(model._module, n, what)


def _check_length_of(module: nn.Module, n: int, what: str) -> None:
    most = context_length(module)
    if most is not None and n > most:
        raise UserError(f"{what} has {n} tokens, and this model reads {most} at once: shorten it.")


def text_length(model: LanguageModel, wanted: int = 128) -> int:
    """Tokens of a stretch of text: `wanted`, or as many as the model reads at once."""
    return min(wanted, context_length(model._module) or wanted)


def _check_pass(body: nn.Module, args: tuple, kwargs: dict) -> None:
    """Before every forward pass of a model with a table of positions: none that it has not got.

    Where positions are computed a longer text can be run; prompts and texts of ours are checked and
    cut before.
    """
    given = args[0] if args else kwargs.get("input_ids")
    given = kwargs.get("inputs_embeds") if given is None else given
    past = kwargs.get("past_key_values")
    before = 0 if past is None else past.get_seq_length()
    _check_length_of(body, before + given.shape[1], "A text")


def padding(model: LanguageModel) -> int:
    """A token to fill up with where it is masked: the tokenizer's own if it has an embedding."""
    token = model.tokenizer.pad_token_id
    rows = model._module.get_input_embeddings().weight.shape[0]
    return token if valid_id(token, rows) else 0
