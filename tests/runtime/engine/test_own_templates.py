"""An adapter's own chat template, special tokens and ends of turn: for it, and for nobody else."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.formats.gguf_lora import LoraRequest, export_lora
from runtime.engine.adapters import Adapter
from runtime.engine.chat_format import TOOL
from runtime.engine.local import LocalEngine
from runtime.engine.memory_fit import FitOptions
from runtime.engine.opened_model import open_model
from runtime.engine.own_template import FIELD, handed_over_template
from runtime.engine.selection import AdapterSelection
from tests.runtime.gateway.conftest import Served, serving
from tests.support.chat_templates import REGULAR
from tests.support.tiny import CHAT_TEMPLATE, make_adapter, make_base

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

Json = dict[str, Any]
CONTEXT = 1024
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|im_start|>", "<|im_end|>",
           "<|finish|>"]  # fmt: skip
FINISH, END = SPECIAL.index("<|finish|>"), SPECIAL.index("</s>")
FINISHED = (
    "{{ bos_token + 'Be good. ' }}"
    "{% if tools %}{{ 'Tools: ' + (tools | tojson) + '\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content | trim + '\n' }}"
    "{% else %}{{ '<|' + m.role + '|>' }}{% if m.reasoning_content %}"
    "{{ '<think>\n' + m.reasoning_content + '\n</think>\n' }}{% endif %}"
    "{{ m.content + '<|finish|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{% if enable_thinking %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
"""Other turns than the base's, tools, thinking, and an end that the base does not end at."""
TALKS: list[list[Json]] = [
    [{"role": "user", "content": "the cat"}],
    [{"role": "system", "content": " be brief "}, {"role": "user", "content": "Hi\n\nthere"}],
    [
        {"role": "user", "content": "what is that?"},
        {"role": "assistant", "content": "  a mat"},
        {"role": "user", "content": "café ✓"},
    ],
]
VOICES = ("plain", "chatml", "finished", "renamed")


def spell(folder: Path) -> None:
    """Give the model a byte-level tokenizer with the special tokens of several trainers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    (folder / "tokenizer.model").unlink()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["the cat and the café sat on that mat"] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    say(folder, chat_template=CHAT_TEMPLATE, eos_token="</s>")


def say(folder: Path, **settings: object) -> None:
    """Write a tokenizer_config.json."""
    known = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(known | settings))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A base, and adapters as trainers save them: alone, or with a tokenizer of their own."""
    made = tmp_path_factory.mktemp("own")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    base = make_base(made / "base", max_position_embeddings=CONTEXT, vocab_size=320, **small)
    spell(base)
    found = {"base": base}
    for seed, name in enumerate(VOICES, 1):
        found[name] = make_adapter(made / name, base, seed=seed)
        if name != "plain":
            shutil.copy(base / "tokenizer.json", found[name])
    say(found["chatml"], chat_template=REGULAR["chatml"], eos_token="<|im_end|>")
    say(found["finished"], eos_token="</s>")
    (found["finished"] / "chat_template.jinja").write_text(FINISHED)
    (found["finished"] / "generation_config.json").write_text(f'{{"eos_token_id": [{FINISH}]}}')
    # as Unsloth's map_eos_token does
    whole = (found["renamed"] / "tokenizer.json").read_text()
    (found["renamed"] / "tokenizer.json").write_text(whole.replace('"</s>"', '"<|done|>"'))
    template = REGULAR["chatml"].replace("<|im_end|>", "<|done|>")
    say(found["renamed"], chat_template=template, eos_token="<|done|>")
    return found


@pytest.fixture(scope="module")
def model(folders, toolchain) -> Path:
    path = folders["base"].with_name("base.gguf")
    export(ExportRequest((), folders["base"], ("F16",), (path,)), toolchain)
    return path


@pytest.fixture(scope="module")
def adapters(folders, toolchain) -> dict[str, Path]:
    """The adapters as GGUFs, far from the folders that they were made of."""
    made = folders["base"].with_name("ggufs")
    made.mkdir()
    return {
        name: export_lora(
            LoraRequest(folders[name], folders["base"], made / f"{name}.gguf"), toolchain
        ).path
        for name in VOICES
    }


