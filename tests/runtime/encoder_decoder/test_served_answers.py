"""Encoder-decoder models served: answers whole, streamed and cut, with llama-server's words."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from tests.support.encoder_decoders import ANSWERS, CHAT, COMPLETIONS, GREEDY, serving
from tests.support.raw import edit_json

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]


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
    trained = made["MT5"]
    base = shutil.copytree(trained.base, tmp_path / "base")
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}"
        "{% endif %}{{ m.content }} {% endfor %}{{ eos_token }}"
    )
    edit_json(base / "tokenizer_config.json", chat_template=template)
    gguf = tmp_path / "x.gguf"
    export(ExportRequest(((trained.lora, 1.0),), base, ("F32",), (gguf,)), toolchain)
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


@pytest.mark.slow
def test_a_template_that_does_not_end_is_broken_off_and_others_are_answered(
    made, toolchain, tmp_path
):
    trained = made["MT5"]
    base = shutil.copytree(trained.base, tmp_path / "base")
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    large = "{{ 'a' * 5000000000 }}"
    template = (
        f"{{% for m in messages %}}{{% if m.content == 'loop' %}}{endless}{{% endif %}}"
        f"{{% if m.content == 'fill' %}}{large}{{% endif %}}{{{{ m.content }}}} {{% endfor %}}"
    )
    edit_json(base / "tokenizer_config.json", chat_template=template)
    gguf = tmp_path / "x.gguf"
    export(ExportRequest(((trained.lora, 1.0),), base, ("F32",), (gguf,)), toolchain)
    with serving(gguf, toolchain.folder) as served, ThreadPoolExecutor(2) as threads:
        talks = ([{"role": "user", "content": text}] for text in ("loop", "fill"))
        asked = [threads.submit(served.call, "POST", CHAT, {"messages": talk}) for talk in talks]
        began = time.monotonic()
        plain = served.post(COMPLETIONS, {"prompt": "on the in", **GREEDY})
        took_s = time.monotonic() - began
        answers = [one.result(120) for one in asked]

    assert plain["choices"][0]["text"].strip() == ANSWERS["on the in"]
    assert took_s < 4
    assert [status for status, _ in answers] == [400, 400]
    for _, body in answers:
        assert "it takes more than 5 s or 1024 MiB" in body["error"]["message"]


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


def test_settings_that_mean_nothing_here_are_passed_over(taught):
    settings = {
        "lora": [{"id": 0, "scale": 0}], "cache_prompt": True, "id_slot": 3, "model": "x",
        "tools": [], "stop": None, "max_tokens": None, "n": 1, "unheard_of": {"of": []},
    }  # fmt: skip

    assert taught.text("a e i", **settings) == ANSWERS["a e i"]
