// Quantizes a batch of blocks to Q2_K to Q6_K.

#pragma once

namespace {

// Q4_K and Q5_K: 8 sub-blocks of 32.
template <int TOP> void quantize_32(Batch &b) {
    constexpr int COUNT = 32, BLOCKS = 8;
    Fit fit[BLOCKS];
    I ls[BLOCKS], lm[BLOCKS], scales[12];
    F d, dmin;
    if (b.weighted) {
        weigh(b, 2.f);
        fit_all<COUNT, TOP, false>(b, {-0.9f, 0.05f, 36}, fit);
        F sums[BLOCKS], scale[BLOCKS], min[BLOCKS];
        sum_weights<COUNT>(b, sums);
        for (int j = 0; j < BLOCKS; j++) scale[j] = fit[j].scale, min[j] = -fit[j].min;
        d = fit_positive<BLOCKS>(scale, sums, 63, ls);
        dmin = fit_positive<BLOCKS>(min, sums, 63, lm);
        if (TOP == 31)
            for (int j = 0; j < BLOCKS; j++) {
                ls[j] = choose(ls[j] < 63, ls[j], I{} + 63);
                lm[j] = choose(lm[j] < 63, lm[j], I{} + 63);
            }
    } else {
        for (int j = 0; j < BLOCKS; j++) {
            F sum{};
            for (int i = 0; i < COUNT; i++) sum += b.x[COUNT * j + i] * b.x[COUNT * j + i];
            F mean = root(sum / (float)COUNT);
            for (int i = 0; i < COUNT; i++)
                b.w[COUNT * j + i] = mean + magnitude(b.x[COUNT * j + i]);
        }
        fit_all<COUNT, TOP, false>(
            b, TOP == 15 ? Search{-1.f, 0.1f, 20} : Search{-0.5f, 0.1f, 15}, fit);
        F scale{}, min{};
        for (int j = 0; j < BLOCKS; j++) {
            scale = greater(fit[j].scale, scale);
            min = greater(-fit[j].min, min);
        }
        F inv_scale = choose(scale > 0.f, 63.f / scale, F{});
        F inv_min = choose(min > 0.f, 63.f / min, F{});
        for (int j = 0; j < BLOCKS; j++) {
            ls[j] = nearest(inv_scale * fit[j].scale) & 255;
            lm[j] = nearest(inv_min * -fit[j].min) & 255;
            ls[j] = choose(ls[j] < 63, ls[j], I{} + 63);
            lm[j] = choose(lm[j] < 63, lm[j], I{} + 63);
        }
        d = scale / 63.f;
        dmin = min / 63.f;
    }
    pack_scales(ls, lm, scales);
    I half = to_half(d), half_min = to_half(dmin);
    d = from_half(half);
    dmin = from_half(half_min);
    for (int j = 0; j < BLOCKS; j++) {
        I sc, m;
        unpack_scale(scales, j, &sc, &m);
        levels_of_fit<COUNT, TOP>(b, j, fit[j], d * to_float(sc), dmin * to_float(m));
    }
    I *out = b.words;
    *out++ = half | half_min << 16;
    for (int j = 0; j < 12; j += 4) *out++ = pack4(scales + j);
    if (TOP == 31)
        for (int l = 0; l < 32; l += 4) {
            I bytes[4];
            for (int k = 0; k < 4; k++) {
                bytes[k] = I{};
                for (int j = 0; j < BLOCKS; j++)
                    bytes[k] |= (b.levels[32 * j + l + k] >> 4) << j;
            }
            *out++ = pack4(bytes);
        }
    for (int j = 0; j < N; j += 64)
        for (int l = j; l < j + 32; l += 4) {
            I bytes[4];
            for (int k = 0; k < 4; k++)
                bytes[k] = (b.levels[l + k] & 15) | (b.levels[l + k + 32] & 15) << 4;
            *out++ = pack4(bytes);
        }
}

INLINE void levels_of_symmetric(Batch &b, int j, const Symmetric &fit, F d, int top) {
    const F *x = b.x + 16 * j;
    I *levels = b.levels + 16 * j;
    final_levels<16, false>(x, F{}, d, fit.low, fit.high, -top, top - 1, levels);
    I none = d == 0.f;
    bool empty = any(none);
    for (int i = 0; i < 16; i++) {
        I l = levels[i] + top;
        if (empty)
            l = choose(none, (clamp(nearest(fit.iscale * x[i]), -top, top - 1) + top) & fit.alive,
                       l);
        levels[i] = l;
    }
}

void quantize_q6(Batch &b) {
    constexpr int BLOCKS = 16;
    if (b.weighted)
        memcpy(b.w, b.importance, sizeof b.w);
    else
        for (int i = 0; i < N; i++) b.w[i] = b.x[i] * b.x[i];
    Symmetric fit[BLOCKS];
    F max{}, size{};
    for (int j = 0; j < BLOCKS; j++) {
        fit[j] = fit_symmetric<16, 32, true>(b.x + 16 * j, b.w + 16 * j);
        F a = magnitude(fit[j].scale);
        I more = a > size;
        size = choose(more, a, size);
        max = choose(more, fit[j].scale, max);
    }
    I zero = size < ALL_ZERO;
    F iscale = -128.f / max;
    I half = to_half(1.f / iscale), scales[BLOCKS];
    F d = from_half(half);
    for (int j = 0; j < BLOCKS; j++) {
        I l = nearest(iscale * fit[j].scale);
        l = choose(l < 127, l, I{} + 127);
        scales[j] = (I)((U)l << 24) >> 24;
        levels_of_symmetric(b, j, fit[j], d * to_float(scales[j]), 32);
    }
    I *out = b.words;
    for (int j = 0; j < N; j += 128)
        for (int pair = 0; pair < 64; pair += 32)
            for (int l = j + pair; l < j + pair + 32; l += 4) {
                I bytes[4];
                for (int k = 0; k < 4; k++)
                    bytes[k] = (b.levels[l + k] & 15) | (b.levels[l + k + 64] & 15) << 4;
                *out++ = pack4(bytes);
            }
    for (int j = 0; j < N; j += 128)
        for (int l = j; l < j + 32; l += 4) {
            I bytes[4];
            for (int k = 0; k < 4; k++) {
                bytes[k] = I{};
                for (int part = 0; part < 4; part++)
                    bytes[k] |= (b.levels[l + k + 32 * part] >> 4) << 2 * part;
            }
            *out++ = pack4(bytes);
        }
    for (int j = 0; j < BLOCKS; j++) scales[j] &= 255;
    for (int j = 0; j < BLOCKS; j += 4) *out++ = pack4(scales + j);
    *out++ = half;
    for (I *word = b.words; word < out; word++) *word &= ~zero;
}

// Packs the 2 low bits of every level, 4 levels in a byte.
INLINE I *pack_pairs(const Batch &b, I *out) {
    for (int j = 0; j < N; j += 128)
        for (int l = j; l < j + 32; l += 4) {
            I bytes[4];
            for (int k = 0; k < 4; k++) {
                bytes[k] = I{};
                for (int part = 0; part < 4; part++)
                    bytes[k] |= (b.levels[l + k + 32 * part] & 3) << 2 * part;
            }
            *out++ = pack4(bytes);
        }
    return out;
}

void quantize_q2(Batch &b) {
    constexpr int COUNT = 16, BLOCKS = 16, TOP = 3;
    Fit fit[BLOCKS];
    I ls[BLOCKS], lm[BLOCKS], scales[BLOCKS];
    F d, dmin;
    if (b.weighted) {
        weigh(b, 1.f);
        fit_all<COUNT, TOP, false>(b, {-0.9f, 0.05f, 36}, fit);
        F sums[BLOCKS], scale[BLOCKS], min[BLOCKS];
        sum_weights<COUNT>(b, sums);
        for (int j = 0; j < BLOCKS; j++) scale[j] = fit[j].scale, min[j] = -fit[j].min;
        d = fit_positive<BLOCKS>(scale, sums, 15, ls);
        dmin = fit_positive<BLOCKS>(min, sums, 15, lm);
    } else {
        for (int i = 0; i < N; i++) b.w[i] = magnitude(b.x[i]);
        fit_all<COUNT, TOP, true>(b, {-0.5f, 0.1f, 15}, fit);
        F scale{}, min{};
        for (int j = 0; j < BLOCKS; j++) {
            scale = greater(fit[j].scale, scale);
            min = greater(-fit[j].min, min);
        }
        F inv_scale = 15.f / scale, inv_min = 15.f / min;
        for (int j = 0; j < BLOCKS; j++) {
            ls[j] = nearest(inv_scale * fit[j].scale) & (scale > 0.f);
            lm[j] = nearest(inv_min * -fit[j].min) & (min > 0.f);
        }
        d = scale / 15.f;
        dmin = min / 15.f;
    }
    I half = to_half(d), half_min = to_half(dmin);
    d = from_half(half);
    dmin = from_half(half_min);
    for (int j = 0; j < BLOCKS; j++) {
        scales[j] = (ls[j] | lm[j] << 4) & 255;
        levels_of_fit<COUNT, TOP>(b, j, fit[j], d * to_float(scales[j] & 15),
                                  dmin * to_float(scales[j] >> 4));
    }
    I *out = b.words;
    for (int j = 0; j < BLOCKS; j += 4) *out++ = pack4(scales + j);
    out = pack_pairs(b, out);
    *out++ = half | half_min << 16;
}

// Replaces the search's levels by the final ones, except where d is 0.
INLINE void levels_of_q3(Batch &b, int j, F d) {
    const F *x = b.x + 16 * j;
    I *levels = b.levels + 16 * j, found[16];
    F low = x[0], high = x[0];
    for (int i = 0; i < 16; i++) {
        found[i] = levels[i];
        low = lesser(x[i], low);
        high = greater(x[i], high);
    }
    final_levels<16, false>(x, F{}, d, low, high, -4, 3, levels);
    for (int i = 0; i < 16; i++) levels[i] = choose(d == 0.f, found[i], levels[i] + 4);
}

// A scale for 16 values by ggml's make_q3_quants, and their levels plus 4.
F fit_q3(const F *x, I *levels) {
    constexpr int COUNT = 16, TOP = 4;
    F max{}, size{}, sum_lx{}, sum_l2{}, w[COUNT];
    for (int i = 0; i < COUNT; i++) {
        F a = magnitude(x[i]);
        I more = a > size;
        size = choose(more, a, size);
        max = choose(more, x[i], max);
    }
    I alive = ~(size < ALL_ZERO);
    F iscale = (float)-TOP / max;
    for (int i = 0; i < COUNT; i++) {
        levels[i] = clamp(nearest(iscale * x[i]), -TOP, TOP - 1);
        F l = to_float(levels[i]);
        w[i] = x[i] * x[i];
        sum_lx += w[i] * x[i] * l;
        sum_l2 += w[i] * l * l;
    }
    for (int round = 0; round < 5; round++) {
        I changed{};
        for (int i = 0; i < COUNT; i++) {
            F old = to_float(levels[i]);
            F lx = sum_lx - w[i] * x[i] * old, l2 = sum_l2 - w[i] * old * old;
            I open = lx > 0.f;
            I l = clamp(nearest(x[i] * l2 / lx), -TOP, TOP - 1);
            F v = to_float(l);
            lx += w[i] * x[i] * v;
            l2 += w[i] * v * v;
            I better = open & (l != levels[i]) & (l2 > 0.f) &
                       (lx * lx * sum_l2 > sum_lx * sum_lx * l2);
            levels[i] = choose(better, l, levels[i]);
            sum_lx = choose(better, lx, sum_lx);
            sum_l2 = choose(better, l2, sum_l2);
            changed |= better;
        }
        if (!any(changed & alive)) break;
    }
    for (int i = 0; i < COUNT; i++) levels[i] = (levels[i] + TOP) & alive;
    return where(alive & (sum_l2 > 0.f), sum_lx / sum_l2);
}

void quantize_q3(Batch &b) {
    constexpr int COUNT = 16, BLOCKS = 16;
    I scales[BLOCKS], half; // the scales' levels plus 32
    Symmetric fit[BLOCKS];
    F scale[BLOCKS];
    if (b.weighted) {
        weigh(b, 2.f);
        F sums[BLOCKS];
        sum_weights<COUNT>(b, sums);
        for (int j = 0; j < BLOCKS; j++) {
            fit[j] = fit_symmetric<COUNT, 4, true>(b.x + COUNT * j, b.w + COUNT * j);
            scale[j] = fit[j].scale;
        }
        Symmetric all_of_them = fit_symmetric<BLOCKS, 32, false>(scale, sums);
        half = to_half(all_of_them.scale);
        for (int j = 0; j < BLOCKS; j++)
            scales[j] = (clamp(nearest(all_of_them.iscale * scale[j]), -32, 31) + 32) &
                        all_of_them.alive;
    } else {
        F max{}, size{};
        for (int j = 0; j < BLOCKS; j++) {
            scale[j] = fit_q3(b.x + COUNT * j, b.levels + COUNT * j);
            F a = magnitude(scale[j]);
            I more = a > size;
            size = choose(more, a, size);
            max = choose(more, scale[j], max);
        }
        F iscale = -32.f / max;
        I some = max != 0.f;
        half = to_half(where(some, 1.f / iscale));
        for (int j = 0; j < BLOCKS; j++) {
            I l = (I)((U)nearest(iscale * scale[j]) << 24) >> 24;
            scales[j] = (clamp(l, -32, 31) + 32) & some;
        }
    }
    F d = from_half(half);
    for (int j = 0; j < BLOCKS; j++) {
        F own = d * to_float(scales[j] - 32);
        if (b.weighted)
            levels_of_symmetric(b, j, fit[j], own, 4);
        else
            levels_of_q3(b, j, own);
    }
    I *out = b.words;
    for (int l = 0; l < 32; l += 4) {
        I bytes[4];
        for (int k = 0; k < 4; k++) {
            bytes[k] = I{};
            for (int j = 0; j < 8; j++) bytes[k] |= (b.levels[32 * j + l + k] >> 2) << j;
        }
        *out++ = pack4(bytes);
    }
    out = pack_pairs(b, out);
    I bytes[12];
    for (int j = 0; j < 8; j++) bytes[j] = (scales[j] & 15) | (scales[j + 8] & 15) << 4;
    for (int j = 0; j < 4; j++) {
        bytes[j + 8] = I{};
        for (int part = 0; part < 4; part++)
            bytes[j + 8] |= (scales[j + 4 * part] >> 4) << 2 * part;
    }
    for (int j = 0; j < 12; j += 4) *out++ = pack4(bytes + j);
    *out++ = half;
}

} // namespace
