"""Read and write pages with all cores: Jupyter Book's command has no option for it.

Two extensions that Jupyter Book loads do not say that they allow it. One numbers sections after all
pages are read, and the other acts on LaTeX alone. The domain of proofs keeps nothing of its
own, but lacks the method that says so.
"""

import os

from sphinx_proof.domain import ProofDomain

SAFE = ("sphinx_multitoc_numbering", "sphinx_jupyterbook_latex")


def allow(app, config) -> None:
    for name in SAFE:
        if name in app.extensions:
            app.extensions[name].parallel_read_safe = True


def merge_nothing(domain, docnames, other_data) -> None:
    """Merge the data of a domain without any; `sphinx_proof` merges the proofs itself."""


def setup(app) -> dict:
    affinity = getattr(os, "sched_getaffinity", None)
    app.parallel = len(affinity(0)) if affinity else os.cpu_count() or 1
    app.connect("config-inited", allow)
    ProofDomain.merge_domaindata = merge_nothing
    return {"parallel_read_safe": True, "parallel_write_safe": True}
