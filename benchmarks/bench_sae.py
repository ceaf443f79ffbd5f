"""Training a TopK SAE: against sae-lens, sparsify and dictionary_learning, and against the limit.

The limit is the encoder's forward product alone. Speed: seconds of a step, rounds interleaved, so
that a machine that slows down slows all. Quality: the fraction of held-out variance unexplained
after a fixed time, each library with the best of one grid of learning rates and the same schedule,
so that speed is not bought with it. Each library runs in an environment of its own, made once in
the cache; all read the same activations.

    python benchmarks/bench_sae.py [speed] [quality] [16384]
"""

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
from report import report

from helpers.facts.corpus import corpus_tokens
from helpers.forward.harvest import harvest
from helpers.io.files import cache_dir
from helpers.models import load_model
from helpers.sae.buffer import ActivationBuffer

HERE = Path(__file__).parent
LAYER, TOKENS, ROUNDS, STEPS = 15, 250_000, 3, 2
PACKAGES = {
    "sae_lens": ["sae-lens==6.54.12"],
    "sparsify": ["eai-sparsify==1.3.3", "simple_parsing", "einops", "natsort", "schedulefree"],
    "dictionary_learning": ["dictionary-learning==0.1.0", "einops"],
}
ALLOCATOR = {  # keeps freed blocks, so that large tensors need no fresh pages
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "1073741824",
}
TUNED = ", allocator tuned"
QUALITY_PEERS = ["sparsify"]  # by far the fastest of the three, and so the best after a minute
RATES, PEER_SECONDS, OUR_SECONDS = (1e-3, 2e-3, 4e-3), 60, 30


class Worker:
    """One library in a process of its own, which answers requests."""

    def __init__(self, name: str, data: Path, d_sae: int, *, tuned: bool = False):
        environment = dict(os.environ) | (ALLOCATOR if tuned else {})
        if name in PACKAGES:
            environment.pop("PYTHONPATH", None)
        self.process = subprocess.Popen(
            [python_of(name), str(HERE / "sae_peers.py"), name, str(data), str(d_sae)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, **question) -> list:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def python_of(name: str) -> str:
    """Build the Python of a peer's environment, which sees our torch through a .pth file."""
    if name not in PACKAGES:
        return sys.executable
    home = cache_dir() / "peers" / name
    if not (home / "done").exists():
        venv.create(home, with_pip=True, clear=True)
        packages = next(home.glob("lib/python*/site-packages"))
        (packages / "project.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        pip = [home / "bin" / "python", "-m", "pip", "install", "-q"]
        first, *others = PACKAGES[name]
        full = name == "sae_lens"
        subprocess.run([*pip, *([] if full else ["--no-deps"]), first], check=True)
        if others:
            subprocess.run([*pip, *others, "datasets"], check=True)
        (home / "done").touch()
    return str(home / "bin" / "python")


def data_folder() -> Path:
    """Write normalised activations as plain files, which every library reads."""
    folder = cache_dir() / "benchmarks" / f"mlp-{LAYER}-{TOKENS}"
    if not (folder / "heldout.npy").exists():
        model = load_model()
        harvests = {
            split: harvest(
                model, corpus_tokens(model.tokenizer, split=split, n_tokens=n), layers=[LAYER]
            )
            for split, n in (("train", TOKENS), ("heldout", 20_000))
        }
        key = ("mlp", LAYER)
        buffer = ActivationBuffer(harvests["train"], [key], batch=1)
        folder.mkdir(parents=True, exist_ok=True)
        for split, shards in harvests.items():
            x = np.array(shards[key][: 8192 if split == "heldout" else None], np.float32)
            x = (x - buffer.center[key].numpy()) * buffer.scale[key]
            np.save(folder / f"{split}.npy", x.astype(np.float16))
    return folder


def speed(data: Path, d_sae: int) -> dict:
    names = ["bound", "ours", "sparsify", "dictionary_learning", "sae_lens"]
    workers = {name: Worker(name, data, d_sae) for name in names}
    for name in ("bound", "ours", "sparsify", "sae_lens"):
        workers[name + TUNED] = Worker(name, data, d_sae, tuned=True)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for round_ in range(ROUNDS + 1):
        for name, worker in workers.items():
            took = worker.ask(do="time", steps=STEPS)
            seconds[name] += took if round_ else []  # the first round warms up
    memory = peak_memory_mb(workers["ours"].process.pid)
    for worker in workers.values():
        worker.close()
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "title": f"Training a TopK SAE: a step, dictionary {d_sae}",
        "how": "Seconds of a step on 4096 activations of width 576, k 32, in float32. The bound is "
        "the encoder's forward product alone. Each library in an environment of its own, with the "
        f"allocator as it comes and tuned to keep its blocks. Medians of {ROUNDS} interleaved "
        f"rounds of {STEPS} steps; our process took {memory:,} MB at its peak.",
        "rows": [
            {
                "library": name,
                "seconds": took,
                "times as long as ours": took / median["ours" + tuned],
                "share of the bound": median["bound" + tuned] / took,
            }
            for name, took in median.items()
            for tuned in [TUNED if name.endswith(TUNED) else ""]
        ],
        "seconds": seconds,
        "versions": peers(),
    }


def peers() -> dict[str, str]:
    """List names and versions of the libraries that are compared."""
    return dict(package[0].split("==") for package in PACKAGES.values())


def quality(data: Path, d_sae: int, names: list[str]) -> dict:
    runs = []
    for name in [*names, "ours"]:
        worker = Worker(name, data, d_sae)
        worker.ask(do="time", steps=1)
        given = OUR_SECONDS if name == "ours" else PEER_SECONDS
        for lr in RATES:
            marks = worker.ask(do="learn", lr=lr, seconds=given, decay=0.3)
            runs.append({"library": name, "lr": lr, "seconds": given, "marks": marks})
            print(json.dumps(runs[-1]), flush=True)
        worker.close()
    return {
        "title": f"Training a TopK SAE: quality reached, dictionary {d_sae}",
        "how": f"Fraction of held-out variance unexplained after {PEER_SECONDS} s of a peer and "
        f"{OUR_SECONDS} s of ours, at each learning rate of one grid, on the same activations and "
        "schedule (lower is better; the best of each column counts).",
        "rows": [
            {
                "library": name,
                "seconds": given,
                **{
                    f"at {lr:g}": r["marks"][-1][2]
                    for lr in RATES
                    for r in runs
                    if (r["library"], r["lr"]) == (name, lr)
                },
            }
            for name, given in [*((p, PEER_SECONDS) for p in names), ("ours", OUR_SECONDS)]
        ],
        "runs": runs,
        "versions": peers(),
    }


def peak_memory_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(x.split()[1]) // 1024 for x in lines if x.startswith("VmHWM")), 0)


def main() -> None:
    data = data_folder()
    parts = {
        "speed": lambda: speed(data, 8192),
        "16384": lambda: speed(data, 16_384),
        "quality": lambda: quality(data, 8192, QUALITY_PEERS),
    }
    for name in sys.argv[1:] or parts:
        report(f"sae_{name}", parts[name]())


if __name__ == "__main__":
    main()
