/* Self-attention within each clip. First every head's keys and values are packed as matrices (keys transposed
 * and scaled); then each tile takes a block of queries of one clip and head past all its keys, CPU_KEYS at a
 * time, keeping the highest score and the sum of each row so far (online softmax; Milakov and Gimelshein
 * 2018, Dao et al. 2022). Memory does not grow with the square of a clip's length. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/vmath.h"

struct job {
    struct kernels_device *device;
    element *y;
    const element *qkv;
    int heads, head_dim;
    float scale;
    const struct batch *batch;
    int first_head;      /* of those that are packed now */
    int64_t width;       /* head_dim with its padding */
    int64_t head_words;  /* head_dim in words */
    int64_t key_rows;    /* of all clips, each padded to whole vectors */
    int64_t head_floats; /* of one head's packed keys and values */
    int64_t blocks;
};

/* One head's packed keys of a clip: a matrix [head_dim, tokens]. */
static float *find_keys(const struct job *j, int64_t head, int clip) {
    int64_t row = j->batch->cu_tokens[clip] / LANES * LANES + (int64_t)clip * LANES;
    return j->device->keys + head * j->head_floats + row * j->head_words;
}

/* And its values: a matrix [tokens, head_dim]. */
static float *find_values(const struct job *j, int64_t head, int clip) {
    const int64_t row =
        j->batch->cu_tokens[clip] / gemm_terms(ELEMENT_KIND) + (ELEMENT_KIND == CPU_FP32 ? 0 : clip);
    return j->device->keys + head * j->head_floats + j->key_rows * j->head_words + row * j->width;
}

/* Up to LANES words of a row; zeros behind. */
ALWAYS_INLINE vf load_words(const element *p, int64_t words) {
    return words >= LANES ? v_load((const float *)(const void *)p)
                          : v_load_first((const float *)(const void *)p, (int)words);
}

/* The word of one column at tokens from, from + 1 (bf16), or at `from`. */
ALWAYS_INLINE vf join_tokens(const element *from, int64_t stride, bool second, int64_t left) {
    const vf first = left >= LANES ? element_load(from) : element_load_first(from, (int)left);
#if CPU_HAS_BF16
    const element *next = from + stride;
    vf other = v_zero();
    if (second)
        other = left >= LANES ? element_load(next) : element_load_first(next, (int)left);
    return (vf)((vi)_mm512_srli_epi32((__m512i)first, 16) | (vi)other);
#else
    (void)stride, (void)second;
    return first;
#endif
}

/* Tokens [first, first + count) of n, the first of them a whole word's. */
static void pack_values(const struct job *j, float *to, const element *from, int64_t n, int64_t first,
                        int64_t count) {
    const int64_t stride = 3 * (int64_t)j->heads * j->head_dim, terms = gemm_terms(ELEMENT_KIND);
    for (int64_t panel = 0; panel * GEMM_PANEL < j->head_dim; panel++) {
        const int64_t width = gemm_width(j->head_dim, panel), column = panel * GEMM_PANEL;
        for (int64_t t = first; t < first + count; t += terms) {
            float *row = to + column * gemm_words(ELEMENT_KIND, n) + t / terms * width;
            for (int64_t e = 0; e < width; e += LANES)
                v_store(row + e, join_tokens(from + t * stride + column + e, stride, t + 1 < n,
                                             j->head_dim - column - e));
        }
    }
}

/* One panel of keys, LANES keys by LANES words at a time. */
static void pack_keys(const struct job *j, float *to, const element *from, int64_t n, int64_t first) {
    const int64_t stride = 3 * (int64_t)j->heads * j->head_dim, width = gemm_width(n, first / GEMM_PANEL);
    const int64_t terms = gemm_terms(ELEMENT_KIND), whole = j->head_dim / terms; /* words */
    to += first * j->head_words;
    for (int64_t t = 0; t < width; t += LANES) {
        const element *k = from + (first + t) * stride;
        const int64_t left = cpu_min(LANES, n - first - t);
        for (int64_t e = 0; e < whole; e += LANES) {
            vf block[LANES];
            for (int64_t i = 0; i < LANES; i++)
                block[i] = i < left ? load_words(k + i * stride + e * terms, whole - e) : v_zero();
            v_transpose(block);
            for (int64_t i = 0; i < cpu_min(LANES, whole - e); i++)
                v_store(to + (e + i) * width + t, block[i]);
        }
#if CPU_HAS_BF16
        for (int64_t i = 0; whole < j->head_words && i < LANES; i++) { /* an odd head_dim */
            const uint32_t bits = i < left ? k[i * stride + j->head_dim - 1] : 0;
            memcpy(to + whole * width + t + i, &bits, sizeof bits);
        }
#endif
    }
}

