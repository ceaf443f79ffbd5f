"""The output side of the metric: second moments of gradients, by hand."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from small_constraints import constraints_of

from helpers.facts import Prompt, facts
from helpers.methods.fitting import output_metric as module
from helpers.methods.fitting.hparams import PreservationHparams
from helpers.methods.fitting.linearization import linearize
from helpers.models import architecture_of, torch_module


def test_moments_of_text_are_those_of_the_gradients_of_drawn_tokens(
    tiny_model, monkeypatch, tmp_path
):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))
    model = tiny_model()
    tokens = torch.randint(4, 64, (3, 6), generator=torch.Generator().manual_seed(0))
    drawn = torch.randint(4, 64, (18, 1), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(module, "corpus_tokens", lambda *a, **k: tokens)
    monkeypatch.setattr(torch, "multinomial", lambda *a, **k: drawn)
    G = module.text_moments(model, [1], 18, seed=0)[1]
    saved = []
    out_module = architecture_of(model).layers[1].mlp.out_module

    def as_leaf(module, inputs, output):
        saved.append(output.detach().requires_grad_())
        return saved[-1]

    hook = out_module.register_forward_hook(as_leaf)
    with torch.enable_grad():
        logprobs = torch_module(model)(tokens).logits.log_softmax(-1).reshape(18, -1)
        logprobs.gather(1, drawn).sum().backward()
    hook.remove()
    g = saved[0].grad.reshape(18, -1).double()
    torch.testing.assert_close(G, g.T @ g, rtol=1e-4, atol=1e-7)


def test_the_metric_weighs_the_moments_by_their_mean_eigenvalue(tiny_model, monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))
    model, d = tiny_model(), architecture_of(tiny_model()).d_model
    roots = torch.randn(2, d, d, generator=torch.Generator().manual_seed(0)).double()
    Q, T = roots[0] @ roots[0].T, 50 * roots[1] @ roots[1].T
    monkeypatch.setattr(module, "question_moments", lambda *a: {2: Q})
    monkeypatch.setattr(module, "text_moments", lambda *a: {2: T})
    factor = module.output_metric(
        model,
        "capital",
        PreservationHparams(),
        layers=[2],
        n_questions=4,
        question_weight=3.0,
        n_tokens=8,
        text_weight=2.0,
    )[2].double()
    eigenvalues = [torch.linalg.eigvalsh(x).mean() for x in (Q, T)]
    expected = torch.eye(d).double() + 3 * Q / eigenvalues[0] + 2 * T / eigenvalues[1]
    torch.testing.assert_close(factor @ factor.T, expected, rtol=1e-4, atol=1e-4)


def test_questions_are_about_other_relations(monkeypatch, tiny_model):
    def known(model, name):
        return pd.DataFrame([{"subject": f.subject, "known": True} for f in facts(name)[:9]])

    monkeypatch.setattr(module, "known_facts", known)
    questions = module.other_questions(tiny_model(), ["capital"], n=20, seed=0)
    assert len(questions) == 20 and len({p.relation for p in questions}) > 3
    assert "capital" not in {p.relation for p in questions}
    assert len({str(p) for p in questions}) == 20


def test_questions_count_alike_at_their_subjects_tokens(tiny_model, monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))
    model, constraints = tiny_model(), constraints_of()
    questions = [Prompt(c.name, subject="s") for c in constraints]
    monkeypatch.setattr(module, "other_questions", lambda *a, **k: questions)
    monkeypatch.setattr(module, "next_token_and_answer", lambda *a: None)
    monkeypatch.setattr(module, "preservation_constraints", lambda *a: constraints)
    monkeypatch.setattr(module, "subject_span", lambda prompt, tokenizer: (1, 3))
    G = module.question_moments(model, ["capital"], PreservationHparams(), [0, 1], 3, 0)
    at_subject = [replace(c, edit_positions=(1, 2)) for c in constraints]
    linearization = linearize(model, at_subject, layers=[0, 1])
    for i in (0, 1):
        expected = torch.zeros_like(G[i])
        for n in range(len(constraints)):
            g = linearization.gradients[i][linearization.constraint_index == n].double()
            expected += g.T @ g / g.square().sum()
        torch.testing.assert_close(G[i], expected, rtol=1e-4, atol=1e-6)
        assert float(G[i].trace()) == pytest.approx(len(constraints), rel=1e-4)
