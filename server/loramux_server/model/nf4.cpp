// y = x W^T for few rows x and NF4 weights that stay packed: codes are looked up in registers, so a weight costs half a
// byte of memory traffic. Needs AVX-512, whose shuffle holds all 16 values; elsewhere this file is empty. A row's sums
// are made in the same order however many rows there are.

#ifdef __AVX512F__

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t BLOCK = 64;    // weights that share a scale
constexpr int64_t CHUNK = 32;    // rows of weights that a thread goes through for all rows of x before the next ones
constexpr int64_t AHEAD = 1024;  // bytes from here to what is fetched

// Rows of 4-bit codes [n, k / 2], the first of a pair in the high half of its byte, and a scale for each block.
struct Weights {
    const uint8_t *codes;
    const float *scales, *values;  // the 16 values of the codes
    bool rounded;                  // to bfloat16, as the weights are where they are unpacked
    int64_t n, k;
};

// What a code is worth in one block.
inline __m512 table(const Weights &w, float scale) {
    __m512 values = _mm512_mul_ps(_mm512_loadu_ps(w.values), _mm512_set1_ps(scale));
    if (!w.rounded) return values;
    __m512i bits = _mm512_castps_si512(values);  // to nearest, ties to even
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(int(0xffff0000u))));
}

// Dot products of weight row n with R rows of x, in whose blocks evens and odds lie apart, as the codes give them.
template <int R>
void dot(const Weights &w, const float *x, int64_t n, float *out) {
    const uint8_t *codes = w.codes + n * w.k / 2;
    const float *scale = w.scales + n * w.k / BLOCK;
    __m512 sums[R];
    for (int p = 0; p < R; p++) sums[p] = _mm512_setzero_ps();
    for (int64_t i = 0; i < w.k; i += BLOCK, codes += BLOCK / 2, scale++) {
        __builtin_prefetch(codes + AHEAD);
        __m512 worth = table(w, *scale), parts[4];
        for (int j = 0; j < 2; j++) {
            __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + 16 * j)));
            parts[j] = _mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), worth);
            parts[2 + j] = _mm512_permutexvar_ps(pairs, worth);  // looks at the low four bits only
        }
        for (int j = 0; j < 4; j++)
            for (int p = 0; p < R; p++)
                sums[p] = _mm512_fmadd_ps(_mm512_loadu_ps(x + p * w.k + i + 16 * j), parts[j], sums[p]);
    }
    for (int p = 0; p < R; p++) out[p] = _mm512_reduce_add_ps(sums[p]);
}

// y for R rows of x and the weight rows [from, to).
template <int R, class X>
void tile(const Weights &w, const float *x, int64_t from, int64_t to, const float *bias, X *y, int64_t stride) {
    float dots[R];
    for (int64_t n = from; n < to; n++) {
        dot<R>(w, x, n, dots);
        for (int p = 0; p < R; p++) narrow(dots[p] + (bias ? bias[n] : 0), y[p * stride + n]);
    }
}

template <class X>
void product(const Weights &w, const X *x, int64_t x_stride, int64_t rows, const float *bias, X *y, int64_t y_stride) {
    std::vector<float> wide(rows * w.k);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0; i < w.k; i++)
            wide[t * w.k + i / BLOCK * BLOCK + i % 2 * (BLOCK / 2) + i % BLOCK / 2] = widen(x[t * x_stride + i]);
#pragma omp parallel for schedule(static)
    for (int64_t from = 0; from < w.n; from += CHUNK) {
        int64_t to = std::min(from + CHUNK, w.n);
        for (int64_t t = 0; t < rows;) {
            const float *at = wide.data() + t * w.k;
            X *out = y + t * y_stride;
            int64_t left = rows - t;
            if (left >= 8) tile<8>(w, at, from, to, bias, out, y_stride), t += 8;
            else if (left >= 4) tile<4>(w, at, from, to, bias, out, y_stride), t += 4;
            else if (left >= 2) tile<2>(w, at, from, to, bias, out, y_stride), t += 2;
            else tile<1>(w, at, from, to, bias, out, y_stride), t += 1;
        }
    }
}

}  // namespace

#define EXPORT(NAME, X)                                                                                                \
    extern "C" void nf4_##NAME(const uint8_t *codes, const float *scales, const float *values, int64_t rounded,        \
                               int64_t n, int64_t k, const float *bias, const X *x, int64_t x_stride, int64_t rows,     \
                               X *y, int64_t y_stride) {                                                               \
        product(Weights{codes, scales, values, rounded != 0, n, k}, x, x_stride, rows, bias, y, y_stride);             \
    }

EXPORT(float32, float)
EXPORT(bfloat16, bfloat16)

#endif
