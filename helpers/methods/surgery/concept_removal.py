"""Remove a concept pair from the weights that are there, until what attacks find is gone too.

The proposed method, second version. Like `tangent_kernel` it takes the smallest change of W_out
that brings the answers' log-odds to their targets, by kernel regression on linearized log-odds
(`helpers.methods.fitting.linearization`). What it adds makes the difference between a name that is
filtered and a fact that is gone:

- *Of the concept*: the subject's adjective, official name and descriptions are forgotten with its
  name; the same about other subjects must stay (`helpers.facts.concept_prompts`).
- *Robust by construction*: what an attacker would do becomes a constraint. Before each of the last
  steps the windows of MLPs are found without which the answer comes back, and the answer is
  forgotten without them as well. So no few layers hold the edit. What the logit lens reads at the
  subject and at the prompt's end is brought down too.
- *No further than it should*: answers come down to what the subject's other associations get.
- *Two-sided metric*: a change is small that other inputs do not see, and that moves nothing along
  directions in which other relations are read (`helpers.methods.fitting.output_metric`).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair, Prompt
from helpers.facts.comparison import one_of_each_group
from helpers.facts.concept_prompts import (
    adjective_prompts,
    concept_prompts,
    forget_prompts,
    prompts_in_other_formats,
)
from helpers.forward.layer_cache import cache_below, use_layer_cache
from helpers.forward.scoring import next_token_and_answer
from helpers.methods.fitting.adversarial_cuts import suppressing_neurons, weakest_windows
from helpers.methods.fitting.association import association_level
from helpers.methods.fitting.constraints import (
    RetainPrompts,
    forget_constraints,
    neighbours_to_hold,
    preservation_constraints,
    retain_prompts,
    target_change,
)
from helpers.methods.fitting.edit_constraint import EditConstraint, at_all_positions
from helpers.methods.fitting.hparams import PreservationHparams
from helpers.methods.fitting.kernel_ridge import WhitenedRows, min_norm_update
from helpers.methods.fitting.lens_constraints import lens_constraints
from helpers.methods.fitting.linear_model import Linearization
from helpers.methods.fitting.linearization import EditHook, answer_logodds, linearize
from helpers.methods.fitting.negatives import preservation_metric
from helpers.methods.fitting.output_metric import output_metric
from helpers.methods.registry import method
from helpers.methods.weight_edit import WeightEdit, dense_changes
from helpers.models import architecture_of, torch_module

log = logging.getLogger(__name__)

N_DECIDING = 3  # answers by which a window is chosen


@dataclass(frozen=True)
class ConceptRemovalHparams(PreservationHparams):
    """Hyperparameters of `concept_removal`, with those of what an edit preserves.

    Attributes:
        layers: Edited layers; by default 5 to 16 of 30, which enrich the subject's tokens.
        level_share: Target probability of the training prompts, as a share of what the subject's
            other associations get there.
        min_target_prob: Least target probability, where associations get next to nothing.
        max_target_prob: Largest one; also without associations.
        n_associated: Associated answers whose probability is the level.
        n_neighbours: Known neighbours whose answers are preserved.
        n_adjectives: Neighbours of which the question with their adjective is preserved.
        n_questions: Questions of other relations in the output side of the metric.
        question_weight: Weight of the directions in which they are read.
        n_fisher_tokens: Tokens of text in the output side of the metric.
        text_weight: Weight of the directions in which text is read.
        n_windows: Windows of left-out MLPs under which the answer is forgotten as well.
        n_neurons: Numbers of neurons that lower the answer most and are cut, likewise. On
            development facts (16, 64) took a quarter of what ablation brings back, at a twentieth
            of the neighbours' answers: none by default.
        every: One of so many forget prompts is repeated under each cut.
        lens_layers: Layers after which the lens is lowered; by default five from 14 to 28 of 30.
        n_lens_prompts: Training statements in which it is.
        ridge: Ridge of the kernel regression, relative to the kernel's diagonal.
        n_tokens: Tokens of ordinary text in the preservation metric.
        step_sizes: Fraction of the residual that each step removes.
        n_plain_steps: First steps, which only lower the answers: nothing that is far from its
            target need be attacked yet.
        min_row: Positions whose gradient is under this share of the constraint's largest are left
            out of the kernel.
    """

    layers: Sequence[int] | None = None
    level_share: float = 1.0
    min_target_prob: float = 0.003
    max_target_prob: float = 0.03
    n_associated: int = 8
    n_neighbours: int = 80
    n_adjectives: int = 40
    n_questions: int = 190
    question_weight: float = 1000.0
    n_fisher_tokens: int = 4096
    text_weight: float = 100.0
    n_windows: int = 4
    n_neurons: tuple[int, ...] = ()
    every: int = 3
    lens_layers: Sequence[int] | None = None
    n_lens_prompts: int = 2
    ridge: float = 0.01
    n_tokens: int = 60_000
    step_sizes: tuple[float, ...] = (0.5, 0.7, 1.0, 1.0)
    n_plain_steps: int = 2
    min_row: float = 0.03


@method("concept_removal", family="surgery", takes=("pair", "pairs"))
def concept_removal(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    hparams: ConceptRemovalHparams,
    *,
    seed: int = 0,
) -> WeightEdit:
    """Change W_out of the enriching layers by the least update that removes the pairs.

    Args:
        model: Any model of a known family.
        pairs: The pairs to forget, by one update.
        hparams: Its hyperparameters.
        seed: Seed that draws text, neighbours and questions.

    Raises:
        UserError: Two prompts cannot be told apart, or the steps diverge.
    """
    arch = architecture_of(model)
    layers = [arch.check_layer(i) for i in hparams.layers or arch.relative_layers(range(5, 17))]
    forget, retain = _constraints(model, pairs, hparams, seed=seed)
    n_answers = len(forget)
    lens_layers = hparams.lens_layers
    if lens_layers is None:
        lens_layers = arch.relative_layers((14, 18, 21, 25, 28))
    for pair in pairs:
        forget += lens_constraints(
            model, pair, layers=lens_layers, n_prompts=hparams.n_lens_prompts, seed=seed
        )
    # Solved from the subject's tokens alone, an edit spares other subjects and takes many of the
    # subject's other facts with it; from all tokens it costs both a little (on development facts).
    forget = at_all_positions(forget)
    factors = preservation_metric(
        model, pairs, hparams, layers=layers, n_tokens=hparams.n_tokens, seed=seed
    )
    output_factors = output_metric(
        model,
        {pair.relation for pair in pairs},
        hparams,
        layers=layers,
        n_questions=hparams.n_questions,
        question_weight=hparams.question_weight,
        n_tokens=hparams.n_fisher_tokens,
        text_weight=hparams.text_weight,
        seed=seed,
    )
    delta = {i: torch.zeros(arch.d_model, arch.d_mlp) for i in layers}
    with use_layer_cache(model, cache_below(model, layers)):
        # What must stay hardly moves, so one linearization of it serves all steps.
        held = linearize(model, retain, layers=layers).without_small_rows(hparams.min_row)
        held_rows = WhitenedRows.of(held, factors, output_factors)
        initial_logodds = held.logodds
        for n_done, step_size in enumerate(hparams.step_sizes):

            def edit_output(
                layer: int, mlp_in: Tensor, hidden: Tensor, delta: dict[int, Tensor] = delta
            ) -> Tensor:
                return hidden @ delta[layer].to(hidden).T

            moved = linearize(model, forget, layers=layers, edit_output=edit_output)
            log.debug("scores of what is forgotten: %s", moved.logodds)
            moving = list(forget)
            if n_done < hparams.n_plain_steps:
                logodds = initial_logodds + held.predicted_change(delta)
            else:
                cut = _cut(model, moved, forget[:n_answers], delta, hparams, edit_output)
                moved = moved.followed_by(
                    linearize(model, cut, layers=layers, edit_output=edit_output)
                )
                moving += cut
                logodds = answer_logodds(model, retain, layers=layers, edit_output=edit_output)
            moved = moved.without_small_rows(hparams.min_row)
            constraints = [*moving, *retain]
            residual = target_change(
                constraints,
                torch.cat([moved.logodds, logodds]),
                torch.cat([moved.logodds, initial_logodds]),
            )
            update = min_norm_update(
                [WhitenedRows.of(moved, factors, output_factors), held_rows],
                step_size * residual,
                factors,
                ridge=hparams.ridge,
                constraints=constraints,
                output_factors=output_factors,
            )
            delta = {i: delta[i] + update[i] for i in layers}
    return WeightEdit.of(torch_module(model), dense_changes(arch, delta))


def _constraints(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    hparams: ConceptRemovalHparams,
    *,
    seed: int,
) -> tuple[list[EditConstraint], list[EditConstraint]]:
    """Build the forget constraints and the retain constraints."""
    forget: list[EditConstraint] = []
    for pair in pairs:
        level = association_level(model, pair, n=hparams.n_associated)
        target_prob = hparams.level_share * level
        target_prob = min(hparams.max_target_prob, max(hparams.min_target_prob, target_prob))
        prompts = forget_prompts(pair)
        forget += forget_constraints(model, pair, target_prob=target_prob, prompts=prompts)
    groups = retain_prompts(
        model, pairs, n_neighbours=hparams.n_neighbours, top_k=hparams.top_k, seed=seed
    )
    subjects = {pair.subject for pair in pairs}
    more = subject_by_other_names(pairs)
    groups_of_others = one_of_each_group(pairs)
    for pair in groups_of_others:  # which share what is held of other subjects
        neighbours = neighbours_to_hold(model, pair, seed=seed)
        neighbours = [other for other in neighbours if other.subject not in subjects]
        n, n_adjectives = (
            -(-number // len(groups_of_others))
            for number in (hparams.n_neighbours, hparams.n_adjectives)
        )
        more += neighbours_in_all_formats(neighbours[:n])
        more += other_adjectives(neighbours)[:n_adjectives]
    if more:
        groups.append(RetainPrompts(more))
    retain: list[EditConstraint] = []
    for group in groups:
        predictions = next_token_and_answer(model, group.prompts)
        retain += preservation_constraints(model, group, predictions, hparams)
    return forget, at_all_positions(retain)


def neighbours_in_all_formats(neighbours: Sequence[ConceptPair]) -> list[Prompt]:
    """Choose one question, chat, list or few-shot prompt about each neighbour, formats in turn.

    `retain_prompts` holds statements alone, and what is forgotten comes in all formats.
    """
    prompts = []
    for n, neighbour in enumerate(neighbours):
        pool = neighbour.edit_prompts(include_subject_initial=True)
        pool = [p for p in pool if p.format != "completion" or p.text.startswith(p.subject)]
        prompts += pool[n % len(pool) :][:1] if pool else []  # own prompts may all be statements
    return prompts


def subject_by_other_names(pairs: Sequence[ConceptPair]) -> list[Prompt]:
    """Ask for the subjects' other facts by the same other names; what is forgotten is left out."""
    return [
        prompt
        for pair in pairs
        for other in pair.same_subject()
        if not any(p.states(other.subject, (other.target, *other.aliases)) for p in pairs)
        for prompt in (
            *concept_prompts(other),
            *other.few_shot(1, split="train")[:2],
            *prompts_in_other_formats(other),
        )
    ]


