// Visual attention ratio over vLLM's paged CPU KV cache: one query a row, mean over heads.
// Compiled and called by cpu.py; reference.py states what it computes.
//
// A task is one (row, KV head): scores of its group of query heads against all keys of the row,
// 16 keys at a time, then one softmax a head. Keys are read in place: gathering them first costs
// more than the arithmetic.
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define TILE 4  // query heads that share one read of the keys
typedef float f32v __attribute__((vector_size(4 * LANES)));
typedef float f32v_any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t i32v __attribute__((vector_size(4 * LANES)));
typedef uint32_t u32v __attribute__((vector_size(4 * LANES)));
typedef uint32_t u32v_any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t u16v __attribute__((vector_size(2 * LANES)));
typedef uint16_t u16v_any __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

// How the keys of one block and KV head lie in memory; the values are known to cpu.py.
enum layout {
  FLOAT32 = 0,        // [dim][key]
  BFLOAT16 = 1,       // [dim][key]
  BFLOAT16_PAIRS = 2  // [key / 16][dim / 2][key % 16][dim % 2], for AMX
};

struct visual_ratio_args {
  const void *query;  // [tokens, heads, dim], same type as the keys
  int64_t query_token_stride, query_head_stride;
  const void *key;  // block 0, KV head 0
  int64_t key_block_stride, key_head_stride;
  const int32_t *block_table;
  int64_t block_table_stride;
  const int32_t *seq_lens, *query_start_loc;
  const int32_t *spans;  // [rows, max_spans, 2]; a negative start marks a row without answer
  float *out;            // [rows]
  float scale;
  int32_t rows, heads, kv_heads, dim, block_size, max_spans, layout;
  int32_t window;  // keys a query may look back on, itself included; 0: all
};

