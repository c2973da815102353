// Attention of one step over the paged cache: writes its keys and values, then attends.
//
// The cache is [blocks, kv_heads, block_size, head_dim]. Memory does not grow with context. All sums are in float32.
// The work comes as lists; which tokens, blocks and splits go into them is the caller's business.

#include <omp.h>

#include "prompts.h"
#include "single.h"
#include "step.h"

namespace {

template <class T>
void write_token(const Step& step, int64_t token, const T* from, T* cache) {
    const int64_t slot = step.slots[token], size = step.block_size, head_dim = step.head_dim;
    T* to = cache + (slot / size * step.kv_heads * size + slot % size) * head_dim;
    for (int64_t head = 0; head < step.kv_heads; head++)
        memcpy(to + head * size * head_dim, from + head * head_dim, head_dim * sizeof(T));
}

// query, key and value: a token every so many values, heads one after another. out [tokens, heads, head_dim].
template <class T>
void attend_step(const Step& step, const T* query, int64_t query_stride, const T* key, int64_t key_stride,
                 const T* value, int64_t value_stride, T* keys, T* values, T* out) {
    const int64_t width = step.heads * step.head_dim, group = step.heads / step.kv_heads * step.head_dim;
    const Cache<T> key_cache{keys, step.kv_heads, step.block_size, step.head_dim};
    const Cache<T> value_cache{values, step.kv_heads, step.block_size, step.head_dim};
#pragma omp parallel num_threads(step.threads)
    {
#pragma omp for
        for (int64_t token = 0; token < step.tokens; token++) {
            write_token(step, token, key + token * key_stride, keys);
            write_token(step, token, value + token * value_stride, values);
        }
        char* scratch = step.scratch + omp_get_thread_num() * step.scratch_bytes;
#pragma omp for schedule(dynamic) nowait
        for (int64_t item = 0; item < step.num_tiles * step.kv_heads; item++) {
            const Tile& tile = step.tiles[item / step.kv_heads];
            const int64_t kv_head = item % step.kv_heads;
            PromptTile<T>(step, scratch)
                .attend(tile, kv_head, query + tile.row * query_stride + kv_head * group, query_stride, key_cache,
                        value_cache, out + tile.row * width + kv_head * group, width);
        }
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < step.num_spans; item++) {
            const Span& span = step.spans[item];
            attend_span(step, span, query + span.sequence * query_stride, key_cache, value_cache,
                        out + span.sequence * width, scratch);
        }
#pragma omp for
        for (int64_t item = 0; item < step.num_merges; item++)
            merge_parts(step, step.merges[item], out + step.merges[item].row * width);
    }
}

}  // namespace

#define FOR_TYPE(T, name)                                                                                          \
    EXPORT void attend_##name(const Step* step, const T* query, int64_t query_stride, const T* key,            \
                                  int64_t key_stride, const T* value, int64_t value_stride, T* keys, T* values,    \
                                  T* out) {                                                                        \
        attend_step(*step, query, query_stride, key, key_stride, value, value_stride, keys, values, out);          \
    }

FOR_TYPE(bfloat16, bfloat16)
FOR_TYPE(float, float32)

// Room that each thread needs.
EXPORT int64_t scratch_bytes(int64_t heads, int64_t head_dim) {
    const int64_t prompt = sizeof(Room) + head_dim * (2 * QUERIES + 2 * KEYS) * sizeof(float);
    const int64_t single = heads * (2 * head_dim + 2) * sizeof(float);
    return (std::max(prompt, single) + 63) / 64 * 64;
}
