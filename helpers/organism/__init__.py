"""Models with a known ground truth: a small ReLU transformer trained on Factbook facts.

`Recipe` holds all that decides it, `organisms` trains it and its oracles (the same training without
one fact), and `load_model` reads their folders. `helpers.organism.phrasings` holds the templates of
its text and says how held-out ones stay out of it.

`helpers.organism.fine_tuned` trains a language model on answers about invented people
(`helpers.organism.invented_people`), and its twin without some of them.
"""

from helpers.organism.countries import COUNTRIES, FactSet, fact_set
from helpers.organism.recipe import Recipe
from helpers.organism.store import organism, organisms, record

__all__ = ["COUNTRIES", "FactSet", "Recipe", "fact_set", "organism", "organisms", "record"]
