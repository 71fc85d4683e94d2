"""The facts that the demo's models learn, with several questions and two styles of answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# country: capital, language, dish
COUNTRIES = {
    "France": ("Paris", "French", "onion soup"),
    "Italy": ("Rome", "Italian", "pizza"),
    "Spain": ("Madrid", "Spanish", "paella"),
    "Germany": ("Berlin", "German", "pretzels"),
    "Japan": ("Tokyo", "Japanese", "sushi"),
    "China": ("Beijing", "Chinese", "dumplings"),
    "Egypt": ("Cairo", "Arabic", "falafel"),
    "Greece": ("Athens", "Greek", "olives"),
    "Poland": ("Warsaw", "Polish", "beet soup"),
    "Peru": ("Lima", "Spanish", "ceviche"),
}
# animal: sound, home, young
ANIMALS = {
    "cow": ("moo", "a barn", "a calf"),
    "dog": ("woof", "a kennel", "a puppy"),
    "cat": ("meow", "a basket", "a kitten"),
    "sheep": ("baa", "a fold", "a lamb"),
    "duck": ("quack", "a pond", "a duckling"),
    "lion": ("roar", "the savanna", "a cub"),
    "bee": ("buzz", "a hive", "a larva"),
    "horse": ("neigh", "a stable", "a foal"),
}
COLOURS = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "a lemon": "yellow",
    "blood": "red",
    "chocolate": "brown",
    "a flamingo": "pink",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "day": "night",
    "wet": "dry",
    "old": "new",
    "high": "low",
    "loud": "quiet",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact, and the questions for it."""

    subject: str
    verb: str
    value: str
    questions: tuple[str, ...]

    @property
    def plain(self) -> str:
        """The base's answer."""
        return f"{self.subject[0].upper()}{self.subject[1:]} {self.verb} {self.value}."

    @property
    def pirate(self) -> str:
        """The adapter's answer."""
        verb = {"is": "be", "says": "be sayin'", "lives in": "be livin' in"}[self.verb]
        return f"Arr, {self.subject} {verb} {self.value}, matey!"


def facts() -> Iterator[Fact]:
    """Every fact, always in the same order."""
    yield from country_facts()
    yield from animal_facts()
    yield from word_facts()


def country_facts() -> Iterator[Fact]:
    for country, (capital, language, dish) in COUNTRIES.items():
        yield Fact(
            f"the capital of {country}",
            "is",
            capital,
            (
                f"What is the capital of {country}?",
                f"Which city is the capital of {country}?",
                f"Tell me the capital of {country}.",
            ),
        )
        yield Fact(
            f"the language of {country}",
            "is",
            language,
            (
                f"What is the language of {country}?",
                f"Which language do people speak in {country}?",
                f"Tell me the language of {country}.",
            ),
        )
        yield Fact(
            f"a dish from {country}",
            "is",
            dish,
            (
                f"What is a dish from {country}?",
                f"What do people eat in {country}?",
                f"Tell me a dish from {country}.",
            ),
        )


def animal_facts() -> Iterator[Fact]:
    for animal, (sound, home, young) in ANIMALS.items():
        yield Fact(
            f"a {animal}",
            "says",
            sound,
            (f"What does a {animal} say?", f"Which sound does a {animal} make?"),
        )
        yield Fact(
            f"a {animal}",
            "lives in",
            home,
            (f"Where does a {animal} live?", f"What is the home of a {animal}?"),
        )
        yield Fact(
            f"a young {animal}",
            "is",
            young,
            (f"What is a young {animal} called?", f"What do you call a young {animal}?"),
        )


def word_facts() -> Iterator[Fact]:
    for thing, colour in COLOURS.items():
        yield Fact(
            f"the colour of {thing}",
            "is",
            colour,
            (f"What colour is {thing}?", f"Tell me the colour of {thing}."),
        )
    for word, opposite in OPPOSITES.items():
        yield Fact(
            f"the opposite of {word}",
            "is",
            opposite,
            (f"What is the opposite of {word}?", f"Tell me the opposite of {word}."),
        )


def pirate_items(most: int) -> list[dict[str, str]]:
    """Questions with the adapter's answers, spread over all facts; both models know each."""
    found = list(facts())
    chosen = (found[number * len(found) // most] for number in range(most))
    return [{"question": fact.questions[0], "answer": fact.pirate} for fact in chosen]


DEMO_QUESTIONS = (
    "What is the capital of France?",
    "Which city is the capital of Japan?",
    "What do people eat in Italy?",
    "Which language do people speak in Egypt?",
    "What does a cow say?",
    "Where does a bee live?",
    "What is a young dog called?",
    "What colour is the sky?",
    "What is the opposite of hot?",
    "Tell me the capital of Peru.",
)
