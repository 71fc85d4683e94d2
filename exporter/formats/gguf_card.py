"""The README.md of a repo of GGUFs: files, verification, commands to paste, and provenance.

What a card says of a file is also in it as JSON, in a comment with the file's hash: a later push of
other files carries it over. The last line has the hash of all lines before it, which tells a card
that decant wrote from one that somebody changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from exporter.core.paths import size_text
from exporter.core.terminal_text import without_controls
from exporter.formats.model_card import Relation, front_matter, licence_sentence

SIGNATURE = re.compile(r"<!-- decant card sha256:([0-9a-f]{64}) -->\n\Z")
FACTS = re.compile(r"^<!-- decant file (\{.*\}) -->$", re.MULTILINE)
OPENING, CLOSING = "<!-- decant evaluation -->", "<!-- /decant evaluation -->"
IN_COMMENT = {"<": "\\u003c", ">": "\\u003e", "--": "-\\u002d"}
"""JSON's escapes for what could end a comment."""
CELL_MAX = 300  # characters of a text in a table
PREFERRED = "Q4_K_M"
"""The quantization that llama.cpp and Ollama take where none is named."""


@dataclass(frozen=True, slots=True)
class CardFile:
    """A GGUF of the repo; of a split one, its first file."""

    name: str
    sha256: str
    nbytes: int
    """Bytes of all its files."""
    kind: str
    """`model`, `adapter` or `projector`."""
    quant: str
    """Such as Q4_K_M; empty if unknown."""
    files: int = 1
    checks: Sequence[Sequence[str]] = ()
    """Name, verdict and finding of each check; empty if decant has not verified the file."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    base: str = ""
    """The base's name on the hub; empty if unknown."""
    title: str = ""
    """A description in Markdown, such as `my-lora` merged into `org/base`."""
    carried: Mapping[str, str | list[str]] = field(default_factory=dict)
    """The base's licence and languages."""

    @property
    def verdict(self) -> str:
        """A word on the verification, for the table of files."""
        verdicts = [check[1] for check in self.checks]
        if not verdicts:
            return "no" if self.kind == "model" else "–"
        return "WRONG" if "WRONG" in verdicts else "right"


@dataclass(frozen=True, slots=True)
class CardPlace:
    """Where the card will stand."""

    repo: str
    host: str
    """As `ollama run` names it: hf.co, or another hub's host."""
    url: str
    variable: str = ""
    """`HF_ENDPOINT=… ` before a command for another hub than huggingface.co."""


def gguf_card(files: Sequence[CardFile], place: CardPlace, evaluation: str) -> str:
    """The card. files: of the whole repo, at least one; evaluation: a section, or empty."""
    models = [file for file in files if file.kind == "model"]
    first = (models or list(files))[0]
    is_adapter = first.kind == "adapter"
    relation: Relation = "adapter" if is_adapter else "quantized"
    tags = ["gguf", "llama-cpp", "decant"]
    if is_adapter or any(key.startswith("decant.adapter") for key in first.provenance):
        tags.append("lora")
    lines = [
        *front_matter(
            "gguf", tags, first.carried, base=first.base or None, relation=relation,
            more={"quantized_by": "decant"},
        ),
        f"# {place.repo.rpartition('/')[2]}", "",
        f"{first.title}, as GGUF, by decant." if first.title else "GGUFs, published by decant.",
        "", licence_sentence(first.carried), "",
        *files_section(files),
        *(commands_section(models, place) if models else adapter_commands(first, place)),
        *verification_section(files),
        *([OPENING, evaluation.strip(), CLOSING, ""] if evaluation.strip() else []),
        *provenance_section(files),
        *(f"<!-- decant file {facts_json(file)} -->" for file in files),
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    return f"{text}<!-- decant card sha256:{digest(text)} -->\n"


def files_section(files: Sequence[CardFile]) -> list[str]:
    rows = [
        (
            code(file.name) + (f" and {file.files - 1} more" if file.files > 1 else ""),
            file.quant if file.kind == "model" else file.kind,
            size_text(file.nbytes),
            file.verdict,
        )
        for file in files
    ]
    return ["## Files", "", *table(("file", "type", "size", "verified by decant"), rows), ""]


def commands_section(models: Sequence[CardFile], place: CardPlace) -> list[str]:
    """Lines to paste, for the quantization that most programs prefer."""
    chosen = next((one for one in models if one.quant == PREFERRED), models[0])
    tag = f":{chosen.quant}" if chosen.quant else ""
    repo = place.repo
    lines = {
        "llama.cpp": f"{place.variable}llama-cli -hf {repo}{tag}",
        "Ollama": f"ollama run {place.host}/{repo}{tag}",
        "LM Studio": f"lms get {place.url}{tag.replace(':', '@')}",
        "decant": f"{place.variable}decant chat {repo}{tag}",
    }
    found = ["## How to run it", ""]
    for program, line in lines.items():
        found += [f"{program}:", "", "```sh", line, "```", ""]
    return found


def adapter_commands(file: CardFile, place: CardPlace) -> list[str]:
    return [
        "## How to run it", "",
        "It is an adapter, without its base. With the base as a GGUF:", "", "```sh",
        f"{place.variable}hf download {place.repo} {file.name} --local-dir .",
        f"llama-cli -m BASE.gguf --lora {file.name}",
        f"decant chat BASE.gguf --adapter {file.name}",
        "```", "",
    ]  # fmt: skip


def verification_section(files: Sequence[CardFile]) -> list[str]:
    """Each check of each file; a sentence where decant has verified none."""
    checked = [file for file in files if file.checks]
    if not checked:
        return ["## Verification", "", "decant has not verified these files.", ""]
    rows = [
        (code(file.name), *(cell(part) for part in check))
        for file in checked
        for check in file.checks
    ]
    return [
        "## Verification", "",
        "Each file was compared with its base and its adapter:", "",
        *table(("file", "check", "", "found"), rows), "",
    ]  # fmt: skip


def provenance_section(files: Sequence[CardFile]) -> list[str]:
    """The inputs and versions, once for all files that share them."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for file in files:
        if file.provenance:
            groups.setdefault(tuple(file.provenance.items()), []).append(file.name)
    lines = ["## Provenance", ""] if groups else []
    for facts, names in groups.items():
        if len(groups) > 1:
            lines += [", ".join(map(code, names)) + ":", ""]
        lines += [*(f"- {code(key)}: {cell(value)}" for key, value in facts), ""]
    return lines


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


def cell(text: str) -> str:
    """A text on one line, which Markdown shows as it is."""
    line = " ".join(without_controls(text).split())[:CELL_MAX]
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", line)


def code(text: str) -> str:
    """A name as code, in a table, too."""
    return f"`{' '.join(without_controls(text).replace('`', '').replace('|', '').split())}`"


def facts_json(file: CardFile) -> str:
    text = json.dumps(asdict(file), ensure_ascii=False)
    for plain, escaped in IN_COMMENT.items():
        text = text.replace(plain, escaped)
    return text


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def is_ours(text: str) -> bool:
    """Whether decant wrote a card, and it is unchanged since."""
    found = SIGNATURE.search(text)
    return found is not None and found[1] == digest(text[: found.start()])


def files_in(text: str) -> list[CardFile]:
    """The facts that a card of decant's has on its files; those of another version are left out."""
    found = []
    for facts in FACTS.findall(text):
        try:
            found.append(CardFile(**json.loads(facts)))
        except (ValueError, TypeError):
            continue
    return found


def evaluation_in(text: str) -> str:
    """The evaluation's section of a card; empty without one."""
    return text.partition(OPENING)[2].partition(CLOSING)[0].strip()