/* One panel's worth of keys and values of one head. */
static void pack_tile(void *arg, int64_t index, int thread) {
    const struct job *j = arg;
    const int64_t blocks = cpu_count_blocks(j->batch, GEMM_PANEL), head = index / blocks;
    const int64_t hidden = (int64_t)j->heads * j->head_dim;
    const struct cpu_block found = cpu_find_block(j->batch, GEMM_PANEL, index % blocks);
    (void)thread;
    if (found.count == 0)
        return;
    const int64_t *cu = j->batch->cu_tokens;
    const int64_t n = cu[found.clip + 1] - cu[found.clip];
    /* Blocks are equal, panels are not: the block's number gives the panel. */
    const int64_t first = (index % blocks - (cu[found.clip] / GEMM_PANEL + found.clip)) * GEMM_PANEL;
    const element *k = j->qkv + cu[found.clip] * 3 * hidden + hidden + (j->first_head + head) * j->head_dim;
    pack_keys(j, find_keys(j, head, found.clip), k, n, first);
    pack_values(j, find_values(j, head, found.clip), k + hidden, n, first, cpu_min(GEMM_PANEL, n - first));
}

ALWAYS_INLINE vf exp_weight(vf x) {
#if CPU_HAS_BF16
    return vmath_exp_short(x);
#else
    return vmath_exp(x);
#endif
}

/* The highest of max and s [count]. */
ALWAYS_INLINE float find_highest(const float *s, int64_t count, float max) {
    const int rest = (int)(count % LANES);
    vf high = v_set(max);
    for (int64_t i = 0; i + LANES <= count; i += LANES)
        high = v_max(high, v_load(s + i));
    if (rest)
        high = v_max(high, v_select(v_first(rest), v_load(s + count - rest), v_set(-INFINITY)));
    return v_highest(high);
}

/* s [count] becomes e^(scale (s - max)), in bf16 at the same place when products are; returns the sum. */
ALWAYS_INLINE float exponentiate(float *s, int64_t count, float max, float scale) {
    element *y = (element *)(void *)s;
    const int rest = (int)(count % LANES);
    vf total = v_zero();
    for (int64_t i = 0; i + LANES <= count; i += LANES) {
        vf e = exp_weight((v_load(s + i) - v_set(max)) * v_set(scale));
        element_store(y + i, e);
        total += e;
    }
    if (rest) {
        const int64_t i = count - rest;
        vf e = v_select(v_first(rest), exp_weight((v_load(s + i) - v_set(max)) * v_set(scale)), v_zero());
        element_store(y + i, e);
        total += e;
    }
    return v_sum(total);
}

/* What the tile knows of each row after the keys so far. */
struct rows {
    int64_t count;
    float max[CPU_QUERIES], sum[CPU_QUERIES]; /* of scores, and of e^(score - max) */
};

/* One step's scores become weights; what came before (`out`, unless this is the first step) is brought to the
 * new highest score. Row after row in each pass, as the rows do not wait for each other then. */
static void soften(const struct job *j, struct rows *r, float *scores, int64_t count, float *out,
                   bool first) {
    float max[CPU_QUERIES];
    for (int64_t i = 0; i < r->count; i++)
        max[i] = find_highest(scores + i * CPU_KEYS, count, first ? -INFINITY : r->max[i]);
    for (int64_t i = 0; !first && i < r->count; i++) {
        const vf factor = vmath_exp(v_set((r->max[i] - max[i]) * j->scale));
        r->sum[i] *= factor[0];
        for (int64_t e = i * j->width; e < (i + 1) * j->width; e += LANES)
            v_store(out + e, v_load(out + e) * factor);
    }
    for (int64_t i = 0; i < r->count; i++) {
        r->sum[i] = (first ? 0.0f : r->sum[i]) + exponentiate(scores + i * CPU_KEYS, count, max[i], j->scale);
        r->max[i] = max[i];
    }
}

/* scores [rows, count] of one step's keys, which begin at key `first` of n. */
static void find_scores(const struct job *j, float *scores, const element *q, const float *keys, int64_t rows,
                        int64_t n, int64_t first, int64_t count) {
    const int64_t terms = gemm_terms(ELEMENT_KIND);
    for (int64_t c = 0; c < count; c += GEMM_PANEL) {
        const int64_t width = gemm_width(n, (first + c) / GEMM_PANEL);
        const float *panel = keys + (first + c) * j->head_words;
        for (int64_t w = 0; w < j->head_words; w += GEMM_BLOCK) {
            const struct gemm_piece piece = {.kind = ELEMENT_KIND,
                                             .a = q + w * terms,
                                             .a_stride = 3 * (int64_t)j->heads * j->head_dim *
                                                         (int64_t)sizeof(element),
                                             .b = panel + w * width,
                                             .k = cpu_min(GEMM_BLOCK * terms, j->head_dim - w * terms),
                                             .width = width,
                                             .from = w > 0 ? scores + c : NULL};
            gemm_sums(scores + c, CPU_KEYS, &piece, rows);
        }
    }
}

