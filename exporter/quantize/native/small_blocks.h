// IQ4_NL and IQ4_XS, whose 16 levels are uneven, and Q4_0, whose blocks have the same layout.

#pragma once

namespace {

// IQ4's 16 levels, which are closer together around 0; each value gets the nearest level.
constexpr int LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                            1,    13,   25,  38,  53,  69,  89,  113};
constexpr int OUTERMOST = -LEVELS[0];
constexpr int TURNS = 7; // the largest value is tried on -127 and up to TURNS beside it

// A step leads from one level to the next; a value beyond the half-way point gets the next one.
// ggml compares the two distances, with the same result: float differences are exact there.
// Half-way points and half steps are floats of 16 bits.
constexpr float half_way(int i) { return (LEVELS[i] + LEVELS[i + 1]) / 2.f; }
constexpr float half_step(int i) { return (LEVELS[i + 1] - LEVELS[i]) / 2.f; }

constexpr uint32_t upper_half(float x) {
    uint32_t sign = x < 0 ? 0x8000 : 0, exponent = 127;
    x = x < 0 ? -x : x;
    for (; x >= 2; x /= 2) exponent++;
    for (; x < 1; x *= 2) exponent--;
    return sign | exponent << 7 | (uint32_t)((x - 1) * 128);
}

// The steps from 0 outwards: 8 places up, with the last step twice, and 8 down.
constexpr int UP = 0, DOWN = 8, INWARD = 7; // INWARD: the last step below 0
constexpr int step_at(int place) {
    return place >= DOWN ? INWARD - (place - DOWN) : place < 6 ? INWARD + 1 + place : 14;
}

struct Table {
    alignas(64) int32_t word[16];
};

// Each word has the half-way point of a step in the upper 16 bits, and the half step in the lower.
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

// Values are put by magnitude into buckets 0..7 of this width, from 0 outwards, one step in each.
// Whether a value, multiplied by `first` to `last`, still reaches no other step than its bucket's.
// The margin is more than all roundings together.
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

// The word of a bucket, whose number is in the lowest bits of a float to which a magic number has
// been added. If the sign bit of `side` is set, the word is one of the steps down.
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

// The number of the nearest level: the higher one of two equally near, the highest for NaN.
INLINE I nearest_level(F x) {
#if defined(ZMM) || defined(YMM)
    static_assert(suits(16, 1, 1), "one step in each bucket");
    const F magic = all(16 * MAGIC);
    x = lesser(x, all(half_way(14) + 1)); // NaN, too, becomes this bound
    F bucket = lesser(magnitude(x) + magic, magic + 112.f);
    I below = x < (F)pick(HALF_WAYS, bucket, bits(x));
    return ((bits(bucket) & 7) ^ (bits(x) >> 31)) + below + 9;
#else
    I level = I{} + 15;
    for (int i = 0; i < 15; i++) level += x < half_way(i);
    return level;
#endif
}

// A scale for 32 values, by ggml's search for IQ4_NL. It puts the largest value on 127, then on
// each of -127 - 7 ... -127 + 7. These 15 scales are so close that a value crosses at most one
// step: its two levels, and their parts of the sums, are computed once.
struct Uneven {
    F at[32];               // the half-way point of the step
    F lx[2][32], l2[2][32]; // the value's parts of the two sums: above the step, below it
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
    constexpr float WIDTH = 15.32f; // of a bucket, when the largest value is on 127
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
        I side = bits(x[i]) ^ bits(max); // its sign if the largest value is put on 127
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

// The weights of IQ4: x^2, or importance * sqrt(2 * mean square + x^2) with an imatrix.
template <int COUNT> INLINE void weigh_uneven(Batch &b) {
    if (!b.weighted) {
        for (int i = 0; i < COUNT; i++) b.w[i] = b.x[i] * b.x[i];
        return;
    }
    F sum{};
    for (int i = 0; i < COUNT; i++) sum += b.x[i] * b.x[i];
    weigh_by<COUNT>(b, sum * (2.f / COUNT));
}

// Packs 32 levels in 16 bytes: the first 16 in the lower halves.
INLINE void pack_halves(const I *levels, I *bytes) {
    for (int i = 0; i < 16; i++) bytes[i] = levels[i] | levels[i + 16] << 4;
}

// Packs a block of 18 bytes: its scale as float16, and 32 levels.
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

// Only with an imatrix: without one, Q4_0 needs no search, and ggml is as fast.
void quantize_q4_0(Batch &b) {
    weigh_by<32>(b, b.sigma2);
    Symmetric fit = fit_symmetric<32, 8, true>(b.x, b.w);
    for (int i = 0; i < 32; i++) {
        F sum = greater(lesser(fit.iscale * b.x[i] + MAGIC, all(MAGIC + 7)), all(MAGIC - 8));
        b.levels[i] = (bits(sum) - bits(all(MAGIC - 8))) & fit.alive;
    }
    pack_block(b, fit.scale);
}

} // namespace
