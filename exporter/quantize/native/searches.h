// ggml's searches for scales and minimums, one sub-block in every lane.

#pragma once

namespace {

// A scale and a minimum for a sub-block of COUNT values with levels 0..TOP, as ggml's
// make_qkx2_quants and make_qkx3_quants compute them; these two do the same.
struct Fit {
    F scale, min;
    F iscale, base; // the levels are (x - base) * iscale, rounded
    F low, high;    // the lowest and the highest value
};

struct Sums {
    F l, l2, xl;
};

template <int COUNT, int TOP, Rounding HOW>
INLINE void sum_levels(const F *x, const F *w, F *levels, const Fit *fit, const F *iscale,
                       Sums *sums) {
    for (int g = 0; g < SIDE; g++) sums[g] = Sums{};
    for (int i = 0; i < COUNT; i++)
        for (int g = 0; g < SIDE; g++) {
            int at = g * COUNT + i;
            F l = level<HOW>(iscale[g] * (x[at] - fit[g].min), 0, TOP);
            levels[at] = l;
            F wl = w[at] * l;
            sums[g].l += wl;
            sums[g].l2 += wl * l;
            sums[g].xl += wl * x[at];
        }
}

template <int COUNT, bool MAD>
INLINE void sum_errors(const F *x, const F *w, const F *levels, const F *scale, const F *min,
                       F *error) {
    for (int g = 0; g < SIDE; g++) error[g] = F{};
    for (int i = 0; i < COUNT; i++)
        for (int g = 0; g < SIDE; g++) {
            int at = g * COUNT + i;
            F diff = scale[g] * levels[at] + min[g] - x[at];
            diff = MAD ? magnitude(diff) : diff * diff;
            error[g] += w[at] * diff;
        }
}

// EXACT if a level is beyond float rounding, CLAMPED if one may be above TOP, else FROM_BELOW.
template <int TOP> INLINE Rounding rounding(const Fit *fit, const F *iscale) {
    I wild{}, tall{};
    for (int g = 0; g < SIDE; g++) {
        F first = iscale[g] * (fit[g].low - fit[g].min);
        F last = iscale[g] * (fit[g].high - fit[g].min);
        wild |= beyond(first) | beyond(last);
        // If the minimum has moved beyond all values, iscale is negative, and `first` is highest.
        tall |= greater(first, last) + MAGIC > MAGIC + TOP;
    }
    return any(wild) ? EXACT : any(tall) ? CLAMPED : FROM_BELOW;
}

template <int COUNT, int TOP>
INLINE void levels_and_sums(const F *x, const F *w, F *levels, const Fit *fit, const F *iscale,
                            Sums *sums) {
    switch (rounding<TOP>(fit, iscale)) {
    case EXACT: sum_levels<COUNT, TOP, EXACT>(x, w, levels, fit, iscale, sums); break;
    case CLAMPED: sum_levels<COUNT, TOP, CLAMPED>(x, w, levels, fit, iscale, sums); break;
    default: sum_levels<COUNT, TOP, FROM_BELOW>(x, w, levels, fit, iscale, sums);
    }
}

struct Search {
    float first, step;
    int steps;
};

// Searches SIDE consecutive sub-blocks.
template <int COUNT, int TOP, bool MAD>
__attribute__((noinline)) void fit_scale_and_min(const F *x, const F *w, const Search &search,
                                                 Fit *fit) {
    F sum_w[SIDE], sum_x[SIDE], iscale[SIDE], scale[SIDE], min[SIDE], best[SIDE], error[SIDE];
    F range[SIDE], levels[SIDE * COUNT];
    I alive[SIDE], some{};
    Sums sums[SIDE];
    for (int g = 0; g < SIDE; g++) {
        F low = x[g * COUNT], high = low;
        sum_w[g] = w[g * COUNT];
        sum_x[g] = sum_w[g] * low;
        for (int i = 1; i < COUNT; i++) {
            F value = x[g * COUNT + i], weight = w[g * COUNT + i];
            low = lesser(value, low);
            high = greater(value, high);
            sum_w[g] += weight;
            sum_x[g] += weight * value;
        }
        fit[g].low = low;
        fit[g].high = high;
        fit[g].min = choose(low > 0.f, F{}, low);
        alive[g] = ~(high <= fit[g].min);
        some |= alive[g];
        // A lane that ggml does not search gets iscale 0, so that its levels are not beyond floats.
        iscale[g] = where(alive[g], all(TOP) / (high - fit[g].min));
        fit[g].iscale = iscale[g];
        fit[g].base = fit[g].min;
        fit[g].scale = where(alive[g], 1.f / iscale[g]);
    }
    if (!any(some)) return;
    levels_and_sums<COUNT, TOP>(x, w, levels, fit, iscale, sums);
    for (int g = 0; g < SIDE; g++) scale[g] = fit[g].scale, min[g] = fit[g].min;
    sum_errors<COUNT, MAD>(x, w, levels, scale, min, best);
    for (int step = 0; step <= search.steps; step++) {
        float aim = search.first + search.step * step + TOP;
        for (int g = 0; g < SIDE; g++) {
            range[g] = fit[g].high - fit[g].min;
            iscale[g] = where(alive[g], aim / range[g]);
        }
        levels_and_sums<COUNT, TOP>(x, w, levels, fit, iscale, sums);
        I solved[SIDE];
        for (int g = 0; g < SIDE; g++) {
            const Sums &s = sums[g];
            F d = sum_w[g] * s.l2 - s.l * s.l;
            solved[g] = (d > 0.f) & alive[g];
            F m = (s.l2 * sum_x[g] - s.l * s.xl) / d;
            F a = (sum_w[g] * s.xl - sum_x[g] * s.l) / d;
            I above = m > 0.f;
            min[g] = choose(above, F{}, m);
            scale[g] = any(above) ? choose(above, s.xl / s.l2, a) : a;
        }
        sum_errors<COUNT, MAD>(x, w, levels, scale, min, error);
        for (int g = 0; g < SIDE; g++) {
            I better = (error[g] < best[g]) & solved[g];
            best[g] = choose(better, error[g], best[g]);
            fit[g].iscale = choose(better, iscale[g], fit[g].iscale);
            fit[g].base = choose(better, fit[g].min, fit[g].base);
            fit[g].scale = choose(better, scale[g], fit[g].scale);
            fit[g].min = choose(better, min[g], fit[g].min);
        }
    }
}

// ggml's make_qp_quants: a common scale for COUNT values that are not negative.
template <int COUNT> F fit_positive(const F *x, const F *w, int top, I *levels) {
    F max{};
    for (int i = 0; i < COUNT; i++) max = choose(max > x[i], max, x[i]);
    I alive = ~(max < ALL_ZERO);
    F iscale = where(alive, (float)top / max), scale = 1.f / iscale, best{};
    for (int i = 0; i < COUNT; i++) {
        F diff = x[i] - scale * to_float(nearest(iscale * x[i]) & 255);
        best += w[i] * diff * diff;
    }
    for (int step = -4; step <= 4; step++) {
        if (step == 0) continue;
        F tried = (0.1f * step + top) / max, its_scale = 1.f / tried, error{};
        for (int i = 0; i < COUNT; i++) {
            I l = nearest(tried * x[i]);
            l = choose(l < top, l, I{} + top);
            F diff = x[i] - its_scale * to_float(l);
            error += w[i] * diff * diff;
        }
        I better = error < best;
        best = choose(better, error, best);
        iscale = choose(better, tried, iscale);
    }
    F sum_lx{}, sum_l2{};
    for (int i = 0; i < COUNT; i++) {
        I l = nearest(iscale * x[i]);
        l = choose(l < top, l, I{} + top);
        levels[i] = l & 255;
        F v = to_float(l);
        sum_lx += w[i] * x[i] * v;
        sum_l2 += w[i] * v * v;
    }
    for (int round = 0; round < 5; round++) {
        I changed{};
        for (int i = 0; i < COUNT; i++) {
            F old = to_float(levels[i]);
            F lx = sum_lx - w[i] * x[i] * old, l2 = sum_l2 - w[i] * old * old;
            I open = (lx > 0.f) & (l2 > 0.f);
            I l = nearest(x[i] * l2 / lx);
            l = choose(l < top, l, I{} + top);
            F v = to_float(l);
            lx += w[i] * x[i] * v;
            l2 += w[i] * v * v;
            I better = open & (l != levels[i]) & (lx * lx * sum_l2 > sum_lx * sum_lx * l2);
            levels[i] = choose(better, l & 255, levels[i]);
            sum_lx = choose(better, lx, sum_lx);
            sum_l2 = choose(better, l2, sum_l2);
            changed |= better;
        }
        if (!any(changed & alive)) break;
    }
    for (int i = 0; i < COUNT; i++) levels[i] &= alive;
    return where(alive & (sum_l2 > 0.f), sum_lx / sum_l2);
}

// A scale for COUNT values with levels -TOP..TOP-1, by ggml's make_qx_quants. `iscale` gives the
// levels again; a lane that is not alive has none.
struct Symmetric {
    F scale, iscale;
    I alive;
    F low, high; // the lowest and the highest value
};

template <int COUNT, int TOP, Rounding HOW, int TRIED>
INLINE void sum_tried(const F *x, const F *w, const F *iscale, F *sum_lx, F *sum_l2) {
    F lx[TRIED], l2[TRIED];
    for (int c = 0; c < TRIED; c++) lx[c] = l2[c] = F{};
    for (int i = 0; i < COUNT; i++) {
        F wx = w[i] * x[i];
        for (int c = 0; c < TRIED; c++) {
            F l = level<HOW>(iscale[c] * x[i], -TOP, TOP - 1);
            lx[c] += wx * l;
            l2[c] += w[i] * l * l;
        }
    }
    for (int c = 0; c < TRIED; c++) sum_lx[c] = lx[c], sum_l2[c] = l2[c];
}

template <int COUNT, int TOP, int TRIED>
INLINE void sum_fast(const F *x, const F *w, const F *iscale, Rounding how, F *lx, F *l2) {
    switch (how) {
    case FREE: return sum_tried<COUNT, TOP, FREE, TRIED>(x, w, iscale, lx, l2);
    case FROM_BELOW: return sum_tried<COUNT, TOP, FROM_BELOW, TRIED>(x, w, iscale, lx, l2);
    case FROM_ABOVE: return sum_tried<COUNT, TOP, FROM_ABOVE, TRIED>(x, w, iscale, lx, l2);
    default: return sum_tried<COUNT, TOP, CLAMPED, TRIED>(x, w, iscale, lx, l2);
    }
}

// If FINITE, the scaled values stay near -TOP..TOP; otherwise they may have any value.
template <int COUNT, int TOP, bool FINITE>
__attribute__((noinline)) Symmetric fit_symmetric(const F *x, const F *w) {
    F max{}, size{}, low = x[0], high = x[0];
    for (int i = 0; i < COUNT; i++) {
        F a = magnitude(x[i]);
        I more = a > size;
        size = choose(more, a, size);
        max = choose(more, x[i], max);
        low = lesser(x[i], low);
        high = greater(x[i], high);
    }
    I alive = ~(size < ALL_ZERO);
    if (!any(alive)) return {F{}, F{}, alive, low, high};
    F iscale = where(alive, (float)-TOP / max), sum_lx, sum_l2;
    sum_tried<COUNT, TOP, FINITE ? CLAMPED : EXACT, 1>(x, w, &iscale, &sum_lx, &sum_l2);
    F scale = choose(sum_l2 != 0.f, sum_lx / sum_l2, F{}), best = scale * sum_lx;
    for (int first = 0; first < 18; first += CANDIDATES) {
        F tried[CANDIDATES], lx[CANDIDATES], l2[CANDIDATES];
        int step = 0;
        for (int c = 0; c < CANDIDATES; c++) {
            step = first + c < 9 ? first + c - 9 : first + c - 8; // -9..9 without 0
            tried[c] = where(alive, -(TOP + 0.1f * step) / max);
        }
        if (FINITE) {
            // The last scale is the largest. Up to step 4, no value is rounded to below -TOP.
            F last = tried[CANDIDATES - 1];
            I tall = greater(last * low, last * high) + MAGIC > MAGIC + (TOP - 1);
            int how = (any(tall) ? FROM_ABOVE : FREE) | (step > 4 ? FROM_BELOW : FREE);
            sum_fast<COUNT, TOP, CANDIDATES>(x, w, tried, (Rounding)how, lx, l2);
        } else {
            sum_tried<COUNT, TOP, EXACT, CANDIDATES>(x, w, tried, lx, l2);
        }
        for (int c = 0; c < CANDIDATES; c++) {
            I better = (l2[c] > 0.f) & (lx[c] * lx[c] > best * l2[c]);
            F its_scale = lx[c] / l2[c];
            scale = choose(better, its_scale, scale);
            best = choose(better, its_scale * lx[c], best);
            iscale = choose(better, tried[c], iscale);
        }
    }
    return {where(alive, scale), iscale, alive, low, high};
}

// The final levels of a sub-block: (x + shift) / d, rounded. Where d is 0 they have no meaning, and
// the caller takes those of the search. low, high: the lowest and the highest value.
template <int COUNT, bool SHIFTED>
INLINE void final_levels(const F *x, F shift, F d, F low, F high, int least, int most, I *levels) {
    d = choose(d == 0.f, all(__builtin_inff()), d);
    if (any(beyond((low + shift) / d) | beyond((high + shift) / d))) {
        for (int i = 0; i < COUNT; i++)
            levels[i] = clamp(nearest((SHIFTED ? x[i] + shift : x[i]) / d), least, most);
        return;
    }
    for (int i = 0; i < COUNT; i++) {
        F sum = (SHIFTED ? x[i] + shift : x[i]) / d + MAGIC;
        sum = greater(lesser(sum, all(MAGIC + most)), all(MAGIC + least));
        levels[i] = bits(sum) - MAGIC_BITS;
    }
}

} // namespace
