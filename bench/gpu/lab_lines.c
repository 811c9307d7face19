/* The lines of the laboratory: every operation of the forward pass of wav2vec2-base, for one clip of 10 s and
 * for batches, each with a short clip at the end that ref computes quickly. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/gpu/lab.h"

static const struct batch_shape tape_shape = {
    .levels = 7, .kernel = {10, 3, 3, 3, 3, 2, 2}, .stride = {5, 2, 2, 2, 2, 2, 2}};
static const struct batch_shape token_shape = {.levels = 1, .kernel = {1}, .stride = {1}};

enum { SEGMENT_ROWS = 4096, SOME_ROWS = 8, NAME_BYTES = 96 };

/* Sizes of the model. */
struct sizes {
    int hidden, wide, channels, heads, pos_kernel, pos_groups;
};
static struct sizes sizes_of(const struct lab *lab) {
    return lab->tiny ? (struct sizes){64, 256, 32, 2, 16, 4} : (struct sizes){768, 3072, 512, 12, 128, 16};
}

/* `clips` clips of `tokens` tokens, and a short one when there are more than one. */
struct layout {
    const char *name;
    int clips, tokens;
};
static const struct layout layouts[] = {{"1x10s", 1, 499}, {"10x10s", 10, 499}, {"32x10s", 32, 499}};
static const struct layout tiny_layouts[] = {{"1 tiny", 1, 21}, {"2 tiny", 2, 21}};
enum { SHORT_TOKENS = 37, TINY_SHORT_TOKENS = 5 };

static void make_batch(struct batch *b, struct arena *a, const struct lab *lab, const struct layout *l,
                       const struct batch_shape *s) {
    int64_t samples[64];
    struct arena counting;
    struct status st;
    const int64_t step = s == &tape_shape ? 320 : 1, least = s == &tape_shape ? 400 : 1;
    int count = 0;
    for (; count < l->clips; count++)
        samples[count] = least + (l->tokens - 1) * step;
    if (l->clips > 1)
        samples[count++] = least + ((lab->tiny ? TINY_SHORT_TOKENS : SHORT_TOKENS) - 1) * step;
    arena_init_counting(&counting);
    batch_init(b, s, count, &counting);
    if (arena_init(a, counting.used, "a batch", &st)) {
        fprintf(stderr, "bench_gpu_lab: %s\n", st.message);
        exit(3);
    }
    batch_init(b, s, count, a);
    batch_plan(b, s, count, samples);
}

/* A batch of the last clip of `b` alone. */
static void make_last(struct batch *last, struct arena *a, const struct lab *lab, const struct batch *b,
                      const struct batch_shape *s) {
    const struct layout one = {"", 1, (int)(b->cu_tokens[b->clips] - b->cu_tokens[b->clips - 1])};
    make_batch(last, a, lab, &one, s);
}

static bool name_call(struct lab_call *c, char *text, const struct lab *lab, const char *what,
                      const struct layout *l) {
    *c = (struct lab_call){.name = text, .error = -1, .sets = 1};
    snprintf(text, NAME_BYTES, "%s, %s", what, l->name);
    return lab_wants(lab, text);
}

/* ---- products ---- */

static void run_linear(const struct lab *lab, struct kernels_device *d, const struct lab_call *c, int set) {
    lab->k->linear(d, lab_at(&c->y, set), lab_at(&c->x, set), &c->w[set], c->act,
                   c->has_residual ? lab_at(&c->residual, set) : NULL, c->rows);
}

static void add_linear(struct lab *lab, const struct layout *l, const struct batch *b, const char *what,
                       int in, int out, enum kernels_activation act, bool residual) {
    char name[NAME_BYTES];
    struct lab_call c;
    if (!name_call(&c, name, lab, what, l))
        return;
    const double e = (double)lab->element_bytes, rows = (double)batch_tokens(b);
    c.run = run_linear, c.batch = b, c.act = act, c.rows = batch_tokens(b), c.has_residual = residual;
    c.flop = 2 * rows * in * out;
    c.bytes = e * (rows * in + rows * out * (residual ? 2 : 1) + (double)in * out);
    c.sets = lab_count_sets(lab, c.bytes);
    lab_array_init(lab, &c.x, c.rows * in, LAB_NUMBERS, c.sets);
    lab_array_init(lab, &c.y, c.rows * out, LAB_RESULTS, c.sets);
    if (residual)
        lab_array_init(lab, &c.residual, c.rows * out, LAB_NUMBERS, c.sets);
    lab_weights_init(
        lab, &c,
        &(struct kernels_weight_spec){.kind = KERNELS_LINEAR, .in = in, .out = out, .has_bias = true});
    const int64_t some = c.rows < SOME_ROWS ? c.rows : SOME_ROWS;
    for (int end = 0; end < 2; end++) {
        const int64_t first = end ? c.rows - some : 0;
        float *x = lab_copy(lab, first * in, some * in), *r = lab_copy(lab, first * out, some * out),
              *expected = lab_copy(lab, 0, some * out),
              *y = lab_run_once(lab, &c, false, first * out, some * out);
        kernels_ref.linear(lab->ref, expected, x, &c.ref_w, act, residual ? r : NULL, some);
        lab_compare(&c, y, expected, some * out);
        free(x), free(r), free(expected), free(y);
    }
    lab_finish(lab, &c);
}

