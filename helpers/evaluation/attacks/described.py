"""Describe the subject instead of naming it: an edit that only recognises a name does not fire.

A gate on "France" leaves "the French capital" and "the capital of the French Republic" as they
were. What the original does not answer this way drops out, as in every attack.
"""

from dataclasses import replace

import pandas as pd
from nnsight import LanguageModel

from helpers.evaluation.attacks.registry import attack, probability_of_prompts, score_table
from helpers.facts import ConceptPair, Prompt
from helpers.facts.factbook import with_article
from helpers.facts.names import other_names

TEMPLATES = (  # {adjective} is the nationality's, {relation} the relation's name
    "The {adjective} {relation} is",
    "The name of the {adjective} {relation} is",
    "Everyone knows that the {adjective} {relation} is",
    "Q: What is the {adjective} {relation}? A: The {adjective} {relation} is",
)


@attack("described", budget="none")
def described(model: LanguageModel, pair: ConceptPair, *, seed: int = 0) -> pd.DataFrame:
    """Use the official name, and the nationality's adjective.

    The official name takes the subject's place in the held-out statements; the adjective stands in
    `TEMPLATES`, unless it tells the answer, as "French" tells the language.
    """
    names = other_names(pair.subject)
    statements = [p for p in pair.prompts("heldout") if p.format == "completion"]
    prompts = [_renamed(p, pair.subject, names.official) for p in statements if names.official]
    stem = pair.target.casefold()[:4]
    if names.adjective and not names.adjective.casefold().startswith(stem):
        texts = [t.format(adjective=names.adjective, relation=pair.relation) for t in TEMPLATES]
        prompts += [Prompt(text, answers=pair.answers) for text in texts]
    why_none = "The subject has no other name or adjective in the Factbook."
    return score_table({0: probability_of_prompts(model, prompts, why_none=why_none)})


def _renamed(prompt: Prompt, subject: str, name: str) -> Prompt:
    """Put another name, with its article, in the subject's place."""
    start, end = prompt.locate_subject()
    before = prompt.text[:start]
    article = with_article(subject).removesuffix(subject)
    if article and before.casefold().endswith(article):
        before = before[: -len(article)]
    name = f"the {name}" if before else f"The {name}"
    text = before + name + prompt.text[end:]
    slot = (len(before) + 4, len(before) + len(name))
    return replace(prompt, text=text, subject=name[4:], slot=slot)
