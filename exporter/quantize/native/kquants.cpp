// The K-quants of ggml, IQ4 and Q4_0 with an imatrix, byte for byte: one block in every vector
// lane, which is a super-block of 256 values or, in IQ4_NL and Q4_0, one of 32.
//
// A lane does what ggml's scalar search does, in its order: sums are serial, nothing is fused,
// divisions are divisions. What ggml decides by a branch is decided here by a mask.
// Compile with -ffp-contract=off and without fast-math, once for each set of instructions with
// KQ_ENTRY as the entry's name, and once with KQ_DISPATCH for the entry that chooses.
// Blocks holding NaN or Inf, and types that are not known here, go to ggml's own function.

#include <stddef.h>
#include <stdint.h>
#include <string.h>

extern "C" {
typedef size_t quantize_chunk(int type, const float *src, void *dst, int64_t start, int64_t nrows,
                              int64_t n_per_row, const float *imatrix);
// ggml_quantize_chunk's meaning; `ggml` is that function of the build to be equal to.
typedef size_t entry(quantize_chunk *ggml, int type, const float *src, void *dst, int64_t start,
                     int64_t nrows, int64_t n_per_row, const float *imatrix);
entry decant_kquants_avx512, decant_kquants_avx2, decant_kquants_baseline;
}

#ifdef KQ_DISPATCH

#if defined(__x86_64__) || defined(__i386__)
static bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static bool has_avx2() { return __builtin_cpu_supports("avx2"); }
#endif

extern "C" const char *decant_kquants_variant() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    return has_avx512() ? "avx512" : has_avx2() ? "avx2" : "baseline";
#else
    return "baseline";
#endif
}

#else

#if !defined(KQ_LANES) && defined(__AVX512F__)
#define KQ_LANES 16
#elif !defined(KQ_LANES) && defined(__AVX2__)
#define KQ_LANES 8
#elif !defined(KQ_LANES)
#define KQ_LANES 4
#endif
// Other widths than the processor's own go by the compiler's vectors alone.
#if KQ_LANES == 16 && defined(__AVX512F__)
#define ZMM
#elif KQ_LANES == 8 && defined(__AVX2__)
#define YMM
#elif KQ_LANES == 4 && defined(__SSE2__)
#define XMM
#endif
#if defined(ZMM) || defined(YMM) || defined(XMM)
#include <immintrin.h>
#endif

