// The routed low-rank sum on a CPU, for runs of few rows:
//
//     y_t += sum_k scale_k B_k (A_k x_t)      for the adapters k of row t
//
// A row touches its own adapters and nothing else, where the matrix products of torch multiply all rows with all
// adapters of a step. At these sizes the weights' way from memory is the cost: they are read once for up to ROWS
// rows, in streams that are prefetched, and widened to float32 in registers. Rows do not influence one another, so a
// row's result does not depend on what it is batched with.

#include <cstdint>
#include <type_traits>
#include <vector>

#include "vectors.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int ROWS = 4;    // rows that share one reading of the weights
constexpr int RANKS = 4;   // rank rows that share one reading of the activations

// Rank rows [lo, lo + rank) of the bank, at weight times scaling.
struct Entry { int64_t lo, rank; float scale; int32_t unused; };

// Rows [start, stop) of the step, which all have the entries [first, last).
struct Run { int64_t start, stop, first, last; };

// h[p][r] = scale * dot(a_r, x_p) for R rows and Q rank rows that lie `stride` apart.
template <int R, int Q, class W>
void shrink(const float *x, const W *a, int64_t stride, int64_t in, float scale, float *h, int64_t rank) {
    Vector sums[Q][R] = {};
    float rest[Q][R] = {};
    int64_t i = 0;
    for (; i + WIDTH <= in; i += WIDTH) {
        Vector rows[R];
        for (int p = 0; p < R; p++) rows[p] = load(x + p * in + i);
        for (int q = 0; q < Q; q++) {
            const W *at = a + q * stride + i;
            __builtin_prefetch(at + RANKS * stride);
            Vector w = load(at);
            for (int p = 0; p < R; p++) sums[q][p] += rows[p] * w;
        }
    }
    for (; i < in; i++)
        for (int q = 0; q < Q; q++)
            for (int p = 0; p < R; p++) rest[q][p] += x[p * in + i] * widen(a[q * stride + i]);
    for (int q = 0; q < Q; q++)
        for (int p = 0; p < R; p++) h[p * rank + q] = (rest[q][p] + sum(sums[q][p])) * scale;
}

#ifdef __AVX512BF16__
// The same from rows as they are, two products at a time, where both sides are bfloat16.
template <int R, int Q>
void shrink(const bfloat16 *x, int64_t x_stride, const bfloat16 *a, int64_t stride, int64_t in, float scale, float *h,
            int64_t rank) {
    __m512 sums[Q][R];
    float rest[Q][R] = {};
    for (int q = 0; q < Q; q++)
        for (int p = 0; p < R; p++) sums[q][p] = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 2 * WIDTH <= in; i += 2 * WIDTH) {
        __m512bh rows[R];
        for (int p = 0; p < R; p++) rows[p] = (__m512bh)_mm512_loadu_si512(x + p * x_stride + i);
        for (int q = 0; q < Q; q++) {
            const bfloat16 *at = a + q * stride + i;
            __builtin_prefetch(at + RANKS * stride);
            __m512bh w = (__m512bh)_mm512_loadu_si512(at);
            for (int p = 0; p < R; p++) sums[q][p] = _mm512_dpbf16_ps(sums[q][p], rows[p], w);
        }
    }
    for (; i < in; i++)
        for (int q = 0; q < Q; q++)
            for (int p = 0; p < R; p++) rest[q][p] += widen(x[p * x_stride + i]) * widen(a[q * stride + i]);
    for (int q = 0; q < Q; q++)
        for (int p = 0; p < R; p++) h[p * rank + q] = (rest[q][p] + _mm512_reduce_add_ps(sums[q][p])) * scale;
}
#endif

// y_p += sum over r of h[p][r] * b_r for R rows and Q rank rows of n values.
template <int R, int Q, class W>
void expand(const float *h, int64_t rank, const W *b, int64_t n, float *y, int64_t out) {
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        Vector sums[R];
        for (int p = 0; p < R; p++) sums[p] = load(y + p * out + i);
        for (int q = 0; q < Q; q++) {
            const W *at = b + q * n + i;
            __builtin_prefetch(at + RANKS * n);
            Vector w = load(at);
            for (int p = 0; p < R; p++) sums[p] += h[p * rank + q] * w;
        }
        for (int p = 0; p < R; p++) store(y + p * out + i, sums[p]);
    }
    for (; i < n; i++)
        for (int p = 0; p < R; p++)
            for (int q = 0; q < Q; q++) y[p * out + i] += h[p * rank + q] * widen(b[q * n + i]);
}

