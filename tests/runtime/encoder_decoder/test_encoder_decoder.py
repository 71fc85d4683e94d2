"""Encoder-decoder models served: transformers' answers, llama-server's words, and nothing left."""

from __future__ import annotations

import json
import math
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.toolchain import scrubbed
from runtime.encoder_decoder.model import Flag, Sampling, generate, loaded
from runtime.engine.socket_connection import SocketConnection
from runtime.process.run_dir import RunFolder
from tests.support.processes import wait_until
from tests.support.raw import edit_json, write_tiny_gguf
from tests.support.terminal import chat, children_of
from tests.support.tiny_t5 import adapt_t5, make_t5, teach_mt5

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

CHECKOUT = Path(__file__).parents[3]
KEY = "correct horse"
COUNT = 32  # tokens of an answer that is compared
ANSWERS = {
    "the cat": "日本語 🦜 é the cat sat on it",
    "a e i": "ai ea; stop here. no more of this",
    "on the in": "one two three four five six",
}
"""What the MT5's adapter knows."""
PROMPTS = {
    "T5": ("on qj go th", "the vk e a eat o", "a zx on u at vk", "be vk"),
    "MT5": tuple(ANSWERS),
}
COMPLETIONS, CHAT, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/messages"
GREEDY = {"temperature": 0}
LONG = {"prompt": "th " * 1000, **GREEDY}
"""With a context of 4096, an answer that takes many seconds and does not end by itself."""
SOON_S = 1.0


@dataclass(frozen=True)
class Made:
    """A model in all its forms."""

    gguf: Path
    tokenizer: Any
    unmerged: Any
    """transformers' model with the adapter beside it."""
    expected: dict[str, list[int]]
    """Its greedy answers."""


