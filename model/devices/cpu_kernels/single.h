// Attention of single tokens: each key is read once for all heads that share it, and a token's keys may be split
// into spans that different threads visit and that are merged afterwards (flash decoding).

#pragma once

#include "step.h"

namespace {

// Bring a row of the cache nearer.
template <class T>
INLINE void fetch(const T* row, int64_t head_dim) {
    for (int64_t at = 0; at < head_dim; at += 64 / sizeof(T)) __builtin_prefetch(row + at);
}

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

// scores[head][key] = query[head] . keys[key] of `GROUP` heads. Also fetches the keys of the next visit.
template <int GROUP, class T>
INLINE void score_keys(const T* const* keys, const T* const* next, const T* query, int64_t head_dim,
                       float (*scores)[KEYS], int count) {
    for (int first = 0; first < count; first += LANES) {
        Floats products[GROUP][LANES];
        for (int row = 0; row < LANES; row++) {
            const T* key = keys[first + row];
            fetch(next[first + row], head_dim);
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

// out[head] += sum over keys of weights[head][key] * values[key], for dimensions [at, at + WIDE * 16).
template <int GROUP, int WIDE, class T>
INLINE void mix_values(const T* const* values, const T* const* next, const float (*weights)[KEYS], int count,
                       int64_t at, float* out, int64_t head_dim) {
    Floats sums_of[GROUP][WIDE];
    for (int head = 0; head < GROUP; head++)
        for (int wide = 0; wide < WIDE; wide++) sums_of[head][wide] = load(out + head * head_dim + at + wide * LANES);
    for (int key = 0; key < count; key++) {
        fetch(next[key] + at, WIDE * LANES);
#pragma GCC unroll 4
        for (int wide = 0; wide < WIDE; wide++) {
            const Floats value = load(values[key] + at + wide * LANES);
#pragma GCC unroll 4
            for (int head = 0; head < GROUP; head++) sums_of[head][wide] += weights[head][key] * value;
        }
    }
    for (int head = 0; head < GROUP; head++)
        for (int wide = 0; wide < WIDE; wide++) store(out + head * head_dim + at + wide * LANES, sums_of[head][wide]);
}

// Where a tile of one kv head lies: a multiple of LANES pointers, the last repeated.
template <class T>
struct Visit {
    const T *keys[KEYS], *values[KEYS];
    int count = 0;

    INLINE void find(const Step& step, const Span& span, const Cache<T>& key_cache, const Cache<T>& value_cache,
                     int first, int64_t kv_head) {
        int64_t offsets[KEYS];
        count = std::min(KEYS, span.last - first);
        key_cache.find(step.tables + span.sequence * step.table_width, first, count, offsets);
        for (int key = 0; key < KEYS; key++) {
            const int64_t offset = offsets[std::min(key, count - 1)] + kv_head * key_cache.head_stride();
            keys[key] = key_cache.data + offset;
            values[key] = value_cache.data + offset;
        }
    }
};

// One tile of keys for `GROUP` heads: query, out [GROUP, head_dim], maximum and total [GROUP] in float32.
template <int GROUP, class T>
INLINE void attend_tile(const Visit<T>& visit, const Visit<T>& next, const T* query, float* out, float* maximum,
                        float* total, int64_t head_dim) {
    const float scale = LOG2_E / __builtin_sqrtf(head_dim);
    const int count = visit.count, rounded = (count + LANES - 1) / LANES * LANES;
    alignas(64) float scores[GROUP][KEYS];
    score_keys<GROUP>(visit.keys, next.keys, query, head_dim, scores, count);
    for (int head = 0; head < GROUP; head++) {
        for (int key = count; key < rounded; key++) scores[head][key] = -__builtin_inff();
        Floats most = spread(-__builtin_inff());
        for (int key = 0; key < rounded; key += LANES) most = larger(most, load(scores[head] + key));
        const float now = std::max(maximum[head], largest(most) * scale);
        const float shrink = exp2(spread(maximum[head] - now))[0];
        Floats weights{};
        for (int key = 0; key < rounded; key += LANES) {
            const Floats weight = exp2(load(scores[head] + key) * scale - now);
            store(scores[head] + key, weight);
            weights += weight;
        }
        maximum[head] = now;
        total[head] = total[head] * shrink + sum(weights);
        if (shrink != 1.0f)
            for (int64_t at = 0; at < head_dim; at += LANES)
                store(out + head * head_dim + at, load(out + head * head_dim + at) * shrink);
    }
    int64_t at = 0;
    for (; at + 4 * LANES <= head_dim; at += 4 * LANES)
        mix_values<GROUP, 4>(visit.values, next.values, scores, count, at, out, head_dim);
    for (; at < head_dim; at += LANES)
        mix_values<GROUP, 1>(visit.values, next.values, scores, count, at, out, head_dim);
}

template <class T>
void attend_span(const Step& step, const Span& span, const T* query, const Cache<T>& key_cache,
                 const Cache<T>& value_cache, T* to, char* scratch) {
    const int64_t head_dim = step.head_dim, heads = step.heads, group = heads / step.kv_heads;
    float* out = span.part < 0 ? (float*)scratch : step.parts + span.part * heads * (head_dim + 2);
    float* maximum = out + heads * head_dim;
    float* total = maximum + heads;
    std::fill(out, maximum, 0.0f);
    std::fill(maximum, total, -__builtin_inff());
    std::fill(total, total + heads, 0.0f);
    Visit<T> visits[2];
    visits[0].find(step, span, key_cache, value_cache, span.first, 0);
    int turn = 0;
    for (int first = span.first; first < span.last; first += KEYS) {
        for (int64_t kv_head = 0; kv_head < step.kv_heads; kv_head++, turn ^= 1) {
            const Visit<T>& visit = visits[turn];
            Visit<T>& next = visits[turn ^ 1];
            if (kv_head + 1 < step.kv_heads)
                next.find(step, span, key_cache, value_cache, first, kv_head + 1);
            else if (first + KEYS < span.last)
                next.find(step, span, key_cache, value_cache, first + KEYS, 0);
            for (int64_t head = kv_head * group, end = head + group; head < end;) {
                const auto go = [&](auto size) {
                    attend_tile<size()>(visit, next, query + head * head_dim, out + head * head_dim, maximum + head,
                                        total + head, head_dim);
                    head += size();
                };
                if (end - head >= 4)
                    go(std::integral_constant<int, 4>());
                else if (end - head == 3)
                    go(std::integral_constant<int, 3>());
                else if (end - head == 2)
                    go(std::integral_constant<int, 2>());
                else
                    go(std::integral_constant<int, 1>());
            }
        }
    }
    if (span.part >= 0) return;
    for (int64_t head = 0; head < heads; head++)
        for (int64_t at = head * head_dim; at < (head + 1) * head_dim; at += LANES)
            store(to + at, load(out + at) * (1.0f / total[head]));
}

template <class T>
void merge_parts(const Step& step, const Merge& merge, T* to) {
    const int64_t head_dim = step.head_dim, heads = step.heads, size = heads * (head_dim + 2);
    const float* parts = step.parts + merge.first * size;
    for (int64_t head = 0; head < heads; head++) {
        const auto maximum = [&](int part) { return parts[part * size + heads * head_dim + head]; };
        const auto total = [&](int part) { return parts[part * size + heads * (head_dim + 1) + head]; };
        float most = maximum(0), sum = 0;
        for (int part = 1; part < merge.count; part++) most = std::max(most, maximum(part));
        for (int part = 0; part < merge.count; part++) sum += exp2(spread(maximum(part) - most))[0] * total(part);
        for (int64_t at = head * head_dim; at < (head + 1) * head_dim; at += LANES) {
            Floats mixed{};
            for (int part = 0; part < merge.count; part++)
                mixed += load(parts + part * size + at) * exp2(spread(maximum(part) - most));
            store(to + at, mixed / sum);
        }
    }
}

}  // namespace
