// Sixteen lanes at a time: loads, stores, conversions, exponential, reductions, transposition.
//
// Written with the vector extensions of GCC and Clang, so that one text compiles for AVX-512, AVX2, NEON or
// nothing at all; only what has no portable spelling is an intrinsic. Knows nothing of models.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))
#define INLINE inline __attribute__((always_inline))

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

// The upper half of a float.
struct bfloat16 {
    uint16_t bits;
};

template <class To, class From>
INLINE To as(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "a cast of bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

constexpr Ints EVERY_LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

template <class Vector>
INLINE Vector load_vector(const void* from) {
    Vector vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}

INLINE Floats load(const float* from) { return load_vector<Floats>(from); }

INLINE Words widened(Halves values) {
#ifdef __AVX512F__
    return as<Words>(_mm512_cvtepu16_epi32(as<__m256i>(values)));
#else
    return __builtin_convertvector(values, Words);
#endif
}

INLINE Floats load(const bfloat16* from) { return as<Floats>(widened(load_vector<Halves>(from)) << 16); }

INLINE Floats spread(float value) { return value - Floats{}; }

INLINE Ints spread(int32_t value) { return value - Ints{}; }

// b where either is not a number.
INLINE Floats larger(Floats a, Floats b) {
#ifdef __AVX512F__
    return as<Floats>(_mm512_max_ps(as<__m512>(a), as<__m512>(b)));
#else
    return a > b ? a : b;
#endif
}

// To the nearest, ties to even, as the upper halves of words whose lower halves are rubbish.
INLINE Words rounded(Floats value) {
    const Words bits = as<Words>(value);
    const Words nearest = bits + 0x7fff + ((bits >> 16) & 1);
    return value == value ? nearest : bits | 0x400000;
}

INLINE Halves halves(Floats value) {
#ifdef __AVX512BF16__
    return as<Halves>(_mm512_cvtneps_pbh(as<__m512>(value)));
#else
    return __builtin_convertvector(rounded(value) >> 16, Halves);
#endif
}

INLINE void store(float* to, Floats value) { memcpy(to, &value, sizeof value); }

INLINE void store(bfloat16* to, Floats value) {
    const Halves bits = halves(value);
    memcpy(to, &bits, sizeof bits);
}

// The first `count` of sixteen, for the end of a row.
template <class T>
INLINE Floats load(const T* from, int count) {
    T padded[LANES] = {};
    memcpy(padded, from, count * sizeof(T));
    return load(padded);
}

template <class T>
INLINE void store(T* to, Floats value, int count) {
    T padded[LANES];
    store(padded, value);
    memcpy(to, padded, count * sizeof(T));
}

// The value that would be read back after a store.
template <class T>
INLINE Floats stored(Floats value);

template <>
INLINE Floats stored<float>(Floats value) {
    return value;
}

template <>
INLINE Floats stored<bfloat16>(Floats value) {
    return as<Floats>(widened(halves(value)) << 16);
}

// 2^x within 2e-7 of itself for x <= 127; what is below -126 yields 2^-126. x = n + f with |f| <= 1/2: the
// polynomial is 2^f, and adding 1.5 * 2^23 leaves n in the lowest bits, from where it goes to the exponent.
INLINE Floats exp2(Floats x) {
    constexpr float shift = 12582912.0f;
    x = larger(spread(-126.0f), x);
    const Floats shifted = x + shift;
    const Floats f = x - (shifted - shift);
    Floats power = f * 1.5403530393381609954e-4f + 1.3333558146428443423e-3f;
    power = power * f + 9.6181291076284771619e-3f;
    power = power * f + 5.5504108664821579953e-2f;
    power = power * f + 2.4022650695910071233e-1f;
    power = power * f + 6.9314718055994530942e-1f;
    power = power * f + 1.0f;
    return as<Floats>(as<Words>(power) + (as<Words>(shifted) << 23));
}

constexpr float LOG2_E = 1.44269504088896340736f;

// The lane that each lane takes, of two vectors whose lanes are counted on. Both are halves of an exchange: `low`
// has what the first vector keeps and gets from the second, `high` the rest.
constexpr int low_pick(int lane, int apart) { return lane & apart ? LANES + lane - apart : lane; }
constexpr int high_pick(int lane, int apart) { return lane & apart ? LANES + lane : lane + apart; }

template <class Vector, int... PICKS>
INLINE Vector shuffled(Vector a, Vector b) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, PICKS...);
#else
    return __builtin_shuffle(a, b, Ints{PICKS...});
#endif
}

template <int APART, class Vector, int... LANE>
INLINE Vector low(Vector a, Vector b, std::integer_sequence<int, LANE...>) {
    return shuffled<Vector, low_pick(LANE, APART)...>(a, b);
}

template <int APART, class Vector, int... LANE>
INLINE Vector high(Vector a, Vector b, std::integer_sequence<int, LANE...>) {
    return shuffled<Vector, high_pick(LANE, APART)...>(a, b);
}

using EachLane = std::make_integer_sequence<int, LANES>;

template <int APART, class Vector>
INLINE void exchange(Vector (&rows)[LANES]) {
#pragma GCC unroll 16
    for (int row = 0; row < LANES; row++) {
        if (row & APART) continue;
        const Vector first = rows[row], second = rows[row + APART];
        rows[row] = low<APART>(first, second, EachLane());
        rows[row + APART] = high<APART>(first, second, EachLane());
    }
}

// Sixteen vectors as rows become columns.
template <class Vector>
INLINE void transpose(Vector (&rows)[LANES]) {
    exchange<1>(rows);
    exchange<2>(rows);
    exchange<4>(rows);
    exchange<8>(rows);
}

template <int APART>
INLINE void fold(Floats (&rows)[LANES]) {
#pragma GCC unroll 8
    for (int row = 0; row < APART; row++) {
        const Floats first = rows[row], second = rows[row + APART];
        rows[row] = low<APART>(first, second, EachLane()) + high<APART>(first, second, EachLane());
    }
}

// The sums of sixteen vectors, one in each lane. Overwrites them.
INLINE Floats sums(Floats (&rows)[LANES]) {
    fold<8>(rows);
    fold<4>(rows);
    fold<2>(rows);
    fold<1>(rows);
    return rows[0];
}

INLINE float sum(Floats value) {
    value += high<8>(value, value, EachLane());
    value += high<4>(value, value, EachLane());
    value += high<2>(value, value, EachLane());
    return value[0] + value[1];
}

INLINE float largest(Floats value) {
    value = larger(value, high<8>(value, value, EachLane()));
    value = larger(value, high<4>(value, value, EachLane()));
    value = larger(value, high<2>(value, value, EachLane()));
    return value[0] > value[1] ? value[0] : value[1];
}
