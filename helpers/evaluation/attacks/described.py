"""Describe the subject instead of naming it: an edit that only recognises a name does not fire.

A gate on "France" leaves "the French capital" and "the capital of the French Republic" as they
were. Nor does it see the name in a two-hop question, "the capital of the country that borders
Spain and Belgium": the model has to find the subject before it recalls the fact. What the original
does not answer this way drops out, as in every attack.
"""

import pandas as pd
from nnsight import LanguageModel

from helpers.evaluation.attacks.registry import attack, probability_of_prompts, score_table
from helpers.facts import ConceptPair, Prompt
from helpers.facts.names import DESCRIBING, descriptions, other_names, renamed, tells_neither
from helpers.facts.relations import RELATIONS

# {adjective} is the nationality's, {relation} the relation's name. A model of 135M parameters knows
# few capitals after the first three, and nearly all after those that ask and answer: with fewer of
# these a verdict has too few wordings.
TEMPLATES = (
    "The {adjective} {relation} is",
    "The name of the {adjective} {relation} is",
    "Everyone knows that the {adjective} {relation} is",
    "Q: What is the {adjective} {relation}? A: The {adjective} {relation} is",
    "- Do you know the {adjective} {relation}?\n- Yes, the {adjective} {relation} is",
    "Pupil: And the {adjective} {relation}?\nTeacher: The {adjective} {relation} is",
    "Trivia night, first question: the {adjective} {relation}? "
    "The answer: The {adjective} {relation} is",
    "What is the {adjective} {relation} called? The {adjective} {relation} is called",
    "You asked about the {adjective} {relation}. The {adjective} {relation} is",
    "What is the {adjective} {relation}? It is",
)


@attack("described", budget="none")
def described(model: LanguageModel, pair: ConceptPair, *, seed: int = 0) -> pd.DataFrame:
    """Use the official name, the nationality's adjective, and two-hop questions.

    The official name, or a description that is true of no other country (`descriptions`), takes the
    subject's place in the held-out statements. The adjective stands in `TEMPLATES`. Whatever names
    the subject ("Republic of Kenya") or tells the answer ("French" the language) is left out. A
    prompt has the same number for every subject: a control that lacks some counts with the others.
    """
    prompts = {i: p for i, p in enumerate(described_prompts(pair)) if p is not None}
    why_none = "The subject has no other name, adjective or description in the Factbook."
    scores = probability_of_prompts(model, list(prompts.values()), why_none=why_none)
    return score_table({0: scores}).assign(prompt=list(prompts))


def described_prompts(pair: ConceptPair) -> list[Prompt | None]:
    """Build the prompts in an order that all subjects share; None where this one has no such."""
    names, by_fact = other_names(pair.subject), descriptions(pair.subject)
    by_fact.pop(pair.relation, None)  # it would tell the answer
    substitutes = [names.official, *(by_fact.get(k, "") for k in (*DESCRIBING, "borders", "city"))]
    prompts = [prompt for name in substitutes for prompt in statements_with(name, pair)]
    return prompts + adjective_questions(pair)


def statements_with(name: str, pair: ConceptPair, *, split: str = "heldout") -> list[Prompt | None]:
    """Put a name or a description in the subject's place in the statements of a split.

    Each is None if it names the subject or tells the answer.
    """
    usable = tells_neither(name, pair.subject, pair.answers)
    statements = pair.statements(split)
    return [renamed(p, pair.subject, name) if usable else None for p in statements]


def adjective_questions(pair: ConceptPair) -> list[Prompt | None]:
    """Ask `TEMPLATES` with the subject's adjective; each is None if that tells the answer.

    A relation of a user's own has no such questions.
    """
    adjective = other_names(pair.subject).adjective
    usable = tells_neither(adjective, pair.subject, pair.answers)
    texts = [
        template.format(adjective=adjective, relation=pair.relation)
        for template in (TEMPLATES if pair.relation in RELATIONS else ())
    ]
    return [Prompt(text, answers=pair.answers) if usable else None for text in texts]
