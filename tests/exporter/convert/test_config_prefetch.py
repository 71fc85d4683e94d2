from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.convert import config_prefetch
from exporter.convert.config_prefetch import Config, load_hparams, read_ahead
from exporter.core.last_value import LastValue
from exporter.llamacpp.converter_import import imported
from tests.support.architectures import ARCHITECTURES, make_architecture
from tests.support.raw import edit_json
from tests.support.tiny import make_adapter, make_base

pytestmark = pytest.mark.trained

DRY_RUN = """
import sys
from exporter.cli.app import run
assert run(sys.argv[1:]) == 0
print(*(name for name in sys.modules), file=sys.stderr)
"""
# transformers itself is needed: only it knows what it makes of a tokenizer's files
HEAVY = ("transformers.modeling_utils", "peft", "accelerate", "scipy", "torch._dynamo",
         "torch.distributed.tensor", "torch.onnx", "sympy", "pandas", "sklearn")  # fmt: skip


ASK_FOR_EACH = """
import json, sys
code, path, *folders = json.load(sys.stdin)
for folder in folders:
    sys.argv[1:] = path, folder
    exec(code, {"__name__": "__main__"})
"""


@pytest.fixture(scope="module")
def read_without_torch(tmp_path_factory) -> dict[str, tuple[Path, bytes]]:
    """A model of every architecture, and its config as a process without torch prints it.

    It is the same process for all: the import of transformers takes most of its time.
    """
    folder = tmp_path_factory.mktemp("architectures")
    models = [make_architecture(name, folder / name) for name in ARCHITECTURES]
    asked = [config_prefetch.CHILD.read_text(), json.dumps(sys.path), *map(str, models)]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ASK_FOR_EACH],
        input=json.dumps(asked).encode(),
        capture_output=True,
        check=True,
    )
    printed = done.stdout.splitlines()
    return dict(zip(ARCHITECTURES, zip(models, printed, strict=True), strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore")
def test_a_config_read_without_torch_is_the_one_with_it(read_without_torch, name):
    from transformers import AutoConfig

    folder, printed = read_without_torch[name]
    expected = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()

    found = Config(printed, folder).to_dict()

    assert repr(found) == repr(expected)
    assert len(found) > 15  # with transformers' defaults, not the few that were written


@pytest.mark.llamacpp
def test_a_plan_imports_nothing_it_can_do_without(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "lora", base)
    argv = [sys.executable, "-c", DRY_RUN, "export", str(adapter), "--base", str(base), "--dry-run"]

    first, second = (
        subprocess.run(argv, check=True, capture_output=True, text=True).stderr for _ in range(2)
    )

    loaded = first.splitlines()[-1].split()
    assert {"torch", "transformers.tokenization_utils_base"} <= set(loaded)
    assert not set(HEAVY) & set(loaded)
    loaded = second.splitlines()[-1].split()  # the tokenizer's keys are kept
    assert "torch" in loaded
    assert "transformers" not in loaded


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As in a process that has not imported transformers' configs, and where none is kept."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delitem(sys.modules, "transformers.configuration_utils", raising=False)
    monkeypatch.setattr(config_prefetch, "LAST", LastValue())


@pytest.fixture
def quick_child(monkeypatch, tmp_path):
    """A child that knows the config of a base: the import of transformers takes a second."""

    def knows(base: Path) -> None:
        from transformers import AutoConfig

        settings = AutoConfig.from_pretrained(base, trust_remote_code=False).to_dict()
        child = script(tmp_path, f"print({ascii(settings)!r})")
        monkeypatch.setattr(config_prefetch, "CHILD", child)
        monkeypatch.delitem(sys.modules, "transformers.configuration_utils", raising=False)

    return knows


def forget(tmp_path):
    config_prefetch.LAST.forget()
    shutil.rmtree(tmp_path / "data", ignore_errors=True)


@pytest.mark.llamacpp
def test_what_was_read_ahead_is_what_the_converter_gets(toolchain, tmp_path, fresh, monkeypatch):
    base = make_base(tmp_path / "base")
    with imported(toolchain):
        expected = load_hparams(base)
        with read_ahead(base):
            (ahead,) = config_prefetch.AHEAD.values()
            assert load_hparams(base) == expected
            monkeypatch.setattr(ahead, "printed", b"{'model_type': 'read ahead'}")
            forget(tmp_path)
            assert load_hparams(base) == {"model_type": "read ahead", "_name_or_path": str(base)}
    assert config_prefetch.AHEAD == {}
    assert ahead.process.returncode is not None


@pytest.mark.llamacpp
def test_a_config_that_is_kept_needs_no_child(toolchain, tmp_path, quick_child, fresh):
    base = make_base(tmp_path / "base")
    quick_child(base)
    with imported(toolchain):
        with read_ahead(base):
            first = load_hparams(base)
        config_prefetch.LAST.forget()
        with read_ahead(base):
            assert config_prefetch.AHEAD == {}
            assert load_hparams(base) == first
        (kept,) = (tmp_path / "data").rglob("*.config")
        kept.write_bytes(kept.read_bytes()[:-1])  # damaged
        config_prefetch.LAST.forget()
        with read_ahead(base):
            assert len(config_prefetch.AHEAD) == 1


@pytest.mark.llamacpp
def test_a_config_is_read_again_when_its_file_is_another(toolchain, tmp_path, quick_child, fresh):
    base, moved = make_base(tmp_path / "base"), tmp_path / "moved"
    quick_child(base)
    with imported(toolchain):
        with read_ahead(base):
            first = load_hparams(base)
        shutil.copytree(base, moved)
        assert load_hparams(moved) == {**first, "_name_or_path": str(moved)}
        edit_json(moved / "config.json", head_dim=32)
        assert load_hparams(moved)["head_dim"] == 32


def script(folder: Path, code: str) -> Path:
    path = folder / "child.py"
    path.write_text(code)
    return path


@pytest.mark.llamacpp
def test_when_it_cannot_be_read_ahead_it_is_read_as_ever(toolchain, tmp_path, fresh, monkeypatch):
    base = make_base(tmp_path / "base")
    monkeypatch.setattr(config_prefetch, "CHILD", script(tmp_path, "raise SystemExit(1)"))
    with imported(toolchain):
        expected = load_hparams(base)
        with read_ahead(base):
            assert load_hparams(base) == expected


@pytest.mark.llamacpp
def test_one_that_does_not_come_is_not_waited_for(toolchain, tmp_path, fresh, monkeypatch):
    base = make_base(tmp_path / "base")
    child = script(tmp_path, "import time; time.sleep(60)")
    monkeypatch.setattr(config_prefetch, "CHILD", child)
    monkeypatch.setattr(config_prefetch, "TIMEOUT", 0.1)
    with imported(toolchain):
        expected = load_hparams(base)
        with read_ahead(base):
            assert load_hparams(base) == expected
