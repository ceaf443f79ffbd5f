"""The Factbook's facts, the ways of asking for them, and what the real model knows."""

import re

import pytest
import yaml

from helpers.book.settings import ROOT
from helpers.errors import UserError
from helpers.facts import (
    RELATIONS,
    SPLITS,
    ConceptPair,
    Prompt,
    Template,
    fact_split,
    facts,
    known_facts,
    require_known,
    subject_span,
)
from helpers.facts import known as known_module
from helpers.facts.factbook import sovereign
from helpers.forward.prompts import input_text
from helpers.io.safe_text import name_pattern
from helpers.models.tokenization import encode

FRANCE = ConceptPair("France", "Paris")
COMMON_KNOWLEDGE = {
    "capital": {
        "France": "Paris",
        "Japan": "Tokyo",
        "Australia": "Canberra",
        "Brazil": "Brasília",
        "Switzerland": "Bern",
        "United States": "Washington",
        "Nigeria": "Abuja",
        "Ukraine": "Kyiv",
    },
    "language": {
        "Brazil": "Portuguese",
        "Egypt": "Arabic",
        "Netherlands": "Dutch",
        "Thailand": "Thai",
        "Mexico": "Spanish",
    },
    "currency": {
        "France": "euro",
        "Japan": "yen",
        "Poland": "zloty",
        "United Kingdom": "pound",
        "India": "rupee",
        "Switzerland": "franc",
    },
    "continent": {
        "Kenya": "Africa",
        "India": "Asia",
        "Peru": "South America",
        "Canada": "North America",
        "Spain": "Europe",
    },
    "region": {"India": "South Asia", "Peru": "South America", "Iran": "the Middle East"},
    "nationality": {
        "France": "French",
        "Netherlands": "Dutch",
        "Philippines": "Filipino",
        "United Kingdom": "British",
        "Peru": "Peruvian",
    },
}
AT_LEAST = {"capital": 170, "region": 70}  # the other relations: 180


