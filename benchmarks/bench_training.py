"""One training step of the full model, batch 8 x 64: our loop against Hugging Face's Trainer.

Both minimise the same loss on the same tokens with AdamW in float32. Rounds are interleaved, so
that a machine that slows down slows both; the trainer's own set-up is outside of what is timed, as
are the first steps of a round, in which the optimiser's state and the allocator's memory are new.
"""

import statistics
import tempfile
import time
from itertools import pairwise

from report import report
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from helpers.facts.corpus import corpus_tokens
from helpers.methods.snapshots import preserved_parameters
from helpers.models import load_model
from helpers.training.examples import collate, mean_loss, text_examples
from helpers.training.loop import train

ROUNDS, STEPS, WARM, BATCH, LENGTH = 3, 6, 2, 8, 64


def main() -> None:
    model = load_model()
    n = BATCH * STEPS
    tokens = corpus_tokens(model.tokenizer, seq_len=LENGTH, n_tokens=n * LENGTH)
    batches = [collate(text_examples(part)) for part in tokens.split(BATCH)]
    rows = {"our loop": [], "Hugging Face Trainer": []}
    losses = {}
    names = [n for n, _ in model._module.named_parameters()]
    for _ in range(ROUNDS):
        for name, run in (("our loop", ours), ("Hugging Face Trainer", theirs)):
            with preserved_parameters(model._module, names):
                times, losses[name] = run(model, batches, tokens)
            rows[name] += [b - a for a, b in pairwise(times)][WARM - 1 :]
    assert abs(losses["our loop"] - losses["Hugging Face Trainer"]) < 0.05, losses
    median = {name: statistics.median(times) for name, times in rows.items()}
    result = {
        "title": "A training step",
        "how": f"Full model, AdamW, float32, batch {BATCH} x {LENGTH} tokens, no dropout. "
        f"Median over {ROUNDS} interleaved rounds of {STEPS} steps, without the first {WARM} of "
        "each, in which memory is new. Both have the same loss on the same tokens.",
        "rows": [
            {
                "way": name,
                "seconds": seconds,
                "times as long as ours": seconds / median["our loop"],
            }
            for name, seconds in median.items()
        ],
        "seconds": rows,
    }
    report("training", result)


def ours(model, batches, tokens) -> tuple[list[float], float]:
    times: list[float] = []
    history = train(
        model._module,
        lambda module, batch: mean_loss(model, batch),
        lambda i: batches[i],
        steps=STEPS,
        lr=1e-5,
        on_step=lambda step, loss: times.append(time.perf_counter()),
    )
    return times, history.losses[0]


def theirs(model, batches, tokens) -> tuple[list[float], float]:
    times, seen = [], []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            times.append(time.perf_counter())

        def on_log(self, args, state, control, logs=None, **__):
            seen.append((logs or {}).get("loss"))

    disable_progress_bar()
    data = [{"input_ids": row, "labels": row} for row in tokens]
    model._module.requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=STEPS,
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
        )
        trainer = Trainer(
            model=model._module, args=arguments, train_dataset=data, callbacks=[Clock()]
        )
        trainer.train()
    model._module.requires_grad_(False).eval()  # as it was loaded
    return times, seen[0]


if __name__ == "__main__":
    main()
