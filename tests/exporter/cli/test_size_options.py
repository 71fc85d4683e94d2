"""The options that set the size of `-q auto`, as they are typed."""

from __future__ import annotations

import json

import click
import pytest

from exporter.cli.recipe_options import parse_budget
from exporter.cli.sizes import parse_size
from exporter.core.gguf import read_gguf
from exporter.core.machine import available_nbytes
from runtime.engine.memory_fit import MARGIN
from runtime.engine.memory_need import CACHE_BYTES, cache_values
from runtime.engine.weights_room import weights_room


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("4.5GB", 4_500_000_000), ("500MB", 500_000_000), ("2GiB", 2 << 30), ("1000", 1000)],
)
def test_sizes_are_read_as_people_type_them(text, nbytes):
    assert parse_size("--size", text) == nbytes


@pytest.mark.parametrize("text", ["", "0", "0.0GB", "-1GB", "5 parsecs", "1..5GB", "nan"])
def test_other_sizes_are_refused_by_the_option_s_name(text):
    with pytest.raises(click.UsageError, match="--size"):
        parse_size("--size", text)


def test_one_size_is_set_by_one_option():
    with pytest.raises(click.UsageError, match="--bpw and --size"):
        parse_budget(4.5, "4GB", None, None)
    with pytest.raises(click.UsageError, match="add --fit"):
        parse_budget(4.5, None, None, 8192)
    assert parse_budget(None, None, None, None) is None
    assert parse_budget(4.5, None, None, None).bits == 4.5
    assert parse_budget(None, "4GB", None, None).nbytes == 4_000_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bpw", "4.5", "-q", "Q8_0"), "leave out -q Q8_0, or add -q auto"),
        (("-q", "auto", "--pure"), "--pure gives all tensors one type"),
        (("--bpw", "0.2"), "0.2"),
        (("--size", ""), "is not a size such as"),
        (("--recipe", "nowhere.txt"), "cannot read the recipe `nowhere.txt`"),
        (("--fit", "./my-lora"), "without a size it stands last"),
        (("--to", "safetensors", "--bpw", "4.5"), "types and importance matrices are for GGUF"),
    ],
)
@pytest.mark.lasting
def test_what_cannot_be_meant_is_a_usage_error(decant, arguments, message):
    done = decant("export", "--base", "nowhere", *arguments)

    assert done.returncode in (2, 3)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.slow
def test_the_choice_is_shown_and_fits(warm_decant, tiny_base, tmp_path):
    out = tmp_path / "x.gguf"
    common = ("export", "--base", tiny_base, "--no-calibrate", "-o", out)

    shown = warm_decant(*common, "--bpw", "6", "--dry-run")
    made = warm_decant(*common, "--bpw", "6", "--json", "--quiet")

    assert shown.returncode == 0, shown.stderr
    assert "ffn_down.weight" in shown.stdout
    assert "AUTO, " in shown.stderr
    assert made.returncode == 0, made.stderr
    file = json.loads(made.stdout)["files"][0]
    stored = {tensor.name: tensor.type.name for tensor in read_gguf(out).tensors}
    assert file["chosen"] == stored
    listed = warm_decant("inspect", out, "--recipe").stdout.split()
    assert len(listed) == sum(kind != "F32" for kind in stored.values())


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.slow
def test_fit_leaves_room_for_the_context(warm_decant, tiny_base, toolchain, tmp_path):
    out = tmp_path / "x.gguf"
    common = ("export", "--base", tiny_base, "--no-calibrate", "-o", out)
    assert warm_decant(*common, "--fit").returncode == 0
    model = read_gguf(out)

    here = weights_room(model, nbytes=None, context=None)
    small, large = (weights_room(model, nbytes=10**9, context=n) for n in (64, 128))

    assert 0 < here < MARGIN * available_nbytes() * 1.2
    cache = (cache_values(model, 128) - cache_values(model, 64)) * CACHE_BYTES["f16"]
    assert small - large >= cache > 0
    refused = warm_decant(*common, "--force", "--fit", "2MB")
    assert refused.returncode != 0
    assert "no types make this model as small as" in refused.stderr