/* Rows of each level of the first segment of the tape, as wav2vec2.c cuts it. */
static void plan_segment(int64_t *rows, const struct batch *b) {
    const int64_t all = b->tape_rows[tape_shape.levels];
    rows[tape_shape.levels] = all < SEGMENT_ROWS ? all : SEGMENT_ROWS;
    for (int l = tape_shape.levels - 1; l >= 0; l--)
        rows[l] = (rows[l + 1] - 1) * tape_shape.stride[l] + tape_shape.kernel[l];
}

static void run_conv(const struct lab *lab, struct kernels_device *d, const struct lab_call *c, int set) {
    lab->k->conv(d, lab_at(&c->y, set), lab_at(&c->x, set), &c->w[set], c->act,
                 c->has_stats ? lab_at(&c->stats, 0) : NULL, c->level, (struct kernels_rows){0, c->rows},
                 c->batch);
}

static void verify_conv(struct lab *lab, struct lab_call *c, int in, int out) {
    const int stride = tape_shape.stride[c->level - 1], kernel = tape_shape.kernel[c->level - 1];
    const int64_t some = c->rows < SOME_ROWS ? c->rows : SOME_ROWS;
    /* The last rows of level 1 may lie between two clips, where nothing is written. */
    for (int end = 0; end < (c->level == 1 ? 1 : 2); end++) {
        const int64_t first = end ? c->rows - some : 0;
        float *x = lab_copy(lab, first * stride * in, ((some - 1) * stride + kernel) * in),
              *expected = lab_copy(lab, 0, some * out), *stats = lab_copy(lab, 0, 2 * out),
              *y = lab_run_once(lab, c, false, first * out, some * out);
        kernels_ref.conv(lab->ref, expected, x, &c->ref_w, c->act, c->has_stats ? stats : NULL, c->level,
                         (struct kernels_rows){first, some}, c->batch);
        lab_compare(c, y, expected, some * out);
        free(x), free(expected), free(stats), free(y);
    }
}

static void add_conv(struct lab *lab, const struct layout *l, const struct batch *b, int level) {
    const struct sizes s = sizes_of(lab);
    const int in = level == 1 ? 1 : s.channels, out = s.channels, kernel = tape_shape.kernel[level - 1];
    const double e = (double)lab->element_bytes;
    char name[NAME_BYTES], what[32];
    struct lab_call c;
    int64_t rows[BATCH_LEVELS_MAX + 1];
    snprintf(what, sizeof what, "conv%d", level - 1);
    if (!name_call(&c, name, lab, what, l))
        return;
    plan_segment(rows, b);
    const int64_t x_rows = rows[level - 1] + lab->k->spare_rows(lab->device);
    c.run = run_conv, c.batch = b, c.level = level, c.act = KERNELS_GELU, c.has_stats = level == 1;
    c.rows = rows[level];
    c.flop = 2 * (double)c.rows * in * out * kernel;
    c.bytes = (double)rows[level - 1] * in * (level == 1 ? 4 : e) + (double)c.rows * out * e +
              (double)in * out * kernel * e;
    c.sets = lab_count_sets(lab, c.bytes);
    lab_array_init(lab, &c.x, x_rows * in, level == 1 ? LAB_NUMBERS_FP32 : LAB_NUMBERS, c.sets);
    lab_array_init(lab, &c.y, (c.rows + lab->k->spare_rows(lab->device)) * out, LAB_RESULTS, c.sets);
    if (c.has_stats)
        lab_array_init(lab, &c.stats, 2 * out * (int64_t)b->clips, LAB_NUMBERS_FP32, 1);
    lab_weights_init(
        lab, &c,
        &(struct kernels_weight_spec){.kind = KERNELS_CONV,
                                      .in = in,
                                      .out = out,
                                      .kernel = kernel,
                                      .stride = tape_shape.stride[level - 1],
                                      .groups = 1,
                                      .norm = level == 1 ? KERNELS_NORM_GROUP : KERNELS_NORM_NONE});
    verify_conv(lab, &c, in, out);
    lab_finish(lab, &c);
}

