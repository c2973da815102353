// What is done to each token's row by itself: RMSNorm, rotary positions, the gate of the MLP.
//
// Rows are split over threads. Values are computed in float32 and rounded where torch's own formulas round.

#include <cmath>

#include "vectors.h"

namespace {

// Below this many values, waking other threads takes longer than the work.
constexpr int64_t WORTH_THREADS = 1 << 14;

template <class T>
struct Norm {
    const T* weight;
    int64_t columns;
    float eps;

    // x may be `out`.
    INLINE void operator()(const T* x, T* out) const {
        Floats squares{};
        int64_t at = 0;
        for (; at + LANES <= columns; at += LANES) {
            const Floats value = load(x + at);
            squares += value * value;
        }
        const int rest = columns - at;
        if (rest) {
            const Floats value = load(x + at, rest);
            squares += value * value;
        }
        const float scale = 1.0f / std::sqrt(sum(squares) / columns + eps);
        for (at = 0; at + LANES <= columns; at += LANES)
            store(out + at, stored<T>(load(x + at) * scale) * load(weight + at));
        if (rest) store(out + at, stored<T>(load(x + at, rest) * scale) * load(weight + at, rest), rest);
    }
};

template <class T>
INLINE void add(T* residual, const T* delta, int64_t columns) {
    int64_t at = 0;
    for (; at + LANES <= columns; at += LANES) store(residual + at, load(residual + at) + load(delta + at));
    if (const int rest = columns - at)
        store(residual + at, load(residual + at, rest) + load(delta + at, rest), rest);
}

template <class T>
void norm_rows(const T* x, const T* weight, T* out, int64_t rows, int64_t columns, float eps, int threads) {
    const Norm<T> norm{weight, columns, eps};
#pragma omp parallel for num_threads(threads) if (rows * columns > WORTH_THREADS)
    for (int64_t row = 0; row < rows; row++) norm(x + row * columns, out + row * columns);
}

template <class T>
void add_norm_rows(T* residual, const T* delta, const T* weight, T* out, int64_t rows, int64_t columns, float eps,
                   int threads) {
    const Norm<T> norm{weight, columns, eps};
#pragma omp parallel for num_threads(threads) if (rows * columns > WORTH_THREADS)
    for (int64_t row = 0; row < rows; row++) {
        add(residual + row * columns, delta + row * columns, columns);
        norm(residual + row * columns, out + row * columns);
    }
}

template <class T>
INLINE void rotate_head(T* first, T* second, const T* cos, const T* sin, int count) {
    const Floats a = load(first, count), b = load(second, count), c = load(cos, count), s = load(sin, count);
    store(first, a * c - b * s, count);
    store(second, b * c + a * s, count);
}

// heads [tokens, heads, 2 * half], a token every `stride` values.
template <class T>
void rotate_rows(T* heads, const T* cos, const T* sin, int64_t tokens, int64_t count, int64_t half, int64_t stride,
                 int threads) {
#pragma omp parallel for num_threads(threads) if (tokens * count * half > WORTH_THREADS)
    for (int64_t token = 0; token < tokens; token++) {
        for (int64_t head = 0; head < count; head++) {
            T* first = heads + token * stride + head * 2 * half;
            int64_t at = 0;
            for (; at + LANES <= half; at += LANES)
                rotate_head(first + at, first + half + at, cos + token * half + at, sin + token * half + at, LANES);
            if (at < half)
                rotate_head(first + at, first + half + at, cos + token * half + at, sin + token * half + at,
                            half - at);
        }
    }
}

template <class T>
INLINE Floats gated(Floats gate, Floats up) {
    gate = larger(spread(-87.0f), gate);  // silu is nothing there, and further on exp overflows
    return stored<T>(gate / (1.0f + exp2(gate * -LOG2_E))) * up;
}

// gate_up [rows, 2 * columns] -> out [rows, columns]
template <class T>
void gate_rows(const T* gate_up, T* out, int64_t rows, int64_t columns, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * columns > WORTH_THREADS)
    for (int64_t row = 0; row < rows; row++) {
        const T* gate = gate_up + row * 2 * columns;
        const T* up = gate + columns;
        int64_t at = 0;
        for (; at + LANES <= columns; at += LANES)
            store(out + row * columns + at, gated<T>(load(gate + at), load(up + at)));
        if (const int rest = columns - at)
            store(out + row * columns + at, gated<T>(load(gate + at, rest), load(up + at, rest)), rest);
    }
}

}  // namespace

#define FOR_TYPE(T, name)                                                                                          \
    EXPORT void norm_##name(const T* x, const T* weight, T* out, int64_t rows, int64_t columns, float eps,     \
                                int threads) {                                                                     \
        norm_rows(x, weight, out, rows, columns, eps, threads);                                                    \
    }                                                                                                              \
    EXPORT void add_norm_##name(T* residual, const T* delta, const T* weight, T* out, int64_t rows,            \
                                    int64_t columns, float eps, int threads) {                                     \
        add_norm_rows(residual, delta, weight, out, rows, columns, eps, threads);                                  \
    }                                                                                                              \
    EXPORT void rotate_##name(T* heads, const T* cos, const T* sin, int64_t tokens, int64_t count,             \
                                  int64_t half, int64_t stride, int threads) {                                     \
        rotate_rows(heads, cos, sin, tokens, count, half, stride, threads);                                        \
    }                                                                                                              \
    EXPORT void gate_##name(const T* gate_up, T* out, int64_t rows, int64_t columns, int threads) {            \
        gate_rows(gate_up, out, rows, columns, threads);                                                           \
    }

FOR_TYPE(bfloat16, bfloat16)
FOR_TYPE(float, float32)
