// A batch of blocks, one in every lane: its values, weights, levels and packed scales.

#pragma once

namespace {

// A batch: the values, their importance by an imatrix, and room for the weights and the levels.
struct Batch {
    F x[N], importance[N], w[N];
    I levels[N], words[56];
    F sigma2; // Q4_0: the mean square of the block's row
    bool weighted;
};

INLINE I pack4(const I *bytes) {
    return bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24;
}

// Packs 6-bit scales and minimums of 8 sub-blocks in 12 bytes.
INLINE void pack_scales(const I *ls, const I *lm, I *bytes) {
    for (int j = 0; j < 4; j++) {
        bytes[j] = (ls[j] | (ls[j + 4] >> 4) << 6) & 255;
        bytes[j + 4] = (lm[j] | (lm[j + 4] >> 4) << 6) & 255;
        bytes[j + 8] = (ls[j + 4] & 15) | (lm[j + 4] & 15) << 4;
    }
}

INLINE void unpack_scale(const I *bytes, int j, I *scale, I *min) {
    if (j < 4) {
        *scale = bytes[j] & 63;
        *min = bytes[j + 4] & 63;
    } else {
        *scale = (bytes[j + 4] & 15) | (bytes[j - 4] >> 6) << 4;
        *min = bytes[j + 4] >> 4 | (bytes[j] >> 6) << 4;
    }
}

// Weights with an imatrix: importance * sqrt(sigma2 + x^2).
template <int COUNT> INLINE void weigh_by(Batch &b, F sigma2) {
    for (int i = 0; i < COUNT; i++) b.w[i] = b.importance[i] * root(sigma2 + b.x[i] * b.x[i]);
}

// The same, with sigma2 = factor * the mean square of all 256 values.
INLINE void weigh(Batch &b, float factor) {
    F sum{};
    for (int i = 0; i < N; i++) sum += b.x[i] * b.x[i];
    weigh_by<N>(b, factor * sum / (float)N);
}

template <int COUNT, int TOP, bool MAD> INLINE void fit_all(Batch &b, const Search &search, Fit *fit) {
    for (int j = 0; j < N / COUNT; j += SIDE)
        fit_scale_and_min<COUNT, TOP, MAD>(b.x + COUNT * j, b.w + COUNT * j, search, fit + j);
}

template <int COUNT> INLINE void sum_weights(const Batch &b, F *sums) {
    for (int j = 0; j < N / COUNT; j++) {
        sums[j] = F{};
        for (int i = 0; i < COUNT; i++) sums[j] += b.w[COUNT * j + i];
    }
}

template <int COUNT, int TOP>
INLINE void levels_of_fit(Batch &b, int j, const Fit &fit, F d, F dm) {
    const F *x = b.x + COUNT * j;
    I *levels = b.levels + COUNT * j;
    final_levels<COUNT, true>(x, dm, d, fit.low, fit.high, 0, TOP, levels);
    I none = d == 0.f;
    if (any(none))
        for (int i = 0; i < COUNT; i++)
            levels[i] =
                choose(none, clamp(nearest(fit.iscale * (x[i] - fit.base)), 0, TOP), levels[i]);
}

} // namespace
