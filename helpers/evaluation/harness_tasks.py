"""Any task of lm-evaluation-harness by its name, on a model with the edits that it carries.

The harness (Gao et al. 2024) is no dependency of ours. Its tasks read data sets by their names in
the Hugging Face hub: what is not in that cache already has to be downloaded.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.metrics.lm_eval import check_harness, run_harness
from helpers.io.choices import suggestion
from helpers.io.safe_text import visible

MAX_HINT = 200  # characters: the harness has thousands of tasks
COLUMNS = ["task", "metric", "filter", "value", "standard_error", "n"]


def harness_scores(
    model: LanguageModel,
    tasks: Sequence[str],
    *,
    folder: str | Path | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """Run tasks of the harness; call it with an edit applied and without.

    Args:
        model: The model with the edits that it carries.
        tasks: Names of tasks or of groups of tasks, such as `arc_easy`.
        folder: A folder with task files of your own, in the harness's form.
        limit: Questions of each task, the first ones; all by default.

    Returns:
        One row a task and metric: task, metric, filter (of the harness), value, standard_error (NaN
        where the harness has none), n (questions).

    Raises:
        UserError: The harness is not installed, it has no such task, or a task's data cannot be
            had.
    """
    check_harness()
    from lm_eval.tasks import TaskManager  # takes seconds, as all of the harness

    manager = TaskManager(include_path=None if folder is None else str(folder))
    for name in tasks:
        if not manager.match_tasks([name]):
            hint = suggestion(name, manager.all_tasks)  # all of them where none is similar
            hint = hint if len(hint) <= MAX_HINT else "; 'lm_eval ls tasks' lists them"
            raise UserError(f"The harness has no task '{visible(name)}'{hint}.")
    try:
        results = run_harness(model, tasks, manager, limit=limit)
    except (OSError, ValueError) as error:  # what `datasets` raises without the data
        names = visible(", ".join(tasks))
        raise UserError(
            f"The harness could not run {names} ({visible(error)[:200]}): check that its data is "
            "in the Hugging Face cache, or that there is a connection."
        ) from None
    rows = []
    for task, values in results["results"].items():
        n = results.get("n-samples", {}).get(task, {}).get("effective", 0)
        for key, value in values.items():
            metric, _, name = key.partition(",")
            if not name or metric.endswith("_stderr"):
                continue
            deviation = values.get(f"{metric}_stderr,{name}")
            deviation = float(deviation) if isinstance(deviation, int | float) else float("nan")
            rows.append((task, metric, name, float(value), deviation, int(n)))
    return pd.DataFrame(rows, columns=COLUMNS)
