/* The promise that a clip's bits depend on nothing but the clip: not on the other clips, their order, the
 * segments of the convolutions, the number of threads, or the graph that a batch is a replay of. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/kernels/bed.h"

enum { C = 48, H = 80, HEADS = 5, F = 200, LEVELS = 3 };
static const struct batch_shape small_shape = {.levels = LEVELS, .kernel = {10, 3, 3}, .stride = {5, 2, 2}};

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

/* The buffers of a batch, as large as it needs. */
struct buffers {
    void *tape, *stats, *conv[2], *features, *x, *y, *wide, *qkv, *pooled[3];
};

static void buffers_init(struct buffers *s, struct bed *bed, int64_t samples, struct kernels_extent e,
                         int clips) {
    const int64_t spare = bed->k->spare_rows(bed->d), rows = (e.rows + spare) * 8; /* at most, of level 1 */
    s->tape = make_floats(bed, samples);
    s->stats = make_floats(bed, clips * C * 2);
    for (int i = 0; i < 2; i++)
        s->conv[i] = make_activations(bed, rows * C);
    s->features = make_activations(bed, e.tokens * C);
    s->x = make_activations(bed, e.tokens * H);
    s->y = make_activations(bed, e.tokens * H);
    s->wide = make_activations(bed, e.tokens * F);
    s->qkv = make_activations(bed, e.tokens * 3 * H);
    for (int i = 0; i < 3; i++)
        s->pooled[i] = make_floats(bed, clips * H);
}

static void buffers_free(struct buffers *s, struct bed *bed) {
    drop(bed, s->tape), drop(bed, s->stats), drop(bed, s->conv[0]), drop(bed, s->conv[1]);
    drop(bed, s->features), drop(bed, s->x), drop(bed, s->y), drop(bed, s->wide), drop(bed, s->qkv);
    for (int i = 0; i < 3; i++)
        drop(bed, s->pooled[i]);
}

/* The convolutions in segments of `segment` rows of the last level, as a model runs them. */
static void run_convolutions(const struct small_model *m, struct bed *bed, struct buffers *s,
                             const struct batch *b, int64_t last, int64_t segment,
                             enum kernels_conv_norm norm) {
    if (norm == KERNELS_NORM_GROUP)
        bed->k->group_stats(bed->d, s->stats, s->tape, &m->conv[0].mine, b);
    for (int64_t first = 0; first < last; first += segment) {
        struct kernels_rows rows[LEVELS + 1];
        rows[LEVELS] = (struct kernels_rows){first, first + segment < last ? segment : last - first};
        for (int l = LEVELS - 1; l >= 0; l--) {
            rows[l].first = rows[l + 1].first * small_shape.stride[l];
            rows[l].count = (rows[l + 1].count - 1) * small_shape.stride[l] + small_shape.kernel[l];
        }
        const void *x = (const float *)s->tape + rows[0].first;
        for (int l = 1; l <= LEVELS; l++) {
            bed->k->conv(bed->d, s->conv[l % 2], x, &m->conv[l - 1].mine, KERNELS_GELU,
                         l == 1 && norm == KERNELS_NORM_GROUP ? s->stats : NULL, l, rows[l], b);
            x = s->conv[l % 2];
        }
        bed->k->compact(bed->d, s->features, x, C, rows[LEVELS], b);
    }
}

/* All operations of a batch whose clips lie on the tape. */
static void forward(const struct small_model *m, struct bed *bed, struct buffers *s, const struct batch *b,
                    int64_t segment, enum kernels_conv_norm norm) {
    const struct kernels *k = bed->k;
    const struct kernels_extent e = bed_begin(bed, b);
    const int64_t t = e.tokens;
    k->input_norm(bed->d, s->tape, s->tape, b);
    run_convolutions(m, bed, s, b, e.rows, segment, norm);
    k->layer_norm(bed->d, s->features, s->features, &m->norm.mine, t);
    k->linear(bed->d, s->y, s->features, &m->project.mine, KERNELS_IDENTITY, NULL, t);
    k->pos_conv(bed->d, s->x, s->y, &m->pos_conv.mine, KERNELS_GELU, b);
    k->linear(bed->d, s->qkv, s->x, &m->qkv.mine, KERNELS_IDENTITY, NULL, t);
    k->attention(bed->d, s->y, s->qkv, HEADS, H / HEADS, 0.25f, b);
    k->linear(bed->d, s->x, s->y, &m->out.mine, KERNELS_IDENTITY, s->x, t);
    k->layer_norm(bed->d, s->x, s->x, &m->hidden_norm.mine, t);
    k->linear(bed->d, s->wide, s->x, &m->wide.mine, KERNELS_GELU, NULL, t);
    k->linear(bed->d, s->x, s->wide, &m->narrow.mine, KERNELS_IDENTITY, s->x, t);
    for (int kind = KERNELS_POOL_MEAN; kind <= KERNELS_POOL_MAX; kind++)
        k->pool(bed->d, s->pooled[kind], s->x, (enum kernels_pool)kind, H, b);
    k->end(bed->d);
}

