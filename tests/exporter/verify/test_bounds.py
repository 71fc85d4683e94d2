"""The bounds hold for whatever llama.cpp's own quantizers make of rows, and are not wide."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.core.ggml_types import GGML_TYPES, GGMLType
from exporter.verify.bounds import BOUNDS, HALF_ULP, allowed_error, least_likeness, likeness
from exporter.verify.strength import dequantized

NEEDS_IMPORTANCE = ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M")
COUNT, WIDTH = 40, 512


def rows_of_many_kinds(random: np.random.Generator) -> list[np.ndarray]:
    shape = (COUNT, WIDTH)
    normal = random.standard_normal
    spiked = normal(shape) * 1e-3
    spiked[np.arange(COUNT), random.integers(0, WIDTH, COUNT)] = 5
    kinds = [
        normal(shape) * 0.02,
        normal(shape) * 1e-5,  # scales that float16 holds only as subnormals
        *(random.standard_t(degrees, shape) for degrees in (1.5, 3, 5)),
        random.uniform(0, 1, shape),
        -random.uniform(0.5, 1, shape),
        np.where(random.random(shape) < 0.95, 0, normal(shape)),
        spiked,
        np.sign(normal(shape)),
        normal(shape) * np.repeat(np.exp(2 * normal((COUNT, WIDTH // 32))), 32, axis=1),
        np.zeros(shape),
    ]
    return [np.ascontiguousarray(rows, np.float32) for rows in kinds]


@pytest.mark.llamacpp
@pytest.mark.parametrize("name", sorted({*BOUNDS, *HALF_ULP}))
@pytest.mark.slow
def test_no_quantizer_errs_further_than_its_bound(toolchain, name):
    from exporter.llamacpp.converter_import import imported
    from exporter.quantize.quantizer import Quantizer

    kind, quantizer = GGMLType.by_name(name), Quantizer.load(toolchain)
    random = np.random.default_rng(1)
    quantizer.library.ggml_quantize_init(kind.number)
    with imported(toolchain):
        for number, rows in enumerate(rows_of_many_kinds(random)):
            for importance in (False, True):
                if name in NEEDS_IMPORTANCE and not importance:
                    continue
                packed = quantize(quantizer, rows, kind, random if importance else None)
                found = dequantized(packed, kind)
                error = np.abs(found - rows)
                allowed = allowed_error(rows.astype(np.float64), kind, by_importance=importance)
                assert (error <= allowed).all(), (number, importance, (error / allowed).max())
                if number == 0:
                    assert likeness(found, rows) > least_likeness(kind)


def quantize(quantizer, rows, kind, random):
    """With the importance of columns drawn at random, if it is to have any."""
    weights = None
    if random is not None:
        weights = np.exp(random.standard_normal(rows.shape[1])).astype(np.float32)
    packed = np.empty((rows.shape[0], kind.row_nbytes(rows.shape[1])), np.uint8)
    quantizer.library.ggml_quantize_chunk(
        kind.number, rows.ctypes.data, packed.ctypes.data, 0, *rows.shape,
        weights.ctypes.data if weights is not None else None,
    )  # fmt: skip
    return packed


@pytest.mark.parametrize(("name", "steps"), [("Q8_0", 2), ("Q4_0", 1), ("Q5_0", 1)])
def test_a_bound_is_less_than_two_of_its_types_steps(name, steps):
    rows = np.linspace(-1, 1, 64)[None]
    levels = {"Q8_0": 127, "Q4_0": 8, "Q5_0": 16}[name]

    assert (allowed_error(rows, GGMLType.by_name(name)) < steps * 1.03 / levels).all()


def test_every_type_has_a_bound():
    rows = np.ones((1, 256))
    for kind in GGML_TYPES:
        if kind.name[0] != "I" or kind.name.startswith("IQ"):
            assert np.isfinite(allowed_error(rows, kind)).all()