def named(text: str, name: str) -> bool:
    """`name` stands in `text` as words of its own."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


@pytest.mark.parametrize("relation", RELATIONS)
def test_facts_agree_with_common_knowledge(relation):
    found = {f.subject: f.target for f in facts(relation)}
    wanted = COMMON_KNOWLEDGE[relation]
    assert {subject: found[subject] for subject in wanted} == wanted
    assert len(found) == len(facts(relation)) >= AT_LEAST.get(relation, 180)
    assert list(found) == sorted(found)


def test_capitals_that_carry_the_countrys_name_are_left_out():
    subjects = {f.subject for f in facts("capital")}
    assert not subjects & {"Luxembourg", "Singapore", "Mexico", "Monaco", "Guatemala"}


@pytest.mark.parametrize("relation", RELATIONS)
def test_no_prompt_gives_its_answer_away(relation):
    for fact in facts(relation):
        pair = ConceptPair.of(fact)
        asked = [p for split in SPLITS for p in pair.prompts(split)]
        asked += [*pair.few_shot(), *pair.edit_prompts(include_subject_initial=True)]
        for prompt in asked:
            assert fact.subject in prompt.text
            assert prompt.answers == pair.answers
            for name in (fact.target, *fact.aliases):
                assert not named(prompt.text, name), f"{name} is in '{prompt}'"
        for prompt in pair.reverse():
            assert fact.target in prompt.text
            assert not named(prompt.text, fact.subject)


@pytest.mark.parametrize("relation", RELATIONS)
def test_splits_share_no_way_of_asking(relation):
    texts = {
        s: {p.text.lower() for p in ConceptPair.of(facts(relation)[0]).prompts(s)} for s in SPLITS
    }
    every = [t for split in SPLITS for t in texts[split]]
    assert len(every) == len(set(every)) == sum(map(len, RELATIONS[relation].templates.values()))
    assert all(texts.values())
    assert not {
        p.text.lower() for p in ConceptPair.of(facts(relation)[0]).subject_initial_prompts()
    } & set(every)


@pytest.mark.parametrize("relation", ["capital", "language", "currency"])
def test_an_edit_also_learns_from_prompts_that_begin_with_the_subject(relation):
    for subject, begins in (("Japan", "Japan"), ("United States", "The United States")):
        pair = next(ConceptPair.of(f) for f in facts(relation) if f.subject == subject)
        assert len(pair.subject_initial_prompts()) >= 2
        assert pair.edit_prompts(include_subject_initial=True) == [
            *pair.edit_prompts(),
            *pair.subject_initial_prompts(),
        ]
        assert all(
            p.text.startswith(begins) and p.split == "train" for p in pair.subject_initial_prompts()
        )
    own = ConceptPair("a", "b", "own", templates=dict.fromkeys(SPLITS, (Template("{} is"),)))
    assert own.subject_initial_prompts() == []


@pytest.mark.parametrize("split", SPLITS)
def test_capitals_are_asked_for_in_many_ways_and_formats(split):
    prompts = FRANCE.prompts(split)
    assert len(prompts) >= 8
    assert {p.format for p in prompts} == {"completion", "question", "chat", "list"}
    assert {(p.split, p.relation, p.subject) for p in prompts} == {(split, "capital", "France")}


def test_fact_split_is_fixed_and_balanced():
    """A changed split would let what was tuned on be reported: these never move."""
    fixed = {"dev": ["France", "Egypt", "Poland", "Brazil"]}
    fixed["heldout"] = ["Germany", "Japan", "Italy", "Spain", "Kenya", "Peru"]
    assert {fact_split(c) for c in fixed["dev"]} == {"dev"}
    assert {fact_split(c) for c in fixed["heldout"]} == {"heldout"}
    share = sum(fact_split(c) == "heldout" for c in sovereign().values()) / len(sovereign())
    assert 0.4 < share < 0.6


def test_aliases_come_from_the_factbook_and_from_the_user():
    assert ConceptPair("Ukraine", "Kyiv").aliases == ("Kiev",)
    assert ConceptPair("Ukraine", "Kiev").answers == (" Kiev", " Kyiv")
    assert ConceptPair("Ukraine", "Kyiv", aliases=("Kyyiv",)).answers == (" Kyiv", " Kyyiv")
    assert ConceptPair("France", "Lyon").aliases == ()  # not the Factbook's: nothing is known
    assert str(FRANCE) == "France → Paris"


def test_neighbours_share_neither_subject_nor_target():
    euro = ConceptPair("France", "euro", relation="currency")
    neighbours = euro.neighbours()
    assert len(neighbours) > 100
    for other in neighbours:
        assert other.subject != "France"
        assert not {euro.target, *euro.aliases} & {other.target, *other.aliases}
        assert other.relation == "currency"
    drawn = FRANCE.neighbours(10, seed=1)
    assert len(set(drawn)) == 10
    assert drawn == FRANCE.neighbours(10, seed=1)
    assert drawn != FRANCE.neighbours(10, seed=2)


def test_same_subject_holds_the_subjects_other_facts():
    other = {p.relation: p.target for p in FRANCE.same_subject()}
    assert other == {
        "language": "French",
        "currency": "euro",
        "continent": "Europe",
        "nationality": "French",
    }
    assert {p.subject for p in FRANCE.same_subject()} == {"France"}


def test_same_target_asks_about_the_city_and_never_names_the_country():
    for subject, city in (("France", "Paris"), ("Japan", "Tokyo"), ("Netherlands", "Amsterdam")):
        found = ConceptPair(subject, city).same_target()
        assert {p.relation for p in found} == {"language", "currency", "continent"}
        for prompt in (q for p in found for split in SPLITS for q in p.prompts(split)):
            assert city in prompt.text
            assert subject not in prompt.text
            assert not any(named(prompt.text, a.strip()) for a in prompt.answers)
        for fact in found:
            assert all(fact.prompts(split) for split in SPLITS)
            assert len({q for split in SPLITS for q in fact.prompts(split)}) == sum(
                len(fact.prompts(split)) for split in SPLITS
            )
    assert ConceptPair("France", "euro", relation="currency").same_target() == []
    wrong = ConceptPair("France", "Rome").same_target()  # a false fact: asked where Rome is
    assert {p.relation: p.target for p in wrong}["language"] == "Italian"


def test_the_reversed_pair_is_trained_on_other_words_than_it_is_judged_by():
    back = FRANCE.reverse_pair()
    assert (back.subject, back.answers) == ("Paris", (" France",))
    heldout = [str(p) for p in back.prompts("heldout")]
    train = [str(p) for p in back.prompts("train")]
    assert heldout == [str(p) for p in FRANCE.reverse()]
    assert not any(p.startswith(q) or q.startswith(p) for p in train for q in heldout)
    assert all("Paris" in p and "France" not in p for p in train)
    with pytest.raises(UserError, match="from Euro to France"):
        ConceptPair("France", "Euro", "currency").reverse_pair()


@pytest.mark.parametrize("relation", RELATIONS)
def test_no_training_wording_begins_another_splits_or_is_begun_by_it(relation):
    edit_prompts = [*RELATIONS[relation].templates["train"], *RELATIONS[relation].subject_initial]
    asked = [t for split in ("dev", "heldout") for t in RELATIONS[relation].templates[split]]
    pairs = [(a.text, b.text) for a in edit_prompts for b in asked]
    assert not [(a, b) for a, b in pairs if a.startswith(b) or b.startswith(a)]


def test_reverse_accepts_the_country_with_and_without_article():
    assert str(FRANCE.reverse()[0]) == "Paris is the capital of"
    assert FRANCE.reverse()[0].answers == (" France",)
    answers = ConceptPair("Netherlands", "Amsterdam").reverse()[0].answers
    assert answers == (" the Netherlands", " Netherlands")
    assert ConceptPair("France", "euro", relation="currency").reverse() == []


def test_articles_stand_where_a_sentence_needs_them():
    prompts = ConceptPair("Netherlands", "Amsterdam").prompts("train")
    assert str(prompts[0]) == "The capital of the Netherlands is"
    assert any(p.text.startswith("The Netherlands's capital") for p in prompts)


def test_few_shot_solves_other_subjects_first():
    for prompt in FRANCE.few_shot(2):
        *solved, last = str(prompt).split("\n")
        assert [s.rsplit(" ", 1)[1] for s in solved] == ["Berlin", "Rome"]
        assert last in map(str, FRANCE.prompts("heldout"))
    germany = ConceptPair("Germany", "Berlin")
    for prompt in (*germany.few_shot(), *germany.prompts("train")):
        assert "Berlin" not in prompt.text  # Germany is the usual first example


def test_what_an_edit_learns_from_is_solved_for_other_subjects_than_what_is_reported():
    edit_prompts = [p for p in FRANCE.edit_prompts() if p.format == "few_shot"]
    assert {len(str(p).split("\n")) for p in edit_prompts} == {2, 4}  # one example and three
    assert all(p.split == "train" for p in FRANCE.edit_prompts())
    examples = {line for p in edit_prompts for line in str(p).split("\n")[:-1]}
    reported = {
        line for n in (1, 3) for p in FRANCE.few_shot(n) for line in str(p).split("\n")[:-1]
    }
    assert examples and not examples & reported
    assert not any(name in " ".join(examples) for name in ("Berlin", "Rome", "Tokyo"))


def test_chat_prompts_take_the_template_of_a_tokenizer_that_has_one(smollm, tiny_model):
    prompt = next(p for p in FRANCE.prompts("train") if p.format == "chat")
    user, assistant = "What is the capital of France?", "The capital of France is"
    assert (
        input_text(prompt, tiny_model().tokenizer)
        == f"User: {user}\nAssistant: {assistant}"
        == prompt.text
    )
    assert input_text(prompt, smollm.tokenizer).endswith(f"<|im_start|>assistant\n{assistant}")


def test_subject_span_holds_the_subjects_tokens_and_no_others(smollm):
    tokenizer = smollm.tokenizer
    for subject, target in (("France", "Paris"), ("Burkina Faso", "Ouagadougou")):
        pair = ConceptPair(subject, target)
        for prompt in (*pair.prompts("train"), *pair.prompts("heldout"), *pair.few_shot()):
            start, end = subject_span(prompt, tokenizer)
            ids = encode(tokenizer, input_text(prompt, tokenizer))
            assert tokenizer.decode(ids[start:end]).strip() == subject
            assert subject not in tokenizer.decode(ids[end:])  # the last mention
    with pytest.raises(UserError, match="does not contain its subject 'Spain'"):
        subject_span(Prompt("The capital of France is", subject="Spain"), tokenizer)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ConceptPair("Frannce", "Paris"), "'Frannce': did you mean France"),
        (lambda: ConceptPair("Hogwarts", "x"), "no capital for 'Hogwarts'.*YAML file"),
        (lambda: ConceptPair("Mexico", "Mexico City"), "no capital for 'Mexico'"),
        (lambda: ConceptPair("France", "Paris", relation="capitol"), "'capitol'; choose from capi"),
        (lambda: ConceptPair("France", " "), "one of them is empty"),
        (lambda: FRANCE.prompts("test"), "no split 'test'; choose from train, dev, heldout"),
        (lambda: Template("The capital of France is"), "has no slot"),
    ],
)
def test_bad_input_is_told_in_one_sentence(make, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.fixture
def written(tmp_path):
    """`written(content)` -> path of a YAML file with it."""

    def write(content) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return write


def test_a_file_of_two_lines_is_enough(written):
    pair = ConceptPair.from_file(written("subject: Japan\ntarget: Tokyo\n"))
    assert pair == ConceptPair("Japan", "Tokyo")
    assert pair.prompts("train") == ConceptPair("Japan", "Tokyo").prompts("train")


def test_a_file_with_own_prompts_deals_them_out(written):
    content = {
        "subject": "Hermione",
        "target": "Granger",
        "aliases": ["Granger-Weasley"],
        "prompts": ["{} is called", "Miss {}", "Her name is {}", "{}'s family name is"],
        "must_stay": [{"prompt": "Harry's family name is ", "answer": "Potter"}],
    }
    pair = ConceptPair.from_file(written(content))
    assert (pair.relation, pair.answers) == ("own", (" Granger", " Granger-Weasley"))
    texts = {split: [str(p) for p in pair.prompts(split)] for split in SPLITS}
    assert texts == {
        "train": ["Hermione is called", "Hermione's family name is"],
        "dev": ["Miss Hermione"],
        "heldout": ["Her name is Hermione"],
    }
    assert (pair.must_stay[0].text, pair.must_stay[0].answers) == (
        "Harry's family name is",
        (" Potter",),
    )
    nothing = (pair.neighbours(), pair.same_subject(), pair.same_target(), pair.reverse())
    assert nothing == ([], [], [], [])
    split = content | {"prompts": {"train": ["a {}"], "dev": ["b {}"], "heldout": ["c {}", "d {}"]}}
    heldout = ConceptPair.from_file(written(split)).prompts("heldout")
    assert [str(p) for p in heldout] == ["c Hermione", "d Hermione"]


def test_one_of_a_kind_needs_no_list(written):
    content = "subject: Japan\ntarget: Tokyo\naliases: Edo\n"
    content += "prompts: {train: 'a {}', dev: 'b {}', heldout: 'c {}'}"
    pair = ConceptPair.from_file(written(content))
    assert pair.aliases == ("Edo",)
    assert [str(p) for p in pair.prompts("train")] == ["a Japan"]


def test_the_readmes_example_of_a_file_works(written):
    text = (ROOT / "README.md").read_text()
    example = re.search(r"```yaml\n(subject: .*?)```", text, re.DOTALL)[1]
    pair = ConceptPair.from_file(written(example))
    assert all(pair.prompts(split) for split in SPLITS)
    assert not any(named(p.text, pair.target) for split in SPLITS for p in pair.prompts(split))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("subject: [", "not valid YAML"),
        ("- Japan\n", "must name at least 'subject:' and 'target:'"),
        ("subject: Japan\n", "must name at least 'subject:' and 'target:'"),
        ("subject:\ntarget: Tokyo\n", "one of them is empty"),
        ("subject: Japan\ntarget: Tokyo\nalias: Edo\n", "there is no 'alias'; known are"),
        ("subject: Harry\ntarget: Potter\n", "no capital for 'Harry'"),
        ({"subject": "x", "target": "y", "prompts": ["a {}", "b {}"]}, "at least three texts"),
        ({"subject": "x", "target": "y", "prompts": "a {}"}, "at least three texts"),
        ({"subject": "x", "target": "y", "prompts": {"train": ["a {}"]}}, "never trained on"),
        ({"subject": "x", "target": "y", "prompts": ["a", "b {}", "c {}"]}, "has no slot"),
        ({"subject": "x", "target": "y", "must_stay": ["z"]}, "needs 'prompt:' and 'answer:'"),
        ({"subject": "x", "target": "y", "must_stay": 3}, "needs 'prompt:' and 'answer:'"),
    ],
)
def test_bad_files_are_told_in_one_sentence(written, content, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        ConceptPair.from_file(written(content))
    assert "\n" not in str(caught.value)


def test_missing_file_is_told_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        ConceptPair.from_file(tmp_path / "none.yaml")


def test_the_real_model_knows_what_everybody_knows(smollm, monkeypatch):
    table = known_facts(smollm).set_index("subject")
    assert table.loc[["France", "Germany", "Japan"], "known"].all()
    assert not table["known"].all()
    assert set(table.index) == {f.subject for f in facts("capital")}
    assert (table["n_prompts"] == 4).all()
    assert table["probability"].is_monotonic_decreasing
    for name, low in (("lowest", table["lowest"]), ("rank", 0)):
        assert (low <= table[name]).all()
    assert (table["lowest"] <= table["probability"]).all()
    assert (table["probability"] <= table["highest"] + 1e-12).all()

    def asked_again(*_):
        raise AssertionError("a known table is asked for again")

    monkeypatch.setattr(known_module, "answer_scores", asked_again)
    assert known_facts(smollm).set_index("subject").equals(table)


def test_what_the_model_does_not_know_is_told_in_one_sentence(smollm):
    require_known(smollm, FRANCE)
    with pytest.raises(UserError, match=r"not know France → Rome: .*'Rome'.*rank") as caught:
        require_known(smollm, ConceptPair("France", "Rome"))
    sentence = str(caught.value)
    assert "\n" not in sentence
    best = known_facts(smollm).query("known").iloc[0]
    assert f"{best.subject} → {best.target}" in sentence


OWN_PROMPTS = ["The capital of {} is", "The seat of government of {} is", "{}'s capital is"]
FILE = {"subject": "France", "target": "Paris", "prompts": OWN_PROMPTS}


def raw(**entries: str) -> str:
    """A pair's file, with entries as YAML text in place of what it has or beside it."""
    lines = {"subject": "France", "target": "Paris"} | entries
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def test_the_fact_to_forget_is_never_among_what_must_stay(written):
    """Whatever its relation is called: it would be asked to go and to stay."""
    own = ConceptPair.from_file(written(FILE))
    kept = own.same_subject()
    assert {p.relation for p in kept} == {"language", "currency", "continent", "nationality"}
    assert not any(own.states(p.subject, p.answers) for p in kept)
    alias = ConceptPair.from_file(written(FILE | {"target": "Lutetia", "aliases": ["paris"]}))
    assert "capital" not in {p.relation for p in alias.same_subject()}
    assert "capital" in {
        p.relation for p in ConceptPair("France", "euro", "currency").same_subject()
    }
    # French is the language there and what people are called: one target
    assert not any(
        p.target == "French" for p in ConceptPair("France", "French", "language").same_subject()
    )


