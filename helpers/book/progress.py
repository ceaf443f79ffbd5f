"""Progress of a run on the terminal: the step, its position, and the time that remains."""

import contextlib
import json
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from helpers.book.settings import ROOT
from helpers.errors import UserError
from helpers.io.files import cache_dir, read_json, write_json

# Replacements of characters that a terminal does not have.
PLAIN = str.maketrans({"→": "->", "·": "-", "…": "...", "×": "x", "–": "-"})


def echo(text: str, stream: TextIO | None = None, *, end: str = "\n") -> None:
    """Write to the terminal at once; ignore one that is closed or lacks a character."""
    stream = stream or sys.stdout
    if stream is None:  # closed before we were started
        return
    text += end
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    with contextlib.suppress(OSError, ValueError):
        stream.write(text)
        stream.flush()


def open_standard_streams() -> None:
    """Open the null device in place of a closed stdin, stdout or stderr.

    Otherwise the next opened file would get its number, and children would write into that file.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


class Progress:
    """A line with a step's progress: rewritten every second on a terminal, else rarely repeated.

    Attributes:
        done: Number of cells that are done.
        failed: Whether a cell failed.
    """

    def __init__(self, step: str, total: int = 0):
        """Start the clock.

        Args:
            step: Name of the step.
            total: Number of its cells; 0 if it has none.
        """
        plan = json.loads(os.environ.get("UNLEARNING_PLAN", "{}"))  # by helpers.book.pipeline
        steps, self._expected = plan.get("steps", [step]), plan.get("expected", {})
        position = steps.index(step) if step in steps else 0
        self._head = f"[{position + 1}/{len(steps)}] {step}"
        self._step, self._later = step, steps[position + 1 :]
        self._started, self._total, self.done = time.monotonic(), total, 0
        self.failed = False
        self._stop = threading.Event()
        terminal = sys.stdout is not None and sys.stdout.isatty()
        self._parallel = bool(plan.get("parallel"))
        self._rewrites = terminal and not self._parallel
        self._every = 1.0 if self._rewrites else 60.0 if self._parallel else 20.0  # seconds
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Progress":
        self._show()
        self._thread.start()
        return self

    def __exit__(self, kind, *_) -> None:
        self._stop.set()
        self._thread.join()
        ended = "stopped after" if kind or self.failed else "done in"
        self._show(f"{ended} {format_duration(self.seconds)}")
        if self._rewrites:
            echo("")

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the step began."""
        return time.monotonic() - self._started

    def line(self) -> str:
        """Describe the step's progress, and the time that it and all later steps should take.

        No time is given once the step takes longer than it did before, nor for everything where
        steps run side by side.
        """
        parts = [f"cell {min(self.done + 1, self._total)} of {self._total}"] if self._total else []
        parts.append(format_duration(self.seconds))
        remaining = self._expected.get(self._step, 0.0) - self.seconds
        if remaining > 0:
            parts.append(f"about {format_duration(max(1.0, remaining))} left")
            known = all(step in self._expected for step in self._later)
            if self._later and known and not self._parallel:
                total = remaining + sum(self._expected[step] for step in self._later)
                parts.append(f"{format_duration(total)} for everything")
        return " · ".join(parts)

    def _tick(self) -> None:
        while not self._stop.wait(self._every):
            self._show()

    def _show(self, text: str = "") -> None:
        start, end = ("\r\x1b[K", "") if self._rewrites else ("", "\n")
        echo(f"{start}{self._head} · {text or self.line()}", end=end)


def format_duration(seconds: float) -> str:
    """Format seconds as minutes and seconds, `2:05`, or with hours, `1:02:05`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def step_durations(profile: str) -> dict[str, float]:
    """Return each step's seconds from its last run on this machine, or else from ours."""
    seconds = _recorded(ROOT / "profiles" / "durations.json", profile)
    with contextlib.suppress(UserError):
        seconds |= _recorded(_durations_file(), profile)
    return seconds


def remember_duration(profile: str, step: str, seconds: float) -> None:
    """Record a step's duration in the cache; do nothing where the cache cannot be written."""
    with contextlib.suppress(UserError):
        path = _durations_file()
        durations = _read(path)
        durations[profile] = _recorded(path, profile) | {step: round(seconds, 1)}
        write_json(path, durations)


def _recorded(path: Path, profile: str) -> dict[str, float]:
    """Return the valid entries of a file of durations for a profile: step → seconds."""
    entries = _read(path).get(profile)
    entries = entries if isinstance(entries, dict) else {}
    return {s: t for s, t in entries.items() if isinstance(t, int | float) and 0 <= t < math.inf}


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(UserError, OSError):
        content = read_json(path)
        return content if isinstance(content, dict) else {}
    return {}


def _durations_file() -> Path:
    return cache_dir() / "durations.json"