@dataclass(frozen=True)
class Served:
    """A running server."""

    process: subprocess.Popen[bytes]
    socket: Path

    def send(self, method: str, path: str, body: object = None, **headers: str) -> SocketConnection:
        """Send a request and wait for nothing."""
        connection = SocketConnection(self.socket, 30)
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Authorization": f"Bearer {KEY}"} | headers
        connection.request(method, path, None if body is None else raw, given)
        return connection

    def call(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        with self.send(method, path, body, **headers) as connection:
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def post(self, path: str, body: object) -> Any:
        status, answer = self.call("POST", path, body)
        assert status == 200, answer
        return answer

    def text(self, prompt: str, **settings: object) -> str:
        answer = self.post(COMPLETIONS, {"prompt": prompt, **GREEDY, **settings})
        return str(answer["choices"][0]["text"])

    def stream(self, path: str, body: Mapping[str, object]) -> list[Any]:
        """The chunks of an answer, [DONE] checked and left out."""
        with self.send("POST", path, {**body, "stream": True}) as connection:
            response = connection.getresponse()
            assert response.getheader("Content-Type") == "text/event-stream"
            lines = response.read().decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@contextmanager
def serving(gguf: Path, build: Path, *, context: int = 0) -> Iterator[Served]:
    run_folder = RunFolder()
    folder = run_folder.path
    argv = [
        sys.executable, "-m", "runtime.encoder_decoder", "--socket", str(folder / "s.sock"),
        "-m", str(gguf), "-c", str(context), "-t", "1", "--build", str(build),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            argv,
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=scrubbed(os.environ) | {"LLAMA_API_KEY": KEY},
            start_new_session=True,
        )
    served = Served(process, folder / "s.sock")
    try:
        assert wait_until(lambda: is_ready(served), 20)
        yield served
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        said = (folder / "log").read_text()
        run_folder.remove()
    assert said == ""


def is_ready(served: Served) -> bool:
    assert served.process.poll() is None
    try:
        return served.call("GET", "/health") == (200, {"status": "ok"})
    except OSError:
        return False


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Of torch: for models so small, threads that wait for each other cost most of the time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(one_thread, toolchain, tmp_path_factory) -> dict[str, Made]:
    """A T5 and an MT5 with a LoRA each, merged by our own export."""
    from transformers import AutoTokenizer

    models = {}
    for kind, prompts in PROMPTS.items():
        folder = tmp_path_factory.mktemp(kind)
        base, lora, gguf = folder / "base", folder / "lora", folder / f"{kind}.gguf"
        is_t5 = kind == "T5"
        unmerged = adapt_t5(make_t5(base), lora) if is_t5 else teach_mt5(base, lora, ANSWERS)
        quant = "F32" if is_t5 else "F16"
        export(ExportRequest(((lora, 1.0),), base, (quant,), (gguf,)), toolchain)
        tokenizer = AutoTokenizer.from_pretrained(base)
        expected = {prompt: greedy(unmerged, tokenizer, prompt) for prompt in prompts}
        models[kind] = Made(gguf, tokenizer, unmerged, expected)
    return models


@pytest.fixture(scope="module")
def t5(made, toolchain) -> Iterator[Served]:
    with serving(made["T5"].gguf, toolchain.folder) as served:
        yield served


@pytest.fixture(scope="module")
def taught(made, toolchain) -> Iterator[Served]:
    with serving(made["MT5"].gguf, toolchain.folder) as served:
        yield served


@pytest.fixture(scope="module")
def slow(made, toolchain) -> Iterator[Served]:
    """A server that can be kept busy for long."""
    with serving(made["T5"].gguf, toolchain.folder, context=4096) as served:
        yield served


@pytest.fixture
def doomed(made, toolchain) -> Iterator[Served]:
    """The same, to be ended."""
    with serving(made["T5"].gguf, toolchain.folder, context=4096) as served:
        yield served


def greedy(model: Any, tokenizer: Any, prompt: str) -> list[int]:
    """The tokens that transformers answers with, none of them by a hair's breadth."""
    import torch

    answer = model.generate(
        input_ids=torch.tensor([tokenizer(prompt)["input_ids"]]),
        do_sample=False,
        max_new_tokens=COUNT,
        output_scores=True,
        return_dict_in_generate=True,
    )
    for scores in answer.scores:
        first, second = scores[0].topk(2).values
        assert first - second > 0.01 * scores[0].std()
    return answer.sequences[0].tolist()[1:]  # after the token that the decoder begins with


@pytest.mark.parametrize("kind", PROMPTS)
def test_greedy_answers_are_those_of_transformers_and_the_adapters_doing(made, toolchain, kind):
    import torch

    model = made[kind]
    with loaded(model.gguf, toolchain, context=64, threads=1) as ours:
        for prompt, expected in model.expected.items():
            ids = ours.vocabulary.encode(prompt, special=True)
            with closing(generate(ours, ids, Sampling(temperature=0), Flag())) as answer:
                assert list(islice(answer, COUNT)) == expected
            with model.unmerged.disable_adapter(), torch.no_grad():
                forced = torch.tensor([[0, *expected[:-1]]])
                plain = model.unmerged(input_ids=torch.tensor([ids]), decoder_input_ids=forced)
            assert plain.logits[0].argmax(-1).tolist() != expected
    assert all(len(ids) >= 24 and len(set(ids)) >= 8 for ids in model.expected.values())


def test_the_text_is_that_of_transformers(made, t5):
    for prompt, expected in made["T5"].expected.items():
        answer = t5.post(COMPLETIONS, {"prompt": prompt, "max_tokens": COUNT, **GREEDY})

        text = made["T5"].tokenizer.decode(expected, skip_special_tokens=True)
        assert (answer["choices"][0]["text"], answer["usage"]["completion_tokens"]) == (text, COUNT)


@pytest.mark.parametrize("text", ["the cat", "", " two  spaces ", "é 日本", "ﷺ" * 20, "th</s>e"])
def test_the_encoders_input_is_cut_as_transformers_cuts_it(made, t5, text):
    answer = t5.post("/tokenize", {"content": text, "add_special": True})

    assert answer["tokens"] == made["T5"].tokenizer(text)["input_ids"]


def test_sampled_tokens_have_the_probabilities_that_transformers_gives_them(made, t5):
    """T5 scales what goes into a head that is its embedding; llama.cpp does not."""
    import torch

    model, prompt, temperature = made["T5"], "the cat ta", 0.003
    ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        logits = model.unmerged(input_ids=ids, decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
    likely = torch.softmax(logits / temperature, -1).max().item()
    likeliest = t5.text(prompt, max_tokens=1)

    settings = {"temperature": temperature, "top_k": 0, "top_p": 1, "min_p": 0, "max_tokens": 1}
    found = [t5.text(prompt, **settings, seed=seed) for seed in range(300)]

    assert 0.05 < likely < 0.7
    error = math.sqrt(likely * (1 - likely) / len(found))
    assert abs(found.count(likeliest) / len(found) - likely) < 4 * error


def test_a_seed_makes_an_answer_come_again(taught):
    settings = {"temperature": 1.5, "max_tokens": 20}
    answers = [taught.text("th", **settings, seed=seed) for seed in (1, 1, 2)]

    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    "settings",
    [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 0.0}],
    ids=lambda settings: next(iter(settings)),
)
def test_each_sampler_can_leave_only_the_likeliest_token(taught, settings):
    open_to_all = {"temperature": 5, "top_k": 0, "top_p": 1, "min_p": 0, "max_tokens": 12}
    expected = taught.text("th", max_tokens=12)

    assert taught.text("th", **open_to_all, seed=1) != expected
    assert taught.text("th", **open_to_all | settings, seed=1) == expected


