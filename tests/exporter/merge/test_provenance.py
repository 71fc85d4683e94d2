from __future__ import annotations

import shutil

import pytest

from exporter.core.paths import repo_at
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.converter_import import imported
from tests.support.reference import MAY_DIFFER, convert_with_llamacpp, read_gguf

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """\
---
license: apache-2.0
license_link: LICENSE.txt
language: [en, de]
tags: [chat, small]
datasets: [someone/corpus]
base_model: someone/bigger-base
---
# A model
"""


def test_a_folder_of_the_hubs_cache_tells_its_repo_and_commit(tmp_path):
    folder = tmp_path / "models--org--a--b" / "snapshots" / COMMIT

    assert repo_at(folder) == ("org/a--b", COMMIT)
    assert repo_at(folder / "sub") == ("org/a--b", COMMIT)
    assert repo_at(tmp_path / "snapshots" / COMMIT) == ("", "")


@pytest.mark.llamacpp
@pytest.mark.trained
def test_the_model_card_and_the_origin_are_told_without_paths(
    decant, toolchain, tiny_base, tiny_adapter, tmp_path
):
    base = tmp_path / "models--someone--tiny" / "snapshots" / COMMIT
    shutil.copytree(tiny_base, base)
    (base / "README.md").write_text(CARD)
    output = tmp_path / "ours.gguf"
    export(ExportRequest(((tiny_adapter, 1.0),), base, ("F16",), (output,)), toolchain)
    usual = convert_with_llamacpp(toolchain, base, tmp_path / "usual.gguf", outtype="f16")

    with imported(toolchain):
        expected, actual = read_gguf(usual)[0], read_gguf(output)[0]
    names = {key for key in expected if key not in MAY_DIFFER}
    assert "general.license" in names
    assert "general.base_model.0.repo_url" in names
    assert {key: actual.get(key) for key in names} == {key: expected[key] for key in names}
    assert actual["decant.base.repo"][1] == "someone/tiny"
    assert actual["decant.base.commit"][1] == COMMIT
    assert str(tmp_path) not in str(actual)
    assert str(tiny_adapter.parent) not in str(actual)

    shown = decant("inspect", output).stdout
    lines = [" ".join(line.split()) for line in shown.splitlines()[:10]]
    assert f"base someone/tiny at {COMMIT[:12]}" in lines
    assert "licence apache-2.0" in lines
    assert "quantized F16" in lines
