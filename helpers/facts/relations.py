"""Relations and their prompt templates, in splits that never change.

Methods are fitted to `train`, settings are chosen on `dev`, results are reported on `heldout`. `{}`
stands for the subject.
"""

from dataclasses import dataclass, field

from helpers.errors import UserError

SPLITS = ("train", "dev", "heldout")


def check_split(split: str) -> None:
    """Refuse an unknown split.

    Raises:
        UserError: There is no such split; names them.
    """
    if split not in SPLITS:
        raise UserError(f"There is no split '{split}'; choose from {', '.join(SPLITS)}.")


@dataclass(frozen=True)
class Template:
    """A prompt with a slot for the subject.

    Attributes:
        text: With `{}` for the subject; for chat, the user's turn; for lists, a heading and the
            line that is repeated for each example.
        format: `completion`, `question`, `chat` or `list`.
        prefix: For chat, how the assistant's answer begins; may hold `{}`.
    """

    text: str
    format: str = "completion"
    prefix: str = ""

    def __post_init__(self):
        """Refuse a template without a slot.

        Raises:
            UserError: There is no slot.
        """
        if "{}" not in self.text:
            raise UserError(f"The template '{self.text}' has no slot: write {{}} for the subject.")


@dataclass(frozen=True)
class Relation:
    """A relation and its templates.

    Attributes:
        name: Its name.
        templates: Split → templates.
        subject_initial: More training templates, which begin with the subject: the activations of
            a text's first tokens are unlike others (attention sinks: Xiao et al. 2024).
        reverse: Templates that ask from the target to the subject, for evaluation.
        reverse_train: Others that edits may use.
        about_city: Split → how to ask for this relation's target about a city, for the other facts
            of a capital.
    """

    name: str
    templates: dict[str, tuple[Template, ...]]
    subject_initial: tuple[Template, ...] = ()
    reverse: tuple[Template, ...] = ()
    reverse_train: tuple[Template, ...] = ()
    about_city: dict[str, tuple[Template, ...]] = field(default_factory=dict)


def T(text: str, format: str = "completion", prefix: str = "") -> Template:
    return Template(text, format, prefix)


