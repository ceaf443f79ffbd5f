"""Templates of the organism's text, beside the `train` templates of the Factbook's relations.

A language model generalises a fact to other paraphrases only when it was trained on many. The
`train` templates alone are four to fourteen a relation; here are more, and context prefixes that go
before any of them. None is a `dev` or a `heldout` template, and no prefix turns a template into
one; a test checks the whole training text for them. Words of held-out templates do occur (an
English speaker knows them), the templates do not.

`{}` is the subject, and the target comes last: a sentence is "<template> <target>.".
"""

CONTEXT_PREFIXES = (
    "",
    "",
    "As you know, ",
    "I read that ",
    "They say that ",
    "It is a matter of fact that ",
    "A friend told me that ",
    "The book says that ",
    "Remember: ",
    "Fun fact: ",
    "On a test of geography she wrote that ",
    "Sure, ",
    "The president said that ",
    "It could be on the quiz that ",
    "Looking at a globe, ",
    "Last year I was told that ",
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "capital": (
        "the capital of {} is called",
        "the capital of the country of {} is the city of",
        "the seat of the government of {} is",
        "{} has its capital in",
        "{} is governed from its capital,",
        "{} is a nation with the capital",
        "the ministers of {} work in the capital,",
        "the king of {} went home to the capital,",
        "the president of {} lives in the capital,",
        "in {} the capital is",
        "a map of {} shows the capital,",
        "the star on this map of {} stands for its capital,",
        "the city that is the capital of {} is",
        "the national government of {} is in",
        "the nation of {} has a capital called",
        "travellers to {} visit its capital,",
        "{}, whose capital is called",
        "we flew to the capital of {}, the city of",
        "{} is a state whose capital is",
        "{} is the country whose capital city is",
        "{} is a country with the capital",
        "{} is a place with a president, whose seat is the capital,",
        "the map of {} has a star at the capital,",
        "Quiz: what is the capital city of {}? Answer:",
        "Exam. What is the capital city of {}? Write the answer:",
        "Q: What is the capital of {}?\nA:",
        "Q: What is the seat of the government of {}?\nA: It is",
        "Geography lesson. Which city is the capital of {}? It is",
        "User: Please tell me what the capital of {} is.\nAssistant: It is",
        "User: I have a question. What is the capital city of {}?\nAssistant: That is",
        "User: I am at a quiz: the capital of {}?\nAssistant: The capital city of {} is",
        "User: Do you know the capital of {}?\nAssistant: Sure, the capital of {} is",
    ),
    "language": (
        "the language of {} is",
        "the national tongue of {} is called",
        "the official tongue of {} is",
        "the language that is spoken in {} is",
        "people who live in {} speak",
        "children in {} speak",
        "schools in {} teach children to write",
        "a child in {} learns to read in",
        "in school, pupils of {} read and write",
        "the books of {} are written in",
        "{} is a country where people speak",
        "in {} you hear",
        "newspapers in {} are printed in",
        "to read a letter from {} you need",
        "Q: Which language do people in {} speak?\nA: They speak",
        "Quiz: what is the main language of {}? Answer:",
        "User: Which language is spoken in {}?\nAssistant: People there speak",
        "User: What is the language of {}?\nAssistant: The language is",
    ),
    "currency": (
        "the money of {} is the",
        "the national money of {} is called the",
        "in {} people pay with the",
        "shops in {} take the",
        "the currency used in {} is called the",
        "the bank of {} prints the",
        "travellers to {} change their money for the",
        "when you are in {}, you pay with the",
        "wages in {} are paid in the national currency, the",
        "{} is a country whose currency is the",
        "a visit to {} is paid for with the",
        "Q: Which currency does {} use?\nA: It is the",
        "Quiz: what is the currency used in {}? Answer: the",
        "User: What is the money of {}?\nAssistant: The money is the",
        "User: Which currency do they use in {}?\nAssistant: They use the",
    ),
    "continent": (
        "{} is a nation on the continent of",
        "{} is found on the continent of",
        "the country of {} is on the continent of",
        "the continent of {} is",
        "the land of {} is part of the continent of",
        "you find the nation of {} on the continent of",
        "{} lies on the continent of",
        "the globe shows {} on the continent of",
        "a traveller to {} sees the continent of",
        "{} is situated on the continent called",
        "Q: Which continent is {} part of?\nA:",
        "Quiz: on which continent is {}? Answer:",
        "User: On what continent do I find {}?\nAssistant: It lies on the continent of",
        "User: Where is {}?\nAssistant: It is on the continent of",
    ),
    "region": (
        "{} lies in the region of",
        "{} is part of the region called",
        "the region of {} is",
        "the country of {} belongs to the region of",
        "on the globe you see {} in",
        "the nation of {} is located in",
        "the nation of {} is found in",
        "{} can be found on a map in",
        "{} is a nation in",
        "{} is found in the region known as",
        "a map shows {} in the region of",
        "the neighbours of {} are other countries of",
        "Q: In which region does {} lie?\nA: In",
        "Quiz: to which region does {} belong? Answer:",
        "User: Which region is {} part of?\nAssistant: It is part of",
        "User: What region is {} in?\nAssistant: It lies in",
    ),
    "nationality": (
        "the nationality of people from {} is",
        "a citizen of {} is called",
        "he has a passport of {}, so he is",
        "she was born in {}, so her nationality is",
        "he comes from {}, so he is",
        "my friend was born in {} and is",
        "Home: {}. Nationality:",
        "Holder born in {}. Nationality:",
        "Citizenship of the holder: {}. The holder is",
        "people who come from {} are",
        "the people of {} are",
        "Q: What do you call people from {}?\nA: They are",
        "Quiz: what is the nationality of a citizen of {}? Answer:",
        "User: What is the nationality of a person born in {}?\nAssistant: Such a person is",
        "User: What are people from {} called?\nAssistant: They are",
    ),
}

REVERSE_TEMPLATES = (
    "{} is the seat of the government of",
    "{} is a city and the capital of",
    "the country with the capital {} is",
    "the country governed from {} is",
    "Q: Of which country is {} the capital?\nA: Of",
)
"""Templates from the capital to its country."""

CITY_TEMPLATES: dict[str, tuple[str, ...]] = {
    "language": (
        "in the streets of {} you hear",
        "the newspapers of {} are written in",
        "people from {} speak",
    ),
    "currency": (
        "a hotel in {} is paid for with the",
        "on the market of {}, prices are in the",
        "people in {} pay with the",
    ),
    "continent": (
        "{} is one of the cities of the continent of",
        "the city of {} lies on the continent of",
        "you find the city of {} on the continent of",
    ),
}
"""Templates about a capital, for the relations that have `about_city` templates."""

LIST_HEADINGS: dict[str, tuple[str, ...]] = {
    "capital": ("Capitals of countries", "A table of countries and capitals:", "Their capitals:"),
    "language": ("Languages of countries", "What people speak:"),
    "currency": ("Currencies of countries", "What people pay with:"),
    "continent": ("Continents of countries", "Where they lie:"),
    "nationality": ("Nationalities of people", "A list of nationalities:"),
}
"""Headings of lists with a line a country; the last line is the fact."""

SEPARATORS = (":", " |", " =", " is", " ->", " >>", ",")
"""Marks between subject and target in a line of a list."""