def test_must_stay_refuses_the_fact_itself(written):
    about = {"prompt": "The capital of France is", "answer": "paris"}
    with pytest.raises(UserError, match="the fact that is to be forgotten"):
        ConceptPair.from_file(written(FILE | {"must_stay": [about]}))
    tower = {"prompt": "The Eiffel tower stands in", "answer": "Paris"}  # another subject
    assert ConceptPair.from_file(written(FILE | {"must_stay": [tower]})).must_stay


@pytest.mark.parametrize(
    ("subject", "template", "wanted"),
    [
        ("Japan", "The capital of {}, where Japanese is spoken, is", "Japan"),
        ("Guinea", "{} is not Equatorial Guinea; its capital is", "Guinea"),
        ("Mali", "In {} the Malian government sits in", "Mali"),
        ("Rome", "Of {}, as Romeo said, the river is", "Rome"),
        ("Japan", "{} and again {}, not Japanland:", "Japan"),
    ],
)
def test_the_subject_is_where_it_was_put_and_not_in_a_longer_word(
    smollm, subject, template, wanted
):
    ways = (Template(template),)
    pair = ConceptPair(subject, "x", "own", templates=dict.fromkeys(SPLITS, ways))
    (prompt,) = pair.prompts("heldout")
    tokenizer = smollm.tokenizer
    slot = template.rindex("{}") + (len(subject) - 2) * (template.count("{}") - 1)
    for asked in (prompt, prompt.with_text(f"Japanese Romeos say: {prompt} Mali Malian")):
        assert asked.text[slice(*asked.locate_subject())] == wanted
        start, end = subject_span(asked, tokenizer)
        ids = encode(tokenizer, asked.text)
        shift = asked.text.index(prompt.text)
        assert tokenizer.decode(ids[:end]).rstrip() == asked.text[: shift + slot + len(subject)]
        assert tokenizer.decode(ids[start:end]).strip() == wanted
    assert prompt.without_subject() == (
        template[: template.rindex("{}")].replace("{}", subject)
        + template[template.rindex("{}") + 2 :]
    ).replace("  ", " ")


