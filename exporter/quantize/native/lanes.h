// Operations on all lanes of a vector; each does in every lane what ggml does with one number.

#pragma once

#if !defined(KQ_LANES) && defined(__AVX512F__)
#define KQ_LANES 16
#elif !defined(KQ_LANES) && defined(__AVX2__)
#define KQ_LANES 8
#elif !defined(KQ_LANES)
#define KQ_LANES 4
#endif
// Intrinsics exist for the processor's own width; the compiler's vectors do the other widths.
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
// Number of sub-blocks that are searched at once: one is summed while another's sums wait.
constexpr int SIDE = W == 16 ? 4 : 2;
constexpr int CANDIDATES = W == 16 ? 6 : 3; // scales tried in one pass, if known before it
constexpr int TURNS_AT_ONCE = W == 16 ? 5 : 3; // the same for IQ4

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

// The operands' order is that of ggml's `x < bound ? x : bound`, so that NaN gives the same result.
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

// Values of two vectors, combined within every 128 bits.
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

// ggml's nearest_int for every float, with the same results for floats that are too large for it.
INLINE I nearest(F x) { return (bits(x + MAGIC) & 0x007fffff) - 0x00400000; }

INLINE I clamp(I x, int low, int high) {
    x = choose(x < high, x, I{} + high);
    return choose(x > low, x, I{} + low);
}

// How a level is computed: EXACT as ggml does it, or with floats if the range allows that; then the
// bounds that may be exceeded are enforced.
enum Rounding { FREE = 0, FROM_BELOW = 1, FROM_ABOVE = 2, CLAMPED = 3, EXACT = 4 };

// The level of x, low <= level <= high, as a float.
template <Rounding HOW> INLINE F level(F x, int low, int high) {
    if (HOW == EXACT) return to_float(clamp(nearest(x), low, high));
    F sum = x + MAGIC;
    if (HOW & FROM_ABOVE) sum = lesser(sum, all(MAGIC + high));
    if (HOW & FROM_BELOW) sum = greater(sum, all(MAGIC + low));
    return sum - MAGIC;
}

INLINE I beyond(F x) { return ~(magnitude(x) < ROUNDABLE); } // true for NaN, too

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

} // namespace
