// What a decode step on a CPU does between its matrix products: norms, rotary embedding and cache, attention over
// pages, the gate of the MLP. One pass each over data that is in the processor's cache anyway; with torch's operators
// the calls take longer than the work. Sums are float32, results are rounded once.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace {

// Cephes' expf: to about 1e-7 relative, 0 below -87; NaN stays one.
inline Vector exponential(Vector x) {
    Vector low = Vector{} - 87.0f, high = Vector{} + 88.0f;
    Vector bounded = x < low ? low : x > high ? high : x;
    Vector n = bounded * 1.44269504f;
    n = __builtin_convertvector(__builtin_convertvector(n + (n < 0 ? Vector{} - 0.5f : Vector{} + 0.5f), Integers), Vector);
    Vector r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    Vector p = Vector{} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
    Vector scale;
    std::memcpy(&scale, &power, sizeof scale);
    return x < low ? Vector{} : p * scale;
}

// out = x / rms(x) * weight over `width` values.
template <class X>
void norm(const X *x, const X *weight, X *out, int64_t width, float eps) {
    Vector squares = {};
    for (int64_t i = 0; i < width; i += WIDTH) { Vector v = load(x + i); squares += v * v; }
    float factor = 1 / std::sqrt(sum(squares) / width + eps);
    for (int64_t i = 0; i < width; i += WIDTH) store(out + i, load(x + i) * factor * load(weight + i));
}

// x += delta (unless null), out = norm(x); rows of `width` values.
template <class X>
void add_norm(X *x, const X *delta, const X *weight, X *out, int64_t rows, int64_t width, float eps) {
#pragma omp parallel for if (rows > 3)
    for (int64_t t = 0; t < rows; t++) {
        X *row = x + t * width;
        if (delta)
            for (int64_t i = 0; i < width; i += WIDTH) store(row + i, load(row + i) + load(delta + t * width + i));
        norm(row, weight, out + t * width, width, eps);
    }
}

// out = silu(gate) * up, where a row holds `width` values of gate and then of up.
template <class X>
void gate(const X *gate_up, X *out, int64_t rows, int64_t width) {
#pragma omp parallel for if (rows > 3)
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0; i < width; i += WIDTH) {
            const X *row = gate_up + 2 * t * width + i;
            Vector g = load(row);
            store(out + t * width + i, g / (1.0f + exponential(-g)) * load(row + width));
        }
}

template <class X>
struct Heads {
    X *qkv;  // rows of (heads + 2 * kv_heads) * size values
    int64_t heads, kv_heads, size;
    X *row(int64_t t) const { return qkv + t * (heads + 2 * kv_heads) * size; }
};

// Norm (if there are weights) and rotate the queries and keys of each row in place, and put key and value in the cache.
template <class X>
void rotate(const Heads<X> &h, const X *cosine, const X *sine, const X *q_weight, const X *k_weight, float eps, X *keys,
            X *values, const int64_t *slots, int64_t rows) {
    int64_t half = h.size / 2;
#pragma omp parallel for if (rows > 3)
    for (int64_t t = 0; t < rows; t++) {
        std::vector<X> normed(h.size);
        X *row = h.row(t);
        for (int64_t j = 0; j < h.heads + h.kv_heads; j++) {
            X *head = row + j * h.size;
            const X *weight = j < h.heads ? q_weight : k_weight;
            if (weight) {
                norm(head, weight, normed.data(), h.size, eps);
                std::copy(normed.begin(), normed.end(), head);
            }
            const X *c = cosine + t * h.size, *s = sine + t * h.size;
            for (int64_t i = 0; i < half; i += WIDTH) {
                Vector low = load(head + i), high = load(head + half + i);
                store(head + i, low * load(c + i) - high * load(s + i));
                store(head + half + i, high * load(c + half + i) + low * load(s + half + i));
            }
        }
        int64_t width = h.kv_heads * h.size;
        const X *key = row + h.heads * h.size;
        std::copy(key, key + width, keys + slots[t] * width);
        std::copy(key + width, key + 2 * width, values + slots[t] * width);
    }
}

