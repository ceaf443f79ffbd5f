"""Constraints on the logit lens: what is read, and the level that it comes down to."""

import pytest
import torch

from helpers.facts import ConceptPair, facts
from helpers.forward.activations import cache_activations
from helpers.forward.prompts import first_token, position_of
from helpers.methods.fitting import lens_constraints as module
from helpers.methods.fitting.contrast import subject_prompts
from helpers.models import architecture_of, final_norm, unembed


def reading(model, prompt, where, layer, names):
    """Logit of the answer less the mean logit of other names, by the logit lens."""
    position = position_of(model, prompt, where)
    states = cache_activations(
        model, [prompt], sites=["residual"], layers=[layer], positions=[[position]]
    )["residual", layer]
    head = architecture_of(model).head.weight
    with torch.no_grad():
        logits = unembed(model, final_norm(model, states.to(head)))[0].float()
    answer, *others = (first_token(model, prompt, f" {name}") for name in names)
    return float(logits[answer] - logits[others].mean())


def test_the_goal_is_the_reading_about_other_subjects(knowing, monkeypatch):
    model = knowing()
    fact = {f.subject: f for f in facts("capital")}
    pair, *others = (ConceptPair.of(fact[s]) for s in ("France", "Kenya", "Japan"))
    names = ("Paris", "Nairobi", "Tokyo")
    monkeypatch.setattr(module, "associated_targets", lambda pair: list(names[1:]))
    monkeypatch.setattr(module, "other_subjects", lambda *a, **k: others)
    found = module.lens_constraints(model, pair, layers=(0, 1), n_prompts=2)
    assert len(found) == 2 * 2 * 2
    for n, prompt in enumerate(subject_prompts(pair)[:2]):
        same = [subject_prompts(other)[n] for other in others]
        for k, where in enumerate(("subject", "last")):
            for i in (0, 1):
                constraint = found[4 * n + 2 * k + i]
                assert constraint.lens.layer == i
                assert constraint.lens.position == position_of(model, prompt, where)
                goal = sum(reading(model, p, where, i, names) for p in same) / len(same)
                assert constraint.target_logodds == pytest.approx(goal, rel=1e-3, abs=1e-4)
    monkeypatch.setattr(module, "associated_targets", lambda pair: [])
    assert module.lens_constraints(model, pair, layers=(0,), n_prompts=2) == []
