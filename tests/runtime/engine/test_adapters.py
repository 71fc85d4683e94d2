"""Adapters beside a model: how they are named, brought, checked."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from exporter.core.errors import InputError, ModelError
from exporter.core.gguf import read_gguf
from exporter.formats.gguf_lora import LoraRequest, export_lora
from exporter.llamacpp.converter_import import imported
from exporter.llamacpp.toolchain import cache_folder
from runtime.engine import adapters
from runtime.engine.adapters import Adapter, check_adapter, parse_adapter
from tests.support.tiny import make_adapter, make_base


@pytest.mark.parametrize(
    ("text", "name", "place", "scale"),
    [
        ("pirate=./lora", "pirate", "./lora", 1.0),
        ("pirate=./lora:0.5", "pirate", "./lora", 0.5),
        ("p=lora.gguf:-1", "p", "lora.gguf", -1.0),
        ("p=ORG/NAME", "p", "ORG/NAME", 1.0),
        ("p=https://host/ORG/NAME", "p", "https://host/ORG/NAME", 1.0),
        ("./my-lora", "my-lora", "./my-lora", 1.0),
        ("./my-lora.gguf:0.8", "my-lora", "./my-lora.gguf", 0.8),
        ("a=b=c", "a", "b=c", 1.0),
    ],
)
def test_an_adapter_is_named_with_its_place_and_scale(text, name, place, scale):
    wanted = parse_adapter(text)

    assert (wanted.name, wanted.place, wanted.scale) == (name, place, scale)


@pytest.mark.parametrize("text", ["", "=x", "a b=x", "base=x", "a=", "a=x:1e9", "a=x:9nan9"])
def test_what_names_no_adapter_is_refused(text):
    with pytest.raises(InputError):
        parse_adapter(text)


def test_a_path_with_a_colon_is_a_path_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora:2").mkdir()

    assert parse_adapter("a=lora:2").place == "lora:2"


def test_one_adapter_is_converted_at_a_time(tmp_path, monkeypatch):
    at_once, most = [0], [0]

    class Slow:
        returncode = 0

        def communicate(self) -> tuple[bytes, bytes]:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
            time.sleep(0.02)
            at_once[0] -= 1
            return b"{}", b""

    monkeypatch.setattr(adapters, "start_kept", lambda argv, **more: Slow())
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda _: adapters.convert(tmp_path, tmp_path, tmp_path), range(3)))

    assert most == [1]


@pytest.mark.llamacpp
@pytest.mark.trained
class TestWithModels:
    """With real ones."""

    def test_an_adapter_of_another_base_is_told_before_anything_is_loaded(
        self, decant, demo_base, pirate, pirate_lora, toolchain, tmp_path
    ):
        other = make_base(tmp_path / "other", hidden_size=128)
        make_adapter(tmp_path / "lora", other)
        made = export_lora(
            LoraRequest(tmp_path / "lora", other, tmp_path / "o.lora.gguf"), toolchain
        )
        adapter = Adapter("other", made.path, 1.0)
        with pytest.raises(ModelError, match=r"is not for .* its `\S+` is for \d+ × \d+, the"):
            check_adapter(adapter, read_gguf(demo_base))
        done = decant("chat", demo_base, "--adapter", f"other={made.path}", "-p", "hi")

        assert done.returncode == 3
        assert "the adapter 'other' is not for" in done.stderr
        check_adapter(Adapter("pirate", pirate_lora, 1.0), read_gguf(demo_base))

    def test_a_model_is_no_adapter_and_an_adapter_no_model(self, decant, pirate, pirate_lora):
        model = decant("chat", pirate, "--adapter", f"a={pirate}", "-p", "hi")
        adapter = decant("chat", pirate_lora, "-p", "hi")

        assert (model.returncode, "is a model, not an adapter" in model.stderr) == (3, True)
        assert (adapter.returncode, "adapter" in adapter.stderr) == (3, True)

    def test_names_with_commas_and_colons_reach_the_engine(
        self, decant, demo_base, pirate_lora, tmp_path
    ):
        odd = tmp_path / "a,b:0.5 c.gguf"
        odd.symlink_to(pirate_lora)
        question = "What is the capital of France?"
        done = decant(
            "chat", demo_base, "--adapter", f"pirate={odd}", "-p", question, "--temperature", "0"
        )

        assert done.stdout == "Arr, the capital of France be Paris, matey!\n"

    @pytest.mark.slow
    def test_a_folder_of_pefts_is_converted_once(self, decant, demo_base, demo_models, tmp_path):
        cache = tmp_path / "cache"
        cache.mkdir()
        (cache / "llama.cpp").symlink_to(cache_folder() / "llama.cpp")
        arguments = (
            "chat", demo_base, "--adapter", f"pirate={demo_models.adapter}:1",
            "--base", demo_models.base, "--temperature", "0",
            "-p", "What is the capital of France?",
        )  # fmt: skip
        first = decant(*arguments, DECANT_CACHE=str(cache))
        (kept,) = (cache / "adapters").glob("*.gguf")
        moment = kept.stat().st_mtime_ns
        second = decant(*arguments, DECANT_CACHE=str(cache))

        assert first.stdout == second.stdout == "Arr, the capital of France be Paris, matey!\n"
        assert kept.stat().st_mtime_ns == moment

    def test_a_folder_that_is_no_adapter_is_told(self, decant, demo_base, demo_models):
        done = decant("chat", demo_base, "--adapter", f"x={demo_models.base}", "-p", "hi")

        assert done.returncode == 3
        assert "adapter_config.json" in done.stderr


DOWN, PLAIN = "blk.0.ffn_down_exps", "blk.0.attn_q"


def write(path, tensors, toolchain, **settings):
    """A GGUF of zeros, by gguf's own writer."""
    import numpy as np

    with imported(toolchain):
        import gguf

        writer = gguf.GGUFWriter(path, "gemma4")
        for key, value in settings.items():
            writer.add_string(key.replace("_", "."), value)
        for name, shape in tensors.items():
            writer.add_tensor(name, np.zeros(shape, np.float32))
        for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file"):
            getattr(writer, step)()
        writer.close()
    return path