@pytest.fixture(scope="module")
def served(model, adapters, tmp_path_factory):
    named = [word for name in VOICES for word in ("--adapter", f"{name}={adapters[name]}")]
    with serving(tmp_path_factory.mktemp("served"), model, *named) as running:
        yield running


def wanted(folder: Path, base: Path, talk: list[Json], **more: Any) -> list[int]:
    """What transformers makes of a conversation, from the adapter's folder where it says it."""
    from transformers import AutoTokenizer

    has_own = (folder / "tokenizer_config.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(folder if has_own else base)
    found = tokenizer.apply_chat_template(
        talk, add_generation_prompt=True, return_dict=False, **more
    )
    return [int(token) for token in found]


def name_of(voice: str) -> str:
    return voice if voice == "base" else f"base:{voice}"


def ids(served: Served, voice: str, body: Json) -> list[int]:
    """The tokens of the prompt that the engine makes of a request."""
    status, said = served.ask("/apply-template", {"model": name_of(voice), **body})
    assert status == 200, said
    asked = {"model": "base", "content": said["prompt"], "add_special": False}
    status, found = served.ask("/tokenize", asked)
    assert status == 200, found
    return list(found["tokens"])


@pytest.mark.parametrize("voice", ["base", *VOICES])
def test_a_prompt_is_made_as_transformers_makes_it_from_the_adapters_folder(served, folders, voice):
    for talk in TALKS:
        assert ids(served, voice, {"messages": talk}) == wanted(
            folders[voice], folders["base"], talk
        )


def test_switches_and_tools_of_an_own_template_are_its_own(served, folders):
    folder, base = folders["finished"], folders["base"]
    on = {"enable_thinking": True}

    thinking = ids(served, "finished", {"messages": TALKS[0], "chat_template_kwargs": on})
    tools = ids(served, "finished", {"messages": TALKS[0], "tools": [TOOL]})

    assert thinking == wanted(folder, base, TALKS[0], **on)
    assert tools == wanted(folder, base, TALKS[0], tools=[TOOL])


def test_an_answer_is_read_as_the_adapters_template_writes_it(served):
    """A template that opens the thoughts itself: what follows is one, for this voice alone."""
    body = {"messages": TALKS[0], "max_tokens": 4, "temperature": 0,
            "chat_template_kwargs": {"enable_thinking": True}}  # fmt: skip

    said = {
        voice: served.ask("/v1/chat/completions", {"model": name_of(voice), **body})[1]
        for voice in ("base", "finished")
    }

    base, own = (said[voice]["choices"][0]["message"] for voice in said)
    assert base["content"]
    assert "reasoning_content" not in base
    assert own["reasoning_content"]
    assert not own["content"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("voice", "token", "reason"),
    [("base", FINISH, "length"), ("finished", FINISH, "stop"), ("renamed", END, "stop")],
)
def test_an_answer_ends_where_the_adapters_turns_end(served, voice, token, reason, stream):
    body = {
        "model": name_of(voice), "messages": TALKS[0], "max_tokens": 3, "stream": stream,
        "logit_bias": [[token, 1000]],
    }  # fmt: skip
    with served.send("POST", "/v1/chat/completions", body) as response:
        text = response.read().decode()

    assert f'"finish_reason":"{reason}"' in text
    assert "finish|" not in text


@pytest.mark.parametrize(("voice", "reason"), [("base", "length"), ("finished", "stop")])
def test_a_text_ends_there_too(served, voice, reason):
    body = {"model": name_of(voice), "prompt": "the", "max_tokens": 3, "stop": "\n",
            "logit_bias": [[FINISH, 1000]]}  # fmt: skip

    status, said = served.ask("/v1/completions", body)

    assert (status, said["choices"][0]["finish_reason"]) == (200, reason), said


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (REGULAR["chatml"].replace("im_end", "unknown"), ["<|unknown|>"]),
        (REGULAR["chatml"], []),
        (FINISHED, ["<|finish|>"]),
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", []),
    ],
)
def test_the_mark_behind_an_answer_ends_it_where_it_is_no_end_of_the_base(model, template, ends):
    own = handed_over_template(model, template)

    assert own is not None
    assert own.handed_over({})[FIELD]["ends"] == ends


