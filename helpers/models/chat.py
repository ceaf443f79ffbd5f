"""One question in a tokenizer's chat template."""

from helpers.models.tokenization import in_template


def chat(tokenizer, user: str, assistant_prefix: str = "") -> str:
    """One question in the tokenizer's chat template, with the answer begun for the assistant.

    Raises:
        UserError: The tokenizer has no chat template.
    """
    return (
        in_template(tokenizer, [{"role": "user", "content": user}], answer=True) + assistant_prefix
    )
