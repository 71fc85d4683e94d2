"""A GGUF as the base, against the same work done on the checkpoint that it was made of."""

from __future__ import annotations

import shutil

import pytest

from exporter.cli.app import run
from exporter.core.errors import (
    AdapterError,
    CheckpointError,
    ModelError,
    UnsupportedError,
    VerifyError,
)
from exporter.core.gguf import read_gguf as header_of
from exporter.export import export
from exporter.formats.export_request import ExportRequest, plan_request
from exporter.formats.gguf_lora import LoraRequest, export_lora
from exporter.gguf_inputs import gguf_base_names
from exporter.gguf_inputs.gguf_base import gguf_name, open_gguf
from exporter.inputs.locate import Sources, absent, bring
from exporter.verify.after import verify_exported
from tests.support.architectures import make_architecture
from tests.support.logits import Loaded
from tests.support.lora_models import saved
from tests.support.mlx_models import mlx_twin
from tests.support.other_stores import OllamaStore
from tests.support.reference import quantize_with_llamacpp, read_gguf
from tests.support.tiny import make_adapter, make_base, make_tokenizer

pytestmark = [pytest.mark.trained, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def ggufs(tiny_base, toolchain, tmp_path_factory):
    """The tiny base in 16 bits, which loses nothing, and in 8."""
    folder = tmp_path_factory.mktemp("ggufs")
    quants = ("BF16", "Q8_0")
    paths = [folder / f"tiny-{quant}.gguf" for quant in quants]
    export(ExportRequest((), tiny_base, quants, tuple(paths)), toolchain)
    return dict(zip(quants, paths, strict=True))


def exported(adapters, base, toolchain, output, quant="Q8_0", **options):
    weighted = tuple((adapter, 1.0) for adapter in adapters)
    request = ExportRequest(weighted, base, (quant,), (output,), verify=True, **options)
    return export(request, toolchain).verified[0]


@pytest.mark.parametrize("kind", ["peft", "dora", "mlx", "gguf"])
def test_an_adapter_is_merged_as_into_the_checkpoint(
    ggufs, tiny_base, tiny_adapter, toolchain, tmp_path, kind
):
    peft = adapter = tiny_adapter
    match kind:
        case "dora":
            patterns = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.1.mlp": 24}}
            peft = adapter = make_adapter(
                tmp_path / "dora", tiny_base, use_dora=True, use_rslora=True, **patterns
            )
        case "mlx":
            adapter = mlx_twin(tmp_path / "mlx", peft)
        case "gguf":
            adapter = tmp_path / "x.gguf"
            export_lora(LoraRequest(peft, tiny_base, adapter), toolchain)

    exported([adapter], ggufs["BF16"], toolchain, tmp_path / "ours.gguf")

    exported([peft], tiny_base, toolchain, tmp_path / "twin.gguf")
    (ours, tensors), (theirs, expected) = (
        read_gguf(tmp_path / f"{name}.gguf") for name in ("ours", "twin")
    )
    assert tensors == expected
    about = {key for key in theirs if not key.startswith(("general.", "decant."))}
    assert {key: ours[key] for key in about} == {key: theirs[key] for key in about}


@pytest.mark.parametrize(
    "name", ["qwen2", "qwen3", "gemma3", "phi3", "mistral", "gemma2", "mixtral"]
)
def test_each_architectures_arrangement_is_the_converters(toolchain, tmp_path, name):
    base = make_architecture(name, tmp_path / "base", dtype="float32")
    make_tokenizer(base)
    attention = {"target_modules": ["q_proj", "o_proj"]} if name == "mixtral" else {}
    adapter = saved(base, name, tmp_path / "lora", **attention)
    whole = tmp_path / "whole.gguf"
    request = ExportRequest((), base, ("F32",), (whole,))
    export(request, toolchain)

    exported([adapter], whole, toolchain, tmp_path / "ours.gguf", "F32")

    export(ExportRequest(((adapter, 1.0),), base, ("F32",), (tmp_path / "twin.gguf",)), toolchain)
    made = [read_gguf(tmp_path / f"{name}.gguf")[1] for name in ("ours", "twin")]
    assert made[0] == made[1]
    assert made[0] != read_gguf(whole)[1]


def test_a_quantized_base_is_quantized_again_as_llama_quantize_does_and_the_loss_is_said(
    ggufs, toolchain, tmp_path
):
    said, output = [], tmp_path / "again.gguf"
    request = ExportRequest((), ggufs["Q8_0"], ("Q4_K_M",), (output,), verify=True)

    (verified,) = export(request, toolchain, report=said.append).verified

    usual = quantize_with_llamacpp(
        toolchain, ggufs["Q8_0"], tmp_path / "usual.gguf", "Q4_K_M", "--allow-requantize"
    )
    (ours, tensors), (theirs, expected) = map(read_gguf, (output, usual))
    assert tensors == expected
    assert ours["tokenizer.ggml.tokens"] == theirs["tokenizer.ggml.tokens"]
    assert any("lose twice" in event.message for event in said)
    assert [check.name for check in verified.checks] == ["weights", "settings", "loading"]
    (loss,) = [check.numbers["loss"] for check in verified.checks if check.name == "weights"]
    assert 0.01 < loss < 0.2
    assert "%" in verified.summary


def test_what_was_made_answers_in_llamacpp(ggufs, tiny_adapter, toolchain, tmp_path):
    exported([tiny_adapter], ggufs["Q8_0"], toolchain, tmp_path / "ours.gguf")

    models = [Loaded(toolchain, path) for path in (tmp_path / "ours.gguf", ggufs["Q8_0"])]

    tokens = list(range(5, 21))
    adapted, plain = (model.logits(tokens) for model in models)
    assert abs(adapted - plain).max() > 0.01 * abs(plain).max()
    for model in models:
        model.close()


def test_in_16_bits_nothing_is_lost_twice(ggufs, toolchain, tmp_path):
    said = []
    for base, quant in (("BF16", "Q4_K_M"), ("Q8_0", "F16")):
        request = ExportRequest((), ggufs[base], (quant,), (tmp_path / f"{quant}.gguf",))
        export(request, toolchain, report=said.append, dry_run=True)

    assert not any("twice" in event.message for event in said)


def test_a_file_whose_weights_were_changed_is_rejected(ggufs, tiny_adapter, toolchain, tmp_path):
    output = tmp_path / "x.gguf"
    exported([tiny_adapter], ggufs["BF16"], toolchain, output)
    plain = plan_request(ExportRequest((), ggufs["BF16"], (), ()), toolchain)

    with pytest.raises(VerifyError, match=r"where base and adapter give|like another"):
        verify_exported([output], plain, toolchain)

    assert (tmp_path / "x.gguf.rejected").exists()


def test_the_command_takes_a_gguf_whatever_its_name(ggufs, tiny_adapter, tmp_path, capsys):
    """Ollama names files by their hashes."""
    blob = shutil.copy(ggufs["Q8_0"], tmp_path / "sha256-0123")
    options = ["--base", str(blob), "-q", "Q8_0", "-o", str(tmp_path)]

    assert run(["export", str(tiny_adapter), *options]) == 0
    assert "is right" in capsys.readouterr().err
    file = header_of(tmp_path / f"{tiny_adapter.name}-Q8_0.gguf")
    assert file.text("decant.base") == header_of(ggufs["Q8_0"]).text("general.name")
    assert file.text("general.name") == tiny_adapter.name


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("ollama:tiny", "registry.ollama.ai/library/tiny/latest"),
        ("ollama:tiny:8b", "registry.ollama.ai/library/tiny/8b"),
        ("ollama:me/tiny", "registry.ollama.ai/me/tiny/latest"),
        ("ollama:hf.co/me/tiny-GGUF:Q8_0", "hf.co/me/tiny-GGUF/Q8_0"),
    ],
)
def test_a_model_of_ollamas_is_found_by_its_name(ggufs, tmp_path, monkeypatch, text, place):
    store = OllamaStore(tmp_path / "models")
    layers = [store.layer("template", b"x"), store.layer("model", ggufs["Q8_0"].read_bytes())]
    store.name(place, store.manifest(layers))
    monkeypatch.setenv("OLLAMA_MODELS", str(store.home))

    assert absent(Sources((), text)) == ()
    _, base = bring(Sources((), text))

    assert base == store.place(layers[1]["digest"])
    with pytest.raises(ModelError, match="no model 'other'") as caught:
        bring(Sources((), "ollama:other"))
    assert text.removeprefix("ollama:").partition(":")[0] in caught.value.hint


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("Llama-3.2-1B-Q8_0.gguf", "Llama-3.2-1B"),
        ("model.Q4_K_M.gguf", "model"),
        ("big-BF16-00001-of-00003.gguf", "big"),
        ("qwen.gguf", "qwen"),
    ],
)
def test_a_gguf_is_called_without_its_quantization(tmp_path, name, called):
    assert gguf_name(tmp_path / name) == called