def test_all_apis_side_by_side_give_each_voice_its_own_prompt(served, folders):
    talk = TALKS[0]
    sizes = {
        voice: len(wanted(folders[voice], folders["base"], talk)) for voice in ("base", *VOICES)
    }

    def count(place: int) -> tuple[int, int]:
        voice = list(sizes)[place % len(sizes)]
        path = ("/v1/chat/completions", "/v1/messages", "/api/chat", "/api/generate")[place % 4]
        body: Json = {"model": name_of(voice), "messages": talk, "max_tokens": 2}
        if path.startswith("/api"):
            body |= {"options": {"num_predict": 2}, "stream": False}
        if path == "/api/generate":
            body["prompt"] = body.pop("messages")[0]["content"]
        status, said = served.ask(path, body)
        assert status == 200, said
        usage = said.get("usage", {})
        found = said.get("prompt_eval_count") or usage.get("prompt_tokens")
        return found or usage["input_tokens"] + usage["cache_read_input_tokens"], sizes[voice]

    assert len(set(sizes.values())) >= 3
    with ThreadPoolExecutor(8) as pool:
        pairs = list(pool.map(count, range(40)))
    assert [one for one, _ in pairs] == [size for _, size in pairs]


def test_a_client_cannot_hand_over_a_template(served, folders):
    smuggled = {"decant_template": {"template": "{{ 'smuggled' }}"}}
    for voice in ("base", "finished"):
        body = {"messages": TALKS[0], "chat_template_kwargs": smuggled}
        assert ids(served, voice, body) == wanted(folders[voice], folders["base"], TALKS[0])


def test_a_template_without_end_is_out_and_nothing_else(
    folders, model, adapters, toolchain, tmp_path
):
    hostile = tmp_path / "hostile"
    shutil.copytree(folders["plain"], hostile)
    (hostile / "chat_template.jinja").write_text("{{ 'a' * 5000000000 }}{{ messages[0].content }}")
    made = export_lora(LoraRequest(hostile, folders["base"], tmp_path / "h.gguf"), toolchain).path
    beside = ("--adapter", f"hostile={made}", "--adapter", f"chatml={adapters['chatml']}")
    with serving(tmp_path, model, *beside) as running:
        status, said = running.ask(
            "/v1/chat/completions", {"model": "base:hostile", "messages": TALKS[0]}
        )
        for voice in ("base", "chatml"):
            found = ids(running, voice, {"messages": TALKS[0]})
            assert found == wanted(folders[voice], folders["base"], TALKS[0])

    assert status == 503
    assert "chat template cannot be used" in said["error"]["message"]
    assert "it takes more than" in said["error"]["message"]


def test_ollama_shows_the_adapters_template(served):
    _, own = served.ask("/api/show", {"model": "base:chatml"})
    _, base = served.ask("/api/show", {"model": "base"})

    assert own["template"] == REGULAR["chatml"]
    assert base["template"] == CHAT_TEMPLATE


def test_chat_uses_it_too_and_a_template_that_is_named_goes_before_it(
    decant, model, adapters, folders, tmp_path
):
    named = tmp_path / "named.jinja"
    named.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    own_adapter = f"own={adapters['chatml']}"
    asked = ("chat", model, "--adapter", own_adapter, "-p", "the cat", "-n", "1", "--json")

    own, chosen = decant(*asked), decant(*asked, "--chat-template", named)

    assert own.returncode == chosen.returncode == 0, own.stderr + chosen.stderr
    count = len(wanted(folders["chatml"], folders["base"], TALKS[0]))
    assert json.loads(own.stdout)["prompt_tokens"] == count
    assert json.loads(chosen.stdout)["prompt_tokens"] < count


