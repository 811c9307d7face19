/* Every backend against ref: the operations that know where a clip begins and ends. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/blas.h"
#include "tests/unit/kernels/bed.h"

/* A library of matrix products that has no algorithm for anything, when told so. */
static bool no_plans;
int __real_blas_plan(struct blas *b, const struct blas_shape *s, int *plan, struct status *st);
int __wrap_blas_plan(struct blas *b, const struct blas_shape *s, int *plan, struct status *st);
int __wrap_blas_plan(struct blas *b, const struct blas_shape *s, int *plan, struct status *st) {
    if (!no_plans)
        return __real_blas_plan(b, s, plan, st);
    *plan = -1;
    return 0;
}

/* A batch of clips of one layer that makes tokens of samples. */
static const struct batch_shape plain = {.levels = 1, .kernel = {1}, .stride = {1}};

static const int64_t token_counts[][CLIPS] = {
    {1},        {2},          {49},   {1, 1, 1}, {17, 1, 149, 5, 40, 64}, {300, 3, 257}, {530},
    {3, 1, 18}, {70, 2, 131}, {1100}, {600},
};

static int count_clips(const int64_t *counts) {
    int n = 0;
    while (n < CLIPS && counts[n] > 0)
        n++;
    return n;
}

static void end_batch(struct bed *bed) {
    bed->k->end(bed->d);
    bed_finish(bed);
}

/* ---- convolutions
 * ------------------------------------------------------------------------------------------- */

struct conv_case {
    enum effort effort;
    int level, in, out;
    enum kernels_conv_norm norm;
    enum kernels_activation act;
    bool bias;
    double offset; /* of the samples' mean */
};

/* Cut into segments, every row has the bits it had. */
static void check_segments(struct bed *bed, const struct conv_case *c, const struct kernels_weight *w,
                           const float *x, void *y, const float *stats, const struct batch *b) {
    const int64_t to = b->tape_rows[c->level], spare = bed->k->spare_rows(bed->d);
    for (int64_t first = 0, count; first < to; first += count) {
        count = random_int(1, bed->effort == FULL ? 40 : 200);
        count = count < to - first ? count : to - first;
        const int64_t read = (count - 1) * w->stride + w->kernel;
        float *input = new_floats((read + spare) * c->in);
        memcpy(input, x + first * w->stride * c->in, (size_t)(read * c->in) * sizeof *input);
        void *cut = make_activations(bed, (count + spare) * c->out);
        void *device_input = c->level == 1 ? put_floats(bed, input, read + spare)
                                           : put_activations(bed, input, (read + spare) * c->in);
        bed_begin(bed, b);
        bed->k->conv(bed->d, cut, device_input, w, c->act, stats, c->level,
                     (struct kernels_rows){first, count}, b);
        end_batch(bed);
        float *taken = take_activations(bed, cut, count * c->out);
        float *whole = take_activations(bed, activation_at(bed, y, first * c->out), count * c->out);
        /* Rows between clips are undefined; with a group norm they need not even be written. */
        for (int64_t r = 0; r < count; r++) {
            const int clip = batch_find_clip(b, c->level, first + r);
            if (first + r < b->offset[clip] / b->step[c->level] + batch_rows(b, c->level, clip))
                assert_same_bits(bed, taken + r * c->out, whole + r * c->out, c->out, "a segment of conv");
        }
        free(input), free(taken), free(whole);
        drop(bed, cut), drop(bed, device_input);
    }
}

