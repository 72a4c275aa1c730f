// Sixteen floats at a time, read from float32 or bfloat16 and written back rounded once.

#pragma once

#include <cstdint>
#include <cstring>

constexpr int WIDTH = 16;  // values in a vector; narrower processors split it

using Vector = float __attribute__((vector_size(4 * WIDTH)));
using Halves = uint16_t __attribute__((vector_size(2 * WIDTH)));
using Words = uint32_t __attribute__((vector_size(4 * WIDTH)));
using Integers = int32_t __attribute__((vector_size(4 * WIDTH)));
struct bfloat16 { uint16_t bits; };

inline Vector load(const float *p) { Vector v; std::memcpy(&v, p, sizeof v); return v; }
inline Vector load(const bfloat16 *p) {
    Halves halves;
    std::memcpy(&halves, p, sizeof halves);
    Words words = __builtin_convertvector(halves, Words) << 16;
    Vector v;
    std::memcpy(&v, &words, sizeof v);
    return v;
}

inline void store(float *p, Vector v) { std::memcpy(p, &v, sizeof v); }
inline void store(bfloat16 *p, Vector v) {  // to nearest, ties to even; NaN stays one
    Words bits;
    std::memcpy(&bits, &v, sizeof bits);
    Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (Words)(v != v);
    Halves halves = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), Halves);
    std::memcpy(p, &halves, sizeof halves);
}

inline float widen(float v) { return v; }
inline float widen(bfloat16 v) {
    uint32_t bits = uint32_t(v.bits) << 16;
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
}
inline void narrow(float v, float &out) { out = v; }
inline void narrow(float v, bfloat16 &out) {  // as store
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    out.bits = v != v ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Halves onto halves: one after the other would wait for 15 additions, as long as a whole row takes to multiply.
inline float sum(Vector v) {
    using Eight = float __attribute__((vector_size(32)));
    using Four = float __attribute__((vector_size(16)));
    Eight eights[2];
    std::memcpy(eights, &v, sizeof v);
    Eight eight = eights[0] + eights[1];
    Four fours[2];
    std::memcpy(fours, &eight, sizeof eight);
    Four four = fours[0] + fours[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

template <class X>
inline void widen(const X *from, int64_t n, float *to) {
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) store(to + i, load(from + i));
    for (; i < n; i++) to[i] = widen(from[i]);
}
template <class X>
inline void narrow(const float *from, int64_t n, X *to) {
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) store(to + i, load(from + i));
    for (; i < n; i++) narrow(from[i], to[i]);
}