/* out [rows, width] (+)= weights * the values of one step's keys. */
static void add_values(const struct job *j, float *out, const float *weights, const float *values,
                       int64_t rows, int64_t n, int64_t first, int64_t count) {
    for (int64_t c = 0; c < j->width; c += GEMM_PANEL) {
        const int64_t width = gemm_width(j->head_dim, c / GEMM_PANEL);
        const struct gemm_piece piece = {.kind = ELEMENT_KIND,
                                         .a = weights,
                                         .a_stride = CPU_KEYS * (int64_t)sizeof(float),
                                         .b = values + c * gemm_words(ELEMENT_KIND, n) +
                                              gemm_words(ELEMENT_KIND, first) * width,
                                         .k = count,
                                         .width = width,
                                         .from = first > 0 ? out + c : NULL};
        gemm_sums(out + c, j->width, &piece, rows);
    }
}

static void attend(void *arg, int64_t index, int thread) {
    const struct job *j = arg;
    const struct cpu_block block = cpu_find_block(j->batch, CPU_QUERIES, index % j->blocks);
    if (block.count == 0)
        return;
    const int64_t head = index / j->blocks, hidden = (int64_t)j->heads * j->head_dim;
    const int64_t row = j->batch->cu_tokens[block.clip], n = j->batch->cu_tokens[block.clip + 1] - row;
    const int64_t column = (j->first_head + head) * j->head_dim;
    const element *q = j->qkv + (row + block.first) * 3 * hidden + column;
    const float *keys = find_keys(j, head, block.clip), *values = find_values(j, head, block.clip);
    float *scores = j->device->attention + (size_t)thread * j->device->attention_floats;
    float *out = scores + CPU_QUERIES * CPU_KEYS; /* [CPU_QUERIES, width] */
    struct rows rows = {.count = block.count};

    for (int64_t first = 0; first < n; first += CPU_KEYS) {
        const int64_t count = cpu_min(CPU_KEYS, n - first);
        find_scores(j, scores, q, keys, block.count, n, first, count);
        soften(j, &rows, scores, count, out, first == 0);
        add_values(j, out, scores, values, block.count, n, first, count);
    }
    for (int64_t i = 0; i < block.count; i++) {
        const vf factor = v_set(1.0f / rows.sum[i]);
        element *y = j->y + (row + block.first + i) * hidden + column;
        for (int64_t e = 0; e < j->head_dim; e += LANES) {
            const vf v = v_load(out + i * j->width + e) * factor;
            if (e + LANES <= j->head_dim)
                element_store(y + e, v);
            else
                element_store_first(y + e, v, (int)(j->head_dim - e));
        }
    }
}

void CPU_NAME(attention)(struct kernels_device *d, void *y, const void *qkv, int heads, int head_dim,
                         float scale, const struct batch *b) {
    struct job j = {
        .device = d, .y = y, .qkv = qkv, .heads = heads, .head_dim = head_dim, .scale = scale, .batch = b};
    j.width = cpu_divide_up(head_dim, LANES) * LANES;
    j.head_words = gemm_words(ELEMENT_KIND, head_dim);
    j.key_rows = batch_tokens(b) / LANES * LANES + (int64_t)b->clips * LANES;
    j.head_floats =
        j.key_rows * j.head_words +
        (batch_tokens(b) / gemm_terms(ELEMENT_KIND) + (ELEMENT_KIND == CPU_FP32 ? 0 : b->clips)) * j.width;
    j.head_floats = cpu_divide_up(j.head_floats, LANES) * LANES;
    j.blocks = cpu_count_blocks(b, CPU_QUERIES);
    int64_t pairs = 0; /* of a query and a key */
    for (int i = 0; i < b->clips; i++)
        pairs += (int64_t)(b->cu_tokens[i + 1] - b->cu_tokens[i]) * (b->cu_tokens[i + 1] - b->cu_tokens[i]);
    const int together = (int)cpu_min(heads, (int64_t)d->keys_floats / j.head_floats);
    assert(together > 0);
    for (j.first_head = 0; j.first_head < heads; j.first_head += together) {
        const int64_t count = cpu_min(together, heads - j.first_head);
        cpu_for(d, count * cpu_count_blocks(b, GEMM_PANEL),
                CPU_ELEMENT_FLOP * count * batch_tokens(b) * head_dim, pack_tile, &j);
        cpu_for(d, count * j.blocks, 4 * count * pairs * head_dim, attend, &j);
    }
}
