// Attention of prompt tokens: 64 lanes of queries, one for each token and head that shares the keys, against
// tiles of 64 keys. Keys and values are the factors that are spread, queries and weights the lanes, so that
// softmax never sums across lanes. Scores exist for one tile only, softmax is online (FlashAttention,
// arXiv 2205.14135), all sums are in float32.

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
    // `count` values of one row.
    static INLINE void copy(Word* to, const T* from, int64_t count) {
        for (int64_t at = 0; at < count; at += LANES) store(to + at, load(from + at));
    }
    // `count` words, each with a value of as many rows as it has room for.
    static INLINE void zip(Word* to, const T* const* rows, int64_t count) { copy(to, rows[0], count); }
    static INLINE void zip(Word* to, const Floats* rows) { store(to, rows[0]); }
    // The first LANES words of a row, zeros where `count` values are fewer.
    static INLINE Words words(const T* from, int64_t) { return as<Words>(load(from)); }
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
    static INLINE void copy(Word* to, const bfloat16* from, int64_t count) {
        for (int64_t at = 0; at < count; at += LANES) memcpy((bfloat16*)to + at, from + at, sizeof(Halves));
    }
    static INLINE void zip(Word* to, const bfloat16* const* rows, int64_t count) {
        for (int64_t at = 0; at < count; at += LANES) {
            const Words first = widened(load_vector<Halves>(rows[0] + at));
            const Words second = widened(load_vector<Halves>(rows[1] + at));
            const Words pair = first | second << 16;
            memcpy(to + at, &pair, sizeof pair);
        }
    }
    static INLINE void zip(Word* to, const Floats* rows) {
        const __m512i both =
            as<__m512i>(_mm512_cvtne2ps_pbh(as<__m512>(rows[1]), as<__m512>(rows[0])));
        const Words order = as<Words>(EVERY_LANE) * 0x10001 + 0x100000;  // 0, 16, 1, 17, ...
        const __m512i pair = _mm512_permutexvar_epi16(as<__m512i>(order), both);
        memcpy(to, &pair, sizeof pair);
    }
    static INLINE Words words(const bfloat16* from, int64_t count) {
        if (count >= 2 * LANES) return load_vector<Words>(from);
        const Halves half = load_vector<Halves>(from);
        Words words{};
        memcpy(&words, &half, sizeof half);
        return words;
    }
};
#endif

// One thread's room; words for query, keys and values and floats for `out` follow.
struct Room {
    float scores[KEYS][QUERIES];
    float weights[KEYS][QUERIES];  // words, at most as large
    Floats maximum[VECTORS], total[VECTORS], shrink[VECTORS];
    Ints position[VECTORS];
    int64_t offsets[KEYS];
    int64_t from[QUERIES], to[QUERIES];
};

template <class T, class Dim>
struct PromptTile {
    using F = Factor<T>;
    using Word = typename F::Word;

    const Dim head_dim;
    const Step& step;
    const Cache<T>& cache;
    Room& room;
    Word *query, *keys, *values;  // [head_dim * 64 values]
    float* out;                   // [head_dim, QUERIES]

    PromptTile(Dim head_dim, const Step& step, const Cache<T>& cache)
        : head_dim(head_dim), step(step), cache(cache), room(*(Room*)thread_scratch(step)) {
        query = (Word*)(&room + 1);
        keys = query + (head_dim + LANES) * QUERIES;  // rows beyond head_dim are written and not read
        values = keys + head_dim * KEYS;
        out = (float*)(values + head_dim * KEYS);
    }

    // `from` and `to` are rows of the step's first token, one token every `stride` and every `out_stride`.
    void attend(const Tile& tile, int64_t kv_head, const T* from, int64_t stride, T* to, int64_t out_stride) {
        const int lanes = place(tile, kv_head, stride, out_stride);
        read_queries(from);
        for (int vector = 0; vector < VECTORS; vector++) {
            room.maximum[vector] = spread(-__builtin_inff());
            room.total[vector] = Floats{};
        }
        std::fill(out, out + head_dim * QUERIES, 0.0f);
        const int context = tile.position + tile.count;
        for (int first = 0; first < context; first += KEYS) {
            const int count = std::min(KEYS, context - first);
            const int rounded = (count + ROWS - 1) / ROWS * ROWS;
            read_keys(step.tables + tile.sequence * step.table_width, kv_head, first, count, rounded);
            if (first + count > tile.position)
                score<true>(first, rounded);
            else
                score<false>(first, rounded);
            weigh(rounded);
            mix(rounded);
        }
        write(to, lanes);
    }

