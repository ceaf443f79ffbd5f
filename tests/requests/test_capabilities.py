"""Capabilities: splits apart and the same each time, right answers, and a model that has them."""

import itertools
import re

import pytest

from helpers.errors import UserError
from helpers.requests import CAPABILITIES, capability, check_apart, check_capability
from helpers.requests.arithmetic import LARGEST, operand_pairs, questions
from helpers.requests.capability_check import (
    MIN_ORDER_GAIN,
    answered,
    chance,
    has_capability,
    order_gain,
)
from helpers.requests.corpus import Corpus, Document
from helpers.requests.languages import LANGUAGES, NEVER_LEARNED, dialogues, messages
from helpers.requests.program_code import python_code
from helpers.requests.request import TextRequest
from helpers.requests.splits import SPLITS

QUESTION = re.compile(r"(\d+) (?:\*|\+|times|plus) (\d+)")


def keys(corpora) -> set[str]:
    return {f"{d.prompt}{d.text}" for corpus in corpora for d in corpus}


def small_request(**parts) -> TextRequest:
    corpora = {"forget": ["one two"], "dev": ["two three"], "heldout": ["three four"]}
    corpora |= {"retain": ["four five"], "retained": ["five six"]} | parts
    made = {name: Corpus.of_texts(name, texts) for name, texts in corpora.items()}
    several = {name: (made[name],) for name in ("heldout", "retain", "retained")}
    return TextRequest("small", "files", forget=made["forget"], dev=made["dev"], **several)


@pytest.mark.parametrize("name", CAPABILITIES)
def test_the_parts_of_a_capability_share_no_document(name):
    request = capability(name)
    check_apart(request)
    parts = [keys([request.forget]), keys([request.dev]), keys(request.heldout)]
    assert all(parts)
    assert not any(a & b for a, b in itertools.combinations(parts, 2))
    names = [c.name for c in (request.forget, *request.heldout[1:], *request.retained)]
    assert len(names) == len(set(names))  # a scorecard tells texts from each other by their names
    kept = {c.name for c in request.retain}
    assert {"english prose", "english"} <= kept <= {c.name for c in request.retained}
    assert request.forget.name not in kept


@pytest.mark.parametrize("name", ["french", "python", "multiplication"])
def test_a_capability_is_the_same_when_it_is_made_again(name):
    first, again = capability(name), capability(name)
    assert list(first.forget) == list(again.forget)
    assert first.fingerprint() == again.fingerprint()
    assert first.fingerprint() != capability("spanish").fingerprint()


@pytest.mark.parametrize("language", [*LANGUAGES, NEVER_LEARNED])
def test_dialogues_with_one_beginning_are_in_one_split_and_none_is_english(language):
    openings = {
        split: {re.sub(r"\W", "", d.text.split("\n")[0].casefold()) for d in corpus}
        for split in SPLITS
        for corpus in [dialogues(language, split)]
    }
    assert not any(openings[a] & openings[b] for a, b in itertools.combinations(SPLITS, 2))
    english = keys(dialogues("english", split) for split in SPLITS)
    lines = {line for text in english for line in text.split("\n") if len(line.split()) > 3}
    own = keys(dialogues(language, split) for split in SPLITS)
    assert not lines & {line for text in own for line in text.split("\n")}


@pytest.mark.parametrize("language", LANGUAGES)
def test_messages_are_whole_sentences_of_another_source(language):
    texts = keys([messages(language)])
    assert len(texts) > 20
    assert not texts & keys(dialogues(language, split) for split in SPLITS)
    assert not texts & keys([messages("english")])
    assert not any(re.search(r"%[a-z(]|\{\w*\}", text) for text in texts)


def test_python_code_can_be_parsed():
    texts = [d.text for d in itertools.islice(python_code("heldout"), 50)]
    for text in texts:
        compile(text, "definition", "exec", dont_inherit=True)


