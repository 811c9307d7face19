/* CUDA graphs: what was recorded from one batch is right for another of its bucket, and only for the
 * operations that it was recorded from. And what a device does between two batches: it allocates nothing, and
 * another worker's device on the same GPU may be at work. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/gpu.h"
#include "tests/unit/kernels/bed.h"

/* ---- allocations of the shim, counted ---- */

static int allocations;

int __real_gpu_memory_new(void **p, size_t bytes);
int __wrap_gpu_memory_new(void **p, size_t bytes);
int __wrap_gpu_memory_new(void **p, size_t bytes) {
    __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
    return __real_gpu_memory_new(p, bytes);
}

int __real_gpu_pinned_new(void **p, size_t bytes);
int __wrap_gpu_pinned_new(void **p, size_t bytes);
int __wrap_gpu_pinned_new(void **p, size_t bytes) {
    __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
    return __real_gpu_pinned_new(p, bytes);
}

int __real_gpu_event_new(struct gpu_event **e);
int __wrap_gpu_event_new(struct gpu_event **e);
int __wrap_gpu_event_new(struct gpu_event **e) {
    __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
    return __real_gpu_event_new(e);
}

/* ---- a few operations of every kind ---- */

enum { C = 16, LABELS = 5, ROWS_MAX = 40, POSITIONS = 4 };

/* Tokens are samples. */
static const struct batch_shape plain = {.levels = 1, .kernel = {1}, .stride = {1}};

struct chain {
    struct weights first, qkv, norm, out, pos_conv, head;
    void *tape, *x, *y, *z, *qkv_rows, *sum, *pooled, *logits;
};

/* Ways to call the operations otherwise. */
enum change {
    AS_EVER,
    OTHER_ORDER,
    ONE_LESS,
    ONE_MORE,
    OTHER_OUTPUT,
    OTHER_INPUT,
    OTHER_WEIGHT,
    OTHER_RESIDUAL,
    OTHER_ACTIVATION,
    OTHER_ROWS,
    OTHER_FACTOR,
    OTHER_SCALE,
    OTHER_POOL,
    CHANGES
};

static void chain_init(struct chain *c, struct bed *bed) {
    struct kernels_weight_spec conv = {.kind = KERNELS_CONV,
                                       .in = 1,
                                       .out = C,
                                       .kernel = 1,
                                       .stride = 1,
                                       .groups = 1,
                                       .norm = KERNELS_NORM_LAYER,
                                       .eps = 1e-5f};
    struct kernels_weight_spec qkv = {
        .kind = KERNELS_LINEAR, .in = C, .out = 3 * C, .parts = 3, .has_bias = true};
    struct kernels_weight_spec norm = {
        .kind = KERNELS_LAYER_NORM, .in = C, .out = C, .eps = 1e-5f, .has_bias = true};
    struct kernels_weight_spec out = {.kind = KERNELS_LINEAR, .in = C, .out = C, .has_bias = true};
    struct kernels_weight_spec pos_conv = {.kind = KERNELS_POS_CONV,
                                           .in = C,
                                           .out = C,
                                           .kernel = POSITIONS,
                                           .stride = 1,
                                           .groups = 1,
                                           .has_bias = true};
    struct kernels_weight_spec head = {
        .kind = KERNELS_LINEAR, .in = C, .out = LABELS, .has_bias = true, .is_head = true};
    set_seed(5);
    weights_init(&c->first, bed, &conv), weights_init(&c->qkv, bed, &qkv);
    weights_init(&c->norm, bed, &norm), weights_init(&c->out, bed, &out);
    weights_init(&c->pos_conv, bed, &pos_conv), weights_init(&c->head, bed, &head);
    c->tape = make_floats(bed, ROWS_MAX);
    c->x = make_activations(bed, ROWS_MAX * C), c->y = make_activations(bed, ROWS_MAX * C);
    c->z = make_activations(bed, ROWS_MAX * C), c->qkv_rows = make_activations(bed, ROWS_MAX * 3 * C);
    c->sum = make_activations(bed, ROWS_MAX * C);
    c->pooled = make_floats(bed, CLIPS * C), c->logits = make_floats(bed, CLIPS * LABELS);
}

