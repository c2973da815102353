// Attention of prompt tokens: 64 lanes of queries, one for each token and head that shares the keys, against tiles
// of 64 keys. Keys and values are the factors that are spread, queries and weights the lanes, so that softmax
// never sums across lanes. Scores exist for one tile only, softmax is online (FlashAttention, arXiv 2205.14135).

#pragma once

#include "step.h"

namespace {

// The largest head_dim.
constexpr int MOST_DIM = 512;
constexpr int QUERIES = 64;
constexpr int VECTORS = QUERIES / LANES;
// Rows of a product that are kept in registers, VECTORS wide.
constexpr int ROWS = 4;

// What products are made of: words of one float, or of two bfloat16 where the CPU can multiply those.
template <class T>
struct Factor {
    using Word = float;
    static constexpr int PER_WORD = 1;
    static INLINE Floats multiply_add(Floats sum, Word a, const Word* b) { return sum + a * load(b); }
    // Values of one key, and of `PER_WORD` keys together.
    static INLINE void copy(Word* to, const T* from, int64_t count) {
        for (int64_t at = 0; at < count; at += LANES) store(to + at, load(from + at));
    }
    static INLINE void zip(Word* to, const T* const* from, int64_t count) { copy(to, from[0], count); }
    static INLINE void put(Word* to, const Floats* values) { store(to, values[0]); }
};

#ifdef __AVX512BF16__
template <>
struct Factor<bfloat16> {
    using Word = uint32_t;
    static constexpr int PER_WORD = 2;
    static INLINE Floats multiply_add(Floats sum, Word a, const Word* b) {
        return as<Floats>(
            _mm512_dpbf16_ps(as<__m512>(sum), as<__m512bh>(_mm512_set1_epi32(a)), load_vector<__m512bh>(b)));
    }
    static INLINE void copy(Word* to, const bfloat16* from, int64_t count) { memcpy(to, from, count * 2); }
    static INLINE void zip(Word* to, const bfloat16* const* from, int64_t count) {
        for (int64_t at = 0; at < count; at += LANES) {
            const Words first = widened(load_vector<Halves>(from[0] + at));
            const Words second = widened(load_vector<Halves>(from[1] + at)) << 16;
            const Words pair = first | second;
            memcpy(to + at, &pair, sizeof pair);
        }
    }
    static INLINE void put(Word* to, const Floats* values) {
        const Words pair = widened(halves(values[0])) | widened(halves(values[1])) << 16;
        memcpy(to, &pair, sizeof pair);
    }
};
#endif

// sums[row][vector] += sum over steps of a[row * row_stride + step * step_stride] * b[step * QUERIES + lane]
template <class F>
INLINE void multiply(Floats (&sums)[ROWS][VECTORS], const typename F::Word* a, int64_t row_stride,
                     int64_t step_stride, const typename F::Word* b, int64_t steps) {
    for (int64_t step = 0; step < steps; step++) {
#pragma GCC unroll 4
        for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 4
            for (int vector = 0; vector < VECTORS; vector++)
                sums[row][vector] =
                    F::multiply_add(sums[row][vector], a[row * row_stride + step * step_stride],
                                    b + step * QUERIES + vector * LANES);
    }
}

// One thread's room, of which `words` follows: query, keys, values [head_dim * 64 values each], out.
struct Room {
    float scores[KEYS][QUERIES];
    float weights[KEYS][QUERIES];  // words, at most as large
    Floats maximum[VECTORS], total[VECTORS];
    Ints position[VECTORS];
    int64_t offsets[KEYS];
};

template <class T>
struct PromptTile {
    using F = Factor<T>;
    using Word = typename F::Word;

    const Step& step;
    Room& room;
    Word *query, *keys, *values;
    float* out;  // [head_dim, QUERIES]
    int64_t head_dim;

    PromptTile(const Step& step, char* scratch) : step(step), room(*(Room*)scratch), head_dim(step.head_dim) {
        query = (Word*)(scratch + sizeof(Room));
        keys = query + head_dim * QUERIES;
        values = keys + head_dim * KEYS;
        out = (float*)(values + head_dim * KEYS);
    }

    // `from` is the tile's first query of the kv head, its tokens `stride` apart, `to` likewise.
    void attend(const Tile& tile, int64_t kv_head, const T* from, int64_t stride, const Cache<T>& key_cache,
                const Cache<T>& value_cache, T* to, int64_t out_stride) {
        const int group = step.heads / step.kv_heads;
        const int lanes = tile.count * group;
        read_queries(from, stride, group, lanes);
        for (int lane = 0; lane < QUERIES; lane++)
            ((int32_t*)room.position)[lane] = lane < lanes ? tile.position + lane / group : INT32_MAX;
        for (int vector = 0; vector < VECTORS; vector++) {
            room.maximum[vector] = spread(-__builtin_inff());
            room.total[vector] = Floats{};
        }
        std::fill(out, out + head_dim * QUERIES, 0.0f);
        const int context = tile.position + tile.count;
        const int32_t* table = step.tables + tile.sequence * step.table_width;
        for (int first = 0; first < context; first += KEYS) {
            const int count = std::min(KEYS, context - first);
            const int rounded = (count + ROWS - 1) / ROWS * ROWS;
            read_keys(table, first, count, rounded, kv_head, key_cache, value_cache);
            score(rounded);
            weigh(first, count, rounded, first + count > tile.position);
            mix(rounded);
        }
        write(to, out_stride, group, lanes);
    }