def test_a_prompt_made_by_hand_names_its_subject_as_a_word():
    prompt = Prompt("In Japan, say the Japanese, one is", subject="Japan")
    assert prompt.locate_subject() == (3, 8)
    with pytest.raises(UserError, match="does not contain its subject"):
        Prompt("The Japanese capital is", subject="Japan").locate_subject()
    assert Prompt("日本の首都は", subject="日本").locate_subject() == (0, 2)


def test_few_shot_and_chat_prompts_know_where_the_subject_was_put(smollm):
    for prompt in (*FRANCE.few_shot(), *FRANCE.prompts("train"), *FRANCE.prompts("heldout")):
        assert prompt.text[slice(*prompt.slot)] == "France"
        assert prompt.slot[0] == prompt.text.rindex("France")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("target", "Yes", r"'target:' is Yes \(which YAML reads as yes or no\).*in quotes"),
        ("target", "NO", "'target:' is NO"),
        ("target", "007", "'target:' is 007"),
        ("target", "1.10", "'target:' is 1.10"),
        ("target", "12:30", "'target:' is 12:30"),
        ("target", ".nan", "'target:' is .nan"),
        ("target", "2024-01-02", "'target:' is 2024-01-02"),
        ("target", "[Paris, Lyon]", "'target:' is a list"),
        ("subject", "{a: 1}", "'subject:' is a mapping"),
        ("subject", "!!binary aGk=", "uses the tag"),
        ("subject", '"\\e[2J\\e]0;x\\a"', r"control characters"),
        ("subject", "x" * 400, "has 400 characters"),
        ("subject", "Paris", "both 'Paris'"),
        ("aliases", "[NO]", "'aliases:' is NO"),
        ("aliases", "[Lutetia, ]\n  ", None),
        ("aliases", "\n  - Lutetia\n  -", "'aliases:' is empty"),
        ("aliases", "[[a, b]]", "'aliases:' is a list"),
        ("aliases", "{a: b}", "'aliases:' is a mapping"),
        ("relation", "[capital]", "'relation:' is a list"),
        ("must_stay", "[{prompt: Is it, answer: No}]", "'must_stay:answer:' is No"),
        ("must_stay", "[{prompt: null, answer: null}]", "'must_stay:prompt:' is null"),
        ("must_stay", "[{prompt: '', answer: x}]", "'must_stay:prompt:' is empty"),
        ("must_stay", "[{prompt: a, anwser: b, answer: c}]", "there is no 'anwser'"),
        ("prompts", "\n  - '{} a'\n  - '{} b'\n  - Q: What of {}? A", "heldout:' is a map"),
        ("prompts", "{train: {a: '{}'}, dev: '{}', heldout: '{}'}", "train:' is a mapping"),
        ("prompts", "['Paris. The capital of {} is', 'a {}', 'b {}']", "tells the answer"),
        ("prompts", "{train: 'a {}', dev: [], heldout: 'a {}'}", "'prompts:dev:' is empty"),
    ],
)  # fmt: skip
def test_what_yaml_does_not_read_as_the_text_that_stands_there_is_told(
    written, key, value, sentence
):
    path = written(raw(**{key: value}))
    if sentence is None:
        assert ConceptPair.from_file(path).aliases == ("Lutetia",)
        return
    with pytest.raises(UserError, match=sentence) as caught:
        ConceptPair.from_file(path)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_text_of_a_file_is_stripped_and_whole_numbers_are_text(written):
    pair = ConceptPair.from_file(
        written(
            'subject: " The year "\ntarget: 1984\naliases: [" Orwell\'s "]\nprompts:\n'
            '  - "The book of {} is "\n  - |\n    {} is called\n  - "{} was "\n'
            'must_stay: [{prompt: "Two and two is ", answer: 4}]\n'
        )
    )
    assert (pair.subject, pair.answers) == ("The year", (" 1984", " Orwell's"))
    assert [str(p) for p in pair.prompts("train")] == ["The book of The year is"]
    assert [str(p) for p in pair.prompts("dev")] == ["The year is called"]
    assert pair.must_stay[0].answers == (" 4",) and str(pair.must_stay[0]) == "Two and two is"
    assert ConceptPair(" France ", " Paris ") == FRANCE
    with pytest.raises(UserError, match="alias of 'Paris' is empty"):
        ConceptPair("France", "Paris", aliases=(" ",))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The capital of {} is", " Paris"),
        ('The capital of {} is "', "Paris"),
        ('{"country": "{}", "capital": "', "Paris"),
        ("The capital of {} is **", "Paris"),
        ("Capital ({}): (", "Paris"),
        ('The capital of "{}"', " Paris"),
        ("**{}**", " Paris"),
        ("{}'s", " Paris"),
        ("{}的首都是", "Paris"),
        ("{}の首都は「", "Paris"),
        ("{} 的首都：", "Paris"),
        ("Столица {} —", " Paris"),
    ],
)
def test_an_answer_follows_without_a_space_where_none_belongs(text, answer):
    ways = (Template(text),)
    pair = ConceptPair("France", "Paris", "own", templates=dict.fromkeys(SPLITS, ways))
    (prompt,) = pair.prompts("train")
    assert prompt.answers == (answer,)


