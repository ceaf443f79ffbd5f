"""Constraints on what the logit lens reads inside the model.

An edit may keep an answer from being said and leave it where the middle layers gather what is known
of the subject, or where upper layers collect the answer. So the lens is lowered there as well: to
the level of the subject's other associations, by the measure of the attacks `logit_lens` and
`logit_lens_subject`.
"""

from collections.abc import Sequence
from dataclasses import replace

from nnsight import LanguageModel

from helpers.facts import ConceptPair, Prompt, subject_span
from helpers.facts.associated import associated_targets
from helpers.forward.prompts import answer_tokens, first_token, token_ids
from helpers.methods.fitting.contrast import other_subjects, subject_prompts
from helpers.methods.fitting.edit_constraint import EditConstraint, LensReading
from helpers.methods.fitting.linearization import answer_logodds

N_ASSOCIATED = 8
N_SUBJECTS = 12  # other subjects, whose mean reading is the zero of each token


def lens_constraints(
    model: LanguageModel, pair: ConceptPair, *, layers: Sequence[int], n_prompts: int, seed: int = 0
) -> list[EditConstraint]:
    """Build constraints that lower the lens's reading of the answer at two tokens of each prompt.

    They are the subject's last token and the prompt's. The reading is the answer's logit less the
    mean logit of the subject's other associations. Its goal is the mean of the same reading in the
    same prompts about other subjects: there neither is favoured. There are no constraints for a
    pair without associations or other subjects.

    Args:
        model: Any model of a known family.
        pair: The pair to forget.
        layers: Layers after which the residual stream is read.
        n_prompts: Training statements that are read.
        seed: Draws the other subjects.
    """
    names = associated_targets(pair)[:N_ASSOCIATED]
    prompts = subject_prompts(pair)[:n_prompts]
    if not names or not prompts or not layers or not pair.neighbours(1):
        return []
    others = other_subjects(pair, N_SUBJECTS, seed=seed)
    constraints = []
    for k, prompt in enumerate(prompts):
        against = {first_token(model, prompt, f" {name}") for name in names}
        tokens = tuple(answer_tokens(model, prompt))
        against -= set(tokens)
        if not against:
            continue
        same_prompts = [subject_prompts(other)[k] for other in others]
        own, *of_others = (
            _readings(model, p, tokens, tuple(sorted(against)), layers)
            for p in (prompt, *same_prompts)
        )
        flat = [reading for readings in of_others for reading in readings]
        scores = answer_logodds(model, flat, layers=[min(layers)])
        goals = scores.reshape(len(others), -1).mean(0)
        constraints += [
            replace(c, target_logodds=float(goal)) for c, goal in zip(own, goals, strict=True)
        ]
    return constraints


def _readings(
    model: LanguageModel,
    prompt: Prompt,
    tokens: tuple[int, ...],
    against: tuple[int, ...],
    layers: Sequence[int],
) -> list[EditConstraint]:
    """Read one prompt at its subject's last token and its own, after each layer."""
    ids = tuple(token_ids(model, prompt))
    start, end = subject_span(prompt, model.tokenizer)
    positions = (end - 1, len(ids) - 1)
    return [
        EditConstraint(
            ids,
            ((position, tokens),),
            tuple(range(start, end)),
            name=str(prompt),
            lens=LensReading(layer, position, against),
        )
        for position in positions
        for layer in layers
    ]
