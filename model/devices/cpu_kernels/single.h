// Attention of single tokens: each key is read once for all heads that share it, and a token's keys may be split
// into spans that different threads visit and that are merged afterwards (flash decoding). Softmax is online, all
// sums are in float32. Reading the cache is most of the work, so the next keys are fetched meanwhile.

#pragma once

#include "step.h"

namespace {

// The work comes in groups of at most so many heads, as many as registers hold.
constexpr int MOST_HEADS = 4;

// sum + a . b, `STEP` values each.
template <class T>
struct Dot {
    static constexpr int STEP = LANES;
    static INLINE Floats add(Floats sum, const T* a, const T* b) { return sum + load(a) * load(b); }
};

#ifdef __AVX512BF16__
template <>
struct Dot<bfloat16> {
    static constexpr int STEP = 2 * LANES;
    static INLINE Floats add(Floats sum, const bfloat16* a, const bfloat16* b) {
        return as<Floats>(
            _mm512_dpbf16_ps(as<__m512>(sum), load_vector<__m512bh>(a), load_vector<__m512bh>(b)));
    }
};
#endif

// Bring `count` values nearer.
template <class T>
INLINE void fetch(const T* values, int64_t count) {
    for (int64_t at = 0; at < count; at += 64 / sizeof(T)) __builtin_prefetch(values + at);
}

// A tile of keys of one kv head.
template <class T>
struct Visit {
    const int64_t* offsets;  // [KEYS], the last repeated
    int count;
    const T *keys, *values;
};

// What is known of a token's heads so far: out [heads, head_dim], maximum and total [heads].
struct Sums {
    float *out, *maximum, *total;
};

// scores[head][key] = query[head] . keys[key], query [GROUP, head_dim]
template <int GROUP, class T, class Dim>
INLINE void score_keys(const Visit<T>& visit, const Visit<T>& next, const T* query, Dim head_dim,
                       float (*scores)[KEYS]) {
    for (int first = 0; first < visit.count; first += LANES) {
        Floats products[GROUP][LANES];
        for (int row = 0; row < LANES; row++) {
            const T* key = visit.keys + visit.offsets[first + row];
            fetch(next.keys + next.offsets[first + row], head_dim);
            Floats product[GROUP] = {};
            int64_t at = 0;
            for (; at + Dot<T>::STEP <= head_dim; at += Dot<T>::STEP)
#pragma GCC unroll 4
                for (int head = 0; head < GROUP; head++)
                    product[head] = Dot<T>::add(product[head], key + at, query + head * head_dim + at);
            if (at < head_dim)
#pragma GCC unroll 4
                for (int head = 0; head < GROUP; head++)
                    product[head] += load(key + at) * load(query + head * head_dim + at);
#pragma GCC unroll 4
            for (int head = 0; head < GROUP; head++) products[head][row] = product[head];
        }
        for (int head = 0; head < GROUP; head++) store(scores[head] + first, sums(products[head]));
    }
}

// scores [GROUP, KEYS] -> weights in their place, with the sums so far brought up to the new maximum.
template <int GROUP, class Dim>
INLINE void weigh_keys(float (*scores)[KEYS], int count, const Sums& sums, Dim head_dim) {
    const float scale = LOG2_E / __builtin_sqrtf(head_dim);
    const int rounded = (count + LANES - 1) / LANES * LANES;
    for (int head = 0; head < GROUP; head++) {
        for (int key = count; key < rounded; key++) scores[head][key] = -__builtin_inff();
        Floats most = load(scores[head]);
        for (int key = LANES; key < rounded; key += LANES) most = larger(most, load(scores[head] + key));
        const float before = sums.maximum[head], now = std::max(before, largest(most) * scale);
        Floats weights{};
        for (int key = 0; key < rounded; key += LANES) {
            const Floats weight = exp2(load(scores[head] + key) * scale - now);
            store(scores[head] + key, weight);
            weights += weight;
        }
        const float shrink = now > before ? exp2(spread(before - now))[0] : 1.0f;
        sums.maximum[head] = now;
        sums.total[head] = sums.total[head] * shrink + sum(weights);
        if (shrink == 1.0f) continue;
        float* out = sums.out + head * head_dim;
        for (int64_t at = 0; at < head_dim; at += LANES) store(out + at, load(out + at) * shrink);
    }
}

// out[head] += sum over keys of weights[head][key] * values[key], for dimensions [at, at + WIDE * LANES).
template <int GROUP, int WIDE, class T, class Dim>
INLINE void mix_values(const Visit<T>& visit, const Visit<T>& next, const float (*weights)[KEYS], int64_t at,
                       float* out, Dim head_dim) {
    Floats sums[GROUP][WIDE];
    for (int head = 0; head < GROUP; head++)
        for (int wide = 0; wide < WIDE; wide++) sums[head][wide] = load(out + head * head_dim + at + wide * LANES);
    for (int key = 0; key < visit.count; key++) {
        const T* values = visit.values + visit.offsets[key] + at;
        fetch(next.values + next.offsets[key] + at, WIDE * LANES);
#pragma GCC unroll 4
        for (int wide = 0; wide < WIDE; wide++) {
            const Floats value = load(values + wide * LANES);
#pragma GCC unroll 4
            for (int head = 0; head < GROUP; head++) sums[head][wide] += weights[head][key] * value;
        }
    }
    for (int head = 0; head < GROUP; head++)
        for (int wide = 0; wide < WIDE; wide++) store(out + head * head_dim + at + wide * LANES, sums[head][wide]);
}

template <int GROUP, class T, class Dim>
INLINE void attend_tile(const Visit<T>& visit, const Visit<T>& next, const T* query, const Sums& sums,
                        Dim head_dim) {
    alignas(64) float scores[GROUP][KEYS];
    score_keys<GROUP>(visit, next, query, head_dim, scores);
    weigh_keys<GROUP>(scores, visit.count, sums, head_dim);
    int64_t at = 0;
    for (; at + 4 * LANES <= head_dim; at += 4 * LANES)
        mix_values<GROUP, 4>(visit, next, scores, at, sums.out, head_dim);
    for (; at < head_dim; at += LANES) mix_values<GROUP, 1>(visit, next, scores, at, sums.out, head_dim);
}

// Calls `function` for as many heads at a time as registers hold, with their number as a constant.
template <class Function>
INLINE void in_groups(int64_t first, int64_t last, const Function& function) {
    for (; first + MOST_HEADS <= last; first += MOST_HEADS) function(first, std::integral_constant<int, MOST_HEADS>());
    if (last - first == 3)
        function(first, std::integral_constant<int, 3>());
    else if (last - first == 2)
        function(first, std::integral_constant<int, 2>());
    else if (last - first == 1)
        function(first, std::integral_constant<int, 1>());
}

// query and `to` [heads, head_dim]
template <class T, class Dim>
void attend_span(const Step& step, const Span& span, const Cache<T>& cache, const T* query, T* to, Dim head_dim) {
    const int64_t heads = step.heads, group = heads / step.kv_heads;
    float* out = span.part < 0 ? (float*)thread_scratch(step) : step.parts + span.part * heads * (head_dim + 2);
    float* maximum = out + heads * head_dim;
    float* total = maximum + heads;
    std::fill(out, maximum, 0.0f);
    std::fill(maximum, total, -__builtin_inff());
    std::fill(total, total + heads, 0.0f);

    int64_t offsets[2][KEYS];
    const auto find = [&](int first) {
        int64_t* found = offsets[first / KEYS % 2];
        const int count = std::min(KEYS, span.last - first);
        cache.find(step.tables + span.sequence * step.table_width, first, count, found);
        std::fill(found + count, found + KEYS, found[count - 1]);
    };
    const auto visit_of = [&](int first, int64_t kv_head) {
        const int64_t head = kv_head * cache.head_stride();
        return Visit<T>{offsets[first / KEYS % 2], std::min(KEYS, span.last - first), cache.keys + head,
                        cache.values + head};
    };
    find(span.first);
    for (int first = span.first; first < span.last; first += KEYS) {
        const bool more = first + KEYS < span.last;
        if (more) find(first + KEYS);
        for (int64_t kv_head = 0; kv_head < step.kv_heads; kv_head++) {
            const Visit<T> visit = visit_of(first, kv_head);
            const Visit<T> next = kv_head + 1 < step.kv_heads ? visit_of(first, kv_head + 1)
                                  : more                      ? visit_of(first + KEYS, 0)
                                                              : visit;
            in_groups(kv_head * group, (kv_head + 1) * group, [&](int64_t head, auto size) {
                attend_tile<size()>(visit, next, query + head * head_dim,
                                    Sums{out + head * head_dim, maximum + head, total + head}, head_dim);
            });
        }
    }
    if (span.part >= 0) return;
    for (int64_t head = 0; head < heads; head++)
        for (int64_t at = head * head_dim; at < (head + 1) * head_dim; at += LANES)
            store(to + at, load(out + at) * (1.0f / total[head]));
}

// `to` [heads, head_dim]
template <class T>
void merge_parts(const Step& step, const Merge& merge, T* to) {
    const int64_t head_dim = step.head_dim, heads = step.heads, size = heads * (head_dim + 2);
    const float* parts = step.parts + merge.first * size;
    for (int64_t head = 0; head < heads; head++) {
        const float* maximum = parts + heads * head_dim + head;
        float most = *maximum;
        for (int part = 1; part < merge.count; part++) most = std::max(most, maximum[part * size]);
        float total = 0;
        for (int part = 0; part < merge.count; part++)
            total += exp2(spread(maximum[part * size] - most))[0] * maximum[part * size + heads];
        for (int64_t at = head * head_dim; at < (head + 1) * head_dim; at += LANES) {
            Floats mixed{};
            for (int part = 0; part < merge.count; part++)
                mixed += load(parts + part * size + at) * exp2(spread(maximum[part * size] - most));
            store(to + at, mixed / total);
        }
    }
}

}  // namespace
