from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.mini_sdist import Mini, make_mini
from vendor.recipe import Recipe, SourcePatch
from vendor.report import BuildError, silent
from vendor.tree import collect, libraries, unpack


@pytest.fixture
def source(mini: Mini, tmp_path: Path) -> Path:
    unpack(mini.sdist, mini.recipe, tmp_path / "source", report=silent)
    return tmp_path / "source"


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """What a compilation leaves: a tool, a library with its version links, and other things."""
    folder = tmp_path / "compiled"
    folder.mkdir()
    for name in ("llama-server", "libggml-base.so.0.1", "test-something"):
        (folder / name).touch()
    (folder / "libggml-base.so").symlink_to("libggml-base.so.0.1")
    return folder


def test_half_unpacked_source_is_thrown_away(mini: Mini, tmp_path: Path):
    stale = tmp_path / "source.partial" / "stale"
    stale.mkdir(parents=True)
    unpack(mini.sdist, mini.recipe, tmp_path / "source", report=silent)
    assert (tmp_path / "source" / "LICENSE.md").read_text() == "MIT\n"
    assert not stale.parent.exists()


def test_sdist_that_holds_another_folder_is_refused(mini: Mini, tmp_path: Path):
    recipe = replace(mini.recipe, sdist="other-1.0.tar.gz")
    with pytest.raises(BuildError, match=r"does not hold the folder other-1\.0"):
        unpack(mini.sdist, recipe, tmp_path / "source", report=silent)
    assert not (tmp_path / "source").exists()


def patched(mini: Mini, find: str, file: str = "vendor/llama.cpp/base.c") -> Recipe:
    return replace(mini.recipe, patches=(SourcePatch("answer", file, find, "return 43;"),))


def test_what_the_recipe_patches_is_patched(mini: Mini, tmp_path: Path):
    unpack(mini.sdist, patched(mini, "return 42;"), tmp_path / "source", report=silent)
    text = (tmp_path / "source" / "vendor/llama.cpp/base.c").read_text()
    assert text == "int answer(void) { return 43; }\n"


@pytest.mark.parametrize(
    ("find", "file", "times"),
    [("return 41;", "vendor/llama.cpp/base.c", 0), ("r", "vendor/llama.cpp/base.c", 3),
     ("return 42;", "gone.c", 0)],
)  # fmt: skip
def test_a_patch_for_another_source_is_refused(
    mini: Mini, tmp_path: Path, find: str, file: str, times: int
):
    with pytest.raises(BuildError, match=f"'answer' finds .* {times} times in `{file}`"):
        unpack(mini.sdist, patched(mini, find, file), tmp_path / "source", report=silent)
    assert not (tmp_path / "source").exists()


def test_member_that_leads_out_of_the_folder_is_refused(tmp_path: Path):
    mini = make_mini(tmp_path / "mini", {"../../escaped": "x"})
    with pytest.raises(Exception, match="outside the destination"):
        unpack(mini.sdist, mini.recipe, tmp_path / "a" / "b" / "source", report=silent)
    assert not list(tmp_path.rglob("escaped"))


def test_only_tools_and_libraries_are_collected(
    mini: Mini, source: Path, compiled: Path, tmp_path: Path
):
    collect(compiled, source, tmp_path / "finished", mini.recipe)
    names = {path.name for path in (tmp_path / "finished" / "bin").iterdir()}
    assert names == {"llama-server", "libggml-base.so", "libggml-base.so.0.1"}
    assert (tmp_path / "finished" / "bin" / "libggml-base.so").is_symlink()


def test_everything_the_build_did_not_make_is_named_at_once(
    mini: Mini, source: Path, compiled: Path, tmp_path: Path
):
    recipe = replace(mini.recipe, tools=("llama-server", "llama-cli"), libraries=("ggml", "mtmd"))
    with pytest.raises(BuildError, match="did not make: llama-cli, ggml, mtmd"):
        collect(compiled, source, tmp_path / "finished", recipe)


def test_kept_part_the_source_lacks_is_named(
    mini: Mini, source: Path, compiled: Path, tmp_path: Path
):
    recipe = replace(mini.recipe, keep={"gone": "no/such/folder"})
    with pytest.raises(BuildError, match="no/such/folder"):
        collect(compiled, source, tmp_path / "finished", recipe)


def test_libraries_are_known_by_their_bare_names(tmp_path: Path):
    for name in ("libllama.so", "libllama.so.0", "libggml-base.dylib", "llama-server"):
        (tmp_path / name).touch()
    found = {name: path.name for name, path in libraries(tmp_path).items()}
    assert found == {"llama": "libllama.so", "ggml-base": "libggml-base.dylib"}
