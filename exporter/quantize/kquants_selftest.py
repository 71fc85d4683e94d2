"""Generators of rows on which two quantizers would differ first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    Rows: TypeAlias = np.ndarray[Any, Any]
    Generator: TypeAlias = np.random.Generator
    Kind: TypeAlias = Callable[[Generator, int, int], Rows]

EXPONENT = 0x7F800000  # bits that are all set in values that are not finite
# midpoints of IQ4's levels, and the positions that its search tries for the largest of 32
HALF_WAYS = (-115.5, -93.5, -74, -57, -42, -28.5, -16, -4.5, 7, 19, 31.5, 45.5, 61, 79, 101)
PLACES = (-134, -119)
FIRST_PLACE = 127  # the first position that the search tries


def kinds() -> dict[str, Kind]:
    """Every generator by name: (generator, rows, values per row) → rows, some of them infinite."""
    return {**ties(), **spreads(), **patterns()}


def rows_of(kind: Kind, generator: Generator, count: int, n_per_row: int) -> Rows:
    """Contiguous, finite float32 rows (count, n_per_row) of a kind."""
    import numpy as np

    with np.errstate(all="ignore"):
        values = np.asarray(kind(generator, count, n_per_row)).astype(np.float32)
    largest = np.finfo(np.float32).max
    return np.ascontiguousarray(np.nan_to_num(values, nan=0.0, posinf=largest, neginf=-largest))


def importances(generator: Generator, n_per_row: int) -> list[Rows]:
    """Vectors (n_per_row,) of an importance matrix and harder ones: finite float32, not
    negative.
    """
    squares = normal(generator, 1, n_per_row)[0] ** 2
    decades = 10.0 ** generator.uniform(-20, 20, n_per_row)
    # a value that outweighs all others leaves only rounding errors to the search
    spikes = generator.choice([1e8, 1e12]) ** chance(generator, n_per_row, 0.03)
    vectors = (squares, decades * ~chance(generator, n_per_row, 0.3), squares * spikes)
    return [vector.astype("float32") for vector in vectors]


def spreads() -> dict[str, Kind]:
    """Distributions of weights, and more extreme ones."""
    import numpy as np

    def outliers(g: Generator, n: int, k: int) -> Rows:
        factor = 10.0 ** g.uniform(0, 12, (n, k))
        return normal(g, n, k) * np.where(chance(g, (n, k), 0.01), factor, 1)

    def offset(g: Generator, n: int, k: int) -> Rows:
        spread = 10.0 ** g.uniform(-7, -2, (n, 1))
        return np.asarray(g.choice([-1.0, 1.0], (n, 1)) + spread * normal(g, n, k))

    return {
        "normal": lambda g, n, k: normal(g, n, k) * 0.02,
        "scales": lambda g, n, k: normal(g, n, k) * 10.0 ** g.uniform(-30, 37, (n, 1)),
        "outliers": outliers,
        "offset": offset,
        "negative": lambda g, n, k: -np.abs(normal(g, n, k)),
        "positive": lambda g, n, k: np.abs(normal(g, n, k)),
        "decades": lambda g, n, k: normal(g, n, k) * 10.0 ** g.uniform(-35, 35, (n, k)),
        "sub-block scales": lambda g, n, k: normal(g, n, k) * np.exp(3 * blockwise(g, n, k, 32)),
        "super-block scales": lambda g, n, k: normal(g, n, k) * np.exp(9 * blockwise(g, n, k, 256)),
        "laplace": lambda g, n, k: g.laplace(size=(n, k)),
        "t2": lambda g, n, k: g.standard_t(2, (n, k)),
        "cauchy": lambda g, n, k: g.standard_cauchy((n, k)),
        "sorted": lambda g, n, k: np.sort(normal(g, n, k), axis=1),
        "uniform": lambda g, n, k: g.uniform(-1, 1, (n, k)),
        "largest": lambda g, n, k: g.uniform(-3.4e38, 3.4e38, (n, k)),
        "squares around 1e38": lambda g, n, k: normal(g, n, k) * 10.0 ** g.uniform(17, 20, (n, 1)),
        "around 1e-15": lambda g, n, k: normal(g, n, k) * 1e-15 * 2.0 ** g.uniform(-3, 1, (n, 1)),
    }


def patterns() -> dict[str, Kind]:
    """Zeros, constants and denormals."""
    import numpy as np

    def denormal(g: Generator, n: int, k: int, share: float = 1.0, top: int = 2**23) -> Rows:
        words = g.integers(0, top, (n, k)).astype(np.uint32)
        words |= g.integers(0, 2, (n, k)).astype(np.uint32) << 31
        return np.where(chance(g, (n, k), share), words.view(np.float32), normal(g, n, k))

    def bit_patterns(g: Generator, n: int, k: int) -> Rows:
        words = g.integers(0, 2**32, (n, k), dtype=np.uint64).astype(np.uint32)
        full = (words & EXPONENT) == EXPONENT
        return np.where(full, words & np.uint32(0xBFFFFFFF), words).view(np.float32)

    def holes(g: Generator, n: int, k: int) -> Rows:
        is_noise = blockwise(g, n, k, 32) > 0
        is_zero = np.abs(blockwise(g, n, k, 32)) < g.random((n, 1))
        mixed = np.where(is_noise, normal(g, n, k), blockwise(g, n, k, 32))
        return np.where(is_zero, 0, mixed) * ~chance(g, (n, 1), 0.2)

    def signed_zeros(g: Generator, n: int, k: int) -> Rows:
        return g.choice([0.0, -0.0], (n, k)) * chance(g, (n, 1), 0.5)

    return {
        "zeros": signed_zeros,
        "constant": lambda g, n, k: blockwise(g, n, k, 256),
        "constant sub-blocks": lambda g, n, k: blockwise(g, n, k, 16),
        "holes": holes,
        "sparse": lambda g, n, k: normal(g, n, k) * chance(g, (n, k), 0.05),
        "denormal": denormal,
        "some denormal": lambda g, n, k: denormal(g, n, k, 0.9),
        "smallest": lambda g, n, k: denormal(g, n, k, 1.0, 9),
        "bit patterns": bit_patterns,
    }


def ties() -> dict[str, Kind]:
    """Values that lie half-way between two levels, or equal each other."""
    import numpy as np

    def rounded(g: Generator, n: int, k: int) -> Rows:
        words = normal(g, n, k).astype(np.float32).view(np.uint32)
        upper: Rows = words & np.uint32(0xFFFF0000)
        return upper.view(np.float32)

    def powers(g: Generator, n: int, k: int) -> Rows:
        return np.asarray(g.choice([-1, 1], (n, k)) * 2.0 ** g.integers(-9, 9, (n, k)))

    def half_ways(g: Generator, n: int, k: int) -> Rows:
        blocks = (n, -(-k // 32))
        place = np.where(chance(g, blocks, 0.5), FIRST_PLACE, g.integers(*PLACES, blocks))
        unit = normal(g, *blocks) / place
        place, unit = place.repeat(32, axis=1)[:, :k], unit.repeat(32, axis=1)[:, :k]
        values = g.choice(HALF_WAYS, (n, k)) * (1 + g.integers(-1, 2, (n, k)) * 2.0**-23)
        is_largest = np.arange(k) % 32 == g.integers(0, 32, (n, 1))
        return np.asarray(np.where(is_largest, place, values) * unit)

    return {
        "ternary": lambda g, n, k: g.choice([-1.0, 0.0, 1.0], (n, k)),
        "binary": lambda g, n, k: g.choice([-0.5, 0.5], (n, k)),
        "integers": lambda g, n, k: g.integers(-40, 41, (n, k)) * 1.0,
        "halves": lambda g, n, k: g.integers(-31, 32, (n, k)) / 2,
        "grid": lambda g, n, k: np.round(normal(g, n, k) * 64) / 64,
        "powers of two": powers,
        "half-ways": half_ways,
        "bf16": rounded,
        "f16": lambda g, n, k: normal(g, n, k).astype(np.float16),
    }


def normal(g: Generator, n: int, k: int) -> Rows:
    return g.standard_normal((n, k))


def blockwise(g: Generator, n: int, k: int, size: int) -> Rows:
    """One value for each `size` values of a row: (n, k)."""
    return normal(g, n, -(-k // size)).repeat(size, axis=1)[:, :k]


def chance(g: Generator, shape: int | tuple[int, ...], share: float) -> Rows:
    """True in about `share` of the positions."""
    return g.random(shape) < share
