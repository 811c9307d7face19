/* The promise that a clip's bits depend on nothing but the clip: not on the other clips, their order, the
 * segments of the convolutions, or the number of threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/kernels/bed.h"

enum { C = 48, H = 80, HEADS = 5, F = 200, LEVELS = 3 };
static const struct batch_shape small_shape = {.levels = LEVELS, .kernel = {10, 3, 2}, .stride = {5, 2, 2}};

/* A small model: one layer of everything. Its weights are packed anew for each device, from the same numbers.
 */
struct small_model {
    struct weights conv[LEVELS], norm, project, pos_conv, qkv, out, wide, narrow, hidden_norm;
};

static void small_model_init(struct small_model *m, struct bed *bed, enum kernels_conv_norm norm) {
    set_seed(7);
    for (int l = 0; l < LEVELS; l++) {
        struct kernels_weight_spec conv = {.kind = KERNELS_CONV,
                                           .in = l ? C : 1,
                                           .out = C,
                                           .kernel = small_shape.kernel[l],
                                           .stride = small_shape.stride[l],
                                           .groups = 1,
                                           .norm = l && norm == KERNELS_NORM_GROUP ? KERNELS_NORM_NONE : norm,
                                           .eps = 1e-5f};
        weights_init(&m->conv[l], bed, &conv);
    }
    struct kernels_weight_spec s = {
        .kind = KERNELS_LAYER_NORM, .in = C, .out = C, .eps = 1e-5f, .has_bias = true};
    weights_init(&m->norm, bed, &s);
    s = (struct kernels_weight_spec){
        .kind = KERNELS_LAYER_NORM, .in = H, .out = H, .eps = 1e-5f, .has_bias = true};
    weights_init(&m->hidden_norm, bed, &s);
    s = (struct kernels_weight_spec){.kind = KERNELS_LINEAR, .in = C, .out = H, .has_bias = true};
    weights_init(&m->project, bed, &s);
    s = (struct kernels_weight_spec){
        .kind = KERNELS_LINEAR, .in = H, .out = 3 * H, .parts = 3, .has_bias = true};
    weights_init(&m->qkv, bed, &s);
    s = (struct kernels_weight_spec){.kind = KERNELS_LINEAR, .in = H, .out = H, .has_bias = true};
    weights_init(&m->out, bed, &s);
    s = (struct kernels_weight_spec){.kind = KERNELS_LINEAR, .in = H, .out = F, .has_bias = true};
    weights_init(&m->wide, bed, &s);
    s = (struct kernels_weight_spec){.kind = KERNELS_LINEAR, .in = F, .out = H, .has_bias = true};
    weights_init(&m->narrow, bed, &s);
    s = (struct kernels_weight_spec){.kind = KERNELS_POS_CONV,
                                     .in = H,
                                     .out = H,
                                     .kernel = 20,
                                     .stride = 1,
                                     .groups = 5,
                                     .has_bias = true};
    weights_init(&m->pos_conv, bed, &s);
}

static void small_model_free(struct small_model *m, struct bed *bed) {
    for (int l = 0; l < LEVELS; l++)
        weights_free(&m->conv[l], bed);
    weights_free(&m->norm, bed), weights_free(&m->hidden_norm, bed), weights_free(&m->project, bed);
    weights_free(&m->qkv, bed), weights_free(&m->out, bed), weights_free(&m->wide, bed);
    weights_free(&m->narrow, bed), weights_free(&m->pos_conv, bed);
}

/* The convolutions in segments of `segment` rows of the last level, as a model runs them. */
static void run_convolutions(const struct small_model *m, struct bed *bed, float *features, float *samples,
                             const struct batch *b, int64_t segment, enum kernels_conv_norm norm) {
    const int64_t last = b->tape_rows[LEVELS];
    float *stats = new_floats(b->clips * C * 2);
    float *buffers[2] = {new_floats(b->tape_rows[1] * C), new_floats(b->tape_rows[1] * C)};
    if (norm == KERNELS_NORM_GROUP)
        bed->k->group_stats(bed->d, stats, samples, &m->conv[0].mine, b);
    for (int64_t first = 0; first < last; first += segment) {
        struct kernels_rows rows[LEVELS + 1];
        rows[LEVELS] = (struct kernels_rows){first, first + segment < last ? segment : last - first};
        for (int l = LEVELS - 1; l >= 0; l--) {
            rows[l].first = rows[l + 1].first * small_shape.stride[l];
            rows[l].count = (rows[l + 1].count - 1) * small_shape.stride[l] + small_shape.kernel[l];
        }
        const float *x = samples + rows[0].first;
        for (int l = 1; l <= LEVELS; l++) {
            bed->k->conv(bed->d, buffers[l % 2], x, &m->conv[l - 1].mine, KERNELS_GELU,
                         l == 1 && norm == KERNELS_NORM_GROUP ? stats : NULL, l, rows[l], b);
            x = buffers[l % 2];
        }
        bed->k->compact(bed->d, features, x, C, rows[LEVELS], b);
    }
    free(stats), free(buffers[0]), free(buffers[1]);
}