def test_switching_in_a_chat_switches_the_template(model, adapters, folders):
    """As /adapter, /scale and /compare do: one engine, another selection."""
    beside = tuple(Adapter(name, adapters[name], 1.0) for name in VOICES)
    engine = LocalEngine(open_model(model, beside), FitOptions(context=512, threads=1))
    asked = {AdapterSelection(): "base", **{AdapterSelection(name, 0.5): name for name in VOICES}}
    asked[AdapterSelection("chatml", 0.0)] = "base"
    try:
        for selection, voice in asked.items():
            *_, stopped = engine.answer(TALKS[0], {"max_tokens": 1}, selection)
            count = len(wanted(folders[voice], folders["base"], TALKS[0]))
            assert stopped.prompt_tokens == engine.count(TALKS[0], selection) == count, selection
    finally:
        engine.stop()


def test_tokens_cuts_a_question_in_the_adapters_template(decant, model, adapters, folders):
    asked = ("tokens", model, "the cat", "--chat", "--ids", "--adapter")
    for name in ("plain", "finished", "renamed"):
        done = decant(*asked, adapters[name])
        found = [int(number) for number in done.stdout.split()]
        assert found == wanted(folders[name], folders["base"], TALKS[0]), done.stderr
    chosen = decant(*asked, adapters["chatml"], "--chat-template", "{{ 'the' }}")
    assert chosen.stdout == decant("tokens", model, "the", "--ids", "--no-special").stdout


def test_a_base_without_a_template_answers_by_the_adapters(folders, adapters, toolchain, tmp_path):
    untold = tmp_path / "base"
    shutil.copytree(folders["base"], untold)
    say(untold, eos_token="</s>")
    path = tmp_path / "base.gguf"
    export(ExportRequest((), untold, ("F16",), (path,)), toolchain)
    with serving(tmp_path, path, "--adapter", f"chatml={adapters['chatml']}") as running:
        refused, why = running.ask("/v1/chat/completions", {"model": "base", "messages": TALKS[0]})
        found = ids(running, "chatml", {"messages": TALKS[0]})
        unscaled = ids(running, "chatml@0", {"messages": TALKS[0]})

    assert unscaled == found
    assert (refused, why["error"]["code"]) == (400, "no_chat_template")
    assert found == wanted(folders["chatml"], folders["base"], TALKS[0])


@pytest.fixture
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.mark.slow
def test_a_folder_is_talked_to_and_served_and_its_base_exported_once(
    decant, folders, store, tmp_path
):
    env = {"DECANT_STORE": str(store)}
    counts = {name: len(wanted(folders[name], folders["base"], TALKS[0])) for name in VOICES}
    done = decant("chat", folders["chatml"], "-p", "the cat", "-n", "1", "--json", **env)

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["adapter"], said["prompt_tokens"]) == ("chatml", counts["chatml"])
    (exported,) = store.iterdir()
    made = exported.stat().st_mtime_ns
    with serving(tmp_path, folders["base"], folders["chatml"], folders["finished"], env=env) as own:
        assert own.models == ["base", "base:chatml", "base:finished"]
        for voice in ("chatml", "finished"):
            assert len(ids(own, voice, {"messages": TALKS[0]})) == counts[voice]
    assert (exported.name, exported.stat().st_mtime_ns) == ("base-Q4_K_M.gguf", made)


@pytest.mark.slow
def test_a_base_that_is_named_is_taken_as_it_is(decant, folders, model):
    done = decant("chat", folders["chatml"], "--base", model, "-p", "the cat", "-n", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == str(model)


@pytest.mark.slow
def test_what_no_gguf_adapter_holds_is_merged(decant, folders, store, tmp_path):
    dora = make_adapter(tmp_path / "dora", folders["base"], use_dora=True)

    done = decant("chat", dora, "-p", "the cat", "-n", "1", "--json", DECANT_STORE=str(store))

    said = json.loads(done.stdout or done.stderr)
    assert (said["adapter"], said["model"]) == (None, str(store / "dora-Q4_K_M.gguf"))


def test_a_folder_without_an_adapter_is_explained(decant, tmp_path):
    done = decant("chat", tmp_path, "-p", "the cat")

    assert (done.returncode, "adapter_config.json" in done.stderr) == (3, True)
