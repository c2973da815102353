// What attention is told of a step, and where the paged cache keeps a token.

#pragma once

#include <omp.h>

#include <algorithm>
#include <type_traits>

#include "vectors.h"

// Prompt tokens that attend together: `count` from row `row`, the first at `position` of its sequence.
struct Tile {
    int32_t sequence, row, count, position;
};

// Keys [first, last) of the single token in row `sequence`; `part` is -1 if these are all its keys.
struct Span {
    int32_t sequence, first, last, part;
};

// Parts [first, first + count) that make up row `row`.
struct Merge {
    int32_t row, first, count;
};

// What a step's layers share; mirrored field by field in __init__.py.
struct Step {
    int64_t tokens, heads, kv_heads, head_dim, block_size, table_width;
    const int64_t* slots;   // [tokens], block * block_size + offset
    const int32_t* tables;  // [sequences, table_width]
    const Tile* tiles;
    int64_t num_tiles;
    const Span* spans;
    int64_t num_spans;
    const Merge* merges;
    int64_t num_merges;
    char* scratch;  // [threads, scratch_bytes]
    float* parts;   // [parts, heads * (head_dim + 2)]
    int64_t scratch_bytes, threads;
};

namespace {

// Keys that are visited together.
constexpr int KEYS = 64;

// One layer's keys and values, [blocks, kv_heads, block_size, head_dim].
template <class T>
struct Cache {
    T *keys, *values;
    int64_t kv_heads, block_size, head_dim;

    // From one kv head of a token to the next.
    INLINE int64_t head_stride() const { return block_size * head_dim; }

    // A token's first kv head.
    INLINE int64_t offset(int64_t block, int64_t inside) const {
        return (block * kv_heads * block_size + inside) * head_dim;
    }

    // The same of the tokens [first, first + count) of a sequence.
    INLINE void find(const int32_t* table, int first, int count, int64_t* offsets) const {
        int64_t block = first / block_size, inside = first % block_size;
        for (int key = 0; key < count; key++) {
            offsets[key] = offset(table[block], inside);
            if (++inside == block_size) inside = 0, block++;
        }
    }
};

INLINE char* thread_scratch(const Step& step) { return step.scratch + omp_get_thread_num() * step.scratch_bytes; }

// Calls `function` with head_dim as a constant where it is a usual one, so that its loops unroll. Narrower
// vectors gain little from that and take long to compile.
template <class Function>
INLINE void with_dim(int64_t head_dim, const Function& function) {
#ifdef __AVX512F__
    if (head_dim == 64) return function(std::integral_constant<int64_t, 64>());
    if (head_dim == 128) return function(std::integral_constant<int64_t, 128>());
#endif
    function(head_dim);
}

}  // namespace