def test_a_link_to_a_blob_is_called_by_the_links_name(tmp_path):
    (tmp_path / "cat-Q8_0.gguf").symlink_to(tmp_path / "sha256-0123")

    assert gguf_name(tmp_path / "cat-Q8_0.gguf") == "cat"


@pytest.mark.parametrize("to", ["lora", "safetensors", "ollama"])
def test_an_output_that_needs_the_bases_folder_says_so(ggufs, tiny_adapter, tmp_path, capsys, to):
    options = ["--base", str(ggufs["Q8_0"]), "--to", to, "-o", str(tmp_path / "out")]

    assert run(["export", str(tiny_adapter), *options]) != 0

    assert "is a GGUF" in capsys.readouterr().err


def test_verify_compares_a_file_with_the_gguf_that_it_was_made_of(
    ggufs, tiny_adapter, toolchain, tmp_path, capsys
):
    output = tmp_path / "x.gguf"
    exported([tiny_adapter], ggufs["BF16"], toolchain, output)
    command = ["verify", str(output), "--base", str(ggufs["BF16"])]

    assert run([*command, "--adapter", str(tiny_adapter)]) == 0
    assert "settings as in the base's file" in capsys.readouterr().out
    assert run(command) == 7
    assert "like another tensor" in capsys.readouterr().err