static void upload_clips(struct bed *bed, void *tape, const struct batch *b, const float *const *clips,
                         const int *order) {
    for (int i = 0; i < b->clips; i++)
        bed->k->upload(bed->d, (float *)tape + b->offset[i], clips[order[i]],
                       (size_t)batch_rows(b, 0, i) * sizeof(float));
    bed_finish(bed);
}

/* pooled [clips, 3, H]: mean, sum and maximum of each clip, in the order of `order`. `fixed` are buffers for
 * any batch; NULL: buffers just as large as this one needs. */
static void run_small_model(const struct small_model *m, struct bed *bed, struct buffers *fixed,
                            float *pooled, const float *const *clips, const int64_t *samples,
                            const int *order, int count, int64_t segment, enum kernels_conv_norm norm) {
    int64_t lengths[CLIPS] = {0};
    struct batch b;
    struct arena a;
    struct buffers own;
    for (int i = 0; i < count; i++)
        lengths[i] = samples[order[i]];
    batch_new(&b, &a, &small_shape, count, lengths);
    if (!fixed) {
        const struct kernels_extent e = extent_of(bed, &b);
        buffers_init(&own, bed, count_tape_samples(&small_shape, &b, e), e, count);
    }
    struct buffers *s = fixed ? fixed : &own;
    upload_clips(bed, s->tape, &b, clips, order);
    forward(m, bed, s, &b, segment, norm);
    for (int kind = 0; kind < 3; kind++) {
        float *one = take_floats(bed, s->pooled[kind], count * H);
        for (int i = 0; i < count; i++)
            memcpy(pooled + (i * 3 + kind) * H, one + i * H, H * sizeof *one);
        free(one);
    }
    if (!fixed)
        buffers_free(&own, bed);
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

/* The clips of one test, and the bits of each alone. */
struct clips {
    int64_t samples[CLIPS];
    float *numbers[CLIPS];
    const float *read_only[CLIPS];
    float *alone;
    bool alone_done;
};

static void clips_init(struct clips *c, enum effort effort) {
    /* 41: one token. Some are more than one of the pieces that kernels cut a clip into: 512 rows of the first
     * level, 64 or 128 tokens. */
    static const int64_t samples[][CLIPS] = {
        [SMALL] = {60, 2700, 700, 41, 777, 1301}, [FULL] = {60, 16000, 2013, 41, 7777, 12345}};
    memcpy(c->samples, samples[effort], sizeof c->samples);
    set_seed(99);
    for (int i = 0; i < CLIPS; i++)
        c->read_only[i] = c->numbers[i] = new_random(c->samples[i], 0.1);
    c->alone = new_floats(CLIPS * 3 * H);
    c->alone_done = false;
}

static void clips_free(struct clips *c) {
    for (int i = 0; i < CLIPS; i++)
        free(c->numbers[i]);
    free(c->alone);
}

static void run_compositions(const struct small_model *m, struct bed *bed, struct buffers *fixed,
                             struct clips *c, int count, enum kernels_conv_norm norm) {
    float *pooled = new_floats(CLIPS * 3 * H);
    for (int i = 0; !c->alone_done && i < CLIPS; i++)
        run_small_model(m, bed, fixed, c->alone + i * 3 * H, c->read_only, c->samples, &i, 1, 50, norm);
    c->alone_done = true;
    for (int i = 0; i < count; i++) {
        const struct composition *k = &compositions[i];
        run_small_model(m, bed, fixed, pooled, c->read_only, c->samples, k->order, k->count,
                        fixed ? 128 : k->segment, norm);
        for (int j = 0; j < k->count; j++)
            assert_same_bits(bed, pooled + j * 3 * H, c->alone + k->order[j] * 3 * H, 3 * H,
                             fixed ? "a clip among others, by a graph" : "a clip among others");
    }
    free(pooled);
}

/* As a worker does before its first batch. */
static void warm(const struct small_model *m, struct bed *bed, struct buffers *s,
                 enum kernels_conv_norm norm) {
    int64_t rows;
    for (int i = 0; (rows = bed->k->warm_rows(bed->d, i)) > 0; i++) {
        const int64_t samples = batch_min_samples(&small_shape) + (rows - 1) * 20; /* 20: of a token */
        struct batch b;
        struct arena a;
        batch_new(&b, &a, &small_shape, 1, &samples);
        forward(m, bed, s, &b, 128, norm);
        bed_finish(bed);
        arena_free(&a);
    }
}

/* The thread sanitizer finds in one batch over the shim what there is to find. */
static int count_compositions(const struct bed *bed) {
    enum { FEW = 2 }; /* a race is one whatever is computed */
    return !BED_TSAN ? COMPOSITIONS : bed->effort == SMALL ? 1 : FEW;
}

static int64_t count_samples(const struct clips *c, const struct composition *k) {
    int64_t n = 0;
    for (int i = 0; i < k->count; i++)
        n += batch_slot_samples(&small_shape, c->samples[k->order[i]]);
    return n;
}

/* With graphs: every batch in the same memory, after warming up. */
static void check_graphs(const struct subject *subject, struct clips *c, enum kernels_conv_norm norm) {
    struct kernels_limits limits = {
        .clips_max = CLIPS, .hidden = H, .channels_max = F, .heads = HEADS, .first_kernel = 10};
    struct bed bed;
    struct small_model m;
    struct buffers s;
    for (int i = 0; i < COMPOSITIONS; i++) {
        const int64_t samples = count_samples(c, &compositions[i]);
        limits.samples_max = samples > limits.samples_max ? samples : limits.samples_max;
    }
    limits.tokens_max = batch_count_rows(&small_shape, LEVELS, limits.samples_max);
    if (!bed_init(&bed, subject, 1, true, &limits))
        return;
    small_model_init(&m, &bed, norm);
    buffers_init(&s, &bed, limits.samples_max, (struct kernels_extent){limits.tokens_max, limits.tokens_max},
                 CLIPS);
    warm(&m, &bed, &s, norm);
    for (int again = 0; again < (bed.effort == FULL ? 2 : 1); again++)
        run_compositions(&m, &bed, &s, c, count_compositions(&bed), norm);
    buffers_free(&s, &bed);
    small_model_free(&m, &bed);
    bed_free(&bed);
}

static void check_invariance(const struct subject *subject, enum kernels_conv_norm norm) {
    const bool cuda = strcmp(subject->backend, "cuda") == 0;
    struct clips c;
    bool has_clips = false;
    for (int threads = cuda || !BED_TSAN ? 1 : 3; threads <= (cuda ? 1 : 3); threads++) {
        struct bed bed;
        struct small_model m;
        if (!bed_init(&bed, subject, threads, false, NULL))
            break;
        if (!has_clips)
            clips_init(&c, bed.effort);
        has_clips = true;
        small_model_init(&m, &bed, norm);
        run_compositions(&m, &bed, NULL, &c, count_compositions(&bed), norm);
        small_model_free(&m, &bed);
        bed_free(&bed);
    }
    if (cuda && has_clips && subject->options.attention_way != KERNELS_ATTENTION_CUBLAS) /* it has none */
        check_graphs(subject, &c, norm);
    if (has_clips)
        clips_free(&c);
}

static void test_invariance(void **state) {
    (void)state;
    for (int s = 0; s < SUBJECTS; s++) {
        /* These share memory between threads as the sets of fp32 do, and as int8 with bf16 does. */
        if (BED_TSAN && (strcmp(subjects[s].isa, "avx512vnni") == 0 ||
                         (subjects[s].options.precision == KERNELS_BF16 && subjects[s].isa[0])))
            continue;
        check_invariance(&subjects[s], KERNELS_NORM_GROUP);
        check_invariance(&subjects[s], KERNELS_NORM_LAYER);
    }
}

/* Rows of a matrix product, and of a norm, have the same bits in any company. */
static void check_rows(struct bed *bed, int in, int out, int rows, enum kernels_activation act) {
    struct kernels_weight_spec s = {.kind = KERNELS_LINEAR, .in = in, .out = out, .has_bias = true};
    struct kernels_weight_spec n = {
        .kind = KERNELS_LAYER_NORM, .in = out, .out = out, .eps = 1e-5f, .has_bias = true};
    struct weights w, norm;
    weights_init(&w, bed, &s);
    weights_init(&norm, bed, &n);
    float *x = new_random((int64_t)rows * in, 1);
    void *dx = put_activations(bed, x, (int64_t)rows * in);
    void *all = make_activations(bed, (int64_t)rows * out);
    bed->k->linear(bed->d, all, dx, &w.mine, act, NULL, rows);
    bed->k->layer_norm(bed->d, all, all, &norm.mine, rows);
    for (int i = 0; i < (bed->effort == FULL ? 12 : 4); i++) {
        int first = random_int(0, rows - 1), count = random_int(1, i % 2 ? 20 : rows - first);
        count = count < rows - first ? count : rows - first;
        void *some = make_activations(bed, (int64_t)count * out);
        void *part = put_activations(bed, x + (int64_t)first * in, (int64_t)count * in);
        bed->k->linear(bed->d, some, part, &w.mine, act, NULL, count);
        bed->k->layer_norm(bed->d, some, some, &norm.mine, count);
        check_same_activations(bed, some, activation_at(bed, all, (int64_t)first * out), (int64_t)count * out,
                               "rows of linear and layer_norm");
        drop(bed, some), drop(bed, part);
    }
    free(x);
    drop(bed, dx), drop(bed, all);
    weights_free(&w, bed), weights_free(&norm, bed);
}

static void rows_body(struct bed *bed) {
    check_rows(bed, 24, 16, 20, KERNELS_GELU);
    check_rows(bed, 33, 15, 70, KERNELS_RELU);
    check_rows(bed, 192, 64, 150, KERNELS_GELU);
    if (bed->effort == FULL)
        check_rows(bed, 700, 150, 500, KERNELS_GELU);
}

static void test_rows(void **state) {
    (void)state;
    for_each_bed(rows_body);
}

/* Attention and the positional convolution choose how many queries or tokens a block takes by how many blocks
 * there are: a clip's bits are those it has alone, for all sizes that have such a choice. */
static void check_tokens(struct bed *bed, int heads, int head_dim, int groups) {
    static const struct batch_shape plain = {.levels = 1, .kernel = {1}, .stride = {1}};
    const int64_t counts[] = {70, 2, 131}, width = (int64_t)heads * head_dim;
    struct kernels_weight_spec s = {.kind = KERNELS_POS_CONV,
                                    .in = (int)width,
                                    .out = (int)width,
                                    .kernel = 6,
                                    .stride = 1,
                                    .groups = groups,
                                    .has_bias = true};
    struct weights w;
    struct batch b;
    struct arena a;
    weights_init(&w, bed, &s);
    batch_new(&b, &a, &plain, 3, counts);
    const int64_t n = batch_tokens(&b) * width;
    float *qkv = new_random(3 * n, 1);
    void *from = put_activations(bed, qkv, 3 * n), *attended = make_activations(bed, n),
         *convolved = make_activations(bed, n);
    bed_begin(bed, &b);
    bed->k->attention(bed->d, attended, from, heads, head_dim, 0.2f, &b);
    bed->k->pos_conv(bed->d, convolved, attended, &w.mine, KERNELS_GELU, &b);
    bed->k->end(bed->d);
    bed_finish(bed);
    for (int i = 0; i < 3; i++) {
        const int64_t first = b.cu_tokens[i] * width, size = counts[i] * width;
        struct batch alone;
        struct arena memory;
        batch_new(&alone, &memory, &plain, 1, &counts[i]);
        void *part = put_activations(bed, qkv + 3 * first, 3 * size), *y = make_activations(bed, size),
             *z = make_activations(bed, size);
        bed_begin(bed, &alone);
        bed->k->attention(bed->d, y, part, heads, head_dim, 0.2f, &alone);
        bed->k->pos_conv(bed->d, z, y, &w.mine, KERNELS_GELU, &alone);
        bed->k->end(bed->d);
        check_same_activations(bed, y, activation_at(bed, attended, first), size, "attention alone");
        check_same_activations(bed, z, activation_at(bed, convolved, first), size, "pos_conv alone");
        drop(bed, part), drop(bed, y), drop(bed, z);
        arena_free(&memory);
    }
    free(qkv);
    drop(bed, from), drop(bed, attended), drop(bed, convolved);
    arena_free(&a);
    weights_free(&w, bed);
}

static void tokens_body(struct bed *bed) {
    check_tokens(bed, 4, 64, 4);
    check_tokens(bed, 4, 48, 4);
    check_tokens(bed, 4, 32, 4);
    check_tokens(bed, 5, 10, 2);
}

static void test_tokens(void **state) {
    (void)state;
    for_each_bed(tokens_body);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_invariance),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