def test_a_penalty_for_repeating_changes_what_repeats(t5):
    words = t5.text("th", max_tokens=30).split()
    others = t5.text("th", max_tokens=30, repeat_penalty=1000, repeat_last_n=-1).split()

    assert len(set(others)) > len(set(words))


def test_what_was_taught_comes_back_whole_with_its_reason_and_numbers(taught):
    for question, expected in ANSWERS.items():
        answer = taught.post(COMPLETIONS, {"prompt": question, **GREEDY})

        assert answer["choices"][0]["text"] == expected
        assert answer["choices"][0]["finish_reason"] == "stop"
        prompt, count = (answer["usage"][f"{kind}_tokens"] for kind in ("prompt", "completion"))
        assert answer["usage"]["total_tokens"] == prompt + count
        numbers = answer["timings"]
        assert (numbers["cache_n"], numbers["prompt_n"]) == (0, prompt)
        assert numbers["predicted_n"] == count
        assert numbers["predicted_per_second"] == pytest.approx(
            count / numbers["predicted_ms"] * 1000
        )
        assert numbers["prompt_per_second"] > 0


@pytest.mark.parametrize("question", ANSWERS)
@pytest.mark.parametrize(
    "settings",
    [GREEDY, {"temperature": 2.0, "seed": 7, "max_tokens": 60}, {**GREEDY, "stop": ["t", " n"]}],
    ids=["greedy", "sampled", "stopped"],
)
def test_what_is_streamed_is_what_comes_at_once(taught, question, settings):
    """Sampled at random from a vocabulary of bytes, few characters are whole."""
    completion = {"prompt": question, **settings}
    chat = {"messages": [{"role": "user", "content": question}], **settings}
    whole = taught.post(COMPLETIONS, completion)["choices"][0]
    chunks = [chunk["choices"][0] for chunk in taught.stream(COMPLETIONS, completion)]
    said = taught.post(CHAT, chat)["choices"][0]
    deltas = [chunk["choices"][0] for chunk in taught.stream(CHAT, chat)]

    assert whole["text"]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    assert said["message"] == {"role": "assistant", "content": whole["text"]}
    assert "".join(d["delta"].get("content") or "" for d in deltas) == whole["text"]
    assert deltas[0]["delta"] == {"role": "assistant", "content": None}
    for pieces, reason in ((chunks, whole["finish_reason"]), (deltas, said["finish_reason"])):
        assert [piece["finish_reason"] for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1]["finish_reason"] == reason


def test_the_last_chunk_has_the_numbers(taught):
    body = {"messages": [{"role": "user", "content": "a e i"}], **GREEDY}
    plain = taught.stream(CHAT, body)
    counted = taught.stream(CHAT, {**body, "stream_options": {"include_usage": True}})

    assert plain[-1]["timings"]["predicted_n"] == counted[-1]["usage"]["completion_tokens"] > 5
    assert (counted[-1]["choices"], counted[-1]["timings"]["prompt_n"]) == (
        [],
        counted[-1]["usage"]["prompt_tokens"],
    )
    assert "usage" not in plain[-1]
    assert taught.stream(COMPLETIONS, {"prompt": "a e i", **GREEDY})[-1]["timings"]


def test_a_character_of_several_tokens_is_streamed_whole(taught):
    body = {"prompt": "the cat", **GREEDY}
    *chunks, last = taught.stream(COMPLETIONS, body)
    pieces = [chunk["choices"][0]["text"] for chunk in chunks]

    assert "".join(pieces) == ANSWERS["the cat"]
    assert {"日", "本", "語", "🦜"} <= set("".join(pieces))
    assert len(pieces) < last["usage"]["completion_tokens"] - 8  # 3 or 4 tokens each
    assert all(pieces)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (";", "ai ea"),
        ("stop here", "ai ea; "),
        (["nowhere", " no", "here"], "ai ea; stop "),
        (["never said", ""], "ai ea; stop here. no more of this"),
        ("ai", ""),
    ],
)
def test_a_stop_text_ends_the_answer_before_it(taught, stop, expected):
    answer = taught.post(COMPLETIONS, {"prompt": "a e i", "stop": stop, **GREEDY})

    assert answer["choices"][0]["text"] == expected
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "n_predict", "max_completion_tokens"])
@pytest.mark.parametrize("limit", [0, 1, 5])
def test_a_token_limit_is_kept_and_named(taught, name, limit):
    answer = taught.post(COMPLETIONS, {"prompt": "on the in", name: limit, **GREEDY})

    assert answer["usage"]["completion_tokens"] == limit
    assert answer["choices"][0]["finish_reason"] == "length"
    assert ANSWERS["on the in"].startswith(answer["choices"][0]["text"])