static void check_conv(struct bed *bed, const struct batch_shape *shape, const struct conv_case *c,
                       const struct batch *b) {
    const int level = c->level, in = c->in, out = c->out;
    struct kernels_weight_spec s = {.kind = KERNELS_CONV,
                                    .in = in,
                                    .out = out,
                                    .kernel = shape->kernel[level - 1],
                                    .stride = shape->stride[level - 1],
                                    .groups = 1,
                                    .norm = c->norm,
                                    .eps = 1e-5f,
                                    .has_bias = c->bias};
    struct weights w;
    weights_init(&w, bed, &s);
    const int64_t from = b->tape_rows[level - 1], to = b->tape_rows[level],
                  spare = bed->k->spare_rows(bed->d);
    float *x = new_random((from + spare) * in, 1), *expected = new_floats(to * out);
    for (int64_t i = 0; i < from * in; i++)
        x[i] += (float)c->offset;
    void *dx =
        level == 1 ? put_floats(bed, x, (from + spare) * in) : put_activations(bed, x, (from + spare) * in);
    void *y = make_activations(bed, (to + spare) * out);
    const bool group = c->norm == KERNELS_NORM_GROUP;
    void *stats = group ? make_floats(bed, b->clips * out * 2) : NULL;
    float *ref_stats = new_floats(b->clips * out * 2);

    bed_begin(bed, b);
    if (group)
        bed->k->group_stats(bed->d, stats, dx, &w.mine, b);
    bed->k->conv(bed->d, y, dx, &w.mine, c->act, stats, level, (struct kernels_rows){0, to}, b);
    end_batch(bed);
    if (group) {
        kernels_ref.group_stats(bed->ref, ref_stats, x, &w.ref, b);
        check_floats(bed, stats, ref_stats, b->clips * out * 2, 0.5, "group_stats");
    }
    kernels_ref.conv(bed->ref, expected, x, &w.ref, c->act, group ? ref_stats : NULL, level,
                     (struct kernels_rows){0, to}, b);
    for (int i = 0; i < b->clips; i++) { /* rows between clips are undefined */
        const int64_t first = b->offset[i] / b->step[level] * out;
        check_activations(bed, activation_at(bed, y, first), expected + first, batch_rows(b, level, i) * out,
                          bed->bf16 ? 1 : 1 + 4 * fabs(c->offset), "conv");
    }
    check_segments(bed, c, &w.mine, x, y, stats, b);
    free(x), free(expected), free(ref_stats);
    drop(bed, dx), drop(bed, y);
    if (group)
        drop(bed, stats);
    weights_free(&w, bed);
}

static void check_convs(struct bed *bed, const struct batch_shape *shape, const int64_t *samples, int clips,
                        const struct conv_case *cases, int count) {
    struct batch b;
    struct arena a;
    batch_new(&b, &a, shape, clips, samples);
    for (int i = 0; i < count; i++)
        if (cases[i].effort <= bed->effort)
            check_conv(bed, shape, &cases[i], &b);
    arena_free(&a);
}

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

static void conv_body(struct bed *bed) {
    static const struct batch_shape usual = {.levels = 3, .kernel = {10, 3, 2}, .stride = {5, 2, 2}};
    static const struct batch_shape odd = {.levels = 2, .kernel = {7, 5}, .stride = {3, 1}};
    static const struct batch_shape wide = {.levels = 1, .kernel = {40}, .stride = {11}};
    const int64_t many[] = {900, 40, 4001, 333}, few[] = {100, 40, 333};
    /* One clip has more rows than the kernels take at a time, so that partial sums are added; a clip of one
     * row has no variance to speak of. */
    const int64_t small[] = {900, 40, 3001}, lone[] = {900, 73, 4001};
    static const struct conv_case of_usual[] = {
        {SMALL, 1, 1, 8, KERNELS_NORM_GROUP, KERNELS_GELU, false, 0},
        {SMALL, 1, 1, 33, KERNELS_NORM_GROUP, KERNELS_GELU, true, 20},
        {FULL, 1, 1, 64, KERNELS_NORM_GROUP, KERNELS_GELU, false, 0},
        {FULL, 1, 1, 97, KERNELS_NORM_GROUP, KERNELS_RELU, true, 0},
        {SMALL, 1, 1, 32, KERNELS_NORM_LAYER, KERNELS_GELU, true, 0},
        {SMALL, 1, 1, 5, KERNELS_NORM_NONE, KERNELS_TANH, true, 0},
        {SMALL, 2, 8, 16, KERNELS_NORM_NONE, KERNELS_GELU, true, 0},
        {SMALL, 3, 16, 8, KERNELS_NORM_LAYER, KERNELS_GELU, true, 0},
        {SMALL, 2, 32, 40, KERNELS_NORM_NONE, KERNELS_GELU, false, 0},
        {SMALL, 2, 64, 32, KERNELS_NORM_LAYER, KERNELS_GELU, false, 0},
        {SMALL, 2, 8, 512, KERNELS_NORM_LAYER, KERNELS_GELU, true, 0},
        {SMALL, 3, 64, 64, KERNELS_NORM_NONE, KERNELS_GELU_TANH, true, 0},
        {FULL, 2, 64, 130, KERNELS_NORM_NONE, KERNELS_GELU, false, 0},
        {FULL, 2, 192, 200, KERNELS_NORM_LAYER, KERNELS_GELU, true, 0},
        {SMALL, 3, 19, 6, KERNELS_NORM_LAYER, KERNELS_SILU, true, 0},
    };
    static const struct conv_case of_odd[] = {
        {SMALL, 2, 3, 7, KERNELS_NORM_NONE, KERNELS_GELU_TANH, true, 0},
        {SMALL, 2, 8, 16, KERNELS_NORM_NONE, KERNELS_RELU, true, 0}, /* a kernel of more than two strides */
        {FULL, 1, 1, 70, KERNELS_NORM_GROUP, KERNELS_IDENTITY, true, 0},
    };
    static const struct conv_case of_wide[] = {
        {SMALL, 1, 1, 20, KERNELS_NORM_GROUP, KERNELS_GELU, true, 0},
    };
    static const struct batch_shape sparse = {.levels = 1, .kernel = {4}, .stride = {130}};
    static const struct conv_case of_sparse[] = {
        {SMALL, 1, 1, 9, KERNELS_NORM_GROUP, KERNELS_GELU, true, 0},
    };
    const bool full = bed->effort == FULL;
    check_convs(bed, &usual, full ? many : small, full ? 4 : 3, of_usual, COUNT(of_usual));
    check_convs(bed, &odd, full ? many : few, full ? 4 : 3, of_odd, COUNT(of_odd));
    check_convs(bed, &wide, lone, 3, of_wide, COUNT(of_wide));
    check_convs(bed, &sparse, (int64_t[]){900, 300, 9000}, 3, of_sparse, COUNT(of_sparse));
}