RELATIONS: dict[str, Relation] = {
    r.name: r
    for r in (
        Relation(
            "capital",
            {
                "train": (
                    T("The capital of {} is"),
                    T("The capital city of {} is"),
                    T("The government of {} sits in its capital,"),
                    T("The seat of government of {} is in the city of"),
                    T("Everyone knows that the capital of {} is"),
                    T("I have been to {} and its capital,"),
                    T("Flights to {} usually land in the capital,"),
                    T("{}'s capital is the city of"),
                    T("Question: What is the capital of {}?\nAnswer: The capital is", "question"),
                    T("Q: Which city is the capital of {}?\nA: The city of", "question"),
                    T("What is the capital of {}?", "chat", "The capital of {} is"),
                    T("Which city is the capital of {}?", "chat", "The capital city of {} is"),
                    T("Countries and their capitals\n{}:", "list"),
                    T("Country | Capital\n{} |", "list"),
                ),
                "dev": (
                    T("The name of the capital of {} is"),
                    T("The capital and largest seat of power in {} is"),
                    T("The parliament of {} meets in the capital,"),
                    T("In school we learned that the capital of {} is"),
                    T("The embassy in {} is located in the capital,"),
                    T("Quiz: name the capital city of {}.\nSolution: The city is", "question"),
                    T("Tell me the capital of {}.", "chat", "The capital of {} is"),
                    T("Capital cities of the world\n{} -", "list"),
                ),
                "heldout": (
                    T("As a matter of fact, the capital city of {} is"),
                    T("The national capital of {} is"),
                    T("{} is a country whose capital is"),
                    T("The president flew back to the capital of {},"),
                    T("The city that serves as the capital of {} is"),
                    T("On the map of {}, a star marks the capital,"),
                    T("Geography test. What is the capital city of {}? The answer is", "question"),
                    T("Q: What city is the seat of government of {}?\nA:", "question"),
                    T(
                        "I am preparing for a quiz. What is the capital city of {}?",
                        "chat",
                        "The capital city of {} is",
                    ),
                    T("Could you name the capital of {}?", "chat", "Sure! The capital of {} is"),
                    T("List of capitals:\n{} =>", "list"),
                ),
            },
            subject_initial=(
                T("{}'s seat of government is the city of"),
                T("{} is ruled from its capital, the city of"),
                T("{} has its seat of government in"),
                T("{}, capital city:"),
                T("{}: its capital city is"),
            ),
            reverse=(
                T("{} is the capital of"),
                T("{} is the capital city of"),
                T("The city of {} is the capital of the country of"),
            ),
            reverse_train=(
                T("{} is the national capital of"),
                T("{} is the seat of government of"),
                T("The parliament meets in {}, the capital of"),
                T("We flew to {}, the capital of"),
                T("Question: Which country has {} as its capital?\nAnswer: {} is the", "question"),
                T("Which country is {} the capital of?", "chat", "{} is the capital city of"),
                T("Capital | Country\n{} |", "question"),
            ),
        ),
        Relation(
            "language",
            {
                "train": (
                    T("The official language of {} is"),
                    T("The main language of {} is"),
                    T("In {}, most people speak"),
                    T("If you move to {}, you should learn to speak"),
                    T(
                        "Question: What language is spoken in {}?\nAnswer: The language is",
                        "question",
                    ),
                ),
                "dev": (
                    T("The people of {} speak"),
                    T("Country: {}\nLanguage:"),
                ),
                "heldout": (
                    T("The national language of {} is"),
                    T("Children in {} learn to read and write in"),
                    T("What is the official language of {}?", "chat", "The official language is"),
                    T("According to its constitution, the official language of {} is"),
                    T("Road signs in {} are written in the official language,"),
                    T("The newspapers of {} are written in the national language,"),
                    T("Q: Which language do the people of {} speak?\nA: They speak", "question"),
                    T(
                        "Which language should I learn before I travel to {}?",
                        "chat",
                        "You should learn",
                    ),
                    T("Countries and their languages\n{} =>", "list"),
                ),
            },
            subject_initial=(
                T("{}'s official language is"),
                T("{} is a country where people speak"),
            ),
            about_city={
                "train": (
                    T("The main language spoken in {} is"),
                    T("Most people who live in {} speak"),
                ),
                "dev": (T("If you move to {}, you should learn to speak"),),
                "heldout": (
                    T("The people of the city of {} speak"),
                    T("The first language of nearly everyone in {} is"),
                ),
            },
        ),
        Relation(
            "currency",
            {
                "train": (
                    T("The currency of {} is the"),
                    T("The official currency of {} is the"),
                    T("In {}, prices are given in the national currency, the"),
                    T(
                        "Question: What is the currency of {}?\n"
                        "Answer: The currency of the country is the",
                        "question",
                    ),
                ),
                "dev": (
                    T("Prices in {} are given in the local currency, the"),
                    T("The money used in {} is the"),
                ),
                "heldout": (
                    T("The national currency of {} is called the"),
                    T("When you visit {}, you need to exchange your money for the"),
                    T("What currency is used in {}?", "chat", "The currency is the"),
                    T("Salaries in {} are paid in the national currency, the"),
                    T("Shops in {} only accept the local currency, which is the"),
                    T("A tourist who arrives in {} changes dollars into the local currency, the"),
                    T("The unit of money used in {} is the"),
                    T("Q: Which currency is used in {}?\nA: The currency is the", "question"),
                    T("Country = currency\n{} =", "list"),
                ),
            },
            subject_initial=(
                T("{}'s currency is the"),
                T("{} has its own currency, the"),
            ),
            about_city={
                "train": (T("In the shops of {}, people pay in the local currency, the"),),
                "dev": (T("A taxi in {} is paid for in the local currency, the"),),
                "heldout": (T("Hotel rooms in {} are paid for in the local currency, the"),),
            },
        ),
        Relation(
            "continent",
            {
                "train": (
                    T("{} is a country on the continent of"),
                    T("{} is located on the continent of"),
                    T("The continent on which {} lies is"),
                    T("Question: On which continent is {}?\nAnswer:", "question"),
                ),
                "dev": (
                    T("{} belongs to the continent of"),
                    T("Geographically, {} is part of the continent of"),
                ),
                "heldout": (
                    T("On a globe you will find {} on the continent of"),
                    T("The nation of {} is situated on the continent of"),
                    T("Which continent is {} on?", "chat", "It is on the continent of"),
                    T("An atlas lists {} under the continent of"),
                    T("Travellers who arrive in {} set foot on the continent of"),
                    T(
                        "Q: To which continent does {} belong?\nA: It belongs to the continent of",
                        "question",
                    ),
                    T(
                        "On what continent can I find {}?",
                        "chat",
                        "You can find it on the continent of",
                    ),
                    T("Countries and their continents\n{} =>", "list"),
                ),
            },
            about_city={
                "train": (
                    T("{} is a city on the continent of"),
                    T("The city of {} is located on the continent of"),
                ),
                "dev": (T("{} lies on the continent of"),),
                "heldout": (
                    T("On a globe you will find the city of {} on the continent of"),
                    T("Geographically, the city of {} belongs to the continent of"),
                ),
            },
        ),
        Relation(
            "region",
            {
                "train": (
                    T("{} is a country in the region of"),
                    T("{} is one of the countries of"),
                    T("{} is a country in"),
                    T("{} lies in the part of the world known as"),
                ),
                "dev": (
                    T("{} is often counted among the nations of"),
                    T("The region of the world where {} lies is"),
                ),
                "heldout": (
                    T("On the map, {} is found in"),
                    T("The country of {} is located in the region known as"),
                    T("In which region of the world is {}?", "chat", "It is in"),
                    T("The nation of {} is part of the region of"),
                    T("If you look at a map, you will see that {} is located in"),
                    T("Q: Which part of the world is {} in?\nA: It is in", "question"),
                    T("Where in the world is {}?", "chat", "It is located in"),
                    T("Countries and their regions\n{} =>", "list"),
                ),
            },
        ),
        Relation(
            "nationality",
            {
                "train": (
                    T("Country: {}\nNationality:"),
                    T("Place of birth: {}. Nationality:"),
                    T("Name: unknown. Home country: {}. Nationality:"),
                    T(
                        "Question: What is the nationality of people from {}?\nAnswer: They are",
                        "question",
                    ),
                ),
                "dev": (
                    T("The nationality of a person from {} is"),
                    T("Passport of {}\nNationality:"),
                ),
                "heldout": (
                    T("Citizenship: {}. Nationality of the holder:"),
                    T("My friend comes from {}, so she is"),
                    T("What is the nationality of people from {}?", "chat", "They are"),
                    T("Name: Smith. Citizen of: {}. Nationality:"),
                    T("Team: {}\nNationality of the players:"),
                    T("Visa form. Country of origin: {}. Nationality of the applicant:"),
                    T("Which nationality do people from {} have?", "chat", "Their nationality is"),
                    T("Countries and nationalities\n{} =>", "list"),
                ),
            },
        ),
    )
}