def test_an_answer_ends_with_the_context(made, toolchain):
    with serving(made["T5"].gguf, toolchain.folder, context=32) as served:
        answer = served.post(COMPLETIONS, {"prompt": "th", "max_tokens": 1000, **GREEDY})

        assert answer["usage"]["completion_tokens"] == 32
        assert answer["choices"][0]["finish_reason"] == "length"
        assert served.post(COMPLETIONS, {"prompt": [3] * 32, "max_tokens": 1})
        status, refused = served.call("POST", COMPLETIONS, {"prompt": [3] * 33})
        assert (status, refused["error"]["type"]) == (400, "exceed_context_size_error")
        assert (refused["error"]["n_prompt_tokens"], refused["error"]["n_ctx"]) == (33, 32)


def test_a_chat_is_the_last_question_below_the_systems_text(taught):
    def prompt_tokens(*messages: tuple[str, object]) -> int:
        body = {"messages": [{"role": r, "content": c} for r, c in messages], "max_tokens": 1}
        return int(taught.post(CHAT, body)["usage"]["prompt_tokens"])

    def tokens(text: str) -> int:
        return len(taught.post("/tokenize", {"content": text, "add_special": True})["tokens"])

    talk = [("user", "the first of them"), ("assistant", "an answer"), ("user", "th")]
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
    assert prompt_tokens(*talk) == tokens("th")
    assert prompt_tokens(("system", "oats"), *talk) == tokens("oats\nth")
    assert prompt_tokens(("user", parts)) == tokens("the cat")
    answer = taught.post(
        CHAT, {"messages": [{"role": "user", "content": "on the in"}], "temperature": 0}
    )
    assert answer["choices"][0]["message"]["content"] == ANSWERS["on the in"]


def test_a_models_own_chat_template_is_used(made, toolchain, tmp_path):
    """One that ends the input itself: it is not ended twice."""
    trained = made["MT5"].gguf.parent
    base = shutil.copytree(trained / "base", tmp_path / "base")
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}"
        "{% endif %}{{ m.content }} {% endfor %}{{ eos_token }}"
    )
    edit_json(base / "tokenizer_config.json", chat_template=template)
    gguf = tmp_path / "x.gguf"
    export(ExportRequest(((trained / "lora", 1.0),), base, ("F32",), (gguf,)), toolchain)
    with serving(gguf, toolchain.folder) as served:
        talk = [{"role": "user", "content": text} for text in ("on", "the", "in")]
        answer = served.post(CHAT, {"messages": talk, **GREEDY})
        plain = served.post(COMPLETIONS, {"prompt": "on the in", **GREEDY})
        status, refused = served.call(
            "POST", CHAT, {"messages": [*talk, {"role": "tool", "content": "x"}]}
        )

        assert served.call("GET", "/props")[1]["chat_template"] == template
        assert answer["choices"][0]["message"]["content"] == ANSWERS["on the in"]
        assert answer["usage"] == plain["usage"]
        assert (status, "no tools" in refused["error"]["message"]) == (400, True)


def test_what_is_loaded_can_be_asked(taught):
    props = taught.call("GET", "/props?autoload=0")[1]
    models = taught.call("GET", "/v1/models")[1]["data"]

    assert props["default_generation_settings"]["n_ctx"] == 512  # as T5 was trained
    assert Path(props["model_path"]).name == models[0]["id"] == "MT5.gguf"
    assert models[0]["meta"]["n_ctx_train"] == 512


def test_tokens_and_texts_are_told_as_llama_server_does(taught):
    ids = taught.post("/tokenize", {"content": "the cat"})["tokens"]
    pieces = taught.post("/tokenize", {"content": "the cat", "with_pieces": True})["tokens"]
    ended = taught.post("/tokenize", {"content": "the</s>", "add_special": True})["tokens"]
    plain = taught.post("/tokenize", {"content": "</s>", "parse_special": False})["tokens"]
    in_bytes = [3 + byte for byte in "日🦜".encode()]  # after the three special ones

    assert [piece["id"] for piece in pieces] == ids
    assert "".join(piece["piece"] for piece in pieces) == " the cat"
    assert ended[-2:] == [1, 1]
    assert 1 not in plain
    assert taught.post("/detokenize", {"tokens": [*ids, *in_bytes]}) == {"content": " the cat日🦜"}
    assert taught.post("/tokenize", {}) == {"tokens": []}