static inline float from_bf16(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

// 16 keys of one dim (of two, with pairs), as floats.
static inline __attribute__((always_inline)) f32v load_keys(const char *key, int layout) {
  if (layout == FLOAT32) return *(const f32v_any *)key;
  return (f32v)(__builtin_convertvector(*(const u16v_any *)key, u32v) << 16);
}

// Scores of `heads` <= TILE query heads against 16 * `groups` keys at `key`. Inlined with constants,
// so that the sums stay in registers; two groups hide the latency of the multiply-adds.
static inline __attribute__((always_inline)) void score_lanes(
    const float *query, const char *key, int dim, int block_size, int heads, int groups, int layout,
    float *out, int64_t out_stride) {
  f32v sum[2][TILE] = {0};
  if (layout == BFLOAT16_PAIRS) {
    for (int d = 0; d < dim; d += 2)
      for (int g = 0; g < groups; ++g) {
        const u32v pair = *(const u32v_any *)(key + ((int64_t)g * dim + d) / 2 * LANES * 4);
        const f32v even = (f32v)(pair << 16), odd = (f32v)(pair & 0xffff0000u);
        for (int h = 0; h < heads; ++h)
          sum[g][h] += query[h * dim + d] * even + query[h * dim + d + 1] * odd;
      }
  } else {
    const int width = layout == FLOAT32 ? 4 : 2;
    for (int d = 0; d < dim; ++d)
      for (int g = 0; g < groups; ++g) {
        const f32v keys = load_keys(key + ((int64_t)d * block_size + g * LANES) * width, layout);
        for (int h = 0; h < heads; ++h) sum[g][h] += query[h * dim + d] * keys;
      }
  }
  for (int g = 0; g < groups; ++g)
    for (int h = 0; h < heads; ++h) *(f32v_any *)(out + h * out_stride + g * LANES) = sum[g][h];
}

static inline __attribute__((always_inline)) void score_block(
    const float *query, const char *key, int dim, int block_size, int heads, int layout, float *out,
    int64_t out_stride) {
  // 2 * LANES: bytes of 16 keys of one dim in 16 bits
  const int64_t step = layout == FLOAT32 ? 4 * LANES : layout == BFLOAT16 ? 2 * LANES : 2 * LANES * dim;
  int j = 0;
  for (; j + 2 * LANES <= block_size; j += 2 * LANES)
    score_lanes(query, key + j / LANES * step, dim, block_size, heads, 2, layout, out + j, out_stride);
  if (j < block_size)
    score_lanes(query, key + j / LANES * step, dim, block_size, heads, 1, layout, out + j, out_stride);
}

static inline __attribute__((always_inline)) void score_group(
    const float *query, const char *key, int dim, int block_size, int heads, int layout, float *out,
    int64_t out_stride) {
  int h = 0;
#define SCORE(n) score_block(query + h * dim, key, dim, block_size, n, layout, out + h * out_stride, out_stride)
  for (; h + TILE <= heads; h += TILE) SCORE(TILE);
  switch (heads - h) {
    case 3: SCORE(3); break;
    case 2: SCORE(2); break;
    case 1: SCORE(1); break;
  }
#undef SCORE
}

// exp(x) for x <= 0, relative error 2e-7: x = n ln2 + f, exp(f) by Taylor's series on |f| <= ln2 / 2.
static inline f32v exp_nonpositive(f32v x) {
  const f32v least = (f32v){0} - 87.0f;
  const i32v keep = x > least;
  x = (f32v)(((i32v)x & keep) | ((i32v)least & ~keep));
  const i32v n = __builtin_convertvector(x * 1.44269504f - 0.5f, i32v);
  const f32v whole = __builtin_convertvector(n, f32v);
  const f32v f = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  f32v p = f * (1.0f / 5040) + 1.0f / 720;
  p = p * f + 1.0f / 120;
  p = p * f + 1.0f / 24;
  p = p * f + 1.0f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  return p * (f32v)((n + 127) << 23);
}

static inline float sum_of(f32v x) {
  float sum = 0;
  for (int i = 0; i < LANES; ++i) sum += x[i];
  return sum;
}

// Fraction of softmax(scale * scores[start:end]) on the row's spans. Works on full lanes: values
// outside of [start, end) are overwritten.
static float visual_share(float *scores, int64_t start, int64_t end, float scale,
                          const int32_t *spans, int max_spans) {
  const int64_t first = start / LANES * LANES, last = (end + LANES - 1) / LANES * LANES;
  for (int64_t j = first; j < start; ++j) scores[j] = -FLT_MAX;
  for (int64_t j = end; j < last; ++j) scores[j] = -FLT_MAX;
  f32v tops = *(const f32v_any *)(scores + first);
  for (int64_t j = first; j < last; j += LANES) {
    const f32v x = *(const f32v_any *)(scores + j);
    const i32v above = x > tops;
    tops = (f32v)(((i32v)x & above) | ((i32v)tops & ~above));
  }
  float top = tops[0];
  for (int i = 1; i < LANES; ++i) top = tops[i] > top ? tops[i] : top;
  f32v total = {0};
  for (int64_t j = first; j < last; j += LANES) {
    const f32v weight = exp_nonpositive(scale * (*(const f32v_any *)(scores + j) - top));
    *(f32v_any *)(scores + j) = weight;
    total += weight;
  }
  float visual = 0;
  for (int s = 0; s < max_spans; ++s) {
    const int64_t from = spans[2 * s] > start ? spans[2 * s] : start;
    const int64_t to = spans[2 * s + 1] < end ? spans[2 * s + 1] : end;
    for (int64_t j = from; j < to; ++j) visual += scores[j];
  }
  return visual / sum_of(total);
}

static float group_sum(const struct visual_ratio_args *a, int row, int kv_head, float *query, float *scores,
                       int64_t capacity) {
  const int group = a->heads / a->kv_heads, dim = a->dim, block_size = a->block_size;
  const int64_t end = a->seq_lens[row], start = a->window && end > a->window ? end - a->window : 0;
  const int64_t first = (int64_t)(a->query_start_loc[row + 1] - 1) * a->query_token_stride +
                        (int64_t)kv_head * group * a->query_head_stride;
  for (int h = 0; h < group; ++h)
    for (int d = 0; d < dim; ++d) {
      const int64_t at = first + h * a->query_head_stride + d;
      query[h * dim + d] = a->layout == FLOAT32 ? ((const float *)a->query)[at]
                                                : from_bf16(((const uint16_t *)a->query)[at]);
    }
  const int width = a->layout == FLOAT32 ? 4 : 2;
  for (int64_t block = start / block_size; block * block_size < end; ++block) {
    const int64_t at = a->block_table[row * a->block_table_stride + block] * a->key_block_stride +
                       kv_head * a->key_head_stride;
    const char *key = (const char *)a->key + at * width;
    if ((block + 1) * block_size < end) {  // the next block lies elsewhere: no hardware finds it
      const int64_t next = a->block_table[row * a->block_table_stride + block + 1] * a->key_block_stride +
                           kv_head * a->key_head_stride;
      for (int64_t byte = 0; byte < (int64_t)dim * block_size * width; byte += 64)
        __builtin_prefetch((const char *)a->key + next * width + byte);
    }
    float *out = scores + block * block_size;
    switch (a->layout) {
      case FLOAT32: score_group(query, key, dim, block_size, group, FLOAT32, out, capacity); break;
      case BFLOAT16: score_group(query, key, dim, block_size, group, BFLOAT16, out, capacity); break;
      case BFLOAT16_PAIRS: score_group(query, key, dim, block_size, group, BFLOAT16_PAIRS, out, capacity); break;
    }
  }
  float sum = 0;
  const int32_t *spans = a->spans + (int64_t)row * a->max_spans * 2;
  for (int h = 0; h < group; ++h)
    sum += visual_share(scores + h * capacity, start, end, a->scale, spans, a->max_spans);
  return sum;
}

enum answer { ZERO, RATIO, NONE };

static enum answer answer_of(const struct visual_ratio_args *a, int row) {
  const int32_t *spans = a->spans + (int64_t)row * a->max_spans * 2;
  enum answer answer = ZERO;  // no keys, or no visual ones
  for (int s = 0; a->seq_lens[row] > 0 && s < a->max_spans; ++s) {
    if (spans[2 * s] < 0) return NONE;
    if (spans[2 * s + 1] > spans[2 * s]) answer = RATIO;
  }
  return answer;
}

// 0, or -1 when memory ran out.
int visual_ratio(const struct visual_ratio_args *a) {
  const int tasks = a->rows * a->kv_heads, group = a->heads / a->kv_heads;
  int64_t longest = 0;
  for (int row = 0; row < a->rows; ++row) longest = a->seq_lens[row] > longest ? a->seq_lens[row] : longest;
  const int64_t capacity = (longest + a->block_size - 1) / a->block_size * a->block_size;
  float *sums = malloc(sizeof(float) * tasks);
  int failed = sums == NULL;
#pragma omp parallel if (tasks > 1)
  {
    float *query = malloc(sizeof(float) * group * (a->dim + capacity));
    if (query == NULL) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp barrier
#pragma omp for schedule(dynamic)
    for (int task = 0; task < tasks; ++task) {
      const int row = task / a->kv_heads;
      if (failed) continue;
      sums[task] = 0;
      if (answer_of(a, row) == RATIO)
        sums[task] = group_sum(a, row, task % a->kv_heads, query, query + group * a->dim, capacity);
    }
    free(query);
  }
  for (int row = 0; !failed && row < a->rows; ++row) {
    float sum = answer_of(a, row) == NONE ? NAN : 0;
    for (int h = 0; h < a->kv_heads; ++h) sum += sums[row * a->kv_heads + h];
    a->out[row] = sum / a->heads;
  }
  free(sums);
  return failed ? -1 : 0;
}
