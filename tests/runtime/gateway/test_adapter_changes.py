"""Adapters that come and go under traffic, with llama-server: no answer is another adapter's."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from exporter.llamacpp.toolchain import cache_folder
from tests.runtime.conftest import PROMPTS
from tests.runtime.gateway.conftest import Served, serving, until
from tests.support.raw import write_tiny_gguf
from tests.support.tiny_lora import is_by, write_tiny_lora

pytestmark = pytest.mark.llamacpp

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
COUNT, PERMANENT = 12, 4
"""Adapters of the tiny model; those that stay."""
TOKENS = 8
MIB = 1 << 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Path, Path]:
    """The tiny model, and a folder with its adapters 0.gguf, 1.gguf …"""
    folder = tmp_path_factory.mktemp("tiny")
    adapters = folder / "adapters"
    adapters.mkdir()
    for number in range(COUNT):
        write_tiny_lora(adapters / f"{number}.gguf", number)
    return write_tiny_gguf(folder / "tiny.gguf"), adapters


@contextmanager
def changing(tmp: Path, tiny: tuple[Path, Path], *more: object) -> Iterator[Served]:
    model, adapters = tiny
    arguments = (model, "--allow-adapter-path", adapters, "--parallel", 4, "--ctx", 128)
    with serving(tmp, *arguments, "--threads", 1, *more) as served:
        served.wait_until_ready()
        yield served


def change(served: Served, path: str, **body: object) -> int:
    with served.send("POST", path, body) as response:
        response.read()
        return response.status


def load(served: Served, number: int, **more: object) -> int:
    return change(served, LOAD, lora_name=f"a{number}", lora_path=f"{number}.gguf", **more)


def completion(served: Served, model: str, prompt: str = "Hi") -> tuple[int, str]:
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": TOKENS}
    status, told = served.ask("/v1/completions", body)
    return status, told["choices"][0]["text"] if status == 200 else str(told)


def alone(tmp: Path, tiny: tuple[Path, Path], number: int | None) -> str:
    """The greedy answer of a server that has no other adapter."""
    model, adapters = tiny
    named = () if number is None else ("--adapter", f"a={adapters / f'{number}.gguf'}")
    with serving(tmp, model, *named, "--ctx", 128, "--threads", 1) as served:
        served.wait_until_ready()
        return completion(served, "tiny" if number is None else "tiny:a")[1]


@dataclass
class Traffic:
    """Clients that ask for adapters while these change, and what they were answered."""

    served: Served
    expected: Mapping[str, str]
    """The answers of the models."""
    stays: frozenset[str]
    """Models that are always there; others may be unknown."""
    right: Counter[str] = field(default_factory=Counter)
    wrong: list[object] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def client(self, seed: int, models: list[str]) -> None:
        dice = random.Random(seed)
        while not self.is_over.is_set():
            model = dice.choice(models)
            try:
                status, answer = completion(self.served, model)
            except OSError as error:
                self.wrong.append((model, repr(error)))
                continue
            if status == 200 and answer == self.expected[model]:
                self.right[model] += 1
            elif not (status == 404 and model not in self.stays):
                self.wrong.append((model, status, answer))


def rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    return 0


def test_an_answer_is_that_of_the_adapter_alone_before_and_after_changes(tiny, tmp_path):
    expected = {number: alone(tmp_path, tiny, number) for number in (None, 0, 1)}
    assert len(set(expected.values())) == 3
    assert is_by(expected[0], 0)
    assert is_by(expected[1], 1)

    with changing(tmp_path, tiny) as served:
        assert completion(served, "tiny") == (200, expected[None])
        assert load(served, 0) == 200
        assert completion(served, "a0") == (200, expected[0])
        assert load(served, 1) == 200
        assert [completion(served, f"tiny:a{n}")[1] for n in (1, 0, 1)] == [
            expected[1], expected[0], expected[1]
        ]  # fmt: skip
        assert change(served, UNLOAD, lora_name="a0") == 200
        assert completion(served, "tiny:a0")[0] == 404
        assert completion(served, "tiny:a1") == (200, expected[1])
        assert completion(served, "tiny") == (200, expected[None])
        # the engine with both adapters is the only one until its successor has begun
        assert until(lambda: [links(one) for one in served.children()] == [["0.gguf"]])
        (engine,) = served.children()
        held = [str(path.readlink()) for path in Path(f"/proc/{engine}/fd").iterdir()]
        assert not [path for path in held if path.startswith(str(tiny[1]))]


def links(engine: int) -> list[str]:
    """The adapters in an engine's folder."""
    return [path.name for path in Path(f"/proc/{engine}/cwd").glob("*.gguf")]


