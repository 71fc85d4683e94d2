"""The user's settings file comes back: after an end, after a kill, and with later changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.core.errors import DecantError, InputError, OutputError
from runtime.launch.settings_formats import JsonFile, OwnToml
from runtime.launch.written_settings import BACKUP, ToolSettings

CHECKOUT = Path(__file__).parents[3]
OURS = {"env": {"A": "decant"}}
USER = '{"theme":   "dark"}'
"""In a layout that is not decant's."""


@pytest.fixture
def settings(tmp_path) -> ToolSettings:
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "settings.json"
    return ToolSettings("tool", path, JsonFile(), tmp_path / "data" / "launch")


def names(settings: ToolSettings) -> list[str]:
    return sorted(path.name for path in settings.path.parent.iterdir())


def test_a_file_comes_back_to_the_byte_with_its_mode(settings):
    settings.path.write_text(USER)
    settings.path.chmod(0o640)

    settings.write(OURS, has_key=False)
    assert json.loads(settings.path.read_text()) == {"theme": "dark", **OURS}
    assert settings.path.stat().st_mode & 0o777 == 0o640
    assert settings.path.with_name("settings.json" + BACKUP).read_text() == USER
    said = settings.restore()

    assert settings.path.read_text() == USER
    assert settings.path.stat().st_mode & 0o777 == 0o640
    assert "back" in said
    assert names(settings) == ["settings.json"]
    assert settings.restore() == ""


def test_a_file_that_was_not_there_is_removed(settings):
    settings.write(OURS, has_key=False)
    assert names(settings) == ["settings.json"]

    assert "removed" in settings.restore()
    assert names(settings) == []


def test_a_file_with_a_key_is_for_its_owner_only(settings):
    settings.path.write_text(USER)
    settings.path.chmod(0o644)
    settings.write(OURS, has_key=True)

    assert settings.path.stat().st_mode & 0o777 == 0o600


def test_a_link_stays_a_link(settings):
    real = settings.path.parent / "dotfiles.json"
    real.write_text(USER)
    settings.path.symlink_to(real)

    settings.write(OURS, has_key=False)
    assert settings.path.is_symlink()
    assert "decant" in real.read_text()
    settings.restore()

    assert settings.path.is_symlink()
    assert real.read_text() == USER


@pytest.mark.parametrize("before", [USER, None])
def test_changes_made_meanwhile_stay(settings, before):
    if before:
        settings.path.write_text(before)
    settings.write(OURS, has_key=False)
    changed = json.loads(settings.path.read_text()) | {"trusted": ["/here"]}
    settings.path.write_text(json.dumps(changed))

    said = settings.restore()

    expected = {"trusted": ["/here"]} | (json.loads(before) if before else {})
    assert json.loads(settings.path.read_text()) == expected
    assert "taken out" in said
    assert names(settings) == ["settings.json"]


def test_a_file_that_is_no_longer_readable_stays_beside_the_users(settings):
    settings.path.write_text(USER)
    settings.write(OURS, has_key=False)
    settings.path.write_text("{ broken")

    with pytest.raises(OutputError) as refused:
        settings.restore()

    assert names(settings) == ["settings.json", "settings.json" + BACKUP]
    assert f"mv {settings.path}{BACKUP} {settings.path}" in refused.value.hint
    assert settings.leftover() is not None  # the next start says it again


def test_a_deleted_file_comes_back(settings):
    settings.path.write_text(USER)
    settings.write(OURS, has_key=False)
    settings.path.unlink()
    settings.restore()

    assert settings.path.read_text() == USER


def test_a_deleted_copy_costs_no_value_of_the_users(settings):
    settings.path.write_text(USER)
    settings.write(OURS, has_key=False)
    settings.path.with_name("settings.json" + BACKUP).unlink()
    settings.restore()

    assert json.loads(settings.path.read_text()) == json.loads(USER)


def test_an_unknown_copy_is_never_overwritten(settings):
    settings.path.write_text(USER)
    backup = settings.path.with_name("settings.json" + BACKUP)
    backup.write_text("the only copy of something")

    with pytest.raises(OutputError, match="earlier launch"):
        settings.write(OURS, has_key=False)

    assert backup.read_text() == "the only copy of something"
    assert settings.path.read_text() == USER


def test_a_file_in_another_form_is_refused_and_stays(settings):
    settings.path.write_text("// comments\n{}")

    with pytest.raises(InputError) as refused:
        settings.write(OURS, has_key=False)

    assert "without --write" in refused.value.hint
    assert names(settings) == ["settings.json"]
    assert settings.leftover() is None


def test_a_place_that_cannot_be_written_is_an_error_with_a_way_out(settings):
    settings.path.parent.rmdir()
    settings.path.parent.write_text("a file in place of the folder")
    with pytest.raises(DecantError) as refused:
        settings.write(OURS, has_key=False)

    assert "--write" in refused.value.hint


def test_a_second_launch_waits_for_none_and_writes_nothing(settings):
    with settings.locked():
        assert settings.is_locked()
        with pytest.raises(OutputError, match="another"), settings.locked():
            pass
    assert not settings.is_locked()


def test_a_profile_of_decants_name_that_was_the_users_stays_beside_it(settings):
    mine = ToolSettings("codex", settings.path, OwnToml(), settings.folder)
    settings.path.write_text("model = 'mine'")
    mine.write({"model": "x"}, has_key=False)
    settings.path.write_text("model = 'changed'")

    with pytest.raises(OutputError):
        mine.restore()
    assert names(settings) == ["settings.json", "settings.json" + BACKUP]


@pytest.mark.lasting
@pytest.mark.parametrize("before", [USER, None])
@pytest.mark.parametrize("action", ["write", "restore"])
def test_a_kill_at_any_moment_loses_nothing(action, before, tmp_path):
    argv = [sys.executable, "-m", "tests.support.settings_killer", str(tmp_path), action]
    done = subprocess.run(
        [*argv, *([before] if before else [])],
        cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    kills = json.loads(done.stdout)

    assert len(kills) > 5
    merged = JsonFile().merged(before or "", OURS)
    for kill in kills:
        assert kill["after"] in (before, merged)
        if before and kill["after"] == merged:
            assert kill["backup"] == before
        assert kill["restored"] == before
        assert kill["left"] == (["settings.json"] if before else [])
