// Attention of one step over the paged cache: writes its keys and values, then attends.
//
// The cache is [blocks, kv_heads, block_size, head_dim]. Memory does not grow with context. All sums are in float32.
// The work comes as lists; which tokens, blocks and splits go into them is the caller's business.

#include "prompts.h"
#include "single.h"
#include "step.h"

namespace {

template <class T>
INLINE void write_token(const Cache<T>& cache, int64_t slot, const T* key, const T* value) {
    T* keys = cache.keys + cache.offset(slot / cache.block_size, slot % cache.block_size);
    T* values = cache.values + (keys - cache.keys);
    for (int64_t head = 0; head < cache.kv_heads; head++) {
        memcpy(keys + head * cache.head_stride(), key + head * cache.head_dim, cache.head_dim * sizeof(T));
        memcpy(values + head * cache.head_stride(), value + head * cache.head_dim, cache.head_dim * sizeof(T));
    }
}

// query, key and value: a token every so many values, heads one after another. out [tokens, heads, head_dim].
// All is written before any of it is read, as a sequence may read blocks that another writes in this step.
template <class T, class Dim>
void attend_step(const Step& step, const Cache<T>& cache, const T* query, int64_t query_stride, const T* key,
                 int64_t key_stride, const T* value, int64_t value_stride, T* out, Dim head_dim) {
    const int64_t width = step.heads * head_dim;
#pragma omp parallel num_threads(step.threads)
    {
#pragma omp for
        for (int64_t token = 0; token < step.tokens; token++)
            write_token(cache, step.slots[token], key + token * key_stride, value + token * value_stride);
#pragma omp for schedule(dynamic) nowait
        for (int64_t item = 0; item < step.num_tiles * step.kv_heads; item++)
            PromptTile<T, Dim>(head_dim, step, cache)
                .attend(step.tiles[item / step.kv_heads], item % step.kv_heads, query, query_stride, out, width);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < step.num_spans; item++) {
            const Span& span = step.spans[item];
            attend_span(step, span, cache, query + span.sequence * query_stride, out + span.sequence * width,
                        head_dim);
        }
#pragma omp for
        for (int64_t item = 0; item < step.num_merges; item++)
            merge_parts(step, step.merges[item], out + step.merges[item].row * width);
    }
}

}  // namespace

#define FOR_TYPE(T, name)                                                                                      \
    EXPORT void attend_##name(const Step* step, const T* query, int64_t query_stride, const T* key,            \
                              int64_t key_stride, const T* value, int64_t value_stride, T* keys, T* values,    \
                              T* out) {                                                                        \
        const Cache<T> cache{keys, values, step->kv_heads, step->block_size, step->head_dim};                  \
        with_dim(step->head_dim, [&](auto head_dim) {                                                          \
            attend_step(*step, cache, query, query_stride, key, key_stride, value, value_stride, out, head_dim); \
        });                                                                                                    \
    }

FOR_TYPE(bfloat16, bfloat16)
FOR_TYPE(float, float32)

// Room that each thread needs.
EXPORT int64_t scratch_bytes(int64_t heads, int64_t head_dim) {
    const int64_t prompt = sizeof(Room) + ((head_dim + LANES) * QUERIES + head_dim * (2 * KEYS + QUERIES)) * sizeof(float);
    const int64_t single = heads * (2 * head_dim + 2) * sizeof(float);
    return (std::max(prompt, single) + 63) / 64 * 64;
}
