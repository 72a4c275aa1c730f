// y = x W^T for NF4 weights that stay packed: codes are looked up in registers, so a weight costs half a byte of memory
// traffic. Needs AVX-512, whose shuffle holds all 16 values; elsewhere this file is empty. Two ways: float32 sums in
// vectors, for few rows x, and, for bfloat16 on processors with tiles (AMX), products of 16 weight rows with 16 rows x.
// Either way a row's sums are made in the same order however many rows there are.

#ifdef __AVX512F__

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

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

#ifdef __AMX_BF16__

constexpr int TILE = 16;  // rows of a tile, of 32 bfloat16 or 16 float32 each

// The system lends tile registers on request only.
bool request_tiles() {
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

struct TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// 16 weight rows as tiles [k / 32][16][32]: of each block first the evens, then the odds, as the codes give them.
void unpack(const Weights &w, int64_t from, uint16_t *tiles) {
    for (int64_t r = 0; r < TILE; r++) {
        if (from + r >= w.n) break;  // what is left from before is computed and not stored
        const uint8_t *codes = w.codes + (from + r) * w.k / 2;
        const float *scale = w.scales + (from + r) * w.k / BLOCK;
        uint16_t *out = tiles + r * 2 * TILE;
        for (int64_t i = 0; i < w.k; i += BLOCK, codes += BLOCK / 2, scale++, out += 2 * TILE * 2 * TILE) {
            __builtin_prefetch(codes + AHEAD);
            __m512 values = _mm512_mul_ps(_mm512_loadu_ps(w.values), _mm512_set1_ps(*scale));
            __m512i worth = (__m512i)_mm512_cvtne2ps_pbh(values, values);  // twice, as the index has five bits
            __m512i pairs = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)codes));
            _mm512_storeu_si512(out, _mm512_permutexvar_epi16(_mm512_srli_epi16(pairs, 4), worth));
            _mm512_storeu_si512(out + TILE * 2 * TILE, _mm512_permutexvar_epi16(pairs, worth));
        }
    }
}

// 16 rows of x as tiles [k / 32][16 pairs][16 rows][2], in the order of the weights' tiles; missing rows stay zero.
void gather(const bfloat16 *x, int64_t x_stride, int64_t rows, int64_t k, uint16_t *tiles) {
    alignas(64) uint16_t order[32];
    for (int i = 0; i < 32; i++) order[i] = uint16_t(2 * i);
    __m512i evens = _mm512_load_si512(order), odds = _mm512_add_epi16(evens, _mm512_set1_epi16(1));
    __m512i places = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                        _mm512_set1_epi32(TILE));
    for (int64_t m = 0; m < rows; m++)
        for (int64_t i = 0; i < k; i += BLOCK) {
            __m512i low = _mm512_loadu_si512(x + m * x_stride + i), high = _mm512_loadu_si512(x + m * x_stride + i + 32);
            uint16_t *out = tiles + i / 32 * TILE * 2 * TILE + 2 * m;
            _mm512_i32scatter_epi32(out, places, _mm512_permutex2var_epi16(low, evens, high), 4);
            _mm512_i32scatter_epi32(out + TILE * 2 * TILE, places, _mm512_permutex2var_epi16(low, odds, high), 4);
        }
}

// y[m][from + r] for 16 weight rows r and up to 16 rows m of x, from sums [r][m].
void store_tile(const float *sums, int64_t from, int64_t n, int64_t rows, const float *bias, bfloat16 *y, int64_t stride) {
    __m512i places = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                        _mm512_set1_epi32(TILE));
    __mmask16 here = n - from >= TILE ? 0xffff : __mmask16((1u << (n - from)) - 1);
    __m512 offset = bias ? _mm512_maskz_loadu_ps(here, bias + from) : _mm512_setzero_ps();
    for (int64_t m = 0; m < rows; m++) {
        __m512 column = _mm512_add_ps(_mm512_i32gather_ps(places, sums + m, 4), offset);
        _mm256_mask_storeu_epi16(y + m * stride + from, here, (__m256i)_mm512_cvtneps_pbh(column));
    }
}

// sums[2 * a + c] = left rows of strip a times right rows of strip c, of which a second one is there or not.
void multiply(const uint16_t *left, const uint16_t *first, const uint16_t *second, int64_t size, float (*sums)[TILE * TILE]) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < size; i += TILE * 2 * TILE) {
        _tile_loadd(4, left + i, 64);
        _tile_loadd(5, left + size + i, 64);
        _tile_loadd(6, first + i, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        if (second) {
            _tile_loadd(7, second + i, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
}

void product_in_tiles(const Weights &w, const bfloat16 *x, int64_t x_stride, int64_t rows, const float *bias, bfloat16 *y,
                      int64_t y_stride) {
    int64_t strips = (rows + TILE - 1) / TILE, size = w.k * TILE, blocks = (w.n + 2 * TILE - 1) / (2 * TILE);
    std::vector<uint16_t> right(strips * size);
#pragma omp parallel
    {
        std::vector<uint16_t> left(2 * size);
        alignas(64) float sums[4][TILE * TILE];
        TileShapes shapes;
        _tile_loadconfig(&shapes);
#pragma omp for schedule(static)
        for (int64_t c = 0; c < strips; c++)
            gather(x + c * TILE * x_stride, x_stride, std::min<int64_t>(TILE, rows - c * TILE), w.k, &right[c * size]);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t from = 2 * TILE * b;
            unpack(w, from, left.data());
            unpack(w, from + TILE, left.data() + size);
            for (int64_t c = 0; c < strips; c += 2) {
                bool two = c + 1 < strips;
                multiply(left.data(), &right[c * size], two ? &right[(c + 1) * size] : nullptr, size, sums);
                for (int64_t a = 0; a < 2; a++)
                    for (int64_t j = 0; j < 1 + two; j++) {
                        int64_t m = (c + j) * TILE, n = from + a * TILE;
                        if (n < w.n)
                            store_tile(sums[2 * a + j], n, w.n, std::min<int64_t>(TILE, rows - m), bias, y + m * y_stride,
                                       y_stride);
                    }
            }
        }
        _tile_release();
    }
}

#endif

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

bool tiles = false;

}  // namespace

// Whether bfloat16 products go through tiles: if they are wanted, and the processor and the system have them.
extern "C" int nf4_use_tiles(int wanted) {
#ifdef __AMX_BF16__
    tiles = wanted && request_tiles();
#endif
    return tiles;
}

extern "C" void nf4_float32(const uint8_t *codes, const float *scales, const float *values, int64_t n, int64_t k,
                            const float *bias, const float *x, int64_t x_stride, int64_t rows, float *y,
                            int64_t y_stride) {
    product(Weights{codes, scales, values, false, n, k}, x, x_stride, rows, bias, y, y_stride);
}

extern "C" void nf4_bfloat16(const uint8_t *codes, const float *scales, const float *values, int64_t n, int64_t k,
                             const float *bias, const bfloat16 *x, int64_t x_stride, int64_t rows, bfloat16 *y,
                             int64_t y_stride) {
    Weights w{codes, scales, values, true, n, k};
#ifdef __AMX_BF16__
    if (tiles && rows > 3) return product_in_tiles(w, x, x_stride, rows, bias, y, y_stride);
#endif
    product(w, x, x_stride, rows, bias, y, y_stride);
}

#endif