def test_pairs_of_operands_are_apart_in_either_order_and_none_is_missing():
    pairs = [frozenset(pair) for split in SPLITS for pair in operand_pairs(split)]
    assert len(pairs) == len(set(pairs)) == LARGEST * (LARGEST + 1) // 2


@pytest.mark.parametrize("operation", ["multiplication", "addition"])
@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_right_and_examples_are_of_other_training_pairs(operation, split):
    for prompt in questions(operation, split):
        text = f"{prompt}{prompt.answers[0]}"
        asked = [(int(a), int(b)) for a, b in QUESTION.findall(text)]
        results = [int(n) for n in re.findall(r"(?:=|is|Answer:) (\d+)(?=[.\n]|$)", text)]
        assert results == [a * b if operation == "multiplication" else a + b for a, b in asked]
        *examples, last = (tuple(sorted(pair)) for pair in asked)
        assert last in operand_pairs(split)
        assert examples
        assert set(examples) <= set(operand_pairs("train")) - {last}


def test_an_unknown_capability_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match="no capability 'frensh'; did you mean french"):
        capability("frensh")
    with pytest.raises(UserError, match="no language 'klingon'"):
        dialogues("klingon", "train")
    with pytest.raises(UserError, match="no split 'test'"):
        python_code("test")


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ("heldout", "results would be of what was trained on"),
        ("retain", "can't have to stay"),
        ("retained", "can't have to stay"),
    ],
)
def test_text_that_is_both_forgotten_and_kept_is_refused_with_an_example(part, why):
    check_apart(small_request())
    shared = small_request(**{part: ["other text", "one  two\n", "one two"]})
    with pytest.raises(UserError, match=rf"2 of the 3 documents of '{part}'.*'one two': .*{why}"):
        check_apart(shared)


def test_held_out_text_on_which_a_strength_was_chosen_is_refused():
    with pytest.raises(UserError, match="1 of the 1 documents of 'heldout' are in 'dev' too"):
        check_apart(small_request(dev=["three four"]))


def test_a_question_among_the_documents_to_forget_is_refused():
    asked = questions("multiplication", "heldout")
    request = TextRequest(
        "products",
        "capability",
        forget=Corpus.of_prompts("products", asked[:1]),
        dev=Corpus.of_texts("dev", ["another text"]),
        heldout=(),
        retain=(),
        retained=(),
        questions=asked,
    )
    with pytest.raises(UserError, match="of 'questions' are in 'products' too"):
        check_apart(request)


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_nothing_to_forget_is_refused(texts):
    with pytest.raises(UserError, match="no text to forget in 'small'"):
        check_apart(small_request(forget=texts))


def test_apartness_of_a_long_corpus_keeps_no_document():
    alive = []

    class Watched(str):
        def __new__(cls, text):
            alive.append(1)
            return super().__new__(cls, text)

        def __del__(self):
            alive.pop()

    def read():
        for i in range(2000):
            yield Document(Watched(f"document {i}"))
            assert len(alive) < 10

    corpus = Corpus("long", read)
    other = Corpus.of_texts("other", ["else"])
    dev = Corpus.of_texts("dev", ["something"])
    request = TextRequest("long", "files", corpus, dev, (), (other,), (other,))
    check_apart(request)


def test_a_model_that_answers_at_random_does_not_have_the_capability(knowing):
    model = knowing()
    request = capability("multiplication")
    assert answered(model, request.questions).mean() <= chance(request.questions)
    with pytest.raises(UserError, match="does not have the capability 'multiplication'"):
        check_capability(model, request)


def test_the_default_model_has_languages_and_code_and_not_one_that_it_never_learned(smollm):
    def gain(corpus):
        return order_gain(smollm, corpus, n_tokens=768)

    assert gain(dialogues(NEVER_LEARNED, "train")) < MIN_ORDER_GAIN
    known = (messages("french"), *(dialogues(x, "train") for x in ("spanish", "german")))
    assert min(gain(corpus) for corpus in (*known, python_code("heldout"))) > MIN_ORDER_GAIN
    assert has_capability(smollm, capability("multiplication"))
