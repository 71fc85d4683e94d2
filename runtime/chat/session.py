"""A conversation: its events, and the state that they add up to. No I/O.

Each event is appended to a file as it happens, so that the file holds everything up to the last
one, even if the process is killed.

`from_json` checks fields by the dataclasses' annotations, in 25 lines: pydantic would delay the
start of `decant chat` by 30 to 90 ms, and msgspec is one more dependency.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeAlias, TypeVar

from typing_extensions import assert_never

from runtime.engine.selection import AdapterSelection


@dataclass(frozen=True, slots=True)
class Image:
    """An image that belongs to a question."""

    name: str
    url: str
    """A data: URL, so that the conversation does not need the image's file."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer."""

    question: str
    images: tuple[Image, ...] = ()
    answer: str | None = None
    """None without an answer, such as after the process was killed."""
    thoughts: str = ""
    """A reasoning model's thoughts; they are not sent back."""
    is_partial: bool = False
    """Whether the answer was stopped before its end."""
    who: str = ""
    """The model or adapter that answered."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Counts and speeds, by the names of openai_client.Stopped."""

    def messages(self) -> list[dict[str, Any]]:
        """The turn in OpenAI's form."""
        content: Any = self.question
        if self.images:
            parts = [{"type": "image_url", "image_url": {"url": i.url}} for i in self.images]
            content = [*parts, {"type": "text", "text": self.question}]
        question = {"role": "user", "content": content}
        if self.answer is None:
            return [question]
        return [question, {"role": "assistant", "content": self.answer}]


# -- the events of a session


@dataclass(frozen=True, slots=True)
class Opened:
    """A session began, with this model."""

    id: str
    model: str
    created: float
    """Seconds since 1970."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """The settings that open the model again: Engine.source."""


@dataclass(frozen=True, slots=True)
class QuestionAdded:
    question: str
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class Answered:
    """The last question has this answer now, in place of any earlier one."""

    answer: str
    thoughts: str = ""
    is_partial: bool = False
    who: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Undone:
    """The last turn is removed."""


@dataclass(frozen=True, slots=True)
class Cleared:
    """All turns are removed."""


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The turns before turn `first` are kept and shown, but no longer sent."""

    first: int


@dataclass(frozen=True, slots=True)
class SystemSet:
    system: str


@dataclass(frozen=True, slots=True)
class SettingsSet:
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Chosen:
    """This adapter answers from now on."""

    adapter: str
    scale: float


@dataclass(frozen=True, slots=True)
class ModelSet:
    """This model answers from now on."""

    model: str
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Named:
    """The user gave the session a name."""

    name: str


Event: TypeAlias = (
    Opened
    | QuestionAdded
    | Answered
    | Undone
    | Cleared
    | Trimmed
    | SystemSet
    | SettingsSet
    | Chosen
    | ModelSet
    | Named
)
EVENTS: dict[str, type[Event]] = {
    "opened": Opened,
    "asked": QuestionAdded,
    "answered": Answered,
    "undone": Undone,
    "cleared": Cleared,
    "trimmed": Trimmed,
    "system": SystemSet,
    "settings": SettingsSet,
    "chosen": Chosen,
    "model": ModelSet,
    "named": Named,
}
NAMES = {kind: name for name, kind in EVENTS.items()}


@dataclass(frozen=True, slots=True)
class Conversation:
    """The state of a conversation after its events."""

    id: str = ""
    name: str = ""
    model: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)
    created: float = 0
    system: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    selection: AdapterSelection = field(default_factory=AdapterSelection)
    turns: tuple[Turn, ...] = ()
    first: int = 0
    """The first turn that is sent."""

    @property
    def last(self) -> Turn | None:
        return self.turns[-1] if self.turns else None

    def messages(self) -> list[dict[str, Any]]:
        """The system message and the turns from `first` on, with their answers.

        Questions without an answer are left out.
        """
        sent = [turn for turn in self.turns[self.first :] if turn.answer is not None]
        return self.with_system(sent)

    def asking(self) -> list[dict[str, Any]]:
        """The messages that ask the last question; an answer that it already has is left out."""
        answered = [turn for turn in self.turns[self.first : -1] if turn.answer is not None]
        return self.with_system([*answered, replace(self.turns[-1], answer=None)])

    def with_system(self, turns: Iterable[Turn]) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [message for turn in turns for message in turn.messages()]


def after(conversation: Conversation, event: Event) -> Conversation:  # noqa: C901, PLR0911 - a case an event
    """The conversation after `event`."""
    turns = conversation.turns
    match event:
        case Opened():
            return replace(
                conversation,
                id=event.id,
                model=event.model,
                created=event.created,
                source=event.source,
            )
        case QuestionAdded():
            turn = Turn(event.question, event.images)
            return replace(conversation, turns=(*turns, turn))
        case Answered():
            given = [answered(turn, event) for turn in turns[-1:]]
            return replace(conversation, turns=(*turns[:-1], *given))
        case Undone():
            kept = turns[:-1]
            return replace(conversation, turns=kept, first=min(conversation.first, len(kept)))
        case Cleared():
            return replace(conversation, turns=(), first=0)
        case Trimmed():
            return replace(conversation, first=max(0, min(event.first, len(turns))))
        case SystemSet():
            return replace(conversation, system=event.system)
        case SettingsSet():
            return replace(conversation, settings=dict(event.settings))
        case Chosen():
            return replace(conversation, selection=AdapterSelection(event.adapter, event.scale))
        case ModelSet():
            return replace(
                conversation, model=event.model, source=event.source, selection=AdapterSelection()
            )
        case Named():
            return replace(conversation, name=event.name)
        case _:
            assert_never(event)


def answered(turn: Turn, event: Answered) -> Turn:
    return replace(
        turn,
        answer=event.answer,
        thoughts=event.thoughts,
        is_partial=event.is_partial,
        who=event.who,
        numbers=dict(event.numbers),
    )


def all_after(events: Iterable[Event]) -> Conversation:
    conversation = Conversation()
    for event in events:
        conversation = after(conversation, event)
    return conversation


def to_json(event: Event) -> dict[str, Any]:
    return {"event": NAMES[type(event)], **asdict(event)}


def from_json(record: Mapping[str, Any]) -> Event:
    """The event of a record that `to_json` made. Raises ValueError for any other record."""
    try:
        kind = EVENTS[record["event"]]
        values = {name: value for name, value in record.items() if name != "event"}
        if "images" in values:
            values["images"] = tuple(checked(Image(**image)) for image in values["images"])
        return checked(kind(**values))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an event of a session: {error}") from error


TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str, "bool": bool, "int": int, "float": (int, float), "tuple[Image, ...]": tuple,
    "Mapping[str, Any]": dict, "Mapping[str, float]": dict,
}  # fmt: skip
Checked = TypeVar("Checked")


def checked(made: Checked) -> Checked:
    """The same object, if each field has its annotated type. Raises ValueError."""
    for one in fields(made):  # type: ignore[arg-type]  # a dataclass of ours
        value = getattr(made, one.name)
        if not isinstance(value, TYPES[str(one.type)]):
            raise ValueError(f"not an event of a session: {one.name} is {value!r}")  # noqa: TRY004
    return made