// Attention of one query per row over the first `lengths[t]` positions of its pages, the last `window` of them if > 0.
// G query heads share a key head at a time.
template <int G, class X>
void attend(const Heads<X> &h, const X *keys, const X *values, const int32_t *table, int64_t table_width,
            const int64_t *lengths, int64_t page, float scale, int64_t window, X *out, int64_t rows) {
    constexpr int64_t AHEAD = 4;  // positions from here to what is fetched
    int64_t group = h.heads / h.kv_heads, vectors = h.size / WIDTH, width = h.kv_heads * h.size;
#pragma omp parallel for schedule(dynamic)
    for (int64_t t = 0; t < rows; t++) {
        int64_t end = lengths[t], begin = window > 0 && end > window ? end - window : 0, count = end - begin;
        int64_t padded = (count + WIDTH - 1) / WIDTH * WIDTH;
        std::vector<float> query(h.heads * h.size), scores(h.heads * padded, -INFINITY), sums(h.heads * h.size);
        const X *q = h.row(t);
        for (int64_t i = 0; i < h.heads * h.size; i += WIDTH) store(&query[i], load(q + i) * scale);
        const int32_t *pages = table + t * table_width;
        auto each = [&](const X *pool, auto &&visit) {  // position after position, a page at a time
            for (int64_t n = 0; n < count;) {
                int64_t place = (begin + n) % page, stop = std::min(count, n + page - place);
                const X *at = pool + (pages[(begin + n) / page] * page + place) * width;
                for (; n < stop; n++, at += width) {
                    for (int64_t i = 0; i < width; i += 2 * WIDTH) __builtin_prefetch(at + AHEAD * width + i);
                    visit(n, at);
                }
            }
        };
        each(keys, [&](int64_t n, const X *key) {
            for (int64_t head = 0; head < h.heads; head += G) {
                const X *shared = key + head / group * h.size;
                Vector dots[G] = {};
                for (int64_t v = 0; v < vectors; v++) {
                    Vector x = load(shared + v * WIDTH);
                    for (int64_t g = 0; g < G; g++) dots[g] += load(&query[(head + g) * h.size + v * WIDTH]) * x;
                }
                for (int64_t g = 0; g < G; g++) scores[(head + g) * padded + n] = sum(dots[g]);
            }
        });
        for (int64_t head = 0; head < h.heads; head++) {
            float *row = &scores[head * padded];
            float most = *std::max_element(row, row + count);
            Vector total = {};
            for (int64_t n = 0; n < padded; n += WIDTH) {
                Vector e = exponential(load(row + n) - most);
                store(row + n, e);
                total += e;
            }
            float share = 1 / sum(total);
            for (int64_t n = 0; n < padded; n += WIDTH) store(row + n, load(row + n) * share);
        }
        each(values, [&](int64_t n, const X *value) {
            for (int64_t head = 0; head < h.heads; head += G) {
                const X *shared = value + head / group * h.size;
                for (int64_t v = 0; v < vectors; v++) {
                    Vector x = load(shared + v * WIDTH);
                    for (int64_t g = 0; g < G; g++) {
                        float *to = &sums[(head + g) * h.size + v * WIDTH];
                        store(to, load(to) + x * scores[(head + g) * padded + n]);
                    }
                }
            }
        });
        for (int64_t i = 0; i < h.heads * h.size; i += WIDTH) store(out + t * h.heads * h.size + i, load(&sums[i]));
    }
}

template <class X, class... Rest>
void attend_groups(const Heads<X> &h, Rest... rest) {
    int64_t group = h.heads / h.kv_heads;
    if (group % 4 == 0) attend<4>(h, rest...);
    else if (group % 3 == 0) attend<3>(h, rest...);
    else if (group % 2 == 0) attend<2>(h, rest...);
    else attend<1>(h, rest...);
}

}  // namespace

#define EXPORT(NAME, X)                                                                                                \
    extern "C" void add_norm_##NAME(X *x, const X *delta, const X *weight, X *out, int64_t rows, int64_t width,        \
                                    float eps) {                                                                       \
        add_norm(x, delta, weight, out, rows, width, eps);                                                             \
    }                                                                                                                  \
    extern "C" void gate_##NAME(const X *gate_up, X *out, int64_t rows, int64_t width) { gate(gate_up, out, rows, width); } \
    extern "C" void rotate_##NAME(X *qkv, int64_t heads, int64_t kv_heads, int64_t size, const X *cosine,              \
                                  const X *sine, const X *q_weight, const X *k_weight, float eps, X *keys, X *values,  \
                                  const int64_t *slots, int64_t rows) {                                                \
        rotate(Heads<X>{qkv, heads, kv_heads, size}, cosine, sine, q_weight, k_weight, eps, keys, values, slots, rows); \
    }                                                                                                                  \
    extern "C" void attend_##NAME(X *qkv, int64_t heads, int64_t kv_heads, int64_t size, const X *keys,                \
                                  const X *values, const int32_t *table, int64_t table_width, const int64_t *lengths,  \
                                  int64_t page, float scale, int64_t window, X *out, int64_t rows) {                   \
        attend_groups(Heads<X>{qkv, heads, kv_heads, size}, keys, values, table, table_width, lengths, page, scale,    \
                      window, out, rows);                                                                                             \
    }

EXPORT(float32, float)
EXPORT(bfloat16, bfloat16)
