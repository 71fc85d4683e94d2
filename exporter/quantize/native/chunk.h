// Quantizes rows to blocks: lists the types, and distributes blocks over lanes.

#pragma once

namespace {

struct Kind {
    int type;  // ggml's number
    int block; // values of a block; each lane has one block
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

// Sources and targets of a batch's blocks, by lane.
struct Lanes {
    const float *x[W], *importance[W];
    unsigned char *y[W];
    float sigma2[W];
    int count;
};

// Transposes 4 values of each of W rows into 4 vectors.
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
    // transposes 4 by 4 values within every 128 bits
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
        int16_t rest = (int16_t)batch.words[words][lane]; // every block has an even number of bytes
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

// Whether an imatrix is finite and not negative, as a mean of squares is; else ggml quantizes.
bool is_usual(const float *importance, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (!(importance[i] >= 0.f)) return false;
    return is_finite(importance, count);
}

// The mean squares of up to W consecutive rows; each lane sums one row in ggml's order.
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
