"""What is tried with each family, by the commands that people type."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from exporter.core.events import Note
from exporter.core.gguf import read_gguf
from exporter.core.silence import no_collection
from exporter.formats.ollama import modelfile
from exporter.llamacpp.toolchain import find_toolchain
from exporter.verify.texts import PLAIN, RARE
from runtime.engine.chat_format import chat_format
from runtime.engine.gguf_tokenizer import open_tokenizer, tokenize
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.openai_client import ask_json
from runtime.engine.request_texts import Front, front_of
from tests.families.models import CAUSAL, SEQ2SEQ, VISION, Family
from tests.support.go_template import answer_prompt

RIGHT = "✓"
TEXTS = (*PLAIN, *RARE)
EVERYTHING = 1 << 24  # items of a GGUF's arrays that are read
CONTEXT = 1024
FIXED_DAY, DATES = date(2024, 7, 26), ("%d %b %Y", "%Y-%m-%d", "%B %d, %Y")
"""What a Modelfile says of a day that the template asks for and gives no default of."""
UNSUPPORTED = 3  # exit code of an input that cannot be used
TALKS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "What is 2+2?"},),
    (
        {"role": "user", "content": "Größe? e\u0301 大きい? <b>&amp;</b>"},
        {"role": "assistant", "content": "Ja"},
        {"role": "user", "content": "  And twice that?"},
    ),
    (
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Hello!"},
    ),
)
Decant = Callable[..., CompletedProcess[str]]


@dataclass(frozen=True, slots=True)
class Case:
    """A family on disk, and the command."""

    name: str
    family: Family
    base: Path
    adapter: Path
    decant: Decant
    folder: Path

    @property
    def gguf(self) -> Path:
        return self.folder / "merged.gguf"

    @property
    def talks(self) -> bool:
        return self.family.auto in (CAUSAL, VISION, SEQ2SEQ)

    @property
    def has_template(self) -> bool:
        """Whether llama-server answers its conversations."""
        is_decoder = self.family.auto in (CAUSAL, VISION)
        return is_decoder and bool(self.tokenizer().chat_template)

    def tokenizer(self) -> Any:  # transformers'
        return tokenizer_of(self.adapter)


@lru_cache(maxsize=1)  # of the family that is being tried: to load one takes up to a second
def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with no_collection():
        return AutoTokenizer.from_pretrained(folder)


def refused(case: Case, done: CompletedProcess[str]) -> str:
    """A cell for a command that says no: its first line, which is the reason."""
    said = done.stderr.replace(f"{case.folder}/", "")
    line = next((line for line in said.splitlines() if line.startswith("error: ")), "")
    return (
        f"R: {line.removeprefix('error: ')}"
        if line
        else f"exit {done.returncode}: {done.stderr[-300:]}"
    )


def export(case: Case) -> str:
    """The main job; light verification and all."""
    done = case.decant("export", case.adapter, "-q", "Q4_K_M", "-o", case.gguf, "--json")
    if done.returncode == UNSUPPORTED:
        return refused(case, done)
    assert done.returncode == 0, done.stderr[-1500:]
    return RIGHT


def verify(case: Case) -> str:
    """The check by hand; of a decoder its predictions too."""
    given = ["--base", case.base, "--adapter", case.adapter, "--tokens", 64]
    is_decoder = case.family.auto in (CAUSAL, VISION)
    done = case.decant("verify", case.gguf, *given, "--json", *([] if is_decoder else ["--light"]))
    assert done.returncode == 0, done.stderr[-1500:]
    return RIGHT if is_decoder else "✓: all but predictions, which are compared of decoders only"


def tokens(case: Case) -> str:
    """Ids of texts as `decant tokens` has them, against transformers'."""
    expected, unlike = case.tokenizer(), []
    with open_tokenizer(case.gguf, find_toolchain()) as found:
        for text in TEXTS:
            ids = [token.id for token in tokenize(found, text, special=False).tokens]
            if ids != expected(text, add_special_tokens=False)["input_ids"]:
                unlike.append(text)
    if not unlike:
        return RIGHT
    assert not set(unlike) & set(PLAIN), unlike
    share = f"{len(TEXTS) - len(unlike)} of {len(TEXTS)}"
    return f"{share}: llama.cpp cuts {unlike[0]!r} otherwise"


@dataclass(frozen=True, slots=True)
class Engine:
    """llama-server as chat and serve start it, and what they do to a request before it."""

    server: Server
    front: Front

    def ask(self, route: str, body: dict[str, Any]) -> Any:
        return ask_json(self.server, route, self.front.ready(route, body))


@contextmanager
def engine_of(case: Case) -> Iterator[Engine]:
    header = read_gguf(case.gguf)
    chat = chat_format(header)
    spec = ServerSpec(case.gguf, CONTEXT, threads=1, chat=chat)
    with Server(spec, find_toolchain()) as server:
        yield Engine(server, front_of(header, chat))


def rendered(case: Case, engine: Engine) -> str:
    """The engine's rendering of a conversation, against transformers'."""
    tokenizer = case.tokenizer()
    for talk, expected in renderings(tokenizer):
        found = engine.ask("/apply-template", {"messages": talk})["prompt"]
        wanted = engine.front.text(expected, starts=False)  # in the tokenizer's normal form
        assert without_bos(found, tokenizer) == without_bos(wanted, tokenizer), talk
    return RIGHT