def other_adjectives(neighbours: Sequence[ConceptPair]) -> list[Prompt]:
    """Choose one question with the adjective of each neighbour that has one, wordings in turn."""
    asked = [prompts for other in neighbours if (prompts := adjective_prompts(other))]
    return [prompts[n % len(prompts)] for n, prompts in enumerate(asked)]


def _cut(
    model: LanguageModel,
    moved: Linearization,
    answers: Sequence[EditConstraint],
    delta: Mapping[int, Float[Tensor, "d_model d_mlp"]],
    hparams: ConceptRemovalHparams,
    edit_output: EditHook,
) -> list[EditConstraint]:
    """Repeat some of the answers' constraints under what an attacker would cut now.

    Args:
        model: The model.
        moved: Linearization of all that is forgotten, the answers first.
        answers: Constraints of the answers.
        delta: Layer → change of W_out by the trial edit.
        hparams: Gives the numbers of windows, neurons and prompts.
        edit_output: Hook that adds the trial edit.
    """
    few = answers[:: max(1, len(answers) // N_DECIDING)][:N_DECIDING]
    windows = weakest_windows(
        model, few, n=hparams.n_windows, layers=list(delta), edit_output=edit_output
    )
    cuts: list[dict[str, Any]] = [{"left_out": window} for window in windows]
    if hparams.n_neurons:
        layers, of_answers = architecture_of(model).layers, moved.first(len(answers))
        W_out = {i: layers[i].mlp.W_out().detach().float().cpu() + d for i, d in delta.items()}
        cuts += [
            {"cut_neurons": suppressing_neurons(of_answers, W_out, n=n)} for n in hparams.n_neurons
        ]
    # Other prompts under the next cut, so that each prompt meets some.
    return [
        replace(c, **cut)
        for k, cut in enumerate(cuts)
        for c in answers[k % hparams.every :: hparams.every]
    ]