    void read_queries(const T* from, int64_t stride, int group, int lanes) {
        for (int first = 0; first < QUERIES; first += LANES) {
            for (int64_t at = 0; at < head_dim; at += LANES * F::PER_WORD) {
                Words rows[LANES] = {};
                const int count = std::min<int64_t>(LANES * F::PER_WORD, head_dim - at);
                for (int row = 0; row < LANES && first + row < lanes; row++) {
                    const int lane = first + row;
                    F::copy((Word*)&rows[row], from + lane / group * stride + lane % group * head_dim + at, count);
                }
                transpose(rows);
                for (int row = 0; row < count / F::PER_WORD; row++)
                    memcpy(query + (at / F::PER_WORD + row) * QUERIES + first, &rows[row], sizeof(Words));
            }
        }
    }

    // Keys up to `rounded` are zero.
    void read_keys(const int32_t* table, int first, int count, int rounded, int64_t kv_head,
                   const Cache<T>& key_cache, const Cache<T>& value_cache) {
        static const T none[MOST_DIM] = {};
        key_cache.find(table, first, count, room.offsets);
        const int64_t head = kv_head * key_cache.head_stride();
        const int64_t words = head_dim / F::PER_WORD;
        for (int key = 0; key < rounded; key += F::PER_WORD) {
            const T* pair[F::PER_WORD];
            for (int one = 0; one < F::PER_WORD; one++) {
                const bool real = key + one < count;
                const int64_t offset = real ? room.offsets[key + one] + head : 0;
                F::copy(keys + (key + one) * words, real ? key_cache.data + offset : none, head_dim);
                pair[one] = real ? value_cache.data + offset : none;
            }
            F::zip(values + key / F::PER_WORD * head_dim, pair, head_dim);
        }
    }

    // scores[key][query] = keys . query
    void score(int rounded) {
        const int64_t words = head_dim / F::PER_WORD;
        for (int key = 0; key < rounded; key += ROWS) {
            Floats sums[ROWS][VECTORS] = {};
            multiply<F>(sums, keys + key * words, words, 1, query, words);
            memcpy(room.scores[key], sums, sizeof sums);
        }
    }

    // scores -> weights, with `maximum`, `total` and `out` brought up to date.
    void weigh(int first, int count, int rounded, bool masked) {
        const float scale = LOG2_E / __builtin_sqrtf(head_dim);
        for (int vector = 0; vector < VECTORS; vector++) {
            Floats* scores = (Floats*)room.scores + vector;
            if (masked)
                for (int key = 0; key < count; key++)
                    scores[key * VECTORS] =
                        room.position[vector] >= first + key ? scores[key * VECTORS] : spread(-__builtin_inff());
            Floats maximum = room.maximum[vector];
            for (int key = 0; key < count; key++) maximum = larger(maximum, scores[key * VECTORS] * scale);
            const Floats shrink = exp2(room.maximum[vector] - maximum);
            room.maximum[vector] = maximum;
            Floats total = room.total[vector] * shrink;
            for (int key = 0; key < rounded; key += F::PER_WORD) {
                Floats weights[F::PER_WORD];
                for (int one = 0; one < F::PER_WORD; one++) {
                    weights[one] = key + one < count ? exp2(scores[(key + one) * VECTORS] * scale - maximum) : Floats{};
                    total += weights[one];
                }
                F::put((Word*)room.weights + key / F::PER_WORD * QUERIES + vector * LANES, weights);
            }
            room.total[vector] = total;
            for (int64_t at = 0; at < head_dim; at++) {
                float* sums = out + at * QUERIES + vector * LANES;
                store(sums, load(sums) * shrink);
            }
        }
    }

    // out[value][query] += values . weights
    void mix(int rounded) {
        for (int64_t at = 0; at < head_dim; at += ROWS) {
            Floats sums[ROWS][VECTORS];
            memcpy(sums, out + at * QUERIES, sizeof sums);
            multiply<F>(sums, values + at, 1, head_dim, (Word*)room.weights, rounded / F::PER_WORD);
            memcpy(out + at * QUERIES, sums, sizeof sums);
        }
    }

    void write(T* to, int64_t stride, int group, int lanes) {
        for (int first = 0; first < lanes; first += LANES) {
            const Floats inverse = 1.0f / room.total[first / LANES];
            for (int64_t at = 0; at < head_dim; at += LANES) {
                Floats rows[LANES];
                for (int row = 0; row < LANES; row++) rows[row] = load(out + (at + row) * QUERIES + first) * inverse;
                transpose(rows);
                for (int row = 0; row < LANES && first + row < lanes; row++) {
                    const int lane = first + row;
                    store(to + lane / group * stride + lane % group * head_dim + at, rows[row]);
                }
            }
        }
    }
};

}  // namespace
