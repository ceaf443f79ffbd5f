"""A multiple-choice benchmark over Factbook facts, in the format of EleutherAI's harness.

Most published numbers come from this harness (lm-evaluation-harness; Gao et al. 2024). It is no
dependency of ours. The task files are written here, deterministically and without a network.
`harness_choices` runs them through the harness where it is installed, and `own_choices` scores the
same items by our own scoring. The two agree.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt, facts
from helpers.facts.relations import RELATIONS
from helpers.forward.scoring import answer_logprobs
from helpers.models import torch_module
from helpers.stats.intervals import Metric, metrics_by

FORGET, RETAIN = ("factbook_forget", "factbook_retain")
CHOICES = 4
BATCH_SIZE = 16
INSTALL = "pip install lm_eval==0.4.13"


@dataclass(frozen=True)
class Item:
    """One multiple-choice question.

    Attributes:
        question: The text to be continued.
        choices: Possible continuations, without their leading space.
        answer: Index of the right choice.
        about: Subject and relation, such as "France (capital)".
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    about: str


def factbook_items(pair: ConceptPair, *, n: int = 100, seed: int = 0) -> dict[str, list[Item]]:
    """Make questions about the pair, and about other facts that must stay, by task.

    Each is a held-out statement with the right answer among three others of the same relation.
    `factbook_forget` has every held-out statement about the pair. `factbook_retain` has one about
    each of `n` Factbook facts, drawn over all relations, none about the pair's subject in its
    relation. The same arguments give the same items on every machine.

    Args:
        pair: The fact that is forgotten.
        n: Number of other facts.
        seed: Draws facts, statements and wrong answers.

    Raises:
        UserError: The Factbook has not so many facts, or the pair has no statements.
    """
    rng = np.random.default_rng(seed)
    others = [f for relation in RELATIONS for f in facts(relation)]
    others = [f for f in others if (f.subject, f.relation) != (pair.subject, pair.relation)]
    if not 1 <= n <= len(others):
        raise UserError(f"The Factbook has {len(others)} other facts: ask for 1 to {len(others)}.")
    statements = pair.statements("heldout")
    if not statements:
        raise UserError(f"{pair} has no statement that could be continued by choices.")
    retain_pairs = [ConceptPair.of(others[i]) for i in rng.permutation(len(others))[:n]]
    items = {FORGET: [_item(pair, statement, rng) for statement in statements], RETAIN: []}
    for other in retain_pairs:
        statements = other.statements("heldout")
        items[RETAIN].append(_item(other, statements[rng.integers(len(statements))], rng))
    return items


def _item(pair: ConceptPair, prompt: Prompt, rng: np.random.Generator) -> Item:
    right = {pair.target, *pair.aliases}
    candidates = pair.others or facts(pair.factbook_relation)
    pool = sorted({c.target for c in candidates if c.target not in right})
    wrong = [pool[i] for i in rng.permutation(len(pool))[: CHOICES - 1]]
    answer = int(rng.integers(len(wrong) + 1))
    choices = (*wrong[:answer], pair.target, *wrong[answer:])
    return Item(prompt.text, choices, answer, f"{pair.subject} ({pair.relation})")


def write_tasks(folder: str | Path, items: Mapping[str, Sequence[Item]]) -> Path:
    """Write each task as the harness reads it, `<task>.yaml` and `<task>.jsonl`.

    `lm_eval --include_path FOLDER --tasks factbook_forget,factbook_retain ...` runs them on any
    model, an exported edit included.

    Returns:
        The folder.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for task, questions in items.items():
        data = folder / f"{task}.jsonl"
        data.write_text("".join(f"{json.dumps(asdict(q))}\n" for q in questions))
        config = {
            "task": task,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(data)},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
        }
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def own_choices(model: LanguageModel, items: Mapping[str, Sequence[Item]]) -> pd.DataFrame:
    """Score the choices by our own scoring.

    Args:
        model: The model with the edits that it carries.
        items: From `factbook_items`.

    Returns:
        One row a choice: task, item, choice, right (whether it is the right one), logprob (summed
        over its tokens, in nats), chosen (whether it is the likeliest of its item).
    """
    flat = [
        (task, i, k, q)
        for task, questions in items.items()
        for i, q in enumerate(questions)
        for k in range(len(q.choices))
    ]
    prompts, answers = [q.question for *_, q in flat], [f" {q.choices[k]}" for *_, k, q in flat]
    rows = [(task, i, k, k == q.answer) for task, i, k, q in flat]
    return _table(rows, answer_logprobs(model, prompts, answers))


def harness_choices(
    model: LanguageModel, items: Mapping[str, Sequence[Item]], folder: str | Path
) -> pd.DataFrame:
    """Score the choices by the harness.

    Args:
        model: The model with the edits that it carries.
        items: From `factbook_items`.
        folder: Folder that the task files are written to.

    Returns:
        The columns of `own_choices`.

    Raises:
        UserError: The harness is not installed.
    """
    check_harness()
    from lm_eval.tasks import TaskManager  # takes seconds, as all of the harness

    manager = TaskManager(include_path=str(write_tasks(folder, items)), include_defaults=False)
    results = run_harness(model, list(items), manager, log_samples=True)
    rows, logprobs = [], []
    for task, questions in items.items():
        for sample in results["samples"][task]:
            i = sample["doc_id"]
            rows += [(task, i, k, k == questions[i].answer) for k in range(len(sample["resps"]))]
            logprobs += [float(response[0][0]) for response in sample["resps"]]
    return _table(rows, logprobs)


def check_harness() -> None:
    """Check that the harness, an optional package, is installed.

    Raises:
        UserError: It is not.
    """
    if find_spec("lm_eval") is None:
        raise UserError(
            f"The benchmark runs through lm-evaluation-harness, which is not installed: {INSTALL}."
        )


def run_harness(
    model: LanguageModel, tasks: Sequence[str], manager: Any, **options: Any
) -> dict[str, Any]:
    """Run tasks on a model with the edits that it carries, and return the harness's results.

    Args:
        model: The model.
        tasks: Names of tasks.
        manager: The harness's manager of tasks, which knows them.
        options: More arguments of the harness's `simple_evaluate`.
    """
    # An optional package, which takes seconds to import
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(pretrained=torch_module(model), tokenizer=model.tokenizer, batch_size=BATCH_SIZE)
    return lm_eval.simple_evaluate(
        model=wrapped, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **options
    )


def _table(rows: list[tuple], logprobs: Sequence[float]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["task", "item", "choice", "right"])
    table = table.assign(logprob=np.asarray(logprobs, float))
    table = table.sort_values(["task", "item", "choice"], ignore_index=True)
    best = table.groupby(["task", "item"])["logprob"].idxmax()
    return table.assign(chosen=table.index.isin(best))


def accuracy(table: pd.DataFrame) -> dict[str, Metric]:
    """Compute the accuracy of each task, with its interval over items.

    An item counts if its likeliest choice is right; guessing among four gives 0.25.
    """
    return metrics_by(table[table["chosen"]], "right", by="task")