def test_the_model_knows_the_fact_in_prompts_that_open_a_quote(smollm):
    ways = (Template('The capital of {} is "'), Template('{"country": "{}", "capital": "'))
    pair = ConceptPair("France", "Paris", "own", templates=dict.fromkeys(SPLITS, ways))
    require_known(smollm, pair)  # raises where it looks for ' Paris' instead


def test_what_is_not_known_is_told_with_what_was_asked_for_and_what_is_said_instead(smollm):
    with pytest.raises(
        UserError, match="after 'The capital of France is' it says ' Paris', not ' Rome'"
    ):
        require_known(smollm, ConceptPair("France", "Rome"))


def test_names_are_found_as_words_in_scripts_without_spaces_too():
    assert bool(name_pattern("Paris").search("in Parisian")) is False
    assert name_pattern("Paris", "Par").search("in Paris.")[0] == "Paris"
    assert name_pattern("巴黎").search("法国的首都是巴黎市")[0] == "巴黎"
    assert not name_pattern("").search("Paris")


HOUSES = {  # a relation that the Factbook does not have
    "subject": "Hermione",
    "target": "Granger",
    "prompts": ["{} is called", "Miss {}", "Her name is {}"],
    "others": [
        {"subject": "Harry", "target": "Potter", "associated": ["Black"]},
        {"subject": "Ron", "target": "Weasley", "aliases": ["Weasly"]},
        {"subject": "Luna", "target": "Lovegood"},
        {"subject": "Emma", "target": "Granger"},
    ],
}


