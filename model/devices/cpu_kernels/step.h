// What attention is told of a step, and where the paged cache keeps a key.

#pragma once

#include <algorithm>

#include "vectors.h"

// What a step's layers share; mirrored field by field in __init__.py.
struct Step {
    int64_t tokens, heads, kv_heads, head_dim, block_size, table_width;
    const int64_t* slots;   // [tokens], block * block_size + offset
    const int32_t* tables;  // [sequences, table_width]
    const struct Tile* tiles;
    int64_t num_tiles;
    const struct Span* spans;
    int64_t num_spans;
    const struct Merge* merges;
    int64_t num_merges;
    char* scratch;  // [threads, scratch_bytes]
    float* parts;   // [parts, heads, head_dim + 2]
    int64_t scratch_bytes, threads;
};

// Prompt tokens that attend together: `count` from row `row`, the first at `position` of its sequence.
struct Tile {
    int32_t sequence, row, count, position;
};

// Keys [first, last) of the single token in row `row`; `part` is -1 if these are all its keys.
struct Span {
    int32_t sequence, first, last, part;
};

// Parts [first, first + count) that make up row `row`.
struct Merge {
    int32_t row, first, count;
};

namespace {

// Keys that are visited together.
constexpr int KEYS = 64;

template <class T>
struct Cache {
    const T* data;
    int64_t kv_heads, block_size, head_dim;

    INLINE int64_t head_stride() const { return block_size * head_dim; }

    // Where the keys [first, first + count) of a sequence begin, for its first kv head.
    INLINE void find(const int32_t* table, int first, int count, int64_t* offsets) const {
        int64_t block = first / block_size, inside = first % block_size;
        for (int key = 0; key < count; key++) {
            offsets[key] = (table[block] * kv_heads * block_size + inside) * head_dim;
            if (++inside == block_size) inside = 0, block++;
        }
    }
};

}  // namespace