/* ---- over the samples ---- */

static void run_input_norm(const struct lab *lab, struct kernels_device *d, const struct lab_call *c,
                           int set) {
    lab->k->input_norm(d, lab_at(&c->y, set), lab_at(&c->x, set), c->batch);
}

static void run_group_stats(const struct lab *lab, struct kernels_device *d, const struct lab_call *c,
                            int set) {
    lab->k->group_stats(d, lab_at(&c->y, set), lab_at(&c->x, set), &c->w[set], c->batch);
}

static void add_over_samples(struct lab *lab, const struct layout *l, const struct batch *b, bool stats) {
    const struct sizes s = sizes_of(lab);
    char name[NAME_BYTES];
    struct lab_call c;
    struct batch last;
    struct arena a;
    if (!name_call(&c, name, lab, stats ? "group_stats" : "input_norm", l))
        return;
    const int64_t samples = b->tape_rows[0], first = b->offset[b->clips - 1];
    const int64_t results = stats ? (int64_t)b->clips * s.channels * 2 : samples;
    /* A graph's batch is rounded up, by a sixteenth or 16 rows, and so far zeros are written. */
    const int64_t spare = samples / 8 + 32 * 320;
    c.run = stats ? run_group_stats : run_input_norm, c.batch = b, c.rows = samples;
    c.bytes = 4.0 * ((double)samples + (double)results);
    c.flop = stats ? 2.0 * 65 * (double)b->tape_rows[1] : 5.0 * (double)samples;
    c.sets = lab_count_sets(lab, c.bytes);
    lab_array_init(lab, &c.x, samples + spare, LAB_NUMBERS_FP32, c.sets);
    lab_array_init(lab, &c.y, results + spare, LAB_RESULTS_FP32, c.sets);
    lab_weights_init(lab, &c,
                     &(struct kernels_weight_spec){.kind = KERNELS_CONV,
                                                   .in = 1,
                                                   .out = s.channels,
                                                   .kernel = 10,
                                                   .stride = 5,
                                                   .groups = 1,
                                                   .norm = KERNELS_NORM_GROUP});
    make_last(&last, &a, lab, b, &tape_shape);
    const int64_t n = stats ? 2 * s.channels : last.tape_rows[0];
    float *x = lab_copy(lab, first, samples - first), *expected = lab_copy(lab, 0, n),
          *y = lab_run_once(lab, &c, true, stats ? (b->clips - 1) * n : first, n);
    if (stats)
        kernels_ref.group_stats(lab->ref, expected, x, &c.ref_w, &last);
    else
        kernels_ref.input_norm(lab->ref, expected, x, &last);
    lab_compare(&c, y, expected, n);
    free(x), free(expected), free(y);
    arena_free(&a);
    lab_finish(lab, &c);
}

static void run_compact(const struct lab *lab, struct kernels_device *d, const struct lab_call *c, int set) {
    lab->k->compact(d, lab_at(&c->y, set), lab_at(&c->x, set), c->channels, (struct kernels_rows){0, c->rows},
                    c->batch);
}

static void add_compact(struct lab *lab, const struct layout *l, const struct batch *b) {
    char name[NAME_BYTES];
    struct lab_call c;
    if (!name_call(&c, name, lab, "compact", l))
        return;
    c.run = run_compact, c.batch = b, c.channels = sizes_of(lab).channels, c.rows = b->tape_rows[b->levels];
    c.bytes = (double)lab->element_bytes * 2 * (double)batch_tokens(b) * c.channels;
    c.sets = lab_count_sets(lab, c.bytes);
    const int64_t n = batch_tokens(b) * c.channels;
    lab_array_init(lab, &c.x, c.rows * c.channels, LAB_NUMBERS, c.sets);
    lab_array_init(lab, &c.y, n, LAB_RESULTS, c.sets);
    float *x = lab_copy(lab, 0, c.rows * c.channels), *expected = lab_copy(lab, 0, n),
          *y = lab_run_once(lab, &c, false, 0, n);
    kernels_ref.compact(lab->ref, expected, x, c.channels, (struct kernels_rows){0, c.rows}, b);
    lab_compare(&c, y, expected, n);
    free(x), free(expected), free(y);
    lab_finish(lab, &c);
}

