"""Names: what they mean, and what is said of those that mean nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from exporter.core.errors import InputError
from runtime.engine.adapters import Adapter
from runtime.engine.opened_model import Model, open_model
from runtime.gateway.api_errors import ApiError
from runtime.gateway.catalog import Catalog, listing, stored_models
from tests.support.raw import write_tiny_gguf


def model(folder: Path, name: str, *adapters: tuple[str, float]) -> Model:
    found = open_model(write_tiny_gguf(folder / f"{name}.gguf"))
    return Model(found.header, tuple(Adapter(n, found.header.path, scale) for n, scale in adapters))


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    return Catalog(
        [
            model(tmp_path, "base-Q4_K_M", ("pirate", 1.0), ("liar", 0.5)),
            model(tmp_path, "other-Q4_K_M"),
            model(tmp_path, "other-Q8_0"),
        ]
    )


def test_models_are_called_as_briefly_as_they_can_be(catalog):
    ids = ["base", "base:pirate", "base:liar", "other-Q4_K_M", "other-Q8_0"]

    assert catalog.ids() == ids


def test_an_adapter_may_be_called_latest(tmp_path):
    catalog = Catalog([model(tmp_path, "m", ("latest", 1.0), ("pirate", 1.0))])

    assert [catalog.find(id_).id for id_ in catalog.ids()] == catalog.ids()
    assert catalog.find("m:latest").lora_scales == (1, 0)
    assert catalog.find("latest").id == catalog.find("m:latest:latest").id == "m:latest"
    assert catalog.find("m:pirate:latest").id == "m:pirate"
    assert catalog.find("m:latest@0.5:latest").id == "m:latest@0.5"
    assert catalog.find("m").lora_scales == (0, 0)


@pytest.mark.parametrize(
    ("name", "id_", "lora_scales"),
    [("base", "base", (0, 0)), ("base-Q4_K_M", "base", (0, 0)), ("base:base", "base", (0, 0)),
     ("base:pirate", "base:pirate", (1, 0)), ("base:liar", "base:liar", (0, 0.5)),
     ("base:pirate@0.25", "base:pirate@0.25", (0.25, 0)), ("base:liar@-1", "base:liar@-1", (0, -1)),
     ("base:latest", "base", (0, 0)), ("base:pirate:latest", "base:pirate", (1, 0)),
     ("base-Q4_K_M:pirate", "base:pirate", (1, 0)), ("other-Q8_0", "other-Q8_0", ())],
)  # fmt: skip
def test_names_mean_models_with_adapters_at_scales(name, id_, lora_scales, catalog):
    found = catalog.find(name)

    assert (found.id, found.lora_scales) == (id_, lora_scales)


@pytest.mark.parametrize(
    "name", ["", "bas", "base:", "base:pirat", "base:pirate:x", "other", "base:@1", "x" * 10_000]
)
def test_other_names_are_not_found(name, catalog):
    with pytest.raises(ApiError) as caught:
        catalog.find(name)
    assert caught.value.status == (404 if name else 400)
    assert len(caught.value.message) < 400


def test_the_nearest_name_is_said(catalog):
    with pytest.raises(ApiError, match=r"did you mean 'base:pirate'\?"):
        catalog.find("base:pirat")


@pytest.mark.parametrize("name", ["base:pirate@", "base:pirate@x", "base:pirate@nan",
                                  "base:pirate@1e9"])  # fmt: skip
def test_scales_are_numbers(name, catalog):
    with pytest.raises(ApiError) as caught:
        catalog.find(name)
    assert caught.value.status == 400


@pytest.mark.parametrize("text", ["0.5", "0.50", "+0.5", ".5", "00.5", "5e-1", "0.50000001"])
def test_one_scale_has_one_id_however_it_is_written(text, catalog):
    found = catalog.find(f"base:pirate@{text}")

    assert (found.id, found.lora_scales) == ("base:pirate@0.5", (0.5, 0))
    assert catalog.find(f"base-Q4_K_M:pirate@{text}").id == "base:pirate@0.5"


def test_a_scale_of_nothing_has_no_sign(catalog):
    assert catalog.find("base:pirate@-0").id == "base:pirate@0"


@pytest.mark.parametrize("text", ["0.5\n", "0.5 ", " 0.5", "٠.٥", "1_0", "0x1", "inf", "infinity",
                                  "1" * 70_000, "0." + "1" * 70_000, "1e99", "101", "",
                                  "--1"])  # fmt: skip
def test_nothing_else_is_a_scale(text, catalog):
    with pytest.raises(ApiError) as caught:
        catalog.find(f"base:pirate@{text}")
    assert caught.value.status in (400, 404)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("name", ["base\n", "base:pirate\n", "base\0", "base\x1b[2J", "b" * 70_000])
def test_no_name_has_lines_controls_or_a_length_without_an_end(name, catalog):
    with pytest.raises(ApiError) as caught:
        catalog.find(name)
    assert caught.value.status == 404
    assert caught.value.message.isprintable()


def test_a_file_whose_name_no_request_can_say_is_not_served(tmp_path):
    """Named, it is an error; in the store, the others are served."""
    told: list[object] = []
    named = model(tmp_path, "two\nlines")
    model(tmp_path, "other")

    with pytest.raises(InputError, match="a name that no request can say"):
        Catalog([named])
    assert [one.name for one in stored_models(tmp_path, report=told.append)] == ["other"]
    assert "no request can say" in str(told)


def test_a_model_that_another_program_deleted_is_told(tmp_path):
    told: list[object] = []
    model(tmp_path, "other")
    (tmp_path / "dead.gguf").symlink_to(tmp_path / "gone")

    assert [one.name for one in stored_models(tmp_path, report=told.append)] == ["other"]
    assert "`dead.gguf` is not served: 'dead' is a link to" in str(told)


@pytest.mark.parametrize("name", [3, [], {}, True])
def test_a_name_is_a_text(name, catalog):
    with pytest.raises(ApiError) as caught:
        catalog.find(name)
    assert caught.value.status == 400


def test_the_only_model_needs_no_name(tmp_path, catalog):
    assert Catalog([model(tmp_path, "one")]).find(None).id == "one"
    with pytest.raises(ApiError):
        catalog.find(None)


def test_two_models_of_one_name_are_told_apart_or_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="two models are called"):
        Catalog([model(tmp_path, "one"), model(tmp_path / "a", "one")])


def test_the_list_names_parents_and_no_paths(catalog, tmp_path):
    rows = [listing(named) for named in catalog]

    assert [(row["id"], row["parent"], row["root"]) for row in rows[:3]] == [
        ("base", None, "base"), ("base:pirate", "base", "base"), ("base:liar", "base", "base")
    ]  # fmt: skip
    assert str(tmp_path) not in str(rows)
    assert all(row["created"] > 0 for row in rows)


def test_the_list_says_which_models_take_images(tmp_path):
    blind = model(tmp_path, "blind")
    seeing = replace(model(tmp_path, "seeing"), projector=tmp_path / "mmproj.gguf")
    rows = [listing(named) for named in Catalog([blind, seeing])]

    assert [row["architecture"]["input_modalities"] for row in rows] == [
        ["text"], ["text", "image"]
    ]  # fmt: skip


def test_scales_that_clients_choose_make_no_new_labels(catalog):
    assert catalog.find("base:pirate@0.123").label == "base:pirate"
    assert catalog.find("base").label == "base"