def prompt_ids(case: Case, engine: Engine) -> str:
    """The ids of a conversation in the engine, against apply_chat_template's."""
    tokenizer = case.tokenizer()
    for talk, _ in renderings(tokenizer):
        ids = tokenizer.apply_chat_template(
            talk, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        text = engine.ask("/apply-template", {"messages": talk})["prompt"]
        given = {"content": text, "add_special": True, "parse_special": True}
        found = ask_json(engine.server, "/tokenize", given)["tokens"]
        assert found == list(ids), (talk, found, list(ids))
        body = {"messages": talk, "max_tokens": 1}
        counted = engine.ask("/v1/chat/completions/input_tokens", body)["input_tokens"]
        assert counted == len(ids), (talk, counted, len(ids))
    return RIGHT


def renderings(
    tokenizer: Any, talks: Sequence[Sequence[dict[str, str]]] = TALKS
) -> Sequence[tuple[list[dict[str, str]], str]]:
    """The conversations that the template takes, and its text of each."""
    from jinja2 import TemplateError

    found = []
    for talk in talks:
        try:
            text = tokenizer.apply_chat_template(
                list(talk), tokenize=False, add_generation_prompt=True
            )
        except TemplateError:
            continue
        found.append((list(talk), text))
    assert found
    return found


def without_bos(text: str, tokenizer: Any) -> str:
    bos = tokenizer.bos_token
    return text.removeprefix(bos) if bos else text


def chat(case: Case) -> str:
    if not case.talks:
        return "–"
    given = ("-p", "Hello", "--temperature", 0, "--max-tokens", 4)
    done = case.decant("chat", case.gguf, *given)
    assert done.returncode == 0, done.stderr[-1500:]
    return RIGHT


def ollama(case: Case) -> str:
    """The Modelfile's TEMPLATE, carried out by Ollama's rules, against transformers' rendering."""
    tokenizer = case.tokenizer()
    if not case.has_template:
        return "–: no template" if case.talks else "–"
    said: list[Note] = []
    text = modelfile(read_gguf(case.gguf, keep_items=EVERYTHING), case.base, report=said.append)
    if "TEMPLATE" not in text:
        return f"R: {said[0].message}"
    now = datetime.now().astimezone()  # as transformers gives it to a template
    bare = [
        [{**message, "content": message["content"].strip()} for message in talk] for talk in TALKS
    ]
    for talk, expected in renderings(tokenizer, bare):  # no TEMPLATE can strip a text
        if talk[0]["role"] != "system":
            found = without_bos(answer_prompt(text, talk), tokenizer)
            wanted = without_bos(expected, tokenizer)
            for form in DATES:
                wanted = wanted.replace(now.strftime(form), FIXED_DAY.strftime(form))
            assert found == wanted, (talk, found, wanted)
    return RIGHT


def lora(case: Case) -> str:
    """The adapter alone, beside its base's GGUF in the same engine."""
    path, base = case.folder / "adapter.gguf", case.folder / "base.gguf"
    done = case.decant("export", case.adapter, "--to", "lora", "-o", path)
    if done.returncode == UNSUPPORTED:
        return refused(case, done)
    assert done.returncode == 0, done.stderr[-1500:]
    if case.family.auto in (CAUSAL, VISION):
        done = case.decant("export", "--base", case.base, "-q", "Q8_0", "-o", base, "--no-verify")
        assert done.returncode == 0, done.stderr[-1500:]
        given = ("--adapter", f"x={path}", "-p", "Hello", "--temperature", 0, "--max-tokens", 2)
        done = case.decant("chat", base, *given)
        base.unlink()
        assert done.returncode == 0, done.stderr[-1500:]
    return RIGHT


def safetensors(case: Case) -> str:
    """The merged checkpoint, loaded by transformers, against the unmerged forward."""
    import torch
    import transformers
    from peft import PeftModel

    place = case.folder / "merged"
    done = case.decant("export", case.adapter, "--to", "safetensors", "-o", place)
    if done.returncode == UNSUPPORTED:
        return refused(case, done)
    assert done.returncode == 0, done.stderr[-1500:]
    auto = getattr(transformers, case.family.auto)
    given: dict[str, Any] = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    if case.family.auto == SEQ2SEQ:
        given["decoder_input_ids"] = torch.tensor([[0, 5]])
    with torch.inference_mode():
        unmerged = auto.from_pretrained(case.base, dtype=torch.float32)
        expected = PeftModel.from_pretrained(unmerged, str(case.adapter)).eval()(**given)[0]
        found = auto.from_pretrained(place, dtype=torch.float32).eval()(**given)[0]
    # the merged weights are rounded to bfloat16, 8 bits
    assert (found - expected).abs().max() <= 0.05 * expected.abs().max()
    return RIGHT


COLUMNS: dict[str, Callable[[Case], str]] = {
    "export Q4_K_M": export,
    "verify": verify,
    "tokens": tokens,
    "chat": chat,
    "Ollama TEMPLATE": ollama,
    "--to lora": lora,
    "--to safetensors": safetensors,
}
WITHOUT_GGUF = ("export Q4_K_M", "--to lora", "--to safetensors")
ENGINE: dict[str, Callable[[Case, Engine], str]] = {"template": rendered, "prompt ids": prompt_ids}