@pytest.mark.lasting
def test_of_forty_adapters_the_right_one_answers(tiny, tmp_path):
    """So many that a request does not name all of them; the base is asked in between."""
    folder = tiny[1]
    for number in range(COUNT, 40):
        write_tiny_lora(folder / f"{number}.gguf", number)
    dice = random.Random(2)
    with changing(tmp_path, tiny) as served:
        base = completion(served, "tiny")
        assert [load(served, number) for number in range(40)] == [200] * 40
        for _ in range(30):
            number = dice.randrange(40)
            status, answer = completion(served, f"a{number}")
            assert (status, is_by(answer, number)) == (200, True), (number, answer)
            assert completion(served, "tiny") == base


@pytest.mark.trained
@pytest.mark.lasting
def test_adapters_that_a_trainer_made_answer_as_alone_after_they_came(
    demo_base, pirate_lora, liar_lora, voices, tmp_path
):
    with serving(tmp_path, *voices) as served:
        served.wait_until_ready()
        models = ("base", "base:pirate", "base:liar")
        expected = {(m, p): served.says(m, p) for m in models for p in PROMPTS}
    folder = pirate_lora.parent
    (folder / "liar.gguf").symlink_to(liar_lora)
    with serving(
        tmp_path, demo_base, "--allow-adapter-path", folder, "--allow-adapter-path",
        liar_lora.parent,
    ) as served:  # fmt: skip
        served.wait_until_ready()
        assert served.says("base", PROMPTS[0]) == expected["base", PROMPTS[0]]
        for name, path in (("pirate", pirate_lora), ("liar", liar_lora)):
            assert change(served, LOAD, lora_name=name, lora_path=str(path)) == 200
        found = {(m, p): served.says(m, p) for m in models for p in PROMPTS}

    assert found == expected


@pytest.mark.slow
def test_two_hundred_changes_under_eight_clients_lose_nothing(tiny, tmp_path):
    """No wrong answer, none lost, and neither memory nor processes are left behind."""
    expected = {f"a{number}": alone(tmp_path, tiny, number) for number in range(COUNT)}
    expected["tiny"] = alone(tmp_path, tiny, None)
    assert all(is_by(expected[f"a{number}"], number) for number in range(COUNT))
    with changing(tmp_path, tiny) as served:
        for number in range(PERMANENT):
            assert load(served, number) == 200
        names = [f"a{number}" for number in range(COUNT)]
        stays = frozenset(("tiny", *names[:PERMANENT]))
        traffic = Traffic(served, expected, stays)
        dice = random.Random(5)
        with ThreadPoolExecutor(8) as pool:
            works = [pool.submit(traffic.client, n, ["tiny", *names]) for n in range(8)]
            sizes = []
            for done in range(200):
                number = dice.randrange(PERMANENT, COUNT)
                if load(served, number) == 400:
                    assert change(served, UNLOAD, lora_name=f"a{number}") == 200
                time.sleep(0.1)
                if done % 20 == 19:
                    sizes.append(rss(served.process.pid))
            traffic.is_over.set()
            for work in works:
                work.result()
        assert until(lambda: len(served.children()) == 1)
        assert served.metric("decant_child_restarts_total") == 0

    assert traffic.wrong == []
    assert traffic.right.total() > 200
    assert set(traffic.right) == {"tiny", *names}
    assert max(sizes[5:]) <= max(sizes[:5]) + 8 * MIB, sizes


@pytest.mark.trained
@pytest.mark.slow
def test_a_trainers_folder_that_appears_is_converted_and_served(
    demo_base, demo_models, liar_lora, voices, tmp_path
):
    """Named by a request, too; what is asked meanwhile is answered."""
    with serving(tmp_path, *voices) as served:
        served.wait_until_ready()
        expected = [served.says("base:pirate", prompt) for prompt in PROMPTS]
        base = served.says("base", PROMPTS[0])
    watched = tmp_path / "adapters"
    watched.mkdir()
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "llama.cpp").symlink_to(cache_folder() / "llama.cpp")
    env = {"DECANT_CACHE": str(cache)}
    with serving(tmp_path, demo_base, "--adapter-dir", watched, env=env) as served:
        served.wait_until_ready()
        shutil.copytree(demo_models.adapter, watched / "pirate")
        while "base:pirate" not in [one["id"] for one in served.get("/v1/models")[1]["data"]]:
            assert served.says("base", PROMPTS[0]) == base
        assert [served.says("base:pirate", prompt) for prompt in PROMPTS] == expected
        assert change(served, LOAD, lora_name="again", lora_path="pirate") == 200
        assert [served.says("again", prompt) for prompt in PROMPTS] == expected
        shutil.rmtree(watched / "pirate")
        assert until(lambda: served.get("/v1/models/base:pirate")[0] == 404)
        assert served.says("again", PROMPTS[0]) == expected[0]