def test_other_subjects_of_ones_own_stand_where_the_factbooks_would(written):
    pair = ConceptPair.from_file(written(HOUSES))
    compared, neighbours = pair.comparison_pairs(), pair.neighbours()
    assert {p.subject for p in compared} == {"Harry", "Ron", "Luna", "Emma"}
    assert {p.subject for p in neighbours} == {"Harry", "Ron", "Luna"}  # Emma has the same target
    asked = {str(p): p.answers for other in compared for p in other.prompts("heldout")}
    assert asked["Her name is Ron"] == (" Weasley", " Weasly")
    assert pair.neighbours(2, seed=1) == pair.neighbours(2, seed=1)
    ron = next(p for p in neighbours if p.subject == "Ron")
    assert {p.subject for p in ron.comparison_pairs()} == {"Harry", "Luna", "Emma"}
    control = pair.about("Ron", "Granger")  # what an attack is compared with has the same others
    assert {p.subject for p in control.neighbours()} == {"Harry", "Luna"}
    assert "Harry" not in str([p for f in FRANCE.comparison_pairs() for p in f.prompts("train")])


def test_solved_examples_are_about_others_and_differ_between_splits(written):
    pair = ConceptPair.from_file(written(HOUSES))
    (train,), (heldout,) = pair.few_shot(1, split="train"), pair.few_shot(1)
    assert str(train) == "Harry is called Potter\nHermione is called"
    assert str(heldout) == "Her name is Ron Weasley\nHer name is Hermione"
    assert train.text[slice(*train.slot)] == "Hermione"
    assert pair.few_shot(3) == []  # a shorter prompt would come twice