static void chain_free(struct chain *c, struct bed *bed) {
    weights_free(&c->first, bed), weights_free(&c->qkv, bed), weights_free(&c->norm, bed);
    weights_free(&c->out, bed), weights_free(&c->pos_conv, bed), weights_free(&c->head, bed);
    drop(bed, c->tape), drop(bed, c->x), drop(bed, c->y), drop(bed, c->z), drop(bed, c->qkv_rows);
    drop(bed, c->sum), drop(bed, c->pooled), drop(bed, c->logits);
}

/* From begin to end. */
static struct kernels_extent forward(struct chain *c, struct bed *bed, const struct batch *b,
                                     enum change change) {
    const struct kernels *k = bed->k;
    struct kernels_device *d = bed->d;
    const struct kernels_extent e = k->begin(d, b);
    const int64_t t = e.tokens;
    k->conv(d, c->x, c->tape, &c->first.mine, KERNELS_GELU, NULL, 1, (struct kernels_rows){0, e.rows}, b);
    k->compact(d, c->y, c->x, C, (struct kernels_rows){0, e.rows}, b);
    if (change != OTHER_ORDER)
        k->layer_norm(d, c->y, c->y, &c->norm.mine, t);
    k->pos_conv(d, c->x, c->y, &c->pos_conv.mine, KERNELS_GELU, b);
    if (change == OTHER_ORDER)
        k->layer_norm(d, c->y, c->y, &c->norm.mine, t);
    k->linear(d, c->qkv_rows, c->x, &c->qkv.mine, KERNELS_IDENTITY, NULL, t);
    k->attention(d, c->y, c->qkv_rows, 1, C, change == OTHER_SCALE ? 0.5f : 0.25f, b);
    k->linear(d, change == OTHER_OUTPUT ? c->z : c->x, change == OTHER_INPUT ? c->x : c->y, &c->out.mine,
              KERNELS_IDENTITY, change == OTHER_RESIDUAL ? c->z : c->x, t);
    if (change != ONE_LESS)
        k->layer_norm(d, c->x, c->x, &c->norm.mine, t);
    k->linear(d, c->z, c->x, change == OTHER_WEIGHT ? &c->norm.mine : &c->out.mine,
              change == OTHER_ACTIVATION ? KERNELS_TANH : KERNELS_RELU, NULL,
              change == OTHER_ROWS ? t - 1 : t);
    k->accumulate(d, c->sum, c->x, change == OTHER_FACTOR ? 0.25f : 0.75f, true, t, C);
    k->accumulate(d, c->sum, c->z, 0.5f, false, t, C);
    if (change == ONE_MORE)
        k->layer_norm(d, c->sum, c->sum, &c->norm.mine, t);
    k->pool(d, c->pooled, c->sum, change == OTHER_POOL ? KERNELS_POOL_MAX : KERNELS_POOL_MEAN, C, b);
    k->head_linear(d, c->logits, c->pooled, &c->head.mine, KERNELS_IDENTITY, b->clips);
    k->end(d);
    return e;
}

/* logits [clips, LABELS] of host memory. What finish says. */
static int run(struct chain *c, struct bed *bed, const struct batch *b, const float *samples,
               enum change change, float *logits, struct status *st) {
    bed->k->upload(bed->d, c->tape, samples, (size_t)b->tape_rows[0] * sizeof *samples);
    forward(c, bed, b, change);
    bed->k->download(bed->d, logits, c->logits, (size_t)b->clips * LABELS * sizeof *logits);
    return bed->k->finish(bed->d, st);
}

static void run_well(struct chain *c, struct bed *bed, const struct batch *b, const float *samples,
                     float *logits) {
    struct status st = {0};
    if (run(c, bed, b, samples, AS_EVER, logits, &st))
        fail_msg("%s: %s", bed->subject->name, st.message);
}