def refused(adapter, base, toolchain, kind, said):
    with pytest.raises(kind, match=said) as caught:
        plan_request(ExportRequest(((adapter, 1.0),), base, ("F16",), ()), toolchain)
    assert caught.value.hint


def test_what_only_the_checkpoint_can_take_is_refused_with_the_reason(
    ggufs, tiny_base, toolchain, tmp_path
):
    cases = {
        "modules_to_save": ({"modules_to_save": ["lm_head"]}, r"holds or uses `lm_head\.weight`"),
        "embedding": ({"target_modules": ["embed_tokens"]}, "adapts the embedding"),
        "pissa": ({"init_lora_weights": "pissa"}, "holds or uses `pissa`"),
    }
    for name, (settings, said) in cases.items():
        adapter = make_adapter(tmp_path / name, tiny_base, **settings)
        refused(adapter, ggufs["BF16"], toolchain, UnsupportedError, said)


def test_an_adapter_of_another_base_is_named_with_what_differs(ggufs, toolchain, tmp_path):
    for name, changes, said in (
        ("deep", {"num_hidden_layers": 4}, "it has no place for `model.layers.3"),
        ("wide", {"intermediate_size": 256}, "the base's is 256 × 512"),
    ):
        base = make_base(tmp_path / name, **changes)
        adapter = make_adapter(tmp_path / f"{name}-lora", base)
        refused(adapter, ggufs["BF16"], toolchain, AdapterError, said)


def test_a_tied_head_is_refused(toolchain, tmp_path):
    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    export(ExportRequest((), base, ("F16",), (tmp_path / "tied.gguf",)), toolchain)
    adapter = make_adapter(tmp_path / "lora", base, target_modules=["lm_head"])

    refused(adapter, tmp_path / "tied.gguf", toolchain, UnsupportedError, "both are one tensor")


def test_an_architecture_whose_arrangement_is_not_known_is_refused(
    ggufs, tiny_adapter, toolchain, monkeypatch
):
    monkeypatch.delitem(gguf_base_names.CLASSES, "llama")

    refused(tiny_adapter, ggufs["BF16"], toolchain, UnsupportedError, "weights of a llama")


def test_a_vision_models_text_part_is_refused(ggufs, tiny_adapter, toolchain, monkeypatch):
    monkeypatch.setattr(gguf_base_names, "MROPE", "rope.freq_base")

    refused(tiny_adapter, ggufs["BF16"], toolchain, UnsupportedError, "weights of a llama")


def test_types_that_cannot_be_read_back_are_refused(ggufs, toolchain, tmp_path):
    """Told by the number in the header; Q8_K is ggml's own for sums, and in no file."""
    import gguf

    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    kind = gguf.GGMLQuantizationType.Q8_K
    writer.add_tensor_info("blk.0.attn_q.weight", (1, 256), "float32", 292, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    path.write_bytes(path.read_bytes() + bytes(1024))

    with pytest.raises(UnsupportedError, match="Q8_K, which cannot be read back"):
        open_gguf(path, toolchain)


def test_what_is_no_model_is_named(ggufs, tiny_base, tiny_adapter, toolchain, tmp_path):
    path = tmp_path / "lora.gguf"
    export_lora(LoraRequest(tiny_adapter, tiny_base, path), toolchain)
    with pytest.raises(CheckpointError, match="is an adapter, not a base"):
        open_gguf(path, toolchain)

    cut = tmp_path / "cut.gguf"
    cut.write_bytes(ggufs["Q8_0"].read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="not a whole GGUF"):
        open_gguf(cut, toolchain)
