"""decant's K-quants against ggml's: the same bytes, or ggml itself.

More of them:
KQUANTS_VALUES=10000000 pytest tests/exporter/quantize/test_kquants.py -k many_values
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from exporter.core.errors import InputError
from exporter.core.ggml_types import GGMLType
from exporter.llamacpp.toolchain import Toolchain, recipe
from exporter.quantize.kquants import (  # fmt: skip
    CHUNK_ARGUMENTS,
    NAMES,
    SEARCHED,
    TYPES,
    equals,
    load_kernels,
    quantized,
    ways,
)
from exporter.quantize.kquants_selftest import importances, kinds, rows_of
from exporter.quantize.quantizer import Quantizer
from tests.support.kquants_library import LEVELS, MAIN, MUTANTS, compiled, mutated

pytestmark = pytest.mark.llamacpp

FEW = 61_000  # values of each kind for each type, with and without an imatrix
MANY = int(os.environ.get("KQUANTS_VALUES", "366000"))  # the same: 50 M in all
LEVELS_OF_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
IQ4 = np.array(LEVELS_OF_IQ4, np.float32)


@pytest.fixture(scope="module")
def ggml(toolchain):
    return Quantizer.load(toolchain).library.ggml_quantize_chunk


@pytest.fixture(scope="module")
def library():
    return ctypes.CDLL(str(recipe("native").build_native(env=os.environ).path))


@pytest.fixture(scope="module")
def variants(library, ggml):
    """Every variant that this processor can run, called as ggml_quantize_chunk is."""
    library.decant_kquants_variant.restype = ctypes.c_char_p
    names = ["baseline", "avx2", "avx512"]
    best = library.decant_kquants_variant().decode()
    return {
        name: bound(getattr(library, f"decant_kquants_{name}"), ggml)
        for name in names[: names.index(best) + 1]
    }


def bound(function, ggml):
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_void_p, *CHUNK_ARGUMENTS]
    own = ctypes.cast(ggml, ctypes.c_void_p)
    return lambda *rest: function(own, *rest)


def agree(variants, ggml, kind, rows, weights=None):
    want = quantized(ggml, kind, rows, weights)
    for name, chunk in variants.items():
        found = quantized(chunk, kind, rows, weights)
        differ = (want != found).any(axis=1)
        assert not differ.any(), (kind.name, name, weights is not None, differ.nonzero()[0][:9])


KINDS = pytest.mark.parametrize("values", kinds(), ids=lambda name: name.replace(" ", "-"))


@KINDS
def test_every_variant_gives_ggmls_bytes(values, variants, ggml):
    compare(values, FEW, variants, ggml)


@KINDS
@pytest.mark.slow
def test_every_variant_gives_ggmls_bytes_of_many_values(values, variants, ggml):
    compare(values, MANY, variants, ggml)


def compare(values, many, variants, ggml):
    generator = np.random.default_rng(sum(values.encode()))
    shapes = [(many // 4 // n_per_row, n_per_row) for n_per_row in (256, 768, 3328, 8192)]
    jobs = []
    for count, n_per_row in shapes:
        rows = rows_of(kinds()[values], generator, 4 * count, n_per_row)
        vectors = importances(generator, n_per_row)
        for kind in TYPES:
            found = list(ways(kind, vectors))
            for part, weights in zip(np.array_split(rows, len(found)), found, strict=True):
                width = n_per_row * kind.block // 256
                vector = None if weights is None else weights[:width]
                jobs.append((variants, ggml, kind, part.reshape(-1, width), vector))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: agree(*job), jobs))


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_blocks_is_quantized(name, variants, ggml):
    """Fewer than there are lanes, or a few too many."""
    generator, kind = np.random.default_rng(1), GGMLType.by_name(name)
    for n_per_row in (kind.block, 2 * kind.block, 5 * kind.block):
        for count in range(1, 36):
            rows = rows_of(kinds()["normal"], generator, count, n_per_row)
            agree(variants, ggml, kind, rows)
            agree(variants, ggml, kind, rows, importances(generator, n_per_row)[2])


@pytest.mark.parametrize("name", NAMES)
def test_a_chunk_begins_where_it_is_told_to(name, variants):
    generator, kind = np.random.default_rng(2), GGMLType.by_name(name)
    n_per_row = 3 * kind.block
    rows = rows_of(kinds()["normal"], generator, 21, n_per_row)
    weights = importances(generator, n_per_row)[2]
    for chunk in variants.values():
        whole = quantized(chunk, kind, rows, weights)
        parts = np.zeros_like(whole)
        for first, count in ((0, 2), (2, 18), (20, 1)):
            chunk(
                kind.number, rows.ctypes.data, parts.ctypes.data, first * n_per_row, count,
                n_per_row, weights.ctypes.data,
            )  # fmt: skip
        assert (parts == whole).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_is_left_to_ggml(name, variants, ggml):
    generator, kind = np.random.default_rng(3), GGMLType.by_name(name)
    words = generator.integers(0, 2**32, (64, 1024), dtype=np.uint64).astype(np.uint32)
    rows = words.view(np.float32)  # NaN with any payload, some in most blocks
    rows[::3] = rows_of(kinds()["normal"], generator, 22, 1024)
    rows[3, 5], rows[6, -1], rows[9, 300] = np.inf, -np.inf, np.nan
    agree(variants, ggml, kind, rows)
    agree(variants, ggml, kind, rows, importances(generator, 1024)[2])


@pytest.mark.parametrize("strange", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_an_importance_that_no_square_has_is_left_to_ggml(name, strange, variants, ggml):
    generator = np.random.default_rng(4)
    weights = importances(generator, 512)[2]
    weights[300] = strange

    rows = rows_of(kinds()["normal"], generator, 40, 512)
    agree(variants, ggml, GGMLType.by_name(name), rows, weights)


def test_another_type_is_left_to_ggml(variants, ggml):
    rows = rows_of(kinds()["normal"], np.random.default_rng(5), 7, 96)
    agree(variants, ggml, GGMLType.by_name("Q8_0"), rows)


def test_without_a_search_blocks_are_left_to_ggml(library):
    """Called with something else in ggml's place."""
    rows = rows_of(kinds()["normal"], np.random.default_rng(7), 7, 96)
    prototype = ctypes.CFUNCTYPE(ctypes.c_size_t, *CHUNK_ARGUMENTS)
    asked = []

    def instead(number, source, target, start, count, n_per_row, weights):
        asked.append(number)
        return count * n_per_row // 32 * 18

    chunk = bound(library.decant_kquants_baseline, prototype(instead))
    for name in ("Q4_0", "IQ4_NL"):
        quantized(chunk, GGMLType.by_name(name), rows, None)
    assert asked == [GGMLType.by_name("Q4_0").number]
    assert set(NAMES) - SEARCHED == {"Q4_0"}


