"""A trainer of sparse autoencoders behind a line protocol; runs in the environment of its library.

Reads one JSON object a line and answers with one: `{"do": "time", "steps": n}` gives the seconds of
n steps, `{"do": "learn", "lr": ..., "seconds": ...}` trains from the start for so long and gives
[seconds, steps, fraction of held-out variance unexplained] now and then, off the clock.
"""

import json
import sys
import time

import numpy as np
import torch

BATCH, K = 4096, 32


def sparsify(d_in, d_sae, lr, sample):
    from sparsify import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    sae = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=K))
    sae.b_dec.data = sample.mean(0)
    adam = torch.optim.Adam(sae.parameters(), lr=lr)

    def step(x, rate):
        adam.param_groups[0]["lr"] = rate
        sae.set_decoder_norm_to_unit_norm()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    return step, lambda x: sae(x).sae_out


def dictionary_learning(d_in, d_sae, lr, sample):
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=10**9,
        activation_dim=d_in,
        dict_size=d_sae,
        k=K,
        layer=0,
        lm_name="",
        lr=lr,
        warmup_steps=0,
        seed=0,
        device="cpu",
    )
    count = iter(range(10**9))

    def step(x, rate):
        trainer.scheduler.base_lrs = [rate]
        trainer.optimizer.param_groups[0]["lr"] = rate
        trainer.update(next(count), x)

    return step, trainer.ae


def sae_lens(d_in, d_sae, lr, sample):
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=K))
    sae.initialize_decoder_bias_with_median = None
    sae.b_dec.data = sample.mean(0)
    adam = torch.optim.Adam(sae.parameters(), lr=lr, betas=(0.9, 0.999))

    def step(x, rate):
        adam.param_groups[0]["lr"] = rate
        out = sae.training_forward_pass(
            TrainStepInput(
                sae_in=x,
                coefficients={},
                dead_neuron_mask=None,
                n_training_steps=0,
                is_logging_step=False,
            )
        )
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()
        adam.zero_grad()

    return step, sae


def ours(d_in, d_sae, lr, sample):
    from helpers.sae import SAEConfig, build
    from helpers.sae.init import init_from_data

    sae = build(SAEConfig("topk", d_in=d_in, d_sae=d_sae, k=K))
    init_from_data(sae, sample, sample)
    adam = torch.optim.Adam(sae.parameters(), fused=True)
    since_fired = torch.zeros(d_sae, dtype=torch.long)

    def step(x, rate):
        losses = sae.loss(x, x)
        losses.total.backward()
        adam.param_groups[0]["lr"] = rate
        adam.step()
        adam.zero_grad()
        sae.normalize_decoder()
        since_fired.add_(len(x))[losses.firing_counts > 0] = 0

    return step, sae


def bound(d_in, d_sae, lr, sample):
    encoder, bias = torch.randn(d_sae, d_in), torch.zeros(d_sae)
    return (lambda x, rate: torch.addmm(bias, x, encoder.T)), None


def unexplained(model, x) -> float:
    with torch.no_grad():
        error = sum(float((model(part) - part).square().sum()) for part in x.split(512))
    return error / float((x - x.mean(0)).square().sum())


def main() -> None:
    make, data, d_sae = globals()[sys.argv[1]], sys.argv[2], int(sys.argv[3])
    train = np.load(f"{data}/train.npy", mmap_mode="r")
    heldout = torch.from_numpy(np.load(f"{data}/heldout.npy")).float()
    rows = np.sort(np.random.default_rng(1).permutation(len(train))[:16_384])
    sample = torch.from_numpy(train[rows]).float()
    draw = np.random.default_rng(0)

    def batch():
        return torch.from_numpy(train[np.sort(draw.integers(0, len(train), BATCH))]).float()

    def fresh(lr):
        torch.manual_seed(0)
        return make(train.shape[1], d_sae, lr, sample)

    step, model = fresh(1e-3)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "time":
            times = []
            for _ in range(request["steps"]):
                x = batch()
                began = time.perf_counter()
                step(x, 1e-4)
                times.append(time.perf_counter() - began)
            answer = times
        else:
            began = time.perf_counter()
            step, model = fresh(request["lr"])
            spent, steps, answer, total = time.perf_counter() - began, 0, [], request["seconds"]
            while spent < total:
                began = time.perf_counter()
                # Warm-up over the first steps, and a fall to 0 over the last of the time given.
                remaining = (total - spent) / (request["decay"] * total)
                step(batch(), request["lr"] * max(0.02, min(1.0, (steps + 1) / 5, remaining)))
                spent += time.perf_counter() - began
                steps += 1
                if spent >= total or steps in (10, 25, 50, 100):
                    answer.append([spent, steps, unexplained(model, heldout)])
        print("ANSWER " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