/* ---- over the tokens of a clip ---- */

static void run_attention(const struct lab *lab, struct kernels_device *d, const struct lab_call *c,
                          int set) {
    lab->k->attention(d, lab_at(&c->y, set), lab_at(&c->x, set), c->heads, c->channels / c->heads, 0.125f,
                      c->batch);
}

static void run_pos_conv(const struct lab *lab, struct kernels_device *d, const struct lab_call *c, int set) {
    lab->k->pos_conv(d, lab_at(&c->y, set), lab_at(&c->x, set), &c->w[set], KERNELS_GELU, c->batch);
}

static void run_pool(const struct lab *lab, struct kernels_device *d, const struct lab_call *c, int set) {
    lab->k->pool(d, lab_at(&c->y, set), lab_at(&c->x, set), KERNELS_POOL_MEAN, c->channels, c->batch);
}

enum clipwise { ATTENTION, POS_CONV, POOL };

/* ref for the last clip alone, compared with its part of the batch. */
static void verify_clipwise(struct lab *lab, struct lab_call *c, enum clipwise kind) {
    struct batch last;
    struct arena a;
    const int h = c->channels, width = kind == ATTENTION ? 3 * h : h;
    const int64_t first = c->batch->cu_tokens[c->batch->clips - 1], tokens = c->rows - first;
    const int64_t n = kind == POOL ? h : tokens * h;
    make_last(&last, &a, lab, c->batch, &token_shape);
    float *x = lab_copy(lab, first * width, tokens * width), *expected = lab_copy(lab, 0, n),
          *y = lab_run_once(lab, c, kind == POOL,
                            kind == POOL ? (c->batch->clips - 1) * (int64_t)h : first * h, n);
    if (kind == ATTENTION)
        kernels_ref.attention(lab->ref, expected, x, c->heads, h / c->heads, 0.125f, &last);
    else if (kind == POS_CONV)
        kernels_ref.pos_conv(lab->ref, expected, x, &c->ref_w, KERNELS_GELU, &last);
    else
        kernels_ref.pool(lab->ref, expected, x, KERNELS_POOL_MEAN, h, &last);
    lab_compare(c, y, expected, n);
    free(x), free(expected), free(y);
    arena_free(&a);
}

static double count_clipwise(const struct batch *b, const struct sizes *s, enum clipwise kind) {
    double flop = 0;
    for (int i = 0; i < b->clips; i++) {
        const double t = (double)(b->cu_tokens[i + 1] - b->cu_tokens[i]), h = s->hidden;
        flop += kind == ATTENTION  ? 4 * t * t * h
                : kind == POS_CONV ? 2 * t * h * (h / s->pos_groups) * s->pos_kernel
                                   : t * h;
    }
    return flop;
}

static void add_clipwise(struct lab *lab, const struct layout *l, const struct batch *b, enum clipwise kind) {
    static const char *const names[] = {"attention", "pos_conv", "pool"};
    const struct sizes s = sizes_of(lab);
    char name[NAME_BYTES];
    struct lab_call c;
    if (!name_call(&c, name, lab, names[kind], l))
        return;
    const int width = kind == ATTENTION ? 3 * s.hidden : s.hidden;
    c.run = kind == ATTENTION ? run_attention : kind == POS_CONV ? run_pos_conv : run_pool;
    c.batch = b, c.rows = batch_tokens(b), c.channels = s.hidden, c.heads = s.heads;
    c.flop = count_clipwise(b, &s, kind);
    c.bytes = (double)lab->element_bytes * (double)c.rows * (width + (kind == POOL ? 0 : s.hidden));
    c.sets = lab_count_sets(lab, c.bytes);
    lab_array_init(lab, &c.x, c.rows * width, LAB_NUMBERS, c.sets);
    if (kind == POOL)
        lab_array_init(lab, &c.y, (int64_t)b->clips * s.hidden, LAB_RESULTS_FP32, c.sets);
    else
        lab_array_init(lab, &c.y, c.rows * s.hidden, LAB_RESULTS, c.sets);
    if (kind == POS_CONV)
        lab_weights_init(lab, &c,
                         &(struct kernels_weight_spec){.kind = KERNELS_POS_CONV,
                                                       .in = s.hidden,
                                                       .out = s.hidden,
                                                       .kernel = s.pos_kernel,
                                                       .stride = 1,
                                                       .groups = s.pos_groups,
                                                       .has_bias = true});
    verify_clipwise(lab, &c, kind);
    lab_finish(lab, &c);
}

