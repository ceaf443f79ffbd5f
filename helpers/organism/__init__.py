"""A model organism whose truth is known: a small ReLU transformer taught the Factbook's facts.

`Recipe` says how it is made, `organisms` trains it and its oracles (the same training without one
fact), and `load_model` reads their folders. What the wordings of its text are, and how held-out
ones stay out of it, stands in `helpers.organism.phrasings`.
"""

from helpers.organism.countries import COUNTRIES, FactSet, world
from helpers.organism.recipe import Recipe
from helpers.organism.store import organism, organisms, record

__all__ = ["COUNTRIES", "FactSet", "Recipe", "organism", "organisms", "record", "world"]