static void test_conv(void **state) {
    (void)state;
    for_each_bed(conv_body);
}

/* What libraries may or may not offer: products of rows that overlap, any product, convolutions with bias and
 * activation in one. (On a GPU the last two are as they are.) */
static void gemm_body(struct bed *bed) {
    if (!bed->k->on_host && bed->subject->options.conv_way == KERNELS_CONV_GEMM)
        conv_body(bed);
}

static void cudnn_body(struct bed *bed) {
    if (!bed->k->on_host && bed->subject->options.conv_way == KERNELS_CONV_CUDNN)
        conv_body(bed);
}

static void test_conv_libraries(void **state) {
    (void)state;
    setenv("TIMBRE_CUDA_OVERLAP", "0", 1);
    for_each_bed(gemm_body);
    unsetenv("TIMBRE_CUDA_OVERLAP");
    no_plans = true;
    for_each_bed(gemm_body);
    no_plans = false;
    setenv("TIMBRE_SHIM_DNN_FUSED", "0", 1);
    for_each_bed(cudnn_body);
    setenv("TIMBRE_SHIM_DNN_FUSED", "1", 1);
    for_each_bed(cudnn_body);
    unsetenv("TIMBRE_SHIM_DNN_FUSED");
}

static void input_norm_body(struct bed *bed) {
    const struct batch_shape shape = {.levels = 3, .kernel = {10, 3, 5}, .stride = {5, 2, 5}};
    const int64_t samples[] = {60, 65, 1001, bed->effort == FULL ? 50000 : 20000};
    struct batch b;
    struct arena a;
    batch_new(&b, &a, &shape, 4, samples);
    const int64_t n = b.tape_rows[0], all = count_tape_samples(&shape, &b, extent_of(bed, &b));
    float *x = new_random(all, 0.1), *expected = new_floats(all);
    for (int64_t i = b.offset[2]; i < n; i++)
        x[i] += 3.0f;
    for (int64_t i = 0; i < b.offset[1]; i++)
        x[i] = 0.25f; /* no variance at all */
    void *dx = put_floats(bed, x, all), *y = make_floats(bed, all);
    kernels_ref.input_norm(bed->ref, expected, x, &b);
    bed_begin(bed, &b);
    bed->k->input_norm(bed->d, y, dx, &b);
    bed->k->input_norm(bed->d, dx, dx, &b);
    end_batch(bed);
    check_floats(bed, y, expected, n, 1, "input_norm");
    float *apart = take_floats(bed, y, n), *in_place = take_floats(bed, dx, n);
    assert_same_bits(bed, in_place, apart, n, "input_norm in place");
    free(x), free(expected), free(apart), free(in_place);
    drop(bed, dx), drop(bed, y);
    arena_free(&a);
}

