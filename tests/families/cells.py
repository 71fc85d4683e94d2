"""What is tried with each family, by the commands that people type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from exporter.core.events import Note
from exporter.core.gguf import read_gguf
from exporter.normalizer import NORMALIZER, normalizer
from exporter.ollama import modelfile
from exporter.toolchain import find_toolchain
from exporter.verify.texts import PLAIN, RARE
from exporter.vocabulary import vocabulary
from tests.families.models import CAUSAL, SEQ2SEQ, VISION, Family
from tests.go_template import answer_prompt
from tests.runtime.gateway.conftest import Served, serving

RIGHT = "✓"
TEXTS = (*PLAIN, *RARE)
EVERYTHING = 1 << 24  # items of a GGUF's arrays that are read
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

    def tokenizer(self) -> Any:  # transformers'
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.adapter)


def refused(done: CompletedProcess[str]) -> str:
    """A cell for a command that says no: its first line, which is the reason."""
    line = next((line for line in done.stderr.splitlines() if line.startswith("error: ")), "")
    return (
        f"R: {line.removeprefix('error: ')}"
        if line
        else f"exit {done.returncode}: {done.stderr[-300:]}"
    )


def export(case: Case) -> str:
    """The main job; light verification and all."""
    done = case.decant("export", case.adapter, "-q", "Q4_K_M", "-o", case.gguf, "--json")
    if done.returncode == UNSUPPORTED:
        return refused(done)
    assert done.returncode == 0, done.stderr[-1500:]
    return RIGHT


def verify(case: Case) -> str:
    """The check by hand; of a decoder its predictions too."""
    given = ["--base", case.base, "--adapter", case.adapter, "--tokens", 64]
    is_decoder = case.family.auto == CAUSAL
    done = case.decant("verify", case.gguf, *given, "--json", *([] if is_decoder else ["--light"]))
    assert done.returncode == 0, done.stderr[-1500:]
    return RIGHT if is_decoder else "✓: all but predictions, which are compared of decoders only"


def tokens(case: Case) -> str:
    """Ids of texts, normalized by decant's front and cut by llama.cpp, against transformers'."""
    tokenizer, front = case.tokenizer(), front_of(case.gguf)
    unlike = []
    with vocabulary(case.gguf, find_toolchain()) as vocab:
        for text in TEXTS:
            expected = tokenizer(text, add_special_tokens=False)["input_ids"]
            if vocab.encode(front(text), parse=True) != expected:
                unlike.append(text)
    if not unlike:
        return RIGHT
    share = f"{len(TEXTS) - len(unlike)} of {len(TEXTS)}"
    assert not set(unlike) & set(PLAIN), unlike
    return f"{share}: llama.cpp cuts {unlike[0]!r} otherwise"


def front_of(gguf: Path) -> Callable[[str], str]:
    return normalizer(read_gguf(gguf).text(NORMALIZER))


def rendered(case: Case, served: Served) -> str:
    """The engine's rendering of a conversation, against transformers'."""
    tokenizer = case.tokenizer()
    if not tokenizer.chat_template:
        return "–: no template"
    for talk, expected in renderings(tokenizer):
        answer = asked(served, "/apply-template", {"messages": talk})
        assert without_bos(answer["prompt"], tokenizer) == without_bos(expected, tokenizer), talk
    return RIGHT


def prompt_ids(case: Case, served: Served) -> str:
    """The number of the prompt's tokens by the chat route, and their ids by /tokenize."""
    tokenizer = case.tokenizer()
    if not tokenizer.chat_template:
        return "–: no template"
    for talk, _ in renderings(tokenizer):
        ids = tokenizer.apply_chat_template(
            talk, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        body = {"messages": talk, "max_tokens": 1, "temperature": 0}
        used = asked(served, "/v1/chat/completions", body)["usage"]["prompt_tokens"]
        text = asked(served, "/apply-template", {"messages": talk})["prompt"]
        wanted = {"content": text, "parse_special": True, "add_special": True}
        found = asked(served, "/tokenize", wanted)["tokens"]
        assert found == list(ids), (talk, found, list(ids))
        assert used == len(ids), (talk, used, len(ids))
    return RIGHT


def asked(served: Served, route: str, body: dict[str, Any]) -> Any:
    status, answer = served.ask(route, {"model": served.models[0], **body})
    assert status == 200, (route, status, answer)
    return answer


def renderings(tokenizer: Any) -> Sequence[tuple[list[dict[str, str]], str]]:
    """The conversations that the template takes, and its text of each."""
    from jinja2 import TemplateError

    found = []
    for talk in TALKS:
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
    if case.family.auto not in (CAUSAL, VISION) or not tokenizer.chat_template:
        return "–: no template" if case.talks else "–"
    said: list[Note] = []
    text = modelfile(read_gguf(case.gguf, keep_items=EVERYTHING), case.base, report=said.append)
    if "TEMPLATE" not in text:
        return f"R: {said[0].message}"
    for talk, expected in renderings(tokenizer):
        if talk[0]["role"] != "system":
            found = without_bos(answer_prompt(text, talk), tokenizer)
            assert found == without_bos(expected, tokenizer), talk
    return RIGHT


def lora(case: Case) -> str:
    """The adapter alone, beside its base's GGUF in the same engine."""
    path, base = case.folder / "adapter.gguf", case.folder / "base.gguf"
    done = case.decant("export", case.adapter, "--to", "lora", "-o", path)
    if done.returncode == UNSUPPORTED:
        return refused(done)
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
        return refused(done)
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


def serve(case: Case) -> Any:
    return serving(case.folder, case.gguf)


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
SERVED: dict[str, Callable[[Case, Served], str]] = {"template": rendered, "prompt ids": prompt_ids}