    // Which token and head each lane is; returns how many are, the last being repeated in the others.
    int place(const Tile& tile, int64_t kv_head, int64_t stride, int64_t out_stride) {
        const int64_t group = step.heads / step.kv_heads;
        int32_t* position = (int32_t*)room.position;
        int lane = 0;
        for (int64_t token = 0; token < tile.count; token++) {
            for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++, lane++) {
                room.from[lane] = (tile.row + token) * stride + head * head_dim;
                room.to[lane] = (tile.row + token) * out_stride + head * head_dim;
                position[lane] = tile.position + token;
            }
        }
        std::fill(room.from + lane, room.from + QUERIES, room.from[lane - 1]);
        std::fill(position + lane, position + QUERIES, position[lane - 1]);
        return lane;
    }

    void read_queries(const T* from) {
        constexpr int64_t WIDE = LANES * F::PER_WORD;
        for (int first = 0; first < QUERIES; first += LANES) {
            for (int64_t at = 0; at < head_dim; at += WIDE) {
                Words rows[LANES];
#pragma GCC unroll 16
                for (int row = 0; row < LANES; row++)
                    rows[row] = F::words(from + room.from[first + row] + at, head_dim - at);
                transpose(rows);
#pragma GCC unroll 16
                for (int row = 0; row < LANES; row++)
                    memcpy(query + (at / F::PER_WORD + row) * QUERIES + first, &rows[row], sizeof(Words));
            }
        }
    }

    // Those from `count` to `rounded` are zero.
    void read_keys(const int32_t* table, int64_t kv_head, int first, int count, int rounded) {
        static const T none[MOST_DIM] = {};
        cache.find(table, first, count, room.offsets);
        const int64_t head = kv_head * cache.head_stride();
        for (int key = 0; key < rounded; key += F::PER_WORD) {
            const T* rows[F::PER_WORD];
            for (int one = 0; one < F::PER_WORD; one++) {
                const bool real = key + one < count;
                const int64_t offset = head + room.offsets[real ? key + one : 0];
                F::copy(keys + (key + one) * (head_dim / F::PER_WORD), real ? cache.keys + offset : none, head_dim);
                rows[one] = real ? cache.values + offset : none;
            }
            F::zip(values + key / F::PER_WORD * head_dim, rows, head_dim);
        }
    }

    // scores[key][query] = keys . query, and the maxima. A token does not see those after it.
    template <bool MASKED>
    void score(int first, int rounded) {
        const int64_t words = head_dim / F::PER_WORD;
        Floats maximum[VECTORS];
        memcpy(maximum, room.maximum, sizeof maximum);
        for (int key = 0; key < rounded; key += ROWS) {
            Floats sums[ROWS][VECTORS];
            for (auto& row : sums)
                for (auto& value : row) value = Floats{};
            multiply(sums, keys + key * words, words, 1, query, words);
            for (int row = 0; row < ROWS; row++) {
                for (int vector = 0; vector < VECTORS; vector++) {
                    Floats value = sums[row][vector];
                    if (MASKED)
                        value = room.position[vector] >= first + key + row ? value : spread(-__builtin_inff());
                    maximum[vector] = larger(maximum[vector], value);
                    store(room.scores[key + row] + vector * LANES, value);
                }
            }
        }
        const float scale = LOG2_E / __builtin_sqrtf(head_dim);
        for (int vector = 0; vector < VECTORS; vector++)
            room.shrink[vector] = exp2((room.maximum[vector] - maximum[vector]) * scale);
        memcpy(room.maximum, maximum, sizeof maximum);
    }

    // weights = exp(scores - maximum), and their totals.
    void weigh(int rounded) {
        const float scale = LOG2_E / __builtin_sqrtf(head_dim);
        for (int vector = 0; vector < VECTORS; vector++) {
            const Floats most = room.maximum[vector] * scale;
            Floats total = room.total[vector] * room.shrink[vector];
            for (int key = 0; key < rounded; key += F::PER_WORD) {
                Floats weights[F::PER_WORD];
                for (int one = 0; one < F::PER_WORD; one++) {
                    weights[one] = exp2(load(room.scores[key + one] + vector * LANES) * scale - most);
                    total += weights[one];
                }
                F::zip((Word*)room.weights + key / F::PER_WORD * QUERIES + vector * LANES, weights);
            }
            room.total[vector] = total;
        }
    }

    // out[value][query] = out * shrink + values . weights
    void mix(int rounded) {
        Floats shrink[VECTORS];
        memcpy(shrink, room.shrink, sizeof shrink);
        for (int64_t at = 0; at < head_dim; at += ROWS) {
            Floats sums[ROWS][VECTORS];
            for (int row = 0; row < ROWS; row++)
                for (int vector = 0; vector < VECTORS; vector++)
                    sums[row][vector] = load(out + (at + row) * QUERIES + vector * LANES) * shrink[vector];
            multiply(sums, values + at, 1, head_dim, (Word*)room.weights, rounded / F::PER_WORD);
            for (int row = 0; row < ROWS; row++)
                for (int vector = 0; vector < VECTORS; vector++)
                    store(out + (at + row) * QUERIES + vector * LANES, sums[row][vector]);
        }
    }

    // sums[row][vector] += sum over steps of a[row * row_stride + step * step_stride] * b[step * QUERIES + lane]
    static INLINE void multiply(Floats (&sums)[ROWS][VECTORS], const Word* a, int64_t row_stride,
                                int64_t step_stride, const Word* b, int64_t steps) {
        for (int64_t step = 0; step < steps; step++)
#pragma GCC unroll 4
            for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 4
                for (int vector = 0; vector < VECTORS; vector++)
                    sums[row][vector] =
                        F::multiply_add(sums[row][vector], a[row * row_stride + step * step_stride],
                                        b + step * QUERIES + vector * LANES);
    }

    void write(T* to, int lanes) {
        for (int first = 0; first < lanes; first += LANES) {
            const Floats inverse = 1.0f / room.total[first / LANES];
            for (int64_t at = 0; at < head_dim; at += LANES) {
                Floats rows[LANES];
#pragma GCC unroll 16
                for (int row = 0; row < LANES; row++)
                    rows[row] = load(out + (at + row) * QUERIES + first) * inverse;
                transpose(rows);
                for (int row = 0; row < std::min(LANES, lanes - first); row++)
                    store(to + room.to[first + row] + at, rows[row]);
            }
        }
    }
};

}  // namespace