template <class W>
struct Group {
    const W *a;         // [rank rows, members, in]
    const W *const *b;  // each member's [rank rows, widths[j]]
    const int64_t *widths;
    int64_t members, in, out;
};

// R rows of one run.
template <int R, class X, class W>
void add(const Group<W> &g, const X *x, int64_t x_stride, X *y, int64_t y_stride, const Entry *first, const Entry *last) {
    thread_local std::vector<float> wide, total, h;
    wide.resize(R * g.in);
    total.resize(R * g.out);
    for (int p = 0; p < R; p++) {
        widen(x + p * x_stride, g.in, &wide[p * g.in]);
        widen(y + p * y_stride, g.out, &total[p * g.out]);
    }
    for (const Entry *e = first; e < last; e++) {
        h.resize(R * e->rank);
        float *columns = total.data();
        for (int64_t j = 0; j < g.members; j++) {
            const W *a = g.a + (e->lo * g.members + j) * g.in, *b = g.b[j] + e->lo * g.widths[j];
            int64_t stride = g.members * g.in, n = g.widths[j], r = 0;
            auto shrink_to = [&](auto ranks) {
                constexpr int Q = decltype(ranks)::value;
#ifdef __AVX512BF16__
                if constexpr (std::is_same_v<X, bfloat16> && std::is_same_v<W, bfloat16>)
                    return shrink<R, Q>(x, x_stride, a + r * stride, stride, g.in, e->scale, h.data() + r, e->rank);
#endif
                shrink<R, Q>(wide.data(), a + r * stride, stride, g.in, e->scale, h.data() + r, e->rank);
            };
            for (; r + RANKS <= e->rank; r += RANKS) shrink_to(std::integral_constant<int, RANKS>{});
            for (; r < e->rank; r++) shrink_to(std::integral_constant<int, 1>{});
            for (r = 0; r + RANKS <= e->rank; r += RANKS)
                expand<R, RANKS>(h.data() + r, e->rank, b + r * n, n, columns, g.out);
            for (; r < e->rank; r++) expand<R, 1>(h.data() + r, e->rank, b + r * n, n, columns, g.out);
            columns += n;
        }
    }
    for (int p = 0; p < R; p++) narrow(&total[p * g.out], g.out, y + p * y_stride);
}

template <class X, class W>
void add_all(const Group<W> &g, const X *x, int64_t x_stride, X *y, int64_t y_stride, const Entry *entries,
             const Run *runs, int64_t count) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < count; i++) {
        const Entry *first = entries + runs[i].first, *last = entries + runs[i].last;
        for (int64_t t = runs[i].start; t < runs[i].stop;) {
            const X *from = x + t * x_stride;
            X *to = y + t * y_stride;
            if (runs[i].stop - t >= ROWS) {
                add<ROWS>(g, from, x_stride, to, y_stride, first, last);
                t += ROWS;
            } else {
                add<1>(g, from, x_stride, to, y_stride, first, last);
                t += 1;
            }
        }
    }
}

}  // namespace

#define EXPORT(NAME, X, W)                                                                                             \
    extern "C" void NAME(const X *x, int64_t x_stride, X *y, int64_t y_stride, const W *a, const W *const *b,          \
                         const int64_t *widths, int64_t members, int64_t in, int64_t out, const Entry *entries,        \
                         const Run *runs, int64_t count) {                                                             \
        add_all(Group<W>{a, b, widths, members, in, out}, x, x_stride, y, y_stride, entries, runs, count);             \
    }

EXPORT(routed_float32_float32, float, float)
EXPORT(routed_bfloat16_bfloat16, bfloat16, bfloat16)
EXPORT(routed_float32_bfloat16, float, bfloat16)
