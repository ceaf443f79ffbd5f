"""Read and write pages with all cores: Jupyter Book's command has no option for it.

Two extensions that Jupyter Book loads do not say that they allow it. One numbers sections after all
pages are read, and the other acts on LaTeX alone.
"""

import os

SAFE = ("sphinx_multitoc_numbering", "sphinx_jupyterbook_latex")


def allow(app, config) -> None:
    for name in SAFE:
        if name in app.extensions:
            app.extensions[name].parallel_read_safe = True


def setup(app) -> dict:
    affinity = getattr(os, "sched_getaffinity", None)
    app.parallel = len(affinity(0)) if affinity else os.cpu_count() or 1
    app.connect("config-inited", allow)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