TALK = [{"role": "user", "content": "th"}]
WRONG: list[tuple[str, object, str]] = [
    (COMPLETIONS, b"{", "not valid JSON"),
    (COMPLETIONS, b"", "not valid JSON"),
    (COMPLETIONS, b'{"prompt": "\xff"}', "not valid UTF-8"),
    (COMPLETIONS, b'{"prompt": "\\ud800"}', "not valid UTF-8"),
    (COMPLETIONS, b'{"prompt": "a", "unheard_of": NaN}', "NaN"),
    (COMPLETIONS, b'{"prompt": "a", "temperature": Infinity}', "Infinity"),
    (COMPLETIONS, b'{"prompt": "a", "temperature": 1e400}', "`temperature`"),
    (COMPLETIONS, b"[" * 200_000, "nested too deeply"),
    (COMPLETIONS, b"[1]", "a JSON object"),
    (COMPLETIONS, b'{"seed": ' + b"9" * 9000 + b"}", "not valid JSON"),
    (COMPLETIONS, {}, "`prompt`"),
    (COMPLETIONS, {"prompt": 5}, "`prompt`"),
    (COMPLETIONS, {"prompt": []}, "`prompt`"),
    (COMPLETIONS, {"prompt": ["a", "b"]}, "`prompt`"),
    (COMPLETIONS, {"prompt": [1, 10_000]}, "from 0 to"),
    (COMPLETIONS, {"prompt": [-1]}, "from 0 to"),
    (COMPLETIONS, {"prompt": [True]}, "`prompt`"),
    (COMPLETIONS, {"prompt": "a", "temperature": "hot"}, "`temperature`"),
    (COMPLETIONS, {"prompt": "a", "temperature": -1}, "`temperature`"),
    (COMPLETIONS, {"prompt": "a", "top_k": 1.5}, "`top_k`"),
    (COMPLETIONS, {"prompt": "a", "top_p": 2}, "from 0 to 1"),
    (COMPLETIONS, {"prompt": "a", "repeat_penalty": 0}, "`repeat_penalty`"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": "many"}, "`max_tokens`"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": -2}, "`max_tokens`"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 10**30}, "`max_tokens`"),
    (COMPLETIONS, {"prompt": "a", "seed": 2**32}, "`seed`"),
    (COMPLETIONS, {"prompt": "a", "stop": [1]}, "`stop`"),
    (COMPLETIONS, {"prompt": "a", "stream": "yes"}, "`stream`"),
    (COMPLETIONS, {"prompt": "a", "stream_options": []}, "`stream_options`"),
    (COMPLETIONS, {"prompt": "a", "lora": [{"id": 0, "scale": 0.5}]}, "`lora`"),
    (COMPLETIONS, {"prompt": "a", "lora": 5}, "`lora`"),
    (COMPLETIONS, {"prompt": "a", "n": 2}, "`n`"),
    (COMPLETIONS, {"prompt": "a", "grammar": "root ::= x"}, "`grammar`"),
    (COMPLETIONS, {"prompt": "a", "response_format": {"type": "json_object"}}, "response_format"),
    (CHAT, {}, "`messages`"),
    (CHAT, {"messages": "hi"}, "`messages`"),
    (CHAT, {"messages": ["hi"]}, "`messages`"),
    (CHAT, {"messages": [{"role": "system", "content": "x"}]}, "from the user"),
    (CHAT, {"messages": [{"content": "x"}]}, "`role`"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "`content`"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
    (CHAT, {"messages": TALK, "tools": [{"type": "function"}]}, "`tools`"),
    ("/tokenize", {"content": 5}, "`content`"),
    ("/tokenize", {"content": "a", "with_pieces": 1}, "`with_pieces`"),
    ("/detokenize", {"tokens": "a"}, "`tokens`"),
    ("/detokenize", {"tokens": [10_000]}, "from 0 to"),
]


@pytest.mark.parametrize(("path", "body", "said"), WRONG)
def test_a_wrong_request_is_told_what_is_wrong_and_harms_nothing(taught, path, body, said):
    status, answer = taught.call("POST", path, body)

    assert (status, answer["error"]["code"]) == (400, 400)
    assert answer["error"]["type"] == "invalid_request_error"
    assert said in answer["error"]["message"]
    assert "Traceback" not in answer["error"]["message"]
    assert taught.call("GET", "/health") == (200, {"status": "ok"})


