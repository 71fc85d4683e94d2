"""Models that chat and serve make of a training run have its name, and replace no other."""

from __future__ import annotations

import shutil

import pytest

from exporter.core.events import Event, Note, Progress, Step
from runtime.cli.from_folder import from_folder, new_file
from tests.support.tiny import make_adapter, make_base


def test_a_new_file_has_the_first_name_that_is_free(tmp_path):
    names = ("my-run", "my-run-checkpoint-60")
    first, second = (tmp_path / f"{name}-Q4_K_M.gguf" for name in names)

    assert new_file(tmp_path, names) == first
    first.write_bytes(b"")
    assert new_file(tmp_path, names) == second
    second.write_bytes(b"")
    assert new_file(tmp_path, names) == second  # the export refuses to replace it


@pytest.mark.slow
@pytest.mark.trained
@pytest.mark.llamacpp
def test_checkpoints_of_a_run_are_merged_into_files_of_its_name(tiny_base, toolchain, tmp_path):
    store, run = tmp_path / "store", tmp_path / "my-run"
    made = []
    for step, seed in ((20, 1), (40, 2)):
        make_adapter(run / f"checkpoint-{step}", tiny_base, use_dora=True, seed=seed)
        made += [from_folder(str(run), str(tiny_base), store).path for _ in range(2)]

    assert [path.name for path in made] == [
        *["my-run-Q4_K_M.gguf"] * 2, *["my-run-checkpoint-40-Q4_K_M.gguf"] * 2
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.trained
@pytest.mark.llamacpp
def test_a_full_fine_tunes_run_gives_a_model_of_its_name(tiny_base, toolchain, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "full" / "checkpoint-7")
    found = from_folder(str(tmp_path / "full"), None, tmp_path / "store")

    assert found.path.name == "full-Q4_K_M.gguf"
    assert from_folder(str(tmp_path / "full"), None, tmp_path / "store") == found


@pytest.mark.slow
@pytest.mark.trained
@pytest.mark.llamacpp
def test_a_model_that_was_trained_again_in_its_folder_is_exported_again(
    tiny_base, toolchain, tmp_path
):
    store, final = tmp_path / "store", tmp_path / "final"
    shutil.copytree(tiny_base, final)
    first = from_folder(str(final), None, store).path
    make_base(final, seed=5)
    second = from_folder(str(final), None, store).path
    shutil.copytree(tiny_base, tmp_path / "elsewhere" / "final")

    assert (first.name, second.parent) == ("final-Q4_K_M.gguf", store)
    assert second != first
    assert from_folder(str(final), None, store).path == second
    assert from_folder(str(tmp_path / "elsewhere" / "final"), None, store).path == first


@pytest.mark.slow
@pytest.mark.trained
@pytest.mark.llamacpp
def test_the_export_of_a_folder_tells_its_progress_as_it_goes(tiny_base, toolchain, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "full" / "checkpoint-7")
    events: list[Event] = []
    from_folder(str(tmp_path / "full"), None, tmp_path / "store", report=events.append)

    done = [one.task for one in events if isinstance(one, Progress) and one.done == one.total]
    assert "quantizing" in done
    said = [event.message for event in events if isinstance(event, Step | Note)]
    assert not any("quantizing:" in one or one.startswith("{") for one in said), said
