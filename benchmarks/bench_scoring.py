"""Scoring 1,000 short prompts: against bare forward passes, and the machine's FLOP limit.

The limit is the time that the model's matrix products alone would take at the best rate measured
in the same run (each weight's product with a batch of tokens). Rounds are interleaved, so that a
machine that slows down slows all of them.
"""

import statistics
import time

import torch
from report import report
from torch.nn.utils.rnn import pad_sequence

from helpers.facts import ConceptPair, facts
from helpers.forward import scoring
from helpers.forward.batching import bucket_by_length
from helpers.forward.layer_cache import LayerCache, use_layer_cache
from helpers.forward.prompts import encode_pair
from helpers.models import architecture_of, load_model
from helpers.models.tokenization import encode

ROUNDS, PROMPTS, ALONE = 3, 1000, 60
KEPT = (10, 20, 29)  # of 30 layers


def main() -> None:
    model = load_model()
    prompts = [
        p
        for fact in facts("capital")
        for p in ConceptPair(fact.subject, fact.target).prompts("train")
        if p.format == "completion"
    ][:PROMPTS]
    texts, answers = [str(p) for p in prompts], [p.answers[0] for p in prompts]
    tokens = sum(len(encode(model.tokenizer, t)) for t in texts)
    arch = architecture_of(model)
    head = arch.head.weight.numel()
    body = sum(p.numel() for p in model._module.parameters()) - head
    flop = 2 * (body * tokens + head * len(texts))
    rows = {"limit": [], "batched": [], "forward passes alone": [], "one at a time": []}
    batches = list(padded(model, texts, answers))
    lower = {f"batched, kept below layer {i}": LayerCache(model, i) for i in KEPT}
    for kept in lower.values():
        with use_layer_cache(model, kept):
            scoring.answer_logprobs(model, texts, answers)
    for _ in range(ROUNDS):
        rows["limit"].append(flop / best_rate(arch))
        rows["batched"].append(seconds(lambda: scoring.answer_logprobs(model, texts, answers)))
        rows["forward passes alone"].append(seconds(lambda: forward(model, batches)))
        for name, kept in lower.items():  # as after an edit of that layer and above
            with use_layer_cache(model, kept):
                again = seconds(lambda: scoring.answer_logprobs(model, texts, answers))
            rows.setdefault(name, []).append(again)
        few = seconds(
            lambda: [
                alone(model, texts[i], answers[i])
                for i in range(0, len(texts), len(texts) // ALONE)
            ]
        )
        rows["one at a time"].append(
            few * len(texts) / len(range(0, len(texts), len(texts) // ALONE))
        )
    median = {name: statistics.median(times) for name, times in rows.items()}
    bound, ours = median["limit"], median["batched"]
    result = {
        "title": "Scoring answers",
        "how": f"log P(answer | prompt) of {len(texts)} short prompts ({tokens} tokens). The limit "
        "is the model's matrix products alone, at the best rate measured in the same run; sharing "
        "beginnings saves some of them, so a share above 1 is possible. Forward passes alone are "
        "transformers' own over the same sequences, in padded batches of like length, with the "
        f"last position's logits. One at a time was measured on {ALONE} prompts and scaled. Kept "
        "below a layer: again from that layer's states, as after an edit of it and above. Medians "
        f"of {ROUNDS} rounds.",
        "rows": [
            {
                "way": name,
                "seconds": seconds_,
                "times as long as ours": seconds_ / ours,
                "share of the limit": bound / seconds_,
            }
            for name, seconds_ in median.items()
        ],
    }
    report("scoring", result)


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def padded(model, texts: list[str], answers: list[str]):
    """Arrange the sequences in batches that suit the machine, with their masks."""
    ids = [encode_pair(model, t, a)[1] for t, a in zip(texts, answers, strict=True)]
    for batch in bucket_by_length([len(i) for i in ids]):
        rows = [torch.tensor(ids[n]) for n in batch]
        inputs = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
        yield inputs, mask


@torch.inference_mode()
def forward(model, batches) -> None:
    """Run the forward passes that any scoring needs at least, with transformers."""
    for inputs, mask in batches:
        model._module(input_ids=inputs, attention_mask=mask, logits_to_keep=1, use_cache=False)


def alone(model, text: str, answer: str) -> None:
    """Score as a first script would: one sequence at a time, all logits."""
    ids = model.tokenizer(text + answer, return_tensors="pt").input_ids
    with torch.inference_mode():
        model._module(ids).logits.log_softmax(-1)


def best_rate(arch) -> float:
    """Measure FLOP/s of the MLP's own product on a batch of tokens, the best of several."""
    weight = arch.layers[0].mlp.W_in()
    x = torch.randn(scoring.BATCH_TOKENS, weight.shape[1])
    best = 0.0
    for _ in range(5):
        took = seconds(lambda: [x @ weight.T for _ in range(20)])
        best = max(best, 20 * 2 * x.shape[0] * weight.numel() / took)
    return best


if __name__ == "__main__":
    main()
