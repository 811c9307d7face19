/* Self-attention within each clip. First every head's keys and values are packed as matrices (keys transposed
 * and scaled); then each tile takes a block of queries of one clip and head past all its keys, CPU_KEYS at a
 * time, keeping the highest score and the sum of each row so far (online softmax; Milakov and Gimelshein
 * 2018, Dao et al. 2022). Memory does not grow with the square of a clip's length. */
#include <assert.h>
#include <math.h>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/vmath.h"

struct job {
    struct kernels_device *device;
    float *y;
    const float *qkv;
    int heads, head_dim;
    float scale;
    const struct batch *batch;
    int first_head;      /* of those that are packed now */
    int64_t width;       /* head_dim with its padding */
    int64_t key_rows;    /* of all clips, each padded to whole vectors */
    int64_t head_floats; /* of one head's packed keys and values */
    int64_t blocks;
};

/* One head's packed keys of a clip: a matrix [head_dim, tokens]. */
static float *find_keys(const struct job *j, int64_t head, int clip) {
    int64_t row = j->batch->cu_tokens[clip] / LANES * LANES + (int64_t)clip * LANES;
    return j->device->keys + head * j->head_floats + row * j->head_dim;
}

/* And its values: a matrix [tokens, head_dim]. */
static float *find_values(const struct job *j, int64_t head, int clip) {
    return j->device->keys + head * j->head_floats + j->key_rows * j->head_dim +
           j->batch->cu_tokens[clip] * j->width;
}

static void pack_values(const struct job *j, float *to, const float *from, int64_t n, int64_t first,
                        int64_t count) {
    const int64_t stride = 3 * (int64_t)j->heads * j->head_dim;
    for (int64_t panel = 0; panel * GEMM_PANEL < j->head_dim; panel++) {
        const int64_t width = gemm_width(j->head_dim, panel), column = panel * GEMM_PANEL;
        for (int64_t t = first; t < first + count; t++) {
            float *row = to + column * n + t * width;
            for (int64_t e = 0; e < width; e += LANES) {
                int64_t left = j->head_dim - column - e;
                const float *v = from + t * stride + column + e;
                v_store(row + e, left >= LANES ? v_load(v) : v_load_first(v, (int)left));
            }
        }
    }
}

static void pack_keys(const struct job *j, float *to, const float *from, int64_t n, int64_t first) {
    const int64_t stride = 3 * (int64_t)j->heads * j->head_dim, width = gemm_width(n, first / GEMM_PANEL);
    to += first * j->head_dim;
    for (int64_t t = 0; t < width; t += LANES) {
        const float *k = from + (first + t) * stride;
        const int64_t left = cpu_min(LANES, n - first - t);
        for (int64_t e = 0; e < j->head_dim; e++) {
            float *column = to + e * width + t;
            if (left == LANES)
                v_store(column, v_load_strided(k + e, (int)stride) * v_set(j->scale));
            else
                for (int64_t i = 0; i < LANES; i++)
                    column[i] = i < left ? k[i * stride + e] * j->scale : 0.0f;
        }
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
    const float *k = j->qkv + cu[found.clip] * 3 * hidden + hidden + (j->first_head + head) * j->head_dim;
    pack_keys(j, find_keys(j, head, found.clip), k, n, first);
    pack_values(j, find_values(j, head, found.clip), k + hidden, n, first, cpu_min(GEMM_PANEL, n - first));
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

/* s [count] becomes e^(s - max); returns the sum. */
ALWAYS_INLINE float exponentiate(float *s, int64_t count, float max) {
    const int rest = (int)(count % LANES);
    vf total = v_zero();
    for (int64_t i = 0; i + LANES <= count; i += LANES) {
        vf e = vmath_exp(v_load(s + i) - v_set(max));
        v_store(s + i, e);
        total += e;
    }
    if (rest) {
        vf e = v_select(v_first(rest), vmath_exp(v_load(s + count - rest) - v_set(max)), v_zero());
        v_store(s + count - rest, e);
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
static void soften(struct rows *r, float *scores, int64_t count, float *out, int64_t width, bool first) {
    float max[CPU_QUERIES];
    for (int64_t i = 0; i < r->count; i++)
        max[i] = find_highest(scores + i * CPU_KEYS, count, first ? -INFINITY : r->max[i]);
    for (int64_t i = 0; !first && i < r->count; i++) {
        const vf factor = vmath_exp(v_set(r->max[i] - max[i]));
        r->sum[i] *= factor[0];
        for (int64_t e = 0; e < width; e += LANES)
            v_store(out + i * width + e, v_load(out + i * width + e) * factor);
    }
    for (int64_t i = 0; i < r->count; i++) {
        r->sum[i] = (first ? 0.0f : r->sum[i]) + exponentiate(scores + i * CPU_KEYS, count, max[i]);
        r->max[i] = max[i];
    }
}

/* scores [rows, count] of one step's keys, which begin at key `first` of n. */
static void find_scores(const struct job *j, float *scores, const float *q, const float *keys, int64_t rows,
                        int64_t n, int64_t first, int64_t count) {
    const int64_t stride = 3 * (int64_t)j->heads * j->head_dim;
    for (int64_t c = 0; c < count; c += GEMM_PANEL) {
        const int64_t width = gemm_width(n, (first + c) / GEMM_PANEL);
        const float *panel = keys + (first + c) * j->head_dim;
        for (int64_t e = 0; e < j->head_dim; e += GEMM_BLOCK)
            gemm_sums(scores + c, CPU_KEYS, q + e, stride, panel + e * width,
                      cpu_min(GEMM_BLOCK, j->head_dim - e), rows, width, e > 0, panel, 0);
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
    const float *q = j->qkv + (row + block.first) * 3 * hidden + column;
    const float *keys = find_keys(j, head, block.clip), *values = find_values(j, head, block.clip);
    float *scores = j->device->attention + (size_t)thread * j->device->attention_floats;
    float *out = scores + CPU_QUERIES * CPU_KEYS; /* [CPU_QUERIES, width] */
    struct rows rows = {.count = block.count};

    for (int64_t first = 0; first < n; first += CPU_KEYS) {
        const int64_t count = cpu_min(CPU_KEYS, n - first);
        find_scores(j, scores, q, keys, block.count, n, first, count);
        soften(&rows, scores, count, out, j->width, first == 0);
        for (int64_t c = 0; c < j->width; c += GEMM_PANEL) {
            const int64_t width = gemm_width(j->head_dim, c / GEMM_PANEL);
            const float *v = values + c * n + first * width;
            gemm_sums(out + c, j->width, scores, CPU_KEYS, v, count, block.count, width, first > 0, v, 0);
        }
    }
    for (int64_t i = 0; i < block.count; i++) {
        const float factor = 1.0f / rows.sum[i];
        float *y = j->y + (row + block.first + i) * hidden + column;
        for (int e = 0; e < j->head_dim; e++)
            y[e] = out[i * j->width + e] * factor;
    }
}

void CPU_NAME(attention)(struct kernels_device *d, void *y, const void *qkv, int heads, int head_dim,
                         float scale, const struct batch *b) {
    struct job j = {
        .device = d, .y = y, .qkv = qkv, .heads = heads, .head_dim = head_dim, .scale = scale, .batch = b};
    j.width = cpu_divide_up(head_dim, LANES) * LANES;
    j.key_rows = batch_tokens(b) / LANES * LANES + (int64_t)b->clips * LANES;
    j.head_floats = j.key_rows * head_dim + batch_tokens(b) * j.width;
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