def test_settings_that_mean_nothing_here_are_passed_over(taught):
    settings = {
        "lora": [{"id": 0, "scale": 0}], "cache_prompt": True, "id_slot": 3, "model": "x",
        "tools": [], "stop": None, "max_tokens": None, "n": 1, "unheard_of": {"of": []},
    }  # fmt: skip

    assert taught.text("a e i", **settings) == ANSWERS["a e i"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "kind"),
    [
        ("GET", "/v1/models", {"Authorization": ""}, 401, "authentication_error"),
        ("GET", "/v1/models", {"Authorization": f"Bearer {KEY}x"}, 401, "authentication_error"),
        ("GET", "/v1/models", {"Authorization": "Bearer é"}, 401, "authentication_error"),
        ("POST", COMPLETIONS, {"Authorization": "Bearer "}, 401, "authentication_error"),
        ("GET", "/nowhere", {"Authorization": ""}, 401, "authentication_error"),
        ("GET", "/nowhere", {}, 404, "not_found_error"),
        ("POST", "/v1/../health", {}, 404, "not_found_error"),
        ("GET", COMPLETIONS, {}, 405, "invalid_request_error"),
        ("DELETE", "/v1/models", {}, 405, "invalid_request_error"),
        ("BREW", "/health", {}, 405, "invalid_request_error"),
        ("GET", "/health", {"Content-Length": "-5"}, 400, "invalid_request_error"),
        ("POST", COMPLETIONS, {"Content-Length": str(17 << 20)}, 413, "invalid_request_error"),
        ("POST", COMPLETIONS, {"Transfer-Encoding": "chunked"}, 411, "invalid_request_error"),
    ],
)
def test_every_refusal_has_its_status_and_openais_form(taught, method, path, headers, status, kind):
    found, answer = taught.call(method, path, None, **headers)

    assert (found, answer["error"]["code"], answer["error"]["type"]) == (status, status, kind)
    assert answer["error"]["message"]


def events_of(served: Served, body: Mapping[str, object]) -> list[Any]:
    """The events of a streamed message, their names checked."""
    with served.send("POST", MESSAGES, {**body, "stream": True}) as connection:
        response = connection.getresponse()
        assert response.getheader("Content-Type") == "text/event-stream"
        *said, rest = response.read().decode().split("\n\n")
    assert rest == ""
    names, data = zip(*(event.split("\n") for event in said), strict=True)
    events = [json.loads(line.removeprefix("data: ")) for line in data]
    assert [name.removeprefix("event: ") for name in names] == [event["type"] for event in events]
    return events


def asks(question: str, **settings: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": 200, **settings}


@pytest.mark.parametrize("question", ANSWERS)
def test_a_message_is_answered_as_anthropic_does_at_once_and_in_events(taught, question):
    whole = taught.post(MESSAGES, asks(question, **GREEDY))
    start, block, *deltas, end_of_block, end, stop = events_of(taught, asks(question, **GREEDY))

    assert whole["content"] == [{"type": "text", "text": ANSWERS[question]}]
    assert (whole["type"], whole["role"]) == ("message", "assistant")
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("end_turn", None)
    assert start["type"] == "message_start"
    message = {name: whole[name] for name in ("type", "role", "model", "stop_sequence")}
    counts = {**whole["usage"], "output_tokens": 0}
    for name, value in {**message, "content": [], "stop_reason": None, "usage": counts}.items():
        assert start["message"][name] == value
    text = {"type": "text", "text": ""}
    assert block == {"type": "content_block_start", "index": 0, "content_block": text}
    assert "".join(delta["delta"]["text"] for delta in deltas) == ANSWERS[question]
    assert {delta["type"] for delta in deltas} == {"content_block_delta"}
    assert end_of_block == {"type": "content_block_stop", "index": 0}
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert end["usage"] == {"output_tokens": whole["usage"]["output_tokens"]}
    assert stop == {"type": "message_stop"}


def test_a_message_says_what_ended_it(taught):
    cut = taught.post(MESSAGES, asks("a e i", **GREEDY) | {"max_tokens": 3})
    stopped = taught.post(MESSAGES, asks("a e i", stop_sequences=["here", "; "], **GREEDY))

    assert (cut["stop_reason"], cut["usage"]["output_tokens"]) == ("max_tokens", 3)
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "; ")
    assert stopped["content"][0]["text"] == "ai ea"


def test_a_messages_tokens_are_counted_with_the_systems(taught):
    parts = [{"type": "text", "text": "oa"}, {"type": "text", "text": "ts"}]
    body = asks("th", system=parts, **GREEDY)
    del body["max_tokens"]
    tokens = taught.post("/tokenize", {"content": "oats\nth", "add_special": True})["tokens"]

    assert taught.post(f"{MESSAGES}/count_tokens", body) == {"input_tokens": len(tokens)}
    answer = taught.post(MESSAGES, {**body, "max_tokens": 1})
    assert answer["usage"] == {"input_tokens": len(tokens), "output_tokens": 1}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not valid JSON"),
        ({"messages": TALK}, "`max_tokens`"),
        ({"max_tokens": 5}, "from the user"),
        (asks("a", max_tokens=0), "`max_tokens`"),
        (asks("a", messages="a"), "`messages`"),
        (asks("a", system=5), "`content`"),
        (asks("a", stop_sequences="x"), "`stop_sequences`"),
        (asks("a", tools=[{"name": "x"}]), "`tools`"),
        (asks("a", thinking={"type": "enabled", "budget_tokens": 9}), "`thinking`"),
        (asks("a", messages=[{"role": "user", "content": [{"type": "image"}]}]), "image"),
        (asks("th " * 9000), "tokens and the encoder takes"),
    ],
)
def test_a_wrong_message_is_refused_in_anthropics_form(taught, body, said):
    status, answer = taught.call("POST", MESSAGES, body)

    assert (status, answer["type"]) == (400, "error")
    assert answer["error"]["type"] == "invalid_request_error"
    assert said in answer["error"]["message"]