/* ---- row by row ---- */

static void run_layer_norm(const struct lab *lab, struct kernels_device *d, const struct lab_call *c,
                           int set) {
    lab->k->layer_norm(d, lab_at(&c->y, set), lab_at(&c->x, set), &c->w[set], c->rows);
}

static void run_accumulate(const struct lab *lab, struct kernels_device *d, const struct lab_call *c,
                           int set) {
    lab->k->accumulate(d, lab_at(&c->y, set), lab_at(&c->x, set), 0.5f, true, c->rows, c->channels);
}

static void add_rowwise(struct lab *lab, const struct layout *l, const struct batch *b, bool norm) {
    char name[NAME_BYTES];
    struct lab_call c;
    if (!name_call(&c, name, lab, norm ? "layer_norm" : "accumulate", l))
        return;
    const int h = sizes_of(lab).hidden;
    c.run = norm ? run_layer_norm : run_accumulate, c.batch = b, c.rows = batch_tokens(b), c.channels = h;
    c.bytes = (double)lab->element_bytes * 2 * (double)c.rows * h;
    c.flop = (norm ? 8.0 : 1.0) * (double)c.rows * h;
    c.sets = lab_count_sets(lab, c.bytes);
    lab_array_init(lab, &c.x, c.rows * h, LAB_NUMBERS, c.sets);
    lab_array_init(lab, &c.y, c.rows * h, LAB_RESULTS, c.sets);
    if (norm)
        lab_weights_init(lab, &c, &(struct kernels_weight_spec){.kind = KERNELS_LAYER_NORM, .out = h});
    float *x = lab_copy(lab, 0, c.rows * h), *expected = lab_copy(lab, 0, c.rows * h),
          *y = lab_run_once(lab, &c, false, 0, c.rows * h);
    if (norm)
        kernels_ref.layer_norm(lab->ref, expected, x, &c.ref_w, c.rows);
    else
        kernels_ref.accumulate(lab->ref, expected, x, 0.5f, true, c.rows, h);
    lab_compare(&c, y, expected, c.rows * h);
    free(x), free(expected), free(y);
    lab_finish(lab, &c);
}

static void run_layout(struct lab *lab, const struct layout *l) {
    const struct sizes s = sizes_of(lab);
    struct batch tape, tokens;
    struct arena tape_arena, tokens_arena;
    make_batch(&tape, &tape_arena, lab, l, &tape_shape);
    make_batch(&tokens, &tokens_arena, lab, l, &token_shape);
    add_over_samples(lab, l, &tape, false);
    add_over_samples(lab, l, &tape, true);
    for (int level = 1; level <= tape_shape.levels; level++)
        add_conv(lab, l, &tape, level);
    add_compact(lab, l, &tape);
    add_linear(lab, l, &tokens, "projection", s.channels, s.hidden, KERNELS_IDENTITY, false);
    add_clipwise(lab, l, &tokens, POS_CONV);
    add_rowwise(lab, l, &tokens, true);
    add_linear(lab, l, &tokens, "qkv", s.hidden, 3 * s.hidden, KERNELS_IDENTITY, false);
    add_clipwise(lab, l, &tokens, ATTENTION);
    add_linear(lab, l, &tokens, "attention out", s.hidden, s.hidden, KERNELS_IDENTITY, true);
    add_linear(lab, l, &tokens, "ffn in", s.hidden, s.wide, KERNELS_GELU, false);
    add_linear(lab, l, &tokens, "ffn out", s.wide, s.hidden, KERNELS_IDENTITY, true);
    add_rowwise(lab, l, &tokens, false);
    add_clipwise(lab, l, &tokens, POOL);
    arena_free(&tape_arena);
    arena_free(&tokens_arena);
}

void lab_run_lines(struct lab *lab) {
    const struct layout *all = lab->tiny ? tiny_layouts : layouts;
    const size_t count =
        lab->tiny ? sizeof tiny_layouts / sizeof *tiny_layouts : sizeof layouts / sizeof *layouts;
    for (size_t i = 0; i < count; i++)
        run_layout(lab, &all[i]);
}
