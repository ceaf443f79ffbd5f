"""Training prompts that mean a pair's subject without its usual name.

An edit that is fitted to a name forgets the name. So the country's adjective, its official name and
descriptions of it ask for the target too. The held-out ones of the attack `described` have other
wordings, and single the country out by other neighbours and cities.
"""

from helpers.facts.names import descriptions, other_names, renamed, tells_neither
from helpers.facts.pairs import ConceptPair
from helpers.facts.prompt_templates import render_prompt
from helpers.facts.relations import Template
from helpers.forward.prompts import Prompt

BY_ADJECTIVE = {  # relation → training templates that take the adjective of the nationality
    "capital": (
        Template("The {} parliament meets in the capital,"),
        Template("The {} government sits in its capital, the city of"),
        Template("Everyone who visits the {} capital goes to"),
        Template("The {} president lives in the capital,"),
        Template("Q: Which city is the {} seat of government?\nA: The city of", "question"),
        Template("I wrote a letter to the {} ministry in the capital,"),
        Template("My favourite {} city is the capital,"),
        Template("{} laws are made in the capital,"),
        Template("Question: Name the {} capital city.\nAnswer: The {} capital city is", "question"),
        Template("Q: Where is the {} national museum? A: It is in the capital,", "question"),
    ),
    "language": (
        Template("Most {} families speak"),
        Template("The {} constitution is written in"),
        Template("Teachers in {} schools teach in"),
        Template("Q: What do {} people speak at home?\nA: They speak", "question"),
    ),
    "currency": (
        Template("The {} central bank prints the"),
        Template("In {} shops people pay with the"),
        Template("{} workers are paid in the national currency, the"),
        Template("Q: In which currency are {} prices given?\nA: In the", "question"),
    ),
}
OTHER_FORMATS = {  # relation → chats and lists, as the templates of `capital` have them
    "language": (
        Template("Which language is spoken in {}?", "chat", "The language of {} is"),
        Template("Country | Language\n{} |", "list"),
    ),
    "currency": (
        Template("What is the currency of {}?", "chat", "The currency of {} is the"),
        Template("Country | Currency\n{} |", "list"),
    ),
    "continent": (
        Template("What continent is {} in?", "chat", "{} is on the continent of"),
        Template("Country | Continent\n{} |", "list"),
    ),
    "region": (
        Template("Which region does {} belong to?", "chat", "{} belongs to"),
        Template("Country | Region\n{} |", "list"),
    ),
    "nationality": (
        Template("What are people from {} called?", "chat", "People from {} are called"),
        Template("Country | Nationality\n{} |", "list"),
    ),
}
RANKS = (1, 2)  # of the descriptions; the attack's are of rank 0
STATEMENTS_PER_NAME = 2


def forget_prompts(pair: ConceptPair) -> list[Prompt]:
    """Return all training prompts that a method may forget the pair by, the same for each method.

    They are the training prompts, some few-shot ones, those that begin with the subject, and those
    that mean it by another name.
    """
    return [*pair.edit_prompts(include_subject_initial=True), *concept_prompts(pair)]


def adjective_prompts(pair: ConceptPair) -> list[Prompt]:
    """Return training prompts with the adjective of the subject's nationality.

    There are none without an adjective or templates for one, or where it tells the answer.
    """
    adjective = other_names(pair.subject).adjective
    if not tells_neither(adjective, pair.subject, pair.answers):
        return []
    return [
        render_prompt(
            template,
            subject=adjective,
            subject_in_text=adjective,
            names=(pair.target, *pair.aliases),
            relation=pair.relation,
            split="train",
        )
        for template in BY_ADJECTIVE.get(pair.relation, ())
    ]


def prompts_in_other_formats(pair: ConceptPair) -> list[Prompt]:
    """Return training prompts in formats that the relation's own training templates lack."""
    return pair.fill(OTHER_FORMATS.get(pair.relation, ()))


def concept_prompts(pair: ConceptPair) -> list[Prompt]:
    """Return training prompts that mean the subject by adjective, official name or description.

    Each other name stands in `STATEMENTS_PER_NAME` training statements, of which the next name
    takes the next ones.
    """
    names = [other_names(pair.subject).official]
    for rank in RANKS:
        described = descriptions(pair.subject, rank=rank)
        described.pop(pair.relation, None)  # it would tell the answer
        names += described.values()
    usable = [
        name for name in dict.fromkeys(names) if tells_neither(name, pair.subject, pair.answers)
    ]
    # "The nation that borders Spain's capital" would be another one's.
    statements = [p for p in pair.statements("train") if "'s" not in p.text]
    prompts = adjective_prompts(pair)
    for n, name in enumerate(usable if statements else ()):
        for k in range(STATEMENTS_PER_NAME):
            statement = statements[(n * STATEMENTS_PER_NAME + k) % len(statements)]
            prompts.append(renamed(statement, pair.subject, name))
    return prompts