def nearest_levels(x):
    """As ggml finds them: by the distances to the levels below and above."""
    with np.errstate(invalid="ignore"):
        above = np.searchsorted(IQ4, x, side="right").clip(1, 15)
        low, high = IQ4[above - 1], IQ4[above]
        return np.where(np.isnan(x), 15, np.where(x - low < high - x, above - 1, above))


def around(centres, steps=4):
    """Float32 numbers and the few before and after each of them."""
    words = np.asarray(centres, np.float32).view(np.int32)
    return (words[:, None] + np.arange(-steps, steps + 1, dtype=np.int32)).view(np.float32).ravel()


@pytest.mark.parametrize("flags", [[], ["-mavx2"]], ids=str)
def test_the_nearest_level_is_ggmls_beside_every_bound(flags, variants, tmp_path):
    if "-mavx2" in flags and "avx2" not in variants:
        pytest.skip("this processor has no AVX2")
    source = recipe("native").source_text() + LEVELS
    halves, generator = np.arange(-272, 273) / 2, np.random.default_rng(8)
    words = generator.integers(0, 2**32, 2**17, dtype=np.uint64).astype(np.uint32)
    ends = np.array([np.nan, -np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, -1e-45, -0.0])
    x = np.concatenate([
        around(halves[halves != 0]), words.view(np.float32), ends.astype(np.float32),
        generator.uniform(-140, 140, 2**17).astype(np.float32),
    ])  # fmt: skip
    x = np.resize(x, -(-len(x) // 16) * 16)
    found = np.empty(len(x), np.int32)

    library = compiled(source, tmp_path / "levels.so", *flags)
    library.levels(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(found.ctypes.data),
                   ctypes.c_int64(len(x)))  # fmt: skip

    wrong = found != nearest_levels(x)
    assert not wrong.any(), (x[wrong][:9], found[wrong][:9])


def test_buckets_with_two_steps_in_reach_do_not_compile(tmp_path):
    source = recipe("native").source_text()
    assert source.count("WIDTH = 15.32f") == 1
    for width in ("15.2f", "15.5f"):
        with pytest.raises(subprocess.CalledProcessError) as caught:
            compiled(source.replace("WIDTH = 15.32f", f"WIDTH = {width}"), tmp_path / "no.so")
        assert b"one step in reach" in caught.value.stderr


def load(toolchain, ggml, report=lambda event: None, **env):
    return load_kernels(toolchain, ggml, env={**os.environ, **env}, report=report)


@pytest.fixture
def elsewhere(toolchain, tmp_path):
    """The build, with a folder of its own for the verdict."""
    return Toolchain(SimpleNamespace(dir=tmp_path, info=toolchain.info))


@pytest.fixture(scope="module")
def verdict(toolchain, ggml, tmp_path_factory):
    """The file that the first load leaves, what that gave, and what it said. Treat as read-only."""
    folder, events = tmp_path_factory.mktemp("build"), []
    build = Toolchain(SimpleNamespace(dir=folder, info=toolchain.info))
    kernels = load(build, ggml, events.append)
    (path,) = folder.iterdir()
    return path, kernels, [event.message for event in events]


def test_the_verdict_is_remembered_beside_the_build(verdict, toolchain, ggml):
    path, first, said = verdict
    assert first.types == set(NAMES)
    assert said == ["comparing the K-quants with ggml's"]
    assert json.loads(path.read_text()) == dict.fromkeys(NAMES, True)
    events = []
    build = Toolchain(SimpleNamespace(dir=path.parent, info=toolchain.info))
    assert load(build, ggml, events.append).types == first.types
    assert events == []


def test_a_type_that_differs_is_ggmls_and_said(elsewhere, verdict, ggml, tmp_path):
    changed = tmp_path / verdict[0].name
    changed.write_text(json.dumps(dict.fromkeys(NAMES, True) | {"Q5_K": False}))
    events = []

    kernels = load(elsewhere, ggml, events.append)

    assert kernels.types == set(NAMES) - {"Q5_K"}
    assert events[-1].message.endswith("by ggml itself, as the bytes differ: Q5_K")
    quantizer = Quantizer(SimpleNamespace(ggml_quantize_chunk=ggml), kernels)
    assert quantizer.chunk(GGMLType.by_name("Q5_K")) is ggml
    assert quantizer.chunk(GGMLType.by_name("Q4_K")) is not ggml


def test_a_compiler_that_fails_leaves_everything_to_ggml(elsewhere, ggml, tmp_path):
    events = []

    kernels = load(elsewhere, ggml, events.append, CXX="false", DECANT_CACHE=str(tmp_path / "c"))

    assert (kernels.chunk, kernels.types) == (None, frozenset())
    assert len(events) == 1
    assert "by ggml itself" in events[0].message


def test_the_setting_leaves_everything_to_ggml(elsewhere, ggml):
    kernels = load(elsewhere, ggml, DECANT_KQUANTS="ggml")

    assert kernels.chunk is None
    assert "DECANT_KQUANTS=ggml" in kernels.describe()
    with pytest.raises(InputError, match="DECANT_KQUANTS is 'fast'"):
        load(elsewhere, ggml, DECANT_KQUANTS="fast")


def test_doctor_names_the_types(decant):
    printed = decant("doctor").stdout
    assert "the same bytes as ggml's: IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_0 with an imatrix" in printed
    assert "DECANT_KQUANTS=ggml" in decant("doctor", DECANT_KQUANTS="ggml").stdout


@pytest.mark.faults
@pytest.mark.slow
def test_every_planted_error_is_caught_when_a_library_is_loaded(ggml, tmp_path):
    source = recipe("native").source_text()

    def missed(half) -> list:
        mutants = MUTANTS[half::2]
        library = compiled(mutated(source, mutants), tmp_path / f"{half}.so")
        found = []
        for at, mutant in enumerate(mutants):
            function = getattr(library, f"mutant_{at}")
            function.restype = ctypes.c_size_t
            function.argtypes = [ctypes.c_void_p, *CHUNK_ARGUMENTS]
            found += [mutant] * equals(function, ggml, GGMLType.by_name(mutant[2]))
        return found

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(missed, range(2))) == [[], []]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("lanes", [4, 16])
def test_the_sanitizers_find_nothing(lanes, ggml, tmp_path):
    """16 lanes also where no processor has them: the compiler splits the vectors."""
    program, case = tmp_path / "program", tmp_path / "case"
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-DKQ_LANES={lanes}"]
    compiled(recipe("native").source_text() + MAIN, program, *flags, shared=False)
    generator = np.random.default_rng(6)
    for values in kinds().values():
        rows = rows_of(values, generator, 7, 768)
        want = b""
        with case.open("wb") as file:
            for kind in TYPES:
                for weights in ways(kind, importances(generator, 768)):
                    blocks = quantized(ggml, kind, rows, weights)
                    head = [kind.number, *rows.shape, weights is not None, blocks.nbytes]
                    file.write(np.array(head, np.int64).tobytes() + rows.tobytes())
                    file.write(b"" if weights is None else weights.tobytes())
                    want += blocks.tobytes()
        done = subprocess.run([program, case], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        assert done.stdout == want


@pytest.mark.skipif(platform.machine() != "x86_64", reason="its instructions are named here")
def test_no_variant_fuses_a_product_with_a_sum(library):
    printed = subprocess.run(
        ["objdump", "-d", library._name], capture_output=True, text=True, check=True
    ).stdout
    assert "vmulps" in printed
    assert "vfmadd" not in printed
