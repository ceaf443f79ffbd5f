"""Greedy continuations of prompts."""

from collections.abc import Iterator, Sequence

import torch
from nnsight import LanguageModel

from helpers.forward.batching import bucket_by_length
from helpers.forward.prompts import Prompt, token_ids
from helpers.models import context_length, padding, torch_module
from helpers.models.hooks import active_interventions


def greedy(
    model: LanguageModel, prompts: Sequence[Prompt | str], *, max_new_tokens: int = 8
) -> list[str]:
    """Return the most likely continuation of each prompt, token by token.

    A continuation ends after `max_new_tokens`, before an end token, or where the model's context
    ends. Special tokens are left out of its text.
    """
    tokenizer, module, pad_id = model.tokenizer, torch_module(model), padding(model)
    ids = [token_ids(model, p) for p in prompts]
    eos = module.generation_config.eos_token_id
    end_tokens = eos if isinstance(eos, list) else [eos]
    texts = [""] * len(ids)
    for batch, n_new in _generation_batches(model, [len(i) for i in ids], max_new_tokens):
        # Generation continues from the last column, so shorter prompts are padded on the left.
        width = max(len(ids[i]) for i in batch)
        rows = torch.tensor([[pad_id] * (width - len(ids[i])) + ids[i] for i in batch])
        mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in batch])
        with torch.inference_mode():
            out = module.generate(
                input_ids=rows.to(module.device),
                attention_mask=mask.to(module.device),
                max_new_tokens=n_new,
                use_cache=not active_interventions(module),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=pad_id,
            )
        for i, row in zip(batch, out[:, width:].tolist(), strict=True):
            length = next((k for k, token in enumerate(row) if token in end_tokens), len(row))
            texts[i] = tokenizer.decode(row[:length], skip_special_tokens=True)
    return texts


def _generation_batches(
    model: LanguageModel, lengths: list[int], max_new_tokens: int
) -> Iterator[tuple[list[int], int]]:
    """Yield batches of prompts with the number of tokens to generate.

    Prompts of one length form batches of their own under an intervention, which knows no padding,
    and where the model's context ends before `max_new_tokens`.
    """
    module = torch_module(model)
    limit = context_length(module)
    # The last new token is generated and not read, so it may lie one place past the context.
    n_new = [
        max_new_tokens if limit is None else min(max_new_tokens, limit + 1 - n) for n in lengths
    ]
    unpadded = [bool(active_interventions(module)) or n < max_new_tokens for n in n_new]
    paddable = [i for i in range(len(lengths)) if not unpadded[i]]
    for batch in bucket_by_length([lengths[i] for i in paddable], n_passes=max_new_tokens):
        yield [paddable[k] for k in batch], max_new_tokens
    for length in sorted({lengths[i] for i in range(len(lengths)) if unpadded[i]}):
        same_length = [i for i in range(len(lengths)) if lengths[i] == length]
        for batch in bucket_by_length([length] * len(same_length)):
            yield [same_length[k] for k in batch], n_new[same_length[0]]
