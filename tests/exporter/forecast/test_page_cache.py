"""The part of files that is in memory."""

from __future__ import annotations

from exporter.forecast.page_cache import PROBES, places, read_s, uncached


def test_a_hole_counts_as_in_memory(tmp_path):
    path = tmp_path / "hole"
    with path.open("wb") as file:
        file.write(b"header")
        file.truncate(1 << 30)

    assert uncached([path]) == (0.0, [])


def test_a_file_just_written_is_in_memory(tmp_path):
    path = tmp_path / "written"
    path.write_bytes(bytes(8 << 20))

    assert uncached([path]) == (0.0, [])


def test_places_cover_all_files_evenly(tmp_path):
    paths = [tmp_path / "large", tmp_path / "small"]
    for path, size in zip(paths, (3 << 30, 1 << 30), strict=True):
        with path.open("wb") as file:
            file.truncate(size)

    found = list(places(paths))

    counts = [sum(path == other for other, _ in found) for path in paths]
    assert sum(counts) == PROBES
    assert counts == [PROBES * 3 // 4, PROBES // 4]
    assert all(0 <= at < path.stat().st_size for path, at in found)


def test_the_rate_is_of_the_bytes_that_were_read(tmp_path):
    path = tmp_path / "written"
    path.write_bytes(bytes(1 << 20))

    assert 0 < read_s([(path, 0)]) < 1e-3
