"""Compiles decant's K-quants for tests: with errors, with memory checks, or in parts."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from pathlib import Path

from exporter.llamacpp.toolchain import recipe

# A piece of the source, an error to put in its place, and a type that shows the error.
MUTANTS = [
    ("sums[g].l2 += wl * l;", "sums[g].l2 += w[at] * (l * l);", "Q4_K"),
    ("(error[g] < best[g]) & solved[g]", "(error[g] <= best[g]) & solved[g]", "Q5_K"),
    ("solved[g] = (d > 0.f) & alive[g];", "solved[g] = alive[g];", "Q4_K"),
    ("fit[g].min = choose(low > 0.f, F{}, low);", "fit[g].min = low;", "Q4_K"),
    ("greater(first, last) + MAGIC", "last + MAGIC", "Q4_K"),
    ("levels[i] = l & 255;", "levels[i] = l;", "Q4_K"),
    ("tried[c] = where(alive, -(TOP + 0.1f * step) / max);",
     "tried[c] = where(alive, -(TOP + 0.1f * step) * (1.f / max));", "Q6_K"),
    ("lx[c] * lx[c] > best * l2[c]", "lx[c] * lx[c] >= best * l2[c]", "Q6_K"),
    ("step > 4 ? FROM_BELOW : FREE", "FREE", "Q6_K"),
    ("*word &= ~zero;", "*word &= ~I{};", "Q6_K"),
    ("bias = (bias < 0x71000000u) ? U{} + 0x71000000u : bias;", "", "Q6_K"),
    ("MAD ? magnitude(diff) : diff * diff", "diff * diff", "Q2_K"),
    ("levels[i] = choose(d == 0.f, found[i], levels[i] + 4);", "levels[i] += 4;", "Q3_K"),
    ("level += x < half_way(i)", "level += x <= half_way(i)", "IQ4_NL"),
    ("I level = I{} + 15;", "I level = I{} + 15; x = choose(x == x, x, F{});", "IQ4_XS"),
    ("iscale * x[i] < at,", "iscale * x[i] <= at,", "IQ4_NL"),
    ("1.f / (max / (float)OUTERMOST)", "(float)OUTERMOST / max", "IQ4_NL"),
    ("both.l2[below][i] = wl * l;", "both.l2[below][i] = w[i] * (l * l);", "IQ4_XS"),
    ("iscale[c] * x[i] < both.at[i]", "iscale[c] * x[i] <= both.at[i]", "IQ4_XS"),
    ("(float)(first + c - OUTERMOST) / max", "(float)(first + c - OUTERMOST) * (1.f / max)",
     "IQ4_NL"),
    ("its_lx[c] * its_lx[c] > best * its_l2[c]", "its_lx[c] * its_lx[c] >= best * its_l2[c]",
     "IQ4_NL"),
    ("I beyond_it = out >= i;", "I beyond_it = out > i;", "IQ4_NL"),
    ("sum * (2.f / COUNT)", "2.f * sum / (float)COUNT", "IQ4_XS"),
    ("where(scale != 0.f, 1.f / scale)", "1.f / scale", "IQ4_NL"),
    ("where(own != 0.f, 1.f / own)", "1.f / own", "IQ4_XS"),
    ("F d = -max / 32.f", "F d = from_half(to_half(-max / 32.f))", "IQ4_XS"),
    ("column + span < n_per_row ? column + span : 0", "0", "IQ4_NL"),
    ("lanes.sigma2[lane] = sigma2[i % W];", "lanes.sigma2[lane] = sigma2[0];", "Q4_0"),
    ("& fit.alive;\n    }\n    pack_block", ";\n    }\n    pack_block", "Q4_0"),
    ("means[r] = sum[r] / n_per_row;", "means[r] = sum[r] * (1.f / n_per_row);", "Q4_0"),
]  # fmt: skip

# Quantizes the cases in a file, each in memory of exactly its size; has no ggml to turn to.
MAIN = r"""
#include <stdio.h>
#include <stdlib.h>

static size_t none(int, const float *, void *, int64_t, int64_t, int64_t, const float *) {
    abort();
}

int main(int, char **argv) {
    FILE *file = fopen(argv[1], "rb");
    int64_t head[5]; // type, rows, values per row, whether there are weights, bytes
    while (fread(head, sizeof head, 1, file) == 1) {
        size_t count = head[1] * head[2], weights = head[3] ? head[2] : 0;
        float *x = (float *)malloc(4 * count), *w = (float *)malloc(4 * weights);
        if (fread(x, 4, count, file) != count || fread(w, 4, weights, file) != weights) return 2;
        size_t size = head[4];
        void *y = malloc(size);
        const float *imatrix = weights ? w : nullptr;
        if (decant_kquants_baseline(none, head[0], x, y, 0, head[1], head[2], imatrix) != size)
            return 3;
        fwrite(y, size, 1, stdout);
        free(x), free(w), free(y);
    }
    fclose(file);
}
"""


# Before many copies of the source, each in a namespace: the headers take longer than it does.
HEADERS = """
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif
"""

# The levels of IQ4 alone.
LEVELS = r"""
extern "C" void levels(const float *x, int32_t *found, int64_t count) {
    for (int64_t i = 0; i < count; i += W) {
        F values;
        memcpy(&values, x + i, sizeof values);
        I level = nearest_level(values);
        memcpy(found + i, &level, sizeof level);
    }
}
"""


def mutated(source: str, mutants: list[tuple[str, str, str]]) -> str:
    """Copies of the source, one for each error, with the entries mutant_0, mutant_1, ..."""
    text = HEADERS
    for at, (old, new, _) in enumerate(mutants):
        assert old in source, old
        text += f"#undef KQ_ENTRY\n#define KQ_ENTRY mutant_{at}\nnamespace of_{at} {{\n"
        text += source.replace(old, new) + "}\n"
    return text


def compiled(source: str, target: Path, *flags: str, shared: bool = True) -> ctypes.CDLL | None:
    """Compile the source: as a library, which is loaded, or as a program (None)."""
    native, host = recipe("native"), recipe("host")
    text = target.with_suffix(".cpp")
    text.write_text(source)
    compilers = host.find_compilers(os.environ, system=host.read_host(os.environ).system)
    argv = [*shlex.split(compilers.cxx), *native.FLAGS, "-O0", *flags]
    argv += ["-DKQ_ENTRY=decant_kquants_baseline", str(text), "-o", str(target)]
    subprocess.run([*argv, "-shared"] if shared else argv, check=True, capture_output=True)
    return ctypes.CDLL(str(target)) if shared else None
