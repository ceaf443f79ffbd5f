"""Requests: what to forget, what must stay, what is held out, and what is the zero."""

from helpers.requests.capability import CAPABILITIES, capability
from helpers.requests.capability_check import check_capability
from helpers.requests.checks import check_apart
from helpers.requests.corpus import Corpus, Document
from helpers.requests.facts_requests import entity, pair_list, topic
from helpers.requests.reading import read_request
from helpers.requests.request import FactsRequest, Request, TextRequest

__all__ = [
    "CAPABILITIES",
    "Corpus",
    "Document",
    "FactsRequest",
    "Request",
    "TextRequest",
    "capability",
    "check_apart",
    "check_capability",
    "entity",
    "pair_list",
    "read_request",
    "topic",
]