static void warm(struct chain *c, struct bed *bed) {
    int64_t rows;
    for (int i = 0; (rows = bed->k->warm_rows(bed->d, i)) > 0; i++) {
        struct batch b;
        struct arena a;
        batch_new(&b, &a, &plain, 1, &rows);
        forward(c, bed, &b, AS_EVER);
        bed_finish(bed);
        arena_free(&a);
    }
}

/* ---- batches ---- */

enum { BATCHES = 5 };
/* The first three take the same bucket of 16 rows. */
static const int64_t lengths[BATCHES][CLIPS] = {{3, 7, 1}, {9}, {1, 1, 2, 1, 4, 7}, {20, 3}, {40}};

struct batches {
    struct batch plan[BATCHES];
    struct arena arena[BATCHES];
    float *samples[BATCHES], *expected[BATCHES]; /* by a device without graphs */
};

static const struct kernels_limits limits = {.samples_max = ROWS_MAX,
                                             .tokens_max = ROWS_MAX,
                                             .clips_max = CLIPS,
                                             .hidden = C,
                                             .channels_max = 3 * C,
                                             .heads = 1,
                                             .first_kernel = 1};

static void batches_init(struct batches *s, const struct subject *subject) {
    struct bed eager;
    struct chain c;
    assert_true(bed_init(&eager, subject, 1, false, &limits));
    chain_init(&c, &eager);
    for (int i = 0; i < BATCHES; i++) {
        int clips = 0;
        while (clips < CLIPS && lengths[i][clips])
            clips++;
        batch_new(&s->plan[i], &s->arena[i], &plain, clips, lengths[i]);
        s->samples[i] = new_random(s->plan[i].tape_rows[0], 1);
        s->expected[i] = new_floats(CLIPS * LABELS);
        run_well(&c, &eager, &s->plan[i], s->samples[i], s->expected[i]);
    }
    chain_free(&c, &eager);
    bed_free(&eager);
}

static void batches_free(struct batches *s) {
    for (int i = 0; i < BATCHES; i++) {
        free(s->samples[i]), free(s->expected[i]);
        arena_free(&s->arena[i]);
    }
}

/* Those that have graphs. */
static void for_each_subject(void (*body)(const struct subject *s)) {
    for (int i = 0; i < SUBJECTS; i++)
        if (strcmp(subjects[i].backend, "cuda") == 0 &&
            subjects[i].options.attention_way == KERNELS_ATTENTION_FUSED)
            body(&subjects[i]);
}

static void check_batch(struct chain *c, struct bed *bed, const struct batches *s, int i) {
    float *logits = new_floats(CLIPS * LABELS);
    run_well(c, bed, &s->plan[i], s->samples[i], logits);
    assert_same_bits(bed, logits, s->expected[i], s->plan[i].clips * LABELS, "a batch by a graph");
    free(logits);
}

/* ---- tests ---- */

/* With and without warming up: the first batch of a bucket records, and its own result is right too. */
static void replay_body(const struct subject *subject) {
    struct batches s;
    batches_init(&s, subject);
    for (int warmed = 0; warmed < 2; warmed++) {
        struct bed bed;
        struct chain c;
        assert_true(bed_init(&bed, subject, 1, true, &limits));
        chain_init(&c, &bed);
        if (warmed)
            warm(&c, &bed);
        for (int i = 0; i < 3 * BATCHES; i++)
            check_batch(&c, &bed, &s, i * 7 % BATCHES);
        const struct kernels_extent first = forward(&c, &bed, &s.plan[0], AS_EVER);
        bed_finish(&bed);
        const struct kernels_extent second = forward(&c, &bed, &s.plan[1], AS_EVER);
        bed_finish(&bed);
        assert_int_equal(first.rows, second.rows); /* of one bucket, or nothing was tested */
        assert_true(first.rows > s.plan[0].tape_rows[1]);
        chain_free(&c, &bed);
        bed_free(&bed);
    }
    batches_free(&s);
}

static void test_replay(void **state) {
    (void)state;
    for_each_subject(replay_body);
}