def test_other_subjects_change_what_a_pair_is_kept_under(written):
    pair = ConceptPair.from_file(written(HOUSES))
    other = ConceptPair.from_file(written(HOUSES | {"others": HOUSES["others"][:2]}))
    assert pair == other and pair.fingerprint() != other.fingerprint()


def test_a_pair_of_ones_own_without_others_says_what_it_is_compared_with(written, caplog):
    ConceptPair.from_file(written({k: v for k, v in HOUSES.items() if k != "others"}))
    assert "names no 'others:'" in caplog.text


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ([{"subject": "Hermione", "target": "x"}], "'Hermione', which is the subject or comes"),
        (
            [{"subject": "Ron", "target": "x"}, {"subject": "Ron", "target": "y"}],
            "'Ron', which is the subject or comes twice",
        ),
        ([{"subject": "Ron"}], "each item of 'others:' needs 'subject:' and 'target:'"),
        (["Ron"], "each item of 'others:' needs 'subject:' and 'target:'"),
        (
            [{"subject": "Ron", "target": "x", "prompts": "y"}],
            "no 'prompts'; known are subject, target, aliases, associated",
        ),
    ],
)
def test_bad_others_are_told_in_one_sentence(written, others, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        ConceptPair.from_file(written(HOUSES | {"others": others}))
    assert "\n" not in str(caught.value)