namespace {

constexpr int W = KQ_LANES;
constexpr int N = 256; // values in a super-block
// The sub-blocks searched side by side, so that one's sums fill the waiting of another's.
constexpr int SIDE = W == 16 ? 4 : 2;
constexpr int CANDIDATES = W == 16 ? 6 : 3; // scales tried in one pass where they are known ahead
constexpr int TURNS_AT_ONCE = W == 16 ? 5 : 3; // and of IQ4's

typedef float F __attribute__((vector_size(4 * W), may_alias));
typedef int32_t I __attribute__((vector_size(4 * W), may_alias));
typedef uint32_t U __attribute__((vector_size(4 * W), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE F all(float value) { return F{} + value; }
INLINE I bits(F x) { return (I)x; }
INLINE F magnitude(F x) { return (F)(bits(x) & 0x7fffffff); }
INLINE F choose(I mask, F yes, F no) { return mask ? yes : no; }
INLINE I choose(I mask, I yes, I no) { return mask ? yes : no; }
INLINE F where(I mask, F x) { return (F)(mask & bits(x)); }
INLINE F to_float(I x) { return __builtin_convertvector(x, F); }

// The operands' order is ggml's `x < bound ? x : bound`, which also says what NaN does.
INLINE F lesser(F x, F bound) {
#if defined(ZMM)
    return (F)_mm512_min_ps((__m512)x, (__m512)bound);
#elif defined(YMM)
    return (F)_mm256_min_ps((__m256)x, (__m256)bound);
#elif defined(XMM)
    return (F)_mm_min_ps((__m128)x, (__m128)bound);
#else
    return choose(x < bound, x, bound);
#endif
}

INLINE F greater(F x, F bound) {
#if defined(ZMM)
    return (F)_mm512_max_ps((__m512)x, (__m512)bound);
#elif defined(YMM)
    return (F)_mm256_max_ps((__m256)x, (__m256)bound);
#elif defined(XMM)
    return (F)_mm_max_ps((__m128)x, (__m128)bound);
#else
    return choose(x > bound, x, bound);
#endif
}

INLINE F root(F x) {
#if defined(ZMM)
    return (F)_mm512_sqrt_ps((__m512)x);
#elif defined(YMM)
    return (F)_mm256_sqrt_ps((__m256)x);
#elif defined(XMM)
    return (F)_mm_sqrt_ps((__m128)x);
#else
    F y;
    for (int lane = 0; lane < W; lane++) y[lane] = __builtin_sqrtf(x[lane]);
    return y;
#endif
}

INLINE bool any(I mask) {
#if defined(ZMM)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(YMM)
    return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(XMM)
    return _mm_movemask_ps((__m128)mask) != 0;
#else
    int32_t found = 0;
    for (int lane = 0; lane < W; lane++) found |= mask[lane];
    return found != 0;
#endif
}

// Values of two vectors, taken within every 128 bits.
#if defined(ZMM)
INLINE F low_pairs(F x, F y) { return (F)_mm512_unpacklo_ps((__m512)x, (__m512)y); }
INLINE F high_pairs(F x, F y) { return (F)_mm512_unpackhi_ps((__m512)x, (__m512)y); }
INLINE F low_halves(F x, F y) { return (F)_mm512_shuffle_ps((__m512)x, (__m512)y, 0x44); }
INLINE F high_halves(F x, F y) { return (F)_mm512_shuffle_ps((__m512)x, (__m512)y, 0xee); }
#elif defined(YMM)
INLINE F low_pairs(F x, F y) { return (F)_mm256_unpacklo_ps((__m256)x, (__m256)y); }
INLINE F high_pairs(F x, F y) { return (F)_mm256_unpackhi_ps((__m256)x, (__m256)y); }
INLINE F low_halves(F x, F y) { return (F)_mm256_shuffle_ps((__m256)x, (__m256)y, 0x44); }
INLINE F high_halves(F x, F y) { return (F)_mm256_shuffle_ps((__m256)x, (__m256)y, 0xee); }
#elif defined(XMM)
INLINE F low_pairs(F x, F y) { return (F)_mm_unpacklo_ps((__m128)x, (__m128)y); }
INLINE F high_pairs(F x, F y) { return (F)_mm_unpackhi_ps((__m128)x, (__m128)y); }
INLINE F low_halves(F x, F y) { return (F)_mm_shuffle_ps((__m128)x, (__m128)y, 0x44); }
INLINE F high_halves(F x, F y) { return (F)_mm_shuffle_ps((__m128)x, (__m128)y, 0xee); }
#endif

constexpr float MAGIC = 12582912.f; // 1.5 * 2^23: adding it rounds to an integer, ties to even
constexpr int32_t MAGIC_BITS = 0x4b400000;
constexpr float ROUNDABLE = 4194303.f; // beyond it ggml's nearest_int wraps
constexpr float ALL_ZERO = 1e-15f;     // GROUP_MAX_EPS

// ggml's nearest_int for every float, with what it makes of those too large for it.
INLINE I nearest(F x) { return (bits(x + MAGIC) & 0x007fffff) - 0x00400000; }

INLINE I clamp(I x, int low, int high) {
    x = choose(x < high, x, I{} + high);
    return choose(x > low, x, I{} + low);
}

// How a level is found: as ggml does, or with floats where the range allows, and held to the
// bounds that may be passed.
enum Rounding { FREE = 0, FROM_BELOW = 1, FROM_ABOVE = 2, CLAMPED = 3, EXACT = 4 };

// The level of x, low <= level <= high, as a float.
template <Rounding HOW> INLINE F level(F x, int low, int high) {
    if (HOW == EXACT) return to_float(clamp(nearest(x), low, high));
    F sum = x + MAGIC;
    if (HOW & FROM_ABOVE) sum = lesser(sum, all(MAGIC + high));
    if (HOW & FROM_BELOW) sum = greater(sum, all(MAGIC + low));
    return sum - MAGIC;
}

INLINE I beyond(F x) { return ~(magnitude(x) < ROUNDABLE); } // NaN too

INLINE I to_half(F x) {
    F base = (magnitude(x) * 0x1.0p+112f) * 0x1.0p-110f;
    U word = (U)x, doubled = word + word;
    U bias = doubled & 0xff000000u;
    bias = (bias < 0x71000000u) ? U{} + 0x71000000u : bias;
    base = (F)((bias >> 1) + 0x07800000u) + base;
    U both = (((U)base >> 13) & 0x7c00u) + ((U)base & 0x0fffu);
    both = (doubled > 0xff000000u) ? U{} + 0x7e00u : both;
    return (I)(((word & 0x80000000u) >> 16) | both);
}

INLINE F from_half(I half) {
    U word = (U)half << 16, doubled = word + word;
    F normal = (F)((doubled >> 4) + (0xe0u << 23)) * 0x1.0p-112f;
    F subnormal = (F)((doubled >> 17) | (126u << 23)) - 0.5f;
    U value = (doubled < (1u << 27)) ? (U)subnormal : (U)normal;
    return (F)((word & 0x80000000u) | value);
}

// A scale and a minimum for a sub-block of COUNT values, level 0..TOP, by ggml's make_qkx2_quants
// and make_qkx3_quants, which do the same.
struct Fit {
    F scale, min;
    F iscale, base; // what the levels were rounded with: (x - base) * iscale
    F low, high;    // of the values
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

// Whether every level can be had with floats, and whether none is above TOP.
template <int TOP> INLINE Rounding rounding(const Fit *fit, const F *iscale) {
    I wild{}, tall{};
    for (int g = 0; g < SIDE; g++) {
        F first = iscale[g] * (fit[g].low - fit[g].min);
        F last = iscale[g] * (fit[g].high - fit[g].min);
        wild |= beyond(first) | beyond(last);
        // Where the minimum has moved beyond all values, iscale is negative: the first is highest.
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

// SIDE sub-blocks that lie behind each other.
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
        // A lane that ggml leaves at once must not look like one whose levels run wild.
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

// A scale for COUNT values, level -TOP..TOP-1, by ggml's make_qx_quants. The levels can be had
// again from `iscale`; a lane that is not alive has none.
struct Symmetric {
    F scale, iscale;
    I alive;
    F low, high; // of the values
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

// FINITE values stay near -TOP..TOP when they are scaled; others may become anything.
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
            // The last is the largest; below a half beyond TOP, none is rounded to below -TOP.
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

// The final levels of a sub-block: (x + shift) / d, or what the search found where d is 0.
// `low` and `high` bound the values.
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

// A batch: the values, an imatrix' weights or null, and room for the weights and the levels.
struct Batch {
    F x[N], importance[N], w[N];
    I levels[N], words[56];
    F sigma2; // Q4_0: the mean square of the block's row
    bool weighted;
};

INLINE I pack4(const I *bytes) {
    return bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24;
}

// 6-bit scales and minimums of 8 sub-blocks in 12 bytes.
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

// The weights of an imatrix: its values by the root of sigma2 + x^2.
template <int COUNT> INLINE void weigh_by(Batch &b, F sigma2) {
    for (int i = 0; i < COUNT; i++) b.w[i] = b.importance[i] * root(sigma2 + b.x[i] * b.x[i]);
}

// Sigma2 from all 256 values.
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

// 2 low bits of every level, 4 of them in a byte.
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

// The final levels over those of the search.
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

// A scale for 16 values by ggml's make_q3_quants, and the levels, 4 added.
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
    I scales[BLOCKS], half; // the scales' levels, 32 added
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

// IQ4: 16 levels that lie closer together around 0, and for every value the nearest of them.
constexpr int LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                            1,    13,   25,  38,  53,  69,  89,  113};
constexpr int OUTERMOST = -LEVELS[0];
constexpr int TURNS = 7; // the largest value is tried on -127 and up to this much beside it

// A step leads from a level to the next. It is taken half-way: differences of floats are exact
// there, so that ggml's comparison of both distances comes to this. Every half-way, and half the
// distance, is a float of 16 bits.
constexpr float half_way(int i) { return (LEVELS[i] + LEVELS[i + 1]) / 2.f; }
constexpr float half_step(int i) { return (LEVELS[i + 1] - LEVELS[i]) / 2.f; }

constexpr uint32_t upper_half(float x) {
    uint32_t sign = x < 0 ? 0x8000 : 0, exponent = 127;
    x = x < 0 ? -x : x;
    for (; x >= 2; x /= 2) exponent++;
    for (; x < 1; x *= 2) exponent--;
    return sign | exponent << 7 | (uint32_t)((x - 1) * 128);
}

// The steps from 0 outwards: 8 up, the last of them twice, and 8 down.
constexpr int UP = 0, DOWN = 8, INWARD = 7; // INWARD: the last step below 0
constexpr int step_at(int place) {
    return place >= DOWN ? INWARD - (place - DOWN) : place < 6 ? INWARD + 1 + place : 14;
}

struct Table {
    alignas(64) int32_t word[16];
};

// Each step's half-way in the upper 16 bits of its word; in the lower ones half its height.
constexpr Table table_of_steps(bool with_height) {
    Table table{};
    for (int place = 0; place < 16; place++) {
        int i = step_at(place);
        table.word[place] = (int32_t)(upper_half(half_way(i)) << 16 |
                                      (with_height ? upper_half(half_step(i)) : 0));
    }
    return table;
}
constexpr Table STEPS = table_of_steps(true), HALF_WAYS = table_of_steps(false);

// A bucket is 0..7, from 0 outwards. Whether the values whose magnitude is from `first` to `last`
// times that of one in a bucket of this width have no other step than the bucket's in reach; the
// margin is more than all roundings together.
constexpr bool suits(float width, float first, float last) {
    for (int place = 0; place < 16; place++) {
        int bucket = place % 8, i = step_at(place);
        bool up = place < DOWN, is_last = i == 0 || i == 14;
        float sign = up ? 1 : -1, inner = (bucket - 0.5f) * width, outer = inner + width;
        float before = bucket > 0 ? sign * half_way(step_at(place - 1)) : 0;
        float after = is_last ? 0 : sign * half_way(up ? i + 1 : i - 1);
        bool is_twice = bucket > 0 && step_at(place - 1) == i;
        if (bucket > 0 && !is_twice && inner * first < before * 1.001f) return false;
        if (!is_last && outer * last > after * 0.999f) return false;
    }
    return true;
}

// The word of a bucket, which stands in the lowest bits of a float: a magic number has been added.
// Among the steps down where the upper bit of `side` is set.
INLINE I pick(const Table &table, F bucket, I side) {
#if defined(ZMM)
    I at = (bits(bucket) & 7) | (I)((U)side >> 31 << 3);
    return (I)_mm512_permutexvar_epi32((__m512i)at, _mm512_load_si512(table.word));
#elif defined(YMM)
    const __m256i *words = (const __m256i *)table.word;
    __m256i up = _mm256_permutevar8x32_epi32(words[0], (__m256i)bits(bucket));
    __m256i down = _mm256_permutevar8x32_epi32(words[1], (__m256i)bits(bucket));
    return (I)_mm256_blendv_ps((__m256)up, (__m256)down, (__m256)side);
#else
    I out = bits(bucket) & 7, up = I{} + table.word[UP], down = I{} + table.word[DOWN];
    for (int i = 1; i < 8; i++) {
        I beyond_it = out >= i;
        up ^= beyond_it & (table.word[UP + i] ^ table.word[UP + i - 1]);
        down ^= beyond_it & (table.word[DOWN + i] ^ table.word[DOWN + i - 1]);
    }
    return choose(side < 0, down, up);
#endif
}

// The number of the level that is nearest; the higher of two, and the highest for NaN.
INLINE I nearest_level(F x) {
#if defined(ZMM) || defined(YMM)
    static_assert(suits(16, 1, 1), "one step in each bucket");
    const F magic = all(16 * MAGIC);
    x = lesser(x, all(half_way(14) + 1)); // NaN too
    F bucket = lesser(magnitude(x) + magic, magic + 112.f);
    I below = x < (F)pick(HALF_WAYS, bucket, bits(x));
    return ((bits(bucket) & 7) ^ (bits(x) >> 31)) + below + 9;
#else
    I level = I{} + 15;
    for (int i = 0; i < 15; i++) level += x < half_way(i);
    return level;
#endif
}

// A scale for 32 values, by ggml's search for IQ4_NL. It puts the largest on 127, then on each of
// -127 - 7 ... -127 + 7. The latter lie so close that a value takes at most one step among all of
// them: its two levels, and their parts of the sums, are found once.
struct Uneven {
    F at[32];               // where the step is
    F lx[2][32], l2[2][32]; // the value's part of both sums above the step and below
};

template <int TRIED>
INLINE void sum_uneven(const F *x, const Uneven &both, const F *iscale, F *sum_lx, F *sum_l2) {
    F lx[TRIED], l2[TRIED];
    for (int c = 0; c < TRIED; c++) lx[c] = l2[c] = F{};
    for (int i = 0; i < 32; i++)
        for (int c = 0; c < TRIED; c++) {
            I below = iscale[c] * x[i] < both.at[i];
            lx[c] += choose(below, both.lx[1][i], both.lx[0][i]);
            l2[c] += choose(below, both.l2[1][i], both.l2[0][i]);
        }
    for (int c = 0; c < TRIED; c++) sum_lx[c] = lx[c], sum_l2[c] = l2[c];
}

__attribute__((noinline)) F fit_uneven(const F *x, const F *w) {
    constexpr float WIDTH = 15.32f; // of a bucket, where the largest is on 127
    static_assert(suits(WIDTH, (OUTERMOST - TURNS) / 127.f, (OUTERMOST + TURNS) / 127.f),
                  "one step in reach of each bucket");
    F max{}, size{}, lx{}, l2{};
    for (int i = 0; i < 32; i++) {
        F a = magnitude(x[i]);
        I more = a > size;
        size = choose(more, a, size);
        max = choose(more, x[i], max);
    }
    I alive = ~(size < ALL_ZERO);
    if (!any(alive)) return F{};
    F iscale = 1.f / (max / (float)OUTERMOST), outward = (OUTERMOST / WIDTH) / size;
    Uneven both;
    for (int i = 0; i < 32; i++) {
        F bucket = lesser(magnitude(x[i]) * outward + MAGIC, all(MAGIC + 7));
        I side = bits(x[i]) ^ bits(max); // its sign, were the largest put on 127
        I word = pick(STEPS, bucket, side);
        F at = (F)(word & (int32_t)0xffff0000), half = (F)((U)word << 16);
        F l = choose(iscale * x[i] < at, at - half, at + half), wl = w[i] * l;
        lx += wl * x[i];
        l2 += wl * l;
        word = pick(STEPS, bucket, ~side);
        at = (F)(word & (int32_t)0xffff0000), half = (F)((U)word << 16);
        both.at[i] = at;
        for (int below = 0; below < 2; below++) {
            l = below ? at - half : at + half;
            wl = w[i] * l;
            both.lx[below][i] = wl * x[i];
            both.l2[below][i] = wl * l;
        }
    }
    F scale = where(l2 > 0.f, lx / l2), best = scale * lx;
    for (int first = -TURNS; first <= TURNS; first += TURNS_AT_ONCE) {
        F tried[TURNS_AT_ONCE], its_lx[TURNS_AT_ONCE], its_l2[TURNS_AT_ONCE];
        for (int c = 0; c < TURNS_AT_ONCE; c++) tried[c] = (float)(first + c - OUTERMOST) / max;
        sum_uneven<TURNS_AT_ONCE>(x, both, tried, its_lx, its_l2);
        for (int c = 0; c < TURNS_AT_ONCE; c++) {
            I better = (its_l2[c] > 0.f) & (its_lx[c] * its_lx[c] > best * its_l2[c]);
            F its_scale = its_lx[c] / its_l2[c];
            scale = choose(better, its_scale, scale);
            best = choose(better, its_scale * its_lx[c], best);
        }
    }
    return where(alive, scale);
}

// The weights of IQ4: squares, or an imatrix' by the root of the mean square twice and x^2.
template <int COUNT> INLINE void weigh_uneven(Batch &b) {
    if (!b.weighted) {
        for (int i = 0; i < COUNT; i++) b.w[i] = b.x[i] * b.x[i];
        return;
    }
    F sum{};
    for (int i = 0; i < COUNT; i++) sum += b.x[i] * b.x[i];
    weigh_by<COUNT>(b, sum * (2.f / COUNT));
}

// 32 levels in 16 bytes: the first 16 in the lower halves.
INLINE void pack_halves(const I *levels, I *bytes) {
    for (int i = 0; i < 16; i++) bytes[i] = levels[i] | levels[i + 16] << 4;
}

// A block of 18 bytes: its scale as a half, and 32 levels.
INLINE void pack_block(Batch &b, F scale) {
    I bytes[20], half = to_half(scale);
    bytes[0] = half & 255;
    bytes[1] = half >> 8;
    pack_halves(b.levels, bytes + 2);
    bytes[18] = bytes[19] = I{};
    for (int i = 0; i < 20; i += 4) b.words[i / 4] = pack4(bytes + i);
}

void quantize_iq4_nl(Batch &b) {
    weigh_uneven<32>(b);
    F scale = fit_uneven(b.x, b.w), iscale = where(scale != 0.f, 1.f / scale);
    for (int i = 0; i < 32; i++) b.levels[i] = nearest_level(iscale * b.x[i]);
    pack_block(b, scale);
}

void quantize_iq4_xs(Batch &b) {
    constexpr int BLOCKS = 8;
    weigh_uneven<N>(b);
    F scale[BLOCKS], max{}, size{};
    for (int j = 0; j < BLOCKS; j++) {
        scale[j] = fit_uneven(b.x + 32 * j, b.w + 32 * j);
        F a = magnitude(scale[j]);
        I more = a > size;
        size = choose(more, a, size);
        max = choose(more, scale[j], max);
    }
    F d = -max / 32.f, iscale = where(d != 0.f, 1.f / d);
    I *out = b.words + 2, low[BLOCKS / 2], high{};
    for (int j = 0; j < BLOCKS; j++) {
        I l = clamp(nearest(iscale * scale[j]), -32, 31), bytes[16];
        F own = d * to_float(l), inverse = where(own != 0.f, 1.f / own);
        const F *x = b.x + 32 * j;
        for (int i = 0; i < 32; i++) b.levels[i] = nearest_level(inverse * x[i]);
        pack_halves(b.levels, bytes);
        for (int i = 0; i < 16; i += 4) *out++ = pack4(bytes + i);
        l += 32;
        low[j / 2] = j % 2 ? low[j / 2] | (l & 15) << 4 : l & 15;
        high |= (l >> 4) << 2 * j;
    }
    b.words[0] = to_half(d) | high << 16;
    b.words[1] = pack4(low);
}

// With an imatrix only: without one it needs no search, and ggml is as fast.
void quantize_q4_0(Batch &b) {
    weigh_by<32>(b, b.sigma2);
    Symmetric fit = fit_symmetric<32, 8, true>(b.x, b.w);
    for (int i = 0; i < 32; i++) {
        F sum = greater(lesser(fit.iscale * b.x[i] + MAGIC, all(MAGIC + 7)), all(MAGIC - 8));
        b.levels[i] = (bits(sum) - bits(all(MAGIC - 8))) & fit.alive;
    }
    pack_block(b, fit.scale);
}

struct Kind {
    int type;  // ggml's number
    int block; // values, of which a lane takes one block
    int nbytes;
    void (*quantize)(Batch &);
};

constexpr int Q4_0 = 2, IQ4_NL = 20, IQ4_XS = 23;
constexpr int Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14;
const Kind KINDS[] = {
    {Q2_K, N, 84, quantize_q2},
    {Q3_K, N, 110, quantize_q3},
    {Q4_K, N, 144, quantize_32<15>},
    {Q5_K, N, 176, quantize_32<31>},
    {Q6_K, N, 210, quantize_q6},
    {Q4_0, 32, 18, quantize_q4_0},
    {IQ4_NL, 32, 18, quantize_iq4_nl},
    {IQ4_XS, N, 136, quantize_iq4_xs},
};

// Where a batch's blocks come from and go to.
struct Lanes {
    const float *x[W], *importance[W];
    unsigned char *y[W];
    float sigma2[W];
    int count;
};

// 4 values of every row.
INLINE void transpose4(const float *const *rows, int64_t i, F *columns) {
#if defined(ZMM) || defined(YMM) || defined(XMM)
    F v[4];
    for (int r = 0; r < 4; r++) {
        const float *const *row = rows + r;
#if defined(ZMM)
        __m512 each = _mm512_castps128_ps512(_mm_loadu_ps(row[0] + i));
        each = _mm512_insertf32x4(each, _mm_loadu_ps(row[4] + i), 1);
        each = _mm512_insertf32x4(each, _mm_loadu_ps(row[8] + i), 2);
        v[r] = (F)_mm512_insertf32x4(each, _mm_loadu_ps(row[12] + i), 3);
#elif defined(YMM)
        __m256 each = _mm256_castps128_ps256(_mm_loadu_ps(row[0] + i));
        v[r] = (F)_mm256_insertf128_ps(each, _mm_loadu_ps(row[4] + i), 1);
#else
        v[r] = (F)_mm_loadu_ps(row[0] + i);
#endif
    }
    // 4 by 4 within every 128 bits
    F a = low_pairs(v[0], v[1]), b = high_pairs(v[0], v[1]);
    F c = low_pairs(v[2], v[3]), d = high_pairs(v[2], v[3]);
    columns[0] = low_halves(a, c);
    columns[1] = high_halves(a, c);
    columns[2] = low_halves(b, d);
    columns[3] = high_halves(b, d);
#else
    for (int k = 0; k < 4; k++)
        for (int lane = 0; lane < W; lane++) ((float *)(columns + k))[lane] = rows[lane][i + k];
#endif
}

void transpose(const float *const *rows, int count, F *columns) {
    for (int i = 0; i < count; i += 4) transpose4(rows, i, columns + i);
}

void run(const Kind &kind, Batch &batch, Lanes &lanes) {
    if (lanes.count == 0) return;
    for (int lane = lanes.count; lane < W; lane++) {
        lanes.x[lane] = lanes.x[0];
        lanes.importance[lane] = lanes.importance[0];
        lanes.sigma2[lane] = lanes.sigma2[0];
    }
    transpose(lanes.x, kind.block, batch.x);
    if (batch.weighted) transpose(lanes.importance, kind.block, batch.importance);
    memcpy(&batch.sigma2, lanes.sigma2, sizeof lanes.sigma2);
    kind.quantize(batch);
    const int words = kind.nbytes / 4;
    for (int lane = 0; lane < lanes.count; lane++) {
        unsigned char *y = lanes.y[lane];
        for (int i = 0; i < words; i++, y += 4) {
            int32_t word = batch.words[i][lane];
            memcpy(y, &word, 4);
        }
        int16_t rest = (int16_t)batch.words[words][lane]; // no block's bytes are odd in number
        if (kind.nbytes % 4) memcpy(y, &rest, 2);
    }
    lanes.count = 0;
}

bool is_finite(const float *x, int64_t count) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t word;
        memcpy(&word, x + i, 4);
        word &= 0x7fffffff;
        largest = word > largest ? word : largest;
    }
    return largest < 0x7f800000;
}

// An imatrix as it comes from squares: anything else is left to ggml.
bool is_usual(const float *importance, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (!(importance[i] >= 0.f)) return false;
    return is_finite(importance, count);
}

// The mean squares of up to W rows that lie behind each other, a lane summing one as ggml does.
void mean_squares(const float *x, int64_t count, int64_t n_per_row, float *means) {
    const float *rows[W];
    for (int64_t r = 0; r < W; r++) rows[r] = x + (r < count ? r : 0) * n_per_row;
    F sum{}, columns[4];
    for (int64_t i = 0; i < n_per_row; i += 4) {
        transpose4(rows, i, columns);
        for (int k = 0; k < 4; k++) sum += columns[k] * columns[k];
    }
    for (int r = 0; r < W; r++) means[r] = sum[r] / n_per_row;
}

} // namespace

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
    // What one value can change: its block, or in Q4_0 its row.
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