/* Called otherwise than it was recorded, a batch is an error and no answer; the next one is right again. */
static void changes_body(const struct subject *subject) {
    struct batches s;
    struct bed bed;
    struct chain c;
    batches_init(&s, subject);
    assert_true(bed_init(&bed, subject, 1, true, &limits));
    chain_init(&c, &bed);
    warm(&c, &bed);
    for (int change = OTHER_ORDER; change < CHANGES; change++) {
        struct status st = {0};
        float *logits = new_floats(CLIPS * LABELS);
        check_batch(&c, &bed, &s, 0);
        if (run(&c, &bed, &s.plan[1], s.samples[1], (enum change)change, logits, &st) == 0)
            fail_msg("%s: change %d of the operations went unnoticed", subject->name, change);
        assert_int_equal(st.code, STATUS_INTERNAL);
        assert_false(bed.k->is_lost(bed.d));
        check_batch(&c, &bed, &s, 1);
        free(logits);
    }
    chain_free(&c, &bed);
    bed_free(&bed);
    batches_free(&s);
}

static void test_changes(void **state) {
    (void)state;
    for_each_subject(changes_body);
}

/* After warming up a batch allocates nothing. (On a GPU this counts nothing: the module's calls are its own.)
 */
static void allocations_body(const struct subject *subject, bool graphs) {
    struct batches s;
    struct bed bed;
    struct chain c;
    batches_init(&s, subject);
    assert_true(bed_init(&bed, subject, 1, graphs, &limits));
    chain_init(&c, &bed);
    warm(&c, &bed);
    const int before = allocations;
    for (int i = 0; i < 2 * BATCHES; i++)
        check_batch(&c, &bed, &s, i % BATCHES);
    assert_int_equal(allocations, before);
    chain_free(&c, &bed);
    bed_free(&bed);
    batches_free(&s);
}

static void test_allocations(void **state) {
    (void)state;
    for (int i = 0; i < SUBJECTS; i++) {
        if (strcmp(subjects[i].backend, "cuda") != 0)
            continue;
        allocations_body(&subjects[i], false);
        allocations_body(&subjects[i], true);
    }
}

struct worker {
    pthread_t thread;
    struct bed bed;
    struct chain chain;
    const struct batches *batches;
    int first, failures;
};

static void *work(void *arg) {
    struct worker *w = arg;
    const struct batches *s = w->batches;
    for (int i = 0; i < 2 * BATCHES; i++) {
        const int at = (w->first + 3 * i) % BATCHES;
        float logits[CLIPS * LABELS];
        struct status st;
        if (run(&w->chain, &w->bed, &s->plan[at], s->samples[at], AS_EVER, logits, &st) ||
            memcmp(logits, s->expected[at], (size_t)s->plan[at].clips * LABELS * sizeof *logits) != 0)
            w->failures++;
    }
    return NULL;
}

/* Workers of one GPU, each with a device of its own, on threads of their own. */
static void workers_body(const struct subject *subject) {
    enum { WORKERS = 3 };
    struct worker workers[WORKERS];
    struct batches s;
    batches_init(&s, subject);
    for (int i = 0; i < WORKERS; i++) {
        struct worker *w = &workers[i];
        *w = (struct worker){.batches = &s, .first = i};
        assert_true(bed_init(&w->bed, subject, 1, i != 1, &limits)); /* one has no graphs */
        chain_init(&w->chain, &w->bed);
        warm(&w->chain, &w->bed);
    }
    for (int i = 0; i < WORKERS; i++)
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    for (int i = 0; i < WORKERS; i++)
        assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
    for (int i = 0; i < WORKERS; i++) {
        assert_int_equal(workers[i].failures, 0);
        chain_free(&workers[i].chain, &workers[i].bed);
        bed_free(&workers[i].bed);
    }
    batches_free(&s);
}

static void test_workers(void **state) {
    (void)state;
    for_each_subject(workers_body);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replay),
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_allocations),
        cmocka_unit_test(test_workers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
