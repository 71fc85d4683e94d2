// Quantizes to ggml's K-quants, to IQ4, and with an imatrix to Q4_0, with the same bytes as ggml.
// Every vector lane has one block: a super-block of 256 values or, in IQ4_NL and Q4_0, 32 values.
//
// A lane does what ggml's scalar search does, in the same order: sums are serial, no operations are
// fused, divisions stay divisions. Where ggml branches, this code uses a mask.
// Compile with -ffp-contract=off and without fast-math, once for each set of instructions with
// KQ_ENTRY as the entry's name, and once with KQ_DISPATCH for the entry that chooses.
// The parts are included in the order in which they need each other.
// ggml's own function quantizes blocks with NaN or Inf, and types that are not listed here.

#include <stddef.h>
#include <stdint.h>
#include <string.h>

extern "C" {
typedef size_t quantize_chunk(int type, const float *src, void *dst, int64_t start, int64_t nrows,
                              int64_t n_per_row, const float *imatrix);
// Does the same as ggml_quantize_chunk; `ggml` is that function in the user's build.
typedef size_t entry(quantize_chunk *ggml, int type, const float *src, void *dst, int64_t start,
                     int64_t nrows, int64_t n_per_row, const float *imatrix);
entry decant_kquants_avx512, decant_kquants_avx2, decant_kquants_baseline;
}

#ifdef KQ_DISPATCH

#include "dispatch.h"

#else

#include "lanes.h"
#include "searches.h"
#include "batch.h"
#include "k_types.h"
#include "small_blocks.h"
#include "chunk.h"

extern "C" size_t KQ_ENTRY(quantize_chunk *ggml, int type, const float *src, void *dst,
                           int64_t start, int64_t nrows, int64_t n_per_row, const float *imatrix) {
    const Kind *kind = nullptr;
    for (const Kind &each : KINDS)
        if (each.type == type) kind = &each;
    if (!kind || (type == Q4_0 && !imatrix) || n_per_row <= 0 || n_per_row % kind->block ||
        start % n_per_row || (imatrix && !is_usual(imatrix, n_per_row)))
        return ggml(type, src, dst, start, nrows, n_per_row, imatrix);

    alignas(64) Batch batch;
    batch.weighted = imatrix != nullptr;
    Lanes lanes{};
    const float *x = src + start;
    unsigned char *y = (unsigned char *)dst + start / kind->block * kind->nbytes;
    // The values that depend on each other: a block, or in Q4_0 a row.
    const int64_t span = type == Q4_0 ? n_per_row : kind->block, spans = nrows * n_per_row / span;
    const int64_t span_nbytes = span / kind->block * kind->nbytes;
    float sigma2[W] = {};
    int64_t column = 0;
    for (int64_t i = 0; i < spans; i++, x += span, y += span_nbytes) {
        const int64_t left = spans - i;
        if (type == Q4_0 && i % W == 0)
            mean_squares(x, left < W ? left : W, n_per_row, sigma2);
        const float *importance = imatrix ? imatrix + column : nullptr;
        column = column + span < n_per_row ? column + span : 0;
        if (!is_finite(x, span)) {
            ggml(type, x, y, 0, 1, span, importance);
            continue;
        }
        for (int64_t j = 0; j < span / kind->block; j++) {
            const int lane = lanes.count++;
            lanes.x[lane] = x + j * kind->block;
            lanes.importance[lane] = importance ? importance + j * kind->block : nullptr;
            lanes.y[lane] = y + j * kind->nbytes;
            lanes.sigma2[lane] = sigma2[i % W];
            if (lanes.count == W) run(*kind, batch, lanes);
        }
    }
    run(*kind, batch, lanes);
    return (size_t)(spans * span_nbytes);
}

#endif