REFUSED = {
    "broken.gguf": ("broken", 400, "not a whole GGUF"),
    "other.gguf": ("other", 400, "it adapts a gemma"),
    "wide.gguf": ("wide", 400, "is for 288 × 512"),
    "model.gguf": ("model", 400, "is a model, not an adapter"),
    "bad": ("bad", 400, "adapter_config.json"),
    "empty": ("empty", 400, "name the folder"),
    "1.gguf": ("a0", 400, "already been loaded"),
    "2.gguf": ("tiny", 400, "the name of a served model"),
    "3.gguf": ("a/b", 400, "cannot be an adapter's name"),
    "/etc/hostname": ("outside", 403, "outside the folders"),
    "../tiny.gguf": ("outside", 403, "outside the folders"),
    "org/name": ("repo", 403, "--allow-pull"),
    "none.gguf": ("none", 404, "there is no"),
}
"""By path: a name, the status, and words of the message."""
NAMES = 1000


@pytest.mark.slow
def test_what_is_refused_under_eight_clients_disturbs_none(tiny, tmp_path):
    """Nor do a thousand names, and one more."""
    model, folder = tiny
    (folder / "broken.gguf").write_bytes((folder / "0.gguf").read_bytes()[:500])
    write_tiny_lora(folder / "other.gguf", architecture="gemma")
    write_tiny_lora(folder / "wide.gguf", width=512)
    shutil.copy(model, folder / "model.gguf")
    (folder / "empty").mkdir()
    (folder / "bad").mkdir()
    (folder / "bad" / "adapter_config.json").write_text("{")
    expected = {f"a{number}": alone(tmp_path, tiny, number) for number in range(PERMANENT)}
    expected["tiny"] = alone(tmp_path, tiny, None)
    with changing(tmp_path, tiny, "--limit", f"adapters={NAMES}") as served:
        for number in range(PERMANENT):
            assert load(served, number) == 200
        names = list(expected)
        traffic = Traffic(served, expected, frozenset(names))
        with ThreadPoolExecutor(8) as pool:
            works = [pool.submit(traffic.client, n, names) for n in range(8)]
            try:
                assert until(lambda: set(traffic.right) == set(names))
                assert until(lambda: len(served.children()) == 1)
                engines = served.children()
                for _ in range(5):
                    for path, (name, status, words) in REFUSED.items():
                        found, told = told_of(served, LOAD, lora_name=name, lora_path=path)
                        assert (found, words in told) == (status, True), (path, told)
                    found, told = told_of(served, UNLOAD, lora_name="nobody")
                    assert (found, told) == (404, "The lora adapter 'nobody' cannot be found.")
                assert served.children() == engines  # no engine was replaced
                for number in range(PERMANENT, NAMES):
                    path = f"{number % COUNT}.gguf"
                    assert change(served, LOAD, lora_name=f"a{number}", lora_path=path) == 200
                found, told = told_of(served, LOAD, lora_name="more", lora_path="0.gguf")
                assert (found, "--limit adapters=N" in told) == (400, True), told
                assert change(served, UNLOAD, lora_name=f"a{NAMES - 1}") == 200
                assert change(served, LOAD, lora_name="more", lora_path="0.gguf") == 200
            finally:
                traffic.is_over.set()
            for work in works:
                work.result()
        assert completion(served, "more")[1] == expected["a0"]
        for number in range(PERMANENT, NAMES, 97):
            assert is_by(completion(served, f"a{number}")[1], number % COUNT), number
        assert served.metric("decant_child_restarts_total") == 0

    assert traffic.wrong == []
    assert set(traffic.right) == set(names)
    assert traffic.right.total() > 200


def told_of(served: Served, path: str, **body: object) -> tuple[int, str]:
    """The status of a change that is refused, and its message."""
    with served.send("POST", path, body) as response:
        text = response.read().decode()
    return response.status, json.loads(text)["error"]["message"] if text[0] == "{" else text