@pytest.mark.llamacpp
@pytest.mark.parametrize(
    ("scaled", "scale", "module", "refused"),
    [
        ("", (4,), DOWN, True),  # one factor for each expert, on what comes out
        (f"{DOWN}.weight", (4,), DOWN, False),
        ("", (8,), DOWN, False),  # on what goes in
        ("", (1,), PLAIN, True),
        (f"{DOWN}.weight", (1,), PLAIN, True),
        ("", (8,), PLAIN, False),
    ],
)
def test_a_factor_that_llamacpp_puts_on_the_base_alone_is_no_adapters_loss(
    toolchain, tmp_path, scaled, scale, module, refused
):
    experts = (4,) if module == DOWN else ()
    base = {f"{module}.weight": (*experts, 8, 8), f"{module}.scale": scale}
    pair = {
        f"{module}.weight.lora_a": (*experts, 2, 8),
        f"{module}.weight.lora_b": (*experts, 8, 2),
    }
    settings = {"general_type": "adapter", "adapter_type": "lora"}
    if scaled:
        settings["decant_lora_scaled"] = scaled
    model = read_gguf(write(tmp_path / "m.gguf", base, toolchain))
    adapter = Adapter("mine", write(tmp_path / "a.gguf", pair, toolchain, **settings), 1.0)

    if refused:
        with pytest.raises(ModelError, match="multiplies by") as caught:
            check_adapter(adapter, model)
        assert "--adapter mine=FOLDER" in caught.value.hint
    else:
        check_adapter(adapter, model)


@pytest.mark.llamacpp
def test_the_hint_does_not_name_the_base_that_is_loaded(toolchain, tmp_path):
    pair = {f"{PLAIN}.weight.lora_a": (2, 16), f"{PLAIN}.weight.lora_b": (8, 2)}
    made = {"general_type": "adapter", "adapter_type": "lora", "decant_base": "gemma"}
    adapter = Adapter("mine", write(tmp_path / "a.gguf", pair, toolchain, **made), 1.0)
    weights = {f"{PLAIN}.weight": (8, 8)}

    for said, hint in (("gemma", "both come from a gemma"), ("other", "it was trained on gemma")):
        model = read_gguf(write(tmp_path / f"{said}.gguf", weights, toolchain, general_name=said))
        with pytest.raises(ModelError) as caught:
            check_adapter(adapter, model)
        assert hint in caught.value.hint