/* pooled [clips, 3, H]: mean, sum and maximum of each clip, in the order of `order`. */
static void run_small_model(const struct small_model *m, struct bed *bed, float *pooled,
                            const float *const *clips, const int64_t *samples, const int *order, int count,
                            int64_t segment, enum kernels_conv_norm norm) {
    const struct kernels *k = bed->k;
    struct status st = {0};
    int64_t lengths[CLIPS] = {0};
    struct batch b;
    struct arena a;
    for (int i = 0; i < count; i++)
        lengths[i] = samples[order[i]];
    batch_new(&b, &a, &small_shape, count, lengths);
    float *tape = new_floats(b.tape_rows[0]);
    for (int i = 0; i < count; i++)
        memcpy(tape + b.offset[i], clips[order[i]], (size_t)lengths[i] * sizeof *tape);
    const int64_t t = batch_tokens(&b);
    float *features = new_floats(t * C), *x = new_floats(t * H), *y = new_floats(t * H),
          *wide = new_floats(t * F);
    float *qkv = new_floats(t * 3 * H);

    k->begin(bed->d, &b);
    k->input_norm(bed->d, tape, tape, &b);
    run_convolutions(m, bed, features, tape, &b, segment, norm);
    k->layer_norm(bed->d, features, features, &m->norm.mine, t);
    k->linear(bed->d, y, features, &m->project.mine, KERNELS_IDENTITY, NULL, t);
    k->pos_conv(bed->d, x, y, &m->pos_conv.mine, KERNELS_GELU, &b);
    k->linear(bed->d, qkv, x, &m->qkv.mine, KERNELS_IDENTITY, NULL, t);
    k->attention(bed->d, y, qkv, HEADS, H / HEADS, 0.25f, &b);
    k->linear(bed->d, x, y, &m->out.mine, KERNELS_IDENTITY, x, t);
    k->layer_norm(bed->d, x, x, &m->hidden_norm.mine, t);
    k->linear(bed->d, wide, x, &m->wide.mine, KERNELS_GELU, NULL, t);
    k->linear(bed->d, x, wide, &m->narrow.mine, KERNELS_IDENTITY, x, t);
    for (int kind = KERNELS_POOL_MEAN; kind <= KERNELS_POOL_MAX; kind++) {
        float *one = new_floats(count * H);
        k->pool(bed->d, one, x, (enum kernels_pool)kind, H, &b);
        for (int i = 0; i < count; i++)
            memcpy(pooled + (i * 3 + kind) * H, one + i * H, H * sizeof *one);
        free(one);
    }
    assert_int_equal(k->finish(bed->d, &st), 0);
    free(tape), free(features), free(x), free(y), free(wide), free(qkv);
    arena_free(&a);
}

static const struct composition {
    int count, order[CLIPS];
    int64_t segment;
} compositions[] = {
    {6, {0, 1, 2, 3, 4, 5}, 1000000},
    {6, {5, 4, 3, 2, 1, 0}, 128},
    {3, {2, 0, 4}, 7},
    {5, {1, 1, 3, 3, 1}, 33},
    {2, {4, 5}, 1},
};
enum { COMPOSITIONS = sizeof compositions / sizeof *compositions };

static void check_invariance(const struct subject *s, enum kernels_conv_norm norm) {
    const int64_t samples[CLIPS] = {60, 16000, 2013, 41, 7777, 12345}; /* 41: one token */
    float *clips[CLIPS], *alone = new_floats(CLIPS * 3 * H), *pooled = new_floats(CLIPS * 3 * H);
    const float *read_only[CLIPS];
    set_seed(99);
    for (int i = 0; i < CLIPS; i++)
        read_only[i] = clips[i] = new_random(samples[i], 0.1);
    for (int threads = 1; threads <= 3; threads++) {
        struct bed bed;
        struct small_model m;
        if (!bed_init(&bed, s, threads))
            break;
        small_model_init(&m, &bed, norm);
        for (int i = 0; threads == 1 && i < CLIPS; i++)
            run_small_model(&m, &bed, alone + i * 3 * H, read_only, samples, &i, 1, 50, norm);
        for (int i = 0; i < COMPOSITIONS; i++) {
            const struct composition *c = &compositions[i];
            run_small_model(&m, &bed, pooled, read_only, samples, c->order, c->count, c->segment, norm);
            for (int j = 0; j < c->count; j++)
                assert_same_bits(pooled + j * 3 * H, alone + c->order[j] * 3 * H, 3 * H,
                                 "a clip among others");
        }
        small_model_free(&m, &bed);
        bed_free(&bed);
    }
    for (int i = 0; i < CLIPS; i++)
        free(clips[i]);
    free(alone), free(pooled);
}

static void test_invariance(void **state) {
    (void)state;
    for (int s = 0; s < SUBJECTS; s++) {
        check_invariance(&subjects[s], KERNELS_NORM_GROUP);
        check_invariance(&subjects[s], KERNELS_NORM_LAYER);
    }
}

/* Rows of a matrix product have the same bits in any company. */
static void rows_invariance_body(struct bed *bed) {
    enum { IN = 700, OUT = 150, ROWS = 500 };
    struct kernels_weight_spec s = {.kind = KERNELS_LINEAR, .in = IN, .out = OUT, .has_bias = true};
    struct weights w;
    weights_init(&w, bed, &s);
    float *x = new_random(ROWS * IN, 1), *all = new_floats(ROWS * OUT), *some = new_floats(ROWS * OUT);
    bed->k->linear(bed->d, all, x, &w.mine, KERNELS_GELU, NULL, ROWS);
    for (int i = 0; i < 12; i++) {
        int first = random_int(0, ROWS - 1), count = random_int(1, i < 6 ? 20 : ROWS - first);
        count = count < ROWS - first ? count : ROWS - first;
        bed->k->linear(bed->d, some, x + first * IN, &w.mine, KERNELS_GELU, NULL, count);
        assert_same_bits(some, all + first * OUT, count * OUT, "rows of linear");
    }
    free(x), free(all), free(some);
    weights_free(&w, bed);
}

static void test_rows_invariance(void **state) {
    (void)state;
    for_each_bed(rows_invariance_body);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_invariance),
        cmocka_unit_test(test_rows_invariance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
