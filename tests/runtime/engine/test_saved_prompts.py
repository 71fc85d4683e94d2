"""Prompts on disk: found again by the same model and voice, and by nobody else."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from exporter.core.errors import EngineError
from runtime.engine import saved_prompts
from runtime.engine.llama_server import STOP_S, Server, ServerSpec
from runtime.engine.lora_scales import lora_vector
from runtime.engine.openai_client import ask_json
from runtime.engine.saved_prompts import SAVING, SUFFIX, PromptPlan, SavedPrompts

LONG = [{"role": "user", "content": "Where does a bee live? " * 12}]
"""More than TOKENS_MIN tokens."""
BASE, PIRATE, LIAR = (0.0, 0.0), (1.0, 0.0), (0.0, 1.0)
VOICES = (BASE, PIRATE, LIAR)


def made(folder: Path, model: Path, *adapters: Path, **changes: object) -> PromptPlan:
    """A plan for a model in which nothing runs."""
    plan = PromptPlan(folder / "prompts", 1 << 30, (model,), adapters, ("build",), 2, VOICES)
    return replace(plan, **changes)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)


class TestNames:
    """For whom a file is."""

    @pytest.fixture
    def model(self, tmp_path) -> Path:
        (tmp_path / "m.gguf").write_bytes(b"model")
        return tmp_path / "m.gguf"

    @pytest.fixture
    def opened(self) -> Iterator[Callable[[PromptPlan], SavedPrompts]]:
        """Makes the prompts of plans, and closes them after the test."""
        with ExitStack() as stack:
            yield lambda plan: stack.enter_context(closing(SavedPrompts(plan)))

    def test_another_model_build_or_setting_has_another_key(self, tmp_path, model, opened):
        other = tmp_path / "n.gguf"
        shutil.copy2(model, other)
        keys = {
            opened(plan).key
            for plan in (
                made(tmp_path, model),
                made(tmp_path, other),
                made(tmp_path, model, settings=("another build",)),
            )
        }

        assert len(keys) == 3

    def test_a_changed_file_has_another_key(self, tmp_path, model, opened):
        before = opened(made(tmp_path, model)).key
        model.write_bytes(b"again")

        assert opened(made(tmp_path, model)).key != before

    def test_a_voice_is_its_adapters_and_their_scales(self, tmp_path, model, opened):
        one, two = tmp_path / "one", tmp_path / "two"
        one.write_bytes(b"1")
        two.write_bytes(b"2")
        saved = opened(made(tmp_path, model, one, two))
        found = [saved.adapters_key(scales) for scales in (BASE, PIRATE, LIAR, (0.5, 0.0))]
        turned = opened(made(tmp_path, model, two, one))

        assert len(set(found)) == 4
        assert turned.adapters_key(LIAR) == saved.adapters_key(PIRATE)
        assert saved.adapters_key((0.1, 0.0)) == saved.adapters_key((0.10000000149011612, 0.0))

    def test_only_this_user_can_enter_the_folder(self, tmp_path, model, opened):
        (tmp_path / "prompts").mkdir(mode=0o755)
        opened(made(tmp_path, model))

        assert (tmp_path / "prompts").stat().st_mode & 0o777 == 0o700

    def test_what_a_killed_process_was_writing_is_deleted(self, tmp_path, model, opened):
        left = tmp_path / "prompts" / f"{SAVING}4194304-x"
        left.mkdir(parents=True)
        (left / "saved").write_bytes(b"half")
        opened(made(tmp_path, model))

        assert not left.exists()

    def test_two_readers_at_once_give_each_slot_its_own_file(self, tmp_path, model, opened):
        """Both replaced engines hand over at once."""
        adapters = [tmp_path / name for name in "ab"]
        for path in (*adapters, tmp_path / "content"):
            path.write_bytes(b"x")
        prompts = opened(made(tmp_path, model, *adapters, slots=4))
        for scales in (PIRATE, LIAR):
            content = tmp_path / "content"
            key = prompts.adapters_key(scales)
            shutil.copy2(content, prompts.plan.folder / prompts.name_of(content, key))
        engine = SlowReader(Path(prompts.place.name))
        threads = [Thread(target=prompts.restore, args=(engine,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(engine.read) == sorted(
            (slot, prompts.adapters_key(scales)) for slot, scales in enumerate(engine.scales)
        )
        assert len(set(prompts.used)) == 2

    def test_the_oldest_are_deleted_beyond_the_limit(self, tmp_path, model, opened):
        saved = opened(made(tmp_path, model, limit=25))
        for age in range(4):
            path = saved.plan.folder / f"k-v-{age}-10{SUFFIX}"
            path.write_bytes(b"x" * 10)
            os.utime(path, (age, age))
        saved.keep_within_limit()

        assert [path.name for path in files(saved.plan.folder)] == [
            f"k-v-{age}-10{SUFFIX}" for age in (2, 3)
        ]


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.lasting
class TestWithAnEngine:
    """An engine that is stopped and started again."""

    @pytest.fixture
    def spec(self, demo_base, pirate_lora, liar_lora, tmp_path) -> ServerSpec:
        adapters = (pirate_lora, liar_lora)
        plan = made(tmp_path, demo_base, *adapters)
        return ServerSpec(demo_base, 512, 1, 2, adapters, prompts=plan)

    def test_the_prompt_is_not_computed_again(self, spec, toolchain):
        with running(spec, toolchain) as server:
            first = answer(server, PIRATE)
        with running(spec, toolchain) as server:
            again = answer(server, PIRATE)

        assert first["timings"]["cache_n"] == 0
        assert again["timings"]["prompt_n"] <= 2
        assert text_of(again) == text_of(first)

    @pytest.mark.parametrize("other", [BASE, LIAR])
    def test_it_is_never_another_voices(self, spec, toolchain, other):
        with running(spec, toolchain) as server:
            answer(server, PIRATE)
        with running(replace(spec, prompts=None), toolchain) as server:
            right = answer(server, other)
        with running(spec, toolchain) as server:
            found = answer(server, other)

        assert found["timings"]["cache_n"] == 0
        assert text_of(found) == text_of(right)

    def test_each_voice_finds_its_own(self, spec, toolchain):
        with running(spec, toolchain) as server:
            told = {voice: text_of(answer(server, voice)) for voice in (PIRATE, LIAR)}
        with running(spec, toolchain) as server:
            found = {voice: answer(server, voice) for voice in (LIAR, PIRATE)}

        assert {voice: text_of(one) for voice, one in found.items()} == told
        assert all(one["timings"]["cache_n"] > 0 for one in found.values())

    def test_a_damaged_file_is_deleted_and_the_prompt_computed(self, spec, toolchain):
        with running(spec, toolchain) as server:
            told = text_of(answer(server, PIRATE))
        (path,) = files(spec.prompts.folder)
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(b"damaged!")
        with running(spec, toolchain) as server:
            assert not path.exists()
            found = answer(server, PIRATE)

        assert found["timings"]["cache_n"] == 0
        assert text_of(found) == told

    def test_a_model_replaced_while_the_engine_starts_takes_nothing(
        self, spec, toolchain, tmp_path, monkeypatch
    ):
        model = tmp_path / "m.gguf"
        shutil.copy2(spec.model, model)
        spec = replace(spec, model=model, prompts=replace(spec.prompts, files=(model,)))
        with running(spec, toolchain) as server:
            answer(server, PIRATE)
        ready = Server.wait_until_ready

        def touched(self: Server, *, on_port: bool) -> None:
            ready(self, on_port=on_port)
            os.utime(model)

        monkeypatch.setattr(Server, "wait_until_ready", touched)
        with running(spec, toolchain) as server:
            assert answer(server, PIRATE)["timings"]["cache_n"] == 0
        assert len(files(spec.prompts.folder)) == 1  # nothing was saved for the changed file

    def test_a_short_prompt_and_a_larger_one_than_the_limit_are_not_kept(self, spec, toolchain):
        small = replace(spec, prompts=replace(spec.prompts, limit=1000))
        with running(small, toolchain) as server:
            answer(server, PIRATE)
        with running(spec, toolchain) as server:
            ask_json(server, "/v1/completions", {"prompt": "tell", "max_tokens": 2})

        assert files(spec.prompts.folder) == []

    @pytest.mark.parametrize("bound", [{"max_bytes": 1000}, {"min_tokens": 500}])
    def test_what_is_not_kept_is_not_written_either(self, spec, toolchain, bound):
        with running(replace(spec, parallel=1), toolchain) as server:
            answer(server, PIRATE)
            with pytest.raises(EngineError, match=next(iter(bound))):
                ask_json(server, "/slots/0?action=save", {"filename": "x", **bound})
            assert not (Path(server.saved.place.name) / "x").exists()

    def test_a_slot_that_has_had_a_request_is_left_as_it_is(self, spec, toolchain):
        with running(spec, toolchain) as server:
            told = {voice: text_of(answer(server, voice)) for voice in (PIRATE, LIAR)}
        with running(replace(spec, is_restoring=False), toolchain) as server:
            (newest,) = spec.prompts.folder.glob(f"*{server.saved.adapters_key(LIAR)}*")
            os.utime(newest)
            found = {BASE: answer(server, BASE)}
            server.restore()
            server.restore()
            again = {voice: answer(server, voice) for voice in (BASE, LIAR)}

        assert found[BASE]["timings"]["cache_n"] == 0
        assert [one["timings"]["prompt_n"] <= 2 for one in again.values()] == [True, True]
        assert text_of(again[BASE]) == text_of(found[BASE])
        assert text_of(again[LIAR]) == told[LIAR]

    def test_the_engine_ends_whatever_becomes_of_its_prompts(self, spec, toolchain, monkeypatch):
        def fail(*arguments: object) -> None:
            raise RuntimeError("no")

        monkeypatch.setattr(SavedPrompts, "save", fail)
        with Server(spec, toolchain) as server:
            process = server.process
            with pytest.raises(RuntimeError, match="no"):
                server.stop(is_saving=True)
            assert process.poll() is not None
        assert not list(spec.prompts.folder.iterdir())

    def test_nothing_is_left_beside_the_files(self, spec, toolchain):
        with running(spec, toolchain) as server:
            answer(server, PIRATE)

        assert files(spec.prompts.folder) == sorted(spec.prompts.folder.iterdir())
        assert {path.stat().st_mode & 0o777 for path in files(spec.prompts.folder)} == {0o600}

    def test_an_engine_that_does_not_finish_saving_is_ended(
        self, endless, toolchain, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(saved_prompts, "SAVE_S", 0.3)
        plan = made(tmp_path, endless, slots=1, scales=((),))
        asked = {"prompt": "tell " * 80, "ignore_eos": True, "n_predict": -1, "stream": True}
        with (
            Server(ServerSpec(endless, 32768, 1, prompts=plan), toolchain) as server,
            server.post("/completion", asked) as response,
        ):
            response.read(10)
            server.in_flight = 0  # as if it were another's request
            began = time.monotonic()
            server.stop(is_saving=True)
            assert time.monotonic() - began < saved_prompts.SAVE_S + sum(STOP_S)

        assert files(plan.folder) == []


class SlowReader:
    """An engine that opens the file that it is to read a moment after the request."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.read: list[tuple[int, str]] = []
        self.scales: list[tuple[float, ...]] = []

    @contextmanager
    def post(self, route: str, body: dict) -> Iterator[SimpleNamespace]:
        time.sleep(0.02)
        found = (self.place / body["filename"]).resolve()
        self.scales.append(tuple(one["scale"] for one in body["lora"]))
        self.read.append((len(self.read), found.name.split("-")[1]))
        yield SimpleNamespace(status=200, read=lambda most: b"{}")


@contextmanager
def running(spec: ServerSpec, toolchain) -> Iterator[Server]:
    """An engine, whose prompts are saved at the end."""
    with Server(spec, toolchain) as server:
        yield server
        server.stop(is_saving=True)


def answer(server: Server, scales: tuple[float, ...]) -> dict:
    body = {"messages": LONG, "temperature": 0, "max_tokens": 24, **lora_vector(scales)}
    return ask_json(server, "/v1/chat/completions", body)


def text_of(answered: dict) -> str:
    return answered["choices"][0]["message"]["content"]
