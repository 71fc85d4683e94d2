"""`--split-max-size`: one model in several files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from exporter.cli.app import run
from exporter.core.errors import ModelError, OutputError, VerifyError
from exporter.core.gguf import read_gguf as read_header
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.converter_import import imported
from exporter.verify import light
from exporter.verify.logits_engine import gguf_logits
from tests.support.reference import convert_with_llamacpp, merge_with_peft, read_gguf

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

LIMIT = 1_000_000


@pytest.fixture(autouse=True)
def gguf_importable(toolchain):
    with imported(toolchain):
        yield


@pytest.fixture
def split(toolchain, tiny_base, tiny_adapter):
    def split(output: Path, quant: str = "Q4_K_M", **more) -> tuple[Path, ...]:
        request = ExportRequest(
            ((tiny_adapter, 1.0),), tiny_base, (quant,), (output,), split_max=LIMIT, **more
        )
        return export(request, toolchain).files[0].shards

    return split


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_files_hold_what_the_converter_puts_into_them(
    split, toolchain, tiny_base, tiny_adapter, tmp_path
):
    merged = merge_with_peft(tiny_base, tiny_adapter, tmp_path / "merged")
    (tmp_path / "theirs").mkdir()
    limit = ("--split-max-size", f"{LIMIT // 1000}K")
    convert_with_llamacpp(toolchain, merged, tmp_path / "theirs" / "m.gguf", *limit, outtype="f16")

    shards = split(tmp_path / "ours" / "m.gguf", "F16", merge_dtype="base")

    assert len(shards) > 2
    assert names(tmp_path / "ours") == names(tmp_path / "theirs")
    for shard in shards:
        ours, theirs = read_gguf(shard), read_gguf(tmp_path / "theirs" / shard.name)
        assert list(ours[1].items()) == list(theirs[1].items())
        for key in ("split.no", "split.count", "split.tensors.count"):
            assert ours[0][key] == theirs[0][key]
        assert (len(theirs[0]) == 3) is (shard != shards[0]) is (len(ours[0]) == 3)


def test_llamacpp_loads_them_all_by_the_first(split, toolchain, tiny_base, tiny_adapter, tmp_path):
    whole = tmp_path / "whole.gguf"
    export(ExportRequest(((tiny_adapter, 1.0),), tiny_base, ("Q4_K_M",), (whole,)), toolchain)
    first = split(tmp_path / "m.gguf", verify=True)[0]

    chunks = [[1, 40, 50, 60], [1, 70, 80]]
    ours = [list(gguf_logits(path, chunks, toolchain)) for path in (first, whole)]
    assert all(np.array_equal(a, b) and a.any() for a, b in zip(*ours, strict=True))
    one, several = read_header(whole), read_header(first)
    assert {t.name: t.shape for t in several.tensors} == {t.name: t.shape for t in one.tensors}
    assert several.nbytes == sum(path.stat().st_size for path in several.shards)


def test_a_model_below_the_limit_stays_one_file(toolchain, tiny_base, tiny_adapter, tmp_path):
    request = ExportRequest(
        ((tiny_adapter, 1.0),), tiny_base, ("Q4_K_M",), (tmp_path / "m.gguf",), split_max=10**12
    )
    assert export(request, toolchain).files[0].shards == ()
    assert names(tmp_path) == ["m.gguf"]
    with pytest.raises(OutputError, match=r"m\.gguf` exists"):
        export(request, toolchain)


def test_a_file_that_exists_is_refused_before_anything_is_written(split, tmp_path):
    shards = split(tmp_path / "m.gguf")
    shards[0].unlink()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    with pytest.raises(OutputError, match=r"00002-of.* exists"):
        split(tmp_path / "m.gguf")
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_part_that_is_missing_or_of_another_model_is_named(split, tmp_path):
    first, second, *_ = split(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match="is part 2 of") as caught:
        read_header(second)
    assert str(first) in caught.value.hint
    second.rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(ModelError, match=r"00002-of-.*is missing: 1 of the"):
        read_header(first)
    with pytest.raises(ModelError, match="its name does not say so"):
        read_header(tmp_path / "elsewhere.gguf")
    second.write_bytes(first.read_bytes())
    with pytest.raises(ModelError, match="tensors, but should have"):
        read_header(first)


def test_one_that_comes_out_wrong_loses_all_its_names(split, tmp_path, monkeypatch):
    right = light.verify_light

    def damaged(path, *arguments, **more):
        info = read_header(path).tensors[-1]
        assert info.path != path
        with info.path.open("r+b") as file:
            file.seek(info.offset)
            file.write(b"\xff" * info.nbytes)
        return right(path, *arguments, **more)

    monkeypatch.setattr(light, "verify_light", damaged)
    with pytest.raises(VerifyError):
        split(tmp_path / "m.gguf", verify=True)
    assert all(name.endswith(".rejected") for name in names(tmp_path))


def test_in_the_store_it_is_one_model(tiny_base, tiny_adapter, capsys):
    argv = ["export", str(tiny_adapter), "--base", str(tiny_base), "--split-max-size", "1MB"]
    assert run([*argv, "--quiet", "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)["files"]
    assert len(made["shards"]) == 2
    assert run(["list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["nbytes"]) == ("tiny-lora-Q4_K_M", made["nbytes"])
    assert run(["inspect", "tiny-lora", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tensors"]) > 20
    assert run(["rm", "tiny-lora"]) == 0
    assert list(Path(made["path"]).parent.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split-max-size", "lots"], "--split-max-size 'lots' is not a size"),
        (["--split-max-size", "1GB", "--to", "ollama"], "Ollama imports no split GGUF"),
        (["--split-max-size", "1GB", "--to", "safetensors"], "is for GGUF models"),
    ],
)
def test_options_that_make_no_sense_are_named(tiny_base, tiny_adapter, capsys, arguments, message):
    assert run(["export", str(tiny_adapter), "--base", str(tiny_base), *arguments]) == 2
    assert message in capsys.readouterr().err
