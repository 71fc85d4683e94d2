"""The list of graphs that pass adapters over, against llama.cpp's own source."""

from __future__ import annotations

import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.formats.gguf_lora import IGNORES_LORA, TENSORS_WITHOUT_LORA
from exporter.llamacpp.toolchain import cache_folder, recipe

pytestmark = pytest.mark.llamacpp

# a product with a member of the model or of a layer: build_lora_mm is what knows adapters
BARE = re.compile(
    r"ggml_(?:mul_mat|mul_mat_id|get_rows)\s*\(\s*ctx0?,\s*(?:model|layer|layers|l)\b([\w.\[\]]*)"
)

WANTED = re.compile(r"/vendor/llama\.cpp/src/(llama-arch\.cpp|llama-model\.cpp|models/[^/]+)$")


def architectures(source: Path) -> dict[str, list[str]]:
    """{class of a model: the architectures that it is made for}."""
    names = dict(
        re.findall(r'\{\s*(LLM_ARCH_\w+),\s*"([^"]+)"', (source / "llama-arch.cpp").read_text())
    )
    found, cases = defaultdict(list), list[str]()
    for line in (source / "llama-model.cpp").read_text().splitlines():
        if case := re.search(r"case (LLM_ARCH_\w+):", line):
            cases.append(names.get(case[1], case[1]))
        if made := re.search(r"new llama_model_(\w+)", line):
            found[made[1]] += cases
            cases = []
    return found


def graphs(source: Path) -> dict[str, str]:
    """{class of a model: the class whose graph it uses}."""
    found, current = {}, ""
    for line in (source / "models" / "models.h").read_text().splitlines():
        if declared := re.match(r"struct llama_model_(\w+) :", line):
            current = declared[1]
            found[current] = current
        if used := re.search(r"using graph\s*=\s*llama_model_(\w+)::", line):
            found[current] = used[1]
    return found


def bare_products(source: Path) -> Iterator[tuple[str, str]]:
    """Architectures and the members that their graphs multiply with, adapters aside."""
    kinds, uses = architectures(source), graphs(source)
    for path in (source / "models").glob("*.cpp"):
        members = {name.rpartition(".")[2] for name in BARE.findall(path.read_text())}
        users = [model for model, graph in uses.items() if graph == path.stem.replace("-", "_")]
        for model in users:
            for architecture in kinds[model]:
                yield from ((architecture, member) for member in members)


@pytest.fixture
def source(tmp_path) -> Path:
    """llama.cpp's C++ files, out of the sdist that the build was made of."""
    sdist = recipe("fetch").fetch_sdist(
        recipe("recipe").read_recipe(), cache_folder(), env=os.environ, report=lambda event: None
    )
    with tarfile.open(sdist) as archive:
        for member in archive:
            if found := WANTED.search(member.name):
                path = tmp_path / found[1]
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(archive.extractfile(member).read())
    return tmp_path


def test_every_graph_that_multiplies_without_adapters_is_known(source):
    found = set(bare_products(source))

    missed = {
        (architecture, member)
        for architecture, member in found
        if not architecture.startswith(IGNORES_LORA) and not TENSORS_WITHOUT_LORA.search(member)
    }
    assert missed == set()
    assert ("mistral4", "wq_a") in found, "the source is written otherwise: read it anew"
    assert ("gemma3n", "altup_proj") in found