static void test_input_norm(void **state) {
    (void)state;
    for_each_bed(input_norm_body);
}

/* ---- tokens
 * ------------------------------------------------------------------------------------------------- */

struct pos_conv_case {
    enum effort effort;
    int counts, channels, groups, kernel;
    enum kernels_activation act;
    bool affine;
};

static void check_pos_conv(struct bed *bed, const struct pos_conv_case *c) {
    struct kernels_weight_spec s = {.kind = KERNELS_POS_CONV,
                                    .in = c->channels,
                                    .out = c->channels,
                                    .kernel = c->kernel,
                                    .stride = 1,
                                    .groups = c->groups,
                                    .has_bias = true,
                                    .has_input_affine = c->affine};
    const int64_t *counts = token_counts[c->counts];
    struct weights w;
    struct batch b;
    struct arena a;
    weights_init(&w, bed, &s);
    batch_new(&b, &a, &plain, count_clips(counts), counts);
    const int64_t n = batch_tokens(&b) * c->channels, all = extent_of(bed, &b).tokens * c->channels;
    float *x = new_random(all, 1), *expected = new_floats(n);
    void *dx = put_activations(bed, x, all), *y = make_activations(bed, all);
    kernels_ref.pos_conv(bed->ref, expected, x, &w.ref, c->act, &b);
    bed_begin(bed, &b);
    bed->k->pos_conv(bed->d, y, dx, &w.mine, c->act, &b);
    end_batch(bed);
    check_activations(bed, y, expected, n, 1, "pos_conv");
    free(x), free(expected);
    drop(bed, dx), drop(bed, y);
    arena_free(&a);
    weights_free(&w, bed);
}

static void pos_conv_body(struct bed *bed) {
    static const struct pos_conv_case cases[] = {
        /* 16 channels a group up to 128, and 3 */
        {SMALL, 7, 32, 2, 5, KERNELS_GELU, true},
        {SMALL, 7, 64, 2, 7, KERNELS_GELU, true},
        {SMALL, 7, 48, 1, 128, KERNELS_GELU, false},
        {SMALL, 7, 64, 1, 19, KERNELS_GELU_TANH, true},
        {SMALL, 7, 80, 1, 2, KERNELS_GELU, true},
        {SMALL, 7, 96, 1, 4, KERNELS_GELU, false},
        {SMALL, 7, 112, 1, 3, KERNELS_RELU, false},
        {SMALL, 7, 128, 1, 3, KERNELS_GELU, false},
        {SMALL, 7, 6, 2, 4, KERNELS_GELU, true},
        /* so many blocks that one takes more tokens */
        {SMALL, 8, 64, 2, 6, KERNELS_GELU, true},
        {SMALL, 8, 96, 2, 9, KERNELS_GELU, false},
        {SMALL, 8, 128, 2, 8, KERNELS_GELU, false},
        /* one token, the kernel longer than the clip; too long for shared memory */
        {SMALL, 0, 32, 2, 128, KERNELS_GELU, false},
        {SMALL, 1, 16, 1, 4800, KERNELS_GELU, false},
        {SMALL, 7, 24, 8, 19, KERNELS_IDENTITY, false},
        {SMALL, 7, 34, 2, 30, KERNELS_RELU, true},
        {SMALL, 3, 5, 5, 1, KERNELS_GELU, false},
        {FULL, 0, 32, 4, 128, KERNELS_GELU, false},
        {FULL, 4, 96, 2, 16, KERNELS_GELU, true},
        {FULL, 4, 24, 8, 19, KERNELS_IDENTITY, false},
        {FULL, 2, 70, 1, 5, KERNELS_GELU, true},
        {FULL, 5, 34, 2, 300, KERNELS_RELU, true},
        {FULL, 1, 256, 2, 3, KERNELS_GELU, false},
        {FULL, 5, 192, 4, 128, KERNELS_GELU, false},
    };
    for (int i = 0; i < COUNT(cases); i++)
        if (cases[i].effort <= bed->effort)
            check_pos_conv(bed, &cases[i]);
}

static void test_pos_conv(void **state) {
    (void)state;
    for_each_bed(pos_conv_body);
}

struct attention_case {
    enum effort effort;
    int counts, heads, head_dim;
    double spread;
};