def test_a_message_without_the_key_is_refused_in_anthropics_form(taught):
    status, answer = taught.call("POST", MESSAGES, asks("a"), Authorization="")

    assert (status, answer["error"]["type"]) == (401, "authentication_error")


def test_health_needs_no_key_and_a_key_may_stand_in_the_other_header(taught):
    assert taught.call("GET", "/health", Authorization="") == (200, {"status": "ok"})
    assert taught.call("GET", "/props", **{"Authorization": "", "X-Api-Key": KEY})[0] == 200


def test_a_body_that_is_too_large_is_refused_to_who_sends_it_all(taught):
    status, answer = taught.call("POST", COMPLETIONS, b" " * ((16 << 20) + 1))

    assert (status, str(16 << 20) in answer["error"]["message"]) == (413, True)
    assert taught.call("POST", COMPLETIONS, b" " * (16 << 20))[0] == 400  # read, and no JSON


def test_a_connection_is_kept_after_answers_and_refusals(taught):
    with SocketConnection(taught.socket, 5) as connection:
        statuses = []
        for key in (KEY, "wrong", KEY):
            headers = {"Authorization": f"Bearer {key}"}
            body = json.dumps({"prompt": "a e i", **GREEDY})
            connection.request("POST", COMPLETIONS, body, headers)
            used = connection.sock
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)

            assert connection.sock is used is not None

    assert statuses == [200, 401, 200]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\xff garbage\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        f"POST /tokenize HTTP/1.1\r\nX-Api-Key: {KEY}\r\nContent-Length: 50\r\n\r\n{{".encode(),
        b"POST /v1/completions HTTP/1.1\r\n",
        b"",
    ],
)
def test_what_is_no_request_harms_nothing(taught, sent):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(taught.socket))
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while block := connection.recv(1 << 16):
            answer += block

    assert b"Traceback" not in answer
    assert not answer or b'{"error": ' in answer
    assert taught.text("a e i") == ANSWERS["a e i"]


def is_generating(slow: Served) -> SocketConnection:
    """A client that has read the first piece of a long answer."""
    connection = slow.send("POST", COMPLETIONS, {**LONG, "stream": True})
    assert connection.getresponse().readline().startswith(b"data: ")
    return connection


def took_s(slow: Served) -> float:
    """How long a short request takes."""
    began = time.monotonic()
    slow.post(COMPLETIONS, {"prompt": "th", "max_tokens": 1})
    return time.monotonic() - began


def test_the_long_answer_is_long(slow):
    """Without which the tests below would show nothing."""
    with is_generating(slow) as client, ThreadPoolExecutor() as pool:
        waiting = pool.submit(took_s, slow)
        time.sleep(2 * SOON_S)
        is_done = waiting.done()
        client.close()

    assert not is_done


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "at once"])
def test_a_client_that_leaves_frees_the_engine(slow, stream):
    connection = slow.send("POST", COMPLETIONS, {**LONG, "stream": stream})
    if stream:
        connection.getresponse().readline()
    else:
        time.sleep(0.7)  # the encoder needs less
    connection.close()

    assert took_s(slow) < SOON_S


def test_a_client_that_leaves_stops_the_encoder_too(slow):
    body = {"prompt": "th " * 2040, "max_tokens": 1}
    began = time.monotonic()
    slow.post(COMPLETIONS, body)
    whole_s = time.monotonic() - began
    connection = slow.send("POST", COMPLETIONS, body)
    time.sleep(0.1)
    connection.close()

    assert took_s(slow) < whole_s / 2


def test_a_client_that_leaves_while_it_waits_is_never_served(slow):
    with is_generating(slow) as first:
        second = slow.send("POST", COMPLETIONS, LONG)
        time.sleep(0.1)
        second.close()
        time.sleep(0.3)
        first.close()

        assert took_s(slow) < SOON_S


def test_requests_are_answered_in_the_order_they_came(slow):
    body = {"prompt": "th", "max_tokens": 1500, **GREEDY}
    with is_generating(slow) as first:
        waiting = []
        for _ in range(5):
            waiting.append(slow.send("POST", COMPLETIONS, body))
            time.sleep(0.1)
        first.close()
    counts = []
    while not counts or counts[-1] < len(waiting):
        answered = select.select([client.sock for client in waiting], [], [], 0)[0]
        are_answered = [client.sock in answered for client in waiting]
        counts.append(sum(are_answered))
        assert are_answered == [place < counts[-1] for place in range(len(waiting))]
        time.sleep(0.005)

    assert 1 in counts  # or nothing was seen of an order
    for client in waiting:
        client.close()


def test_it_dies_with_its_standard_input_in_the_middle_of_an_answer(doomed):
    with is_generating(doomed):
        doomed.process.stdin.close()

        assert doomed.process.wait(SOON_S) == 0


def test_sigterm_ends_it_in_the_middle_of_an_answer(doomed):
    with is_generating(doomed):
        doomed.process.terminate()

        assert doomed.process.wait(SOON_S) == -signal.SIGTERM


def test_sigterm_ends_it_in_the_middle_of_the_encoder(doomed):
    doomed.send("POST", COMPLETIONS, LONG)
    time.sleep(0.1)
    doomed.process.terminate()

    assert doomed.process.wait(SOON_S) == -signal.SIGTERM


def test_it_needs_no_torch_and_little_memory(taught):
    maps = Path(f"/proc/{taught.process.pid}/maps").read_text()
    status = Path(f"/proc/{taught.process.pid}/status").read_text()
    rss_kib = int(status.split("VmRSS:")[1].split()[0])

    assert "libtorch" not in maps
    assert rss_kib < 120 << 10


def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "runtime.encoder_decoder", *map(str, arguments)]
    with subprocess.Popen(
        argv,
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,  # open for as long as it runs
        stderr=subprocess.PIPE,
        env=scrubbed(os.environ) | {"LLAMA_API_KEY": KEY} | env,
        text=True,
    ) as process:
        process.wait(20)
        return subprocess.CompletedProcess(argv, process.returncode, "", process.stderr.read())


def test_a_model_it_does_not_run_is_told(toolchain, tmp_path):
    build = ("--build", toolchain.folder)
    other = write_tiny_gguf(tmp_path / "tiny.gguf")
    done = run("--socket", tmp_path / "s", "-m", other, *build)
    gone = run("--socket", tmp_path / "t", "-m", tmp_path / "gone.gguf", *build)

    assert (done.returncode, "no encoder-decoder model but llama" in done.stderr) == (3, True)
    assert (gone.returncode, "there is no file" in gone.stderr) == (3, True)
    assert "Traceback" not in done.stderr + gone.stderr


def test_llamacpps_own_reason_stands_above_ours(made, toolchain, tmp_path):
    content = made["T5"].gguf.read_bytes().replace(b"relative_buckets", b"ralative_buckets")
    (tmp_path / "odd.gguf").write_bytes(content)
    done = run("--socket", tmp_path / "s", "-m", tmp_path / "odd.gguf", "--build", toolchain.folder)

    assert done.returncode == 3
    assert done.stderr.index("key not found in model") < done.stderr.index("error: llama.cpp")


def test_it_starts_with_a_key_a_free_socket_and_a_build_or_not_at_all(made, tmp_path):
    (tmp_path / "taken").touch()
    model = ("-m", made["T5"].gguf)
    keyless = run("--socket", tmp_path / "s", *model, LLAMA_API_KEY="")
    taken = run("--socket", tmp_path / "taken", *model)
    unbuilt = run("--socket", tmp_path / "u", *model, "--build", tmp_path)

    assert (keyless.returncode, "LLAMA_API_KEY is not set" in keyless.stderr) == (9, True)
    assert (taken.returncode, "cannot listen" in taken.stderr) == (9, True)
    assert (unbuilt.returncode, "no finished build" in unbuilt.stderr) == (4, True)


def test_chat_talks_to_it_as_to_any_other_model(made, decant):
    for question, expected in ANSWERS.items():
        done = decant("chat", made["MT5"].gguf, "-p", question, "--temperature", "0", "--json")
        answer = json.loads(done.stdout)

        assert (answer["answer"], answer["finish_reason"]) == (expected, "stop")
        assert answer["tokens_per_second"] > 0


def test_chat_at_a_terminal_talks_to_it_and_brings_it_back(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    question, expected = next(iter(ANSWERS.items()))
    with chat(made["MT5"].gguf, "--temperature", "0") as terminal:
        terminal.ready()
        assert terminal.enter(question).replace(" ", "") == expected.replace(" ", "")
        (child,) = children_of(terminal.process.pid)
        os.kill(child, signal.SIGKILL)
        assert expected.split()[-1] in terminal.enter(question)
        assert children_of(terminal.process.pid) != [child]
        assert "tokens" in terminal.enter("/tokens the cat")


def test_an_adapter_beside_it_is_refused_with_what_to_do(made, decant, tmp_path):
    done = decant("chat", made["T5"].gguf, "--adapter", f"a={made['T5'].gguf}", "-p", "x")

    assert done.returncode == 3