static void check_attention(struct bed *bed, const struct attention_case *c) {
    const int64_t *counts = token_counts[c->counts];
    struct batch b;
    struct arena a;
    batch_new(&b, &a, &plain, count_clips(counts), counts);
    const int64_t width = c->heads * c->head_dim, n = batch_tokens(&b) * width,
                  all = extent_of(bed, &b).tokens * width;
    float *qkv = new_random(3 * all, c->spread), *expected = new_floats(n);
    void *dqkv = put_activations(bed, qkv, 3 * all), *y = make_activations(bed, all);
    const float scale = 1.0f / sqrtf((float)c->head_dim);
    kernels_ref.attention(bed->ref, expected, qkv, c->heads, c->head_dim, scale, &b);
    bed_begin(bed, &b);
    bed->k->attention(bed->d, y, dqkv, c->heads, c->head_dim, scale, &b);
    end_batch(bed);
    /* Scores grow with the square of the spread, and so does their rounding, which a softmax hands on. By
     * cuBLAS scores are rounded to bf16 before they are scaled: those of 4 move their weight by 4 / 256. */
    const bool rounded = bed->bf16 && bed->subject->options.attention_way == KERNELS_ATTENTION_CUBLAS;
    check_activations(bed, y, expected, n, rounded ? 2 : c->spread * c->spread * c->spread, "attention");
    free(qkv), free(expected);
    drop(bed, dqkv), drop(bed, y);
    arena_free(&a);
}

static void attention_body(struct bed *bed) {
    static const struct attention_case cases[] = {
        {SMALL, 7, 1, 16, 1},
        {SMALL, 7, 2, 32, 1},
        {SMALL, 7, 2, 48, 1},
        {SMALL, 7, 1, 80, 1},
        {SMALL, 7, 1, 96, 1},
        {SMALL, 7, 1, 112, 1},
        {SMALL, 7, 1, 128, 1},
        {SMALL, 0, 2, 64, 1},
        {SMALL, 1, 2, 64, 1},
        {SMALL, 2, 2, 64, 1},
        {SMALL, 3, 2, 32, 1},
        /* so many blocks that a warp takes more queries */
        {SMALL, 8, 5, 16, 1},
        {SMALL, 8, 4, 32, 1},
        {SMALL, 8, 4, 48, 1},
        {SMALL, 8, 4, 64, 1},
        /* not for tensor cores */
        {SMALL, 7, 2, 5, 1},
        {SMALL, 7, 3, 8, 1},
        {SMALL, 7, 2, 24, 1},
        {SMALL, 7, 5, 1, 1},
        {SMALL, 7, 1, 52, 1},
        {SMALL, 7, 1, 90, 1},
        {SMALL, 7, 1, 104, 1},
        {SMALL, 7, 1, 144, 1},
        {SMALL, 7, 1, 256, 1},
        {FULL, 4, 2, 64, 1},
        {FULL, 5, 2, 64, 1},
        {FULL, 6, 2, 64, 1},
        {FULL, 4, 3, 8, 1},
        {FULL, 5, 2, 24, 1},
        {FULL, 4, 5, 1, 1},
        {FULL, 4, 16, 16, 1},
        {FULL, 3, 32, 4, 1},
        {FULL, 5, 1, 256, 1},
    };
    /* So many keys that a softmax of their scores takes another kernel. */
    static const struct attention_case long_clips[] = {
        {SMALL, 5, 1, 8, 1}, {SMALL, 10, 1, 8, 1}, {SMALL, 9, 1, 8, 1}};
    /* Scores far apart: in bf16 their own rounding moves weights by more than a tolerance can say. */
    static const struct attention_case far_apart[] = {
        {SMALL, 7, 1, 64, 6}, {SMALL, 7, 1, 255, 3}, {FULL, 4, 2, 80, 6}, {FULL, 5, 1, 255, 3}};
    for (int i = 0; i < COUNT(cases); i++)
        if (cases[i].effort <= bed->effort)
            check_attention(bed, &cases[i]);
    for (int i = 0; i < COUNT(long_clips); i++)
        if (bed->effort == FULL || bed->subject->options.attention_way == KERNELS_ATTENTION_CUBLAS)
            check_attention(bed, &long_clips[i]);
    for (int i = 0; !bed->bf16 && i < COUNT(far_apart); i++)
        if (far_apart[i].effort <= bed->effort)
            check_attention(bed, &far_apart[i]);
}

/* The mean of ones is one. A key that is not the clip's would count as a zero, and where only one is missing
 * to a whole block of keys, it would move random values by less than bf16 rounds them. */
static void mask_body(struct bed *bed) {
    static const int64_t counts[] = {63, 127, 1, 17};
    enum { DIM = 64 };
    struct batch b;
    struct arena a;
    batch_new(&b, &a, &plain, COUNT(counts), counts);
    const int64_t all = extent_of(bed, &b).tokens * DIM, n = batch_tokens(&b) * DIM;
    float *qkv = new_random(3 * all, 0.2);
    for (int64_t i = 0; i < 3 * all; i++)
        if (i % (3 * DIM) >= 2 * DIM)
            qkv[i] = 1.0f;
    void *dqkv = put_activations(bed, qkv, 3 * all), *y = make_activations(bed, all);
    bed_begin(bed, &b);
    bed->k->attention(bed->d, y, dqkv, 1, DIM, 0.125f, &b);
    end_batch(bed);
    float *got = take_activations(bed, y, n);
    for (int64_t i = 0; i < n; i++) /* one of 64 keys too many is 1.6 % */
        if (!(fabsf(got[i] - 1.0f) <= 6e-3f))
            fail_msg("%s: a mean of ones is %.9g", bed->subject->name, (double)got[i]);
    free(got), free(qkv);
    drop(bed, dqkv), drop(bed, y);
    arena_free(&a);
}

static void test_attention(void **state) {
    (void)state;
    for_each_bed(attention_body);
    for_each_bed(mask_body);
}

/* From the tape to tokens and from tokens to one vector a clip. */
static void check_rows(struct bed *bed, const struct batch_shape *shape, const struct batch *b,
                       int channels) {
    const int64_t from = b->tape_rows[shape->levels], n = batch_tokens(b) * channels,
                  all = extent_of(bed, b).tokens * channels;
    float *x = new_random(from * channels, 1), *expected = new_floats(n);
    void *dx = put_activations(bed, x, from * channels), *y = make_activations(bed, all);
    void *rest = put_activations(bed, x + 11 * channels, (from - 11) * channels);
    kernels_ref.compact(bed->ref, expected, x, channels, (struct kernels_rows){0, from}, b);
    bed_begin(bed, b);
    bed->k->compact(bed->d, y, dx, channels, (struct kernels_rows){0, 11}, b);
    bed->k->compact(bed->d, y, rest, channels, (struct kernels_rows){11, from - 11}, b);
    end_batch(bed);
    float *tokens = take_activations(bed, y, n);
    assert_same_bits(bed, tokens, expected, n, "compact");
    float *expected_pooled = new_floats(b->clips * channels);
    void *pooled = make_floats(bed, b->clips * channels);
    for (int kind = KERNELS_POOL_MEAN; kind <= KERNELS_POOL_MAX; kind++) {
        kernels_ref.pool(bed->ref, expected_pooled, tokens, (enum kernels_pool)kind, channels, b);
        bed_begin(bed, b);
        bed->k->pool(bed->d, pooled, y, (enum kernels_pool)kind, channels, b);
        end_batch(bed);
        check_floats(bed, pooled, expected_pooled, b->clips * channels, 1, "pool");
    }
    free(x), free(expected), free(tokens), free(expected_pooled);
    drop(bed, dx), drop(bed, y), drop(bed, rest), drop(bed, pooled);
}

static void rows_body(struct bed *bed) {
    const struct batch_shape shape = {.levels = 2, .kernel = {4, 3}, .stride = {2, 2}};
    const int64_t samples[] = {10, 403, 12, bed->effort == FULL ? 999 : 77};
    const int channels[] = {7, 64, 1, 130};
    struct batch b;
    struct arena a;
    batch_new(&b, &a, &shape, 4, samples);
    for (int i = 0; i < 4; i++)
        check_rows(bed, &shape, &b, channels[i]);
    arena_free(&a);
}

static void test_rows(void **state) {
    (void)state;
    for_each_bed(rows_body);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conv),       cmocka_unit_test(test_conv_libraries),
        cmocka_unit_test(test_input_norm), cmocka_unit_test(test_pos_conv),
        cmocka_unit_test(test_attention),  cmocka_unit_test(test_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
