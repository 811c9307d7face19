/* Tests of kernels/batch: where every clip's rows lie, against counting by brute force. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>

#include "kernels/batch.h"

/* wav2vec2's own stack. */
static const struct batch_shape standard = {
    .levels = 7, .kernel = {10, 3, 3, 3, 3, 2, 2}, .stride = {5, 2, 2, 2, 2, 2, 2}};

static int random_in(uint64_t *seed, int lo, int hi) {
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return lo + (int)((*seed >> 33) % (uint64_t)(hi - lo + 1));
}

/* Kernels smaller than their stride too: then some samples are read by nobody. */
static struct batch_shape random_shape(uint64_t *seed) {
    struct batch_shape s = {.levels = random_in(seed, 1, 5)};
    for (int l = 0; l < s.levels; l++) {
        s.kernel[l] = random_in(seed, 1, 8);
        s.stride[l] = random_in(seed, 1, 4);
    }
    return s;
}

static int64_t strides_up_to(const struct batch_shape *s, int level) {
    int64_t p = 1;
    for (int l = 0; l < level; l++)
        p *= s->stride[l];
    return p;
}

/* Rows by sliding every kernel as often as it fits. */
static int64_t slide(const struct batch_shape *s, int level, int64_t n) {
    for (int l = 0; l < level; l++) {
        int64_t rows = 0;
        for (int64_t at = 0; at + s->kernel[l] <= n; at += s->stride[l])
            rows++;
        n = rows;
    }
    return n;
}

static void test_standard_table(void **state) {
    (void)state;
    static const int64_t table[][2] = {{0, 0},      {399, 0},      {400, 1},       {719, 1},      {720, 2},
                                       {16000, 49}, {160000, 499}, {480000, 1499}, {720319, 2250}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        assert_int_equal(batch_count_rows(&standard, 7, table[i][0]), table[i][1]);
    for (int64_t n = 400; n < 200000; n++)
        assert_int_equal(batch_count_rows(&standard, 7, n), (n - 400) / 320 + 1);
    assert_int_equal(batch_min_samples(&standard), 400);
    assert_int_equal(batch_slot_samples(&standard, 400), 640);
    assert_int_equal(batch_slot_samples(&standard, 640), 640);
    assert_int_equal(batch_slot_samples(&standard, 641), 960);
    assert_int_equal(batch_slot_samples(&standard, 1), 640);
}

static void test_formulas_of_random_stacks(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (int round = 0; round < 300; round++) {
        struct batch_shape s = random_shape(&seed);
        int64_t least = batch_min_samples(&s), slot_unit = strides_up_to(&s, s.levels);
        assert_int_equal(slide(&s, s.levels, least), 1);
        assert_int_equal(slide(&s, s.levels, least - 1), 0);
        for (int i = 0; i < 20; i++) {
            int64_t n = random_in(&seed, 0, 3000), slot = batch_slot_samples(&s, n);
            for (int l = 0; l <= s.levels; l++)
                assert_int_equal(batch_count_rows(&s, l, n), slide(&s, l, n));
            assert_int_equal(slot % slot_unit, 0);
            assert_true(slot >= n && slot >= least);
            assert_true(slot < (n > least ? n : least) + slot_unit);
        }
    }
}

static struct batch make(struct arena *a, const struct batch_shape *s, int clips_max) {
    struct batch b;
    struct status st;
    arena_init_counting(a);
    batch_init(&b, s, clips_max, a);
    size_t bytes = a->used;
    assert_false(a->failed);
    assert_int_equal(arena_init(a, bytes, "a batch", &st), 0);
    batch_init(&b, s, clips_max, a);
    assert_false(a->failed);
    return b;
}

/* At every level: clips in order, none reaching into the next one's slot or beyond the tape, each row reading
 * only samples of its own clip. */
static void check_plan(const struct batch *b, const struct batch_shape *s, int clips,
                       const int64_t *samples) {
    assert_int_equal(b->clips, clips);
    assert_int_equal(b->offset[0], 0);
    assert_int_equal(b->cu_tokens[0], 0);
    for (int l = 0; l <= s->levels; l++) {
        int64_t step = strides_up_to(s, l), reach = 1; /* samples that one row of this level reads */
        for (int k = l - 1; k >= 0; k--)
            reach = (reach - 1) * s->stride[k] + s->kernel[k];
        assert_int_equal(b->step[l], step);
        for (int i = 0; i < clips; i++) {
            int64_t first = b->offset[i] / step, rows = batch_rows(b, l, i);
            assert_int_equal(b->offset[i] % step, 0);
            assert_int_equal(rows, slide(s, l, samples[i]));
            assert_true(rows >= 1);
            assert_true((rows - 1) * step + reach <= samples[i]);
            assert_true(first + rows <= (i + 1 < clips ? b->offset[i + 1] / step : b->tape_rows[l]));
            assert_int_equal(batch_find_clip(b, l, first), i);
            assert_int_equal(batch_find_clip(b, l, first + rows - 1), i);
            if (i > 0)
                assert_int_equal(batch_find_clip(b, l, first - 1), i - 1);
        }
    }
    for (int i = 0; i < clips; i++)
        assert_int_equal(b->cu_tokens[i + 1] - b->cu_tokens[i], batch_rows(b, s->levels, i));
    assert_int_equal(batch_tokens(b), b->cu_tokens[clips]);
    int64_t tape = b->offset[clips - 1] + batch_slot_samples(s, samples[clips - 1]);
    for (int l = 0; l <= s->levels; l++)
        assert_int_equal(b->tape_rows[l], slide(s, l, tape));
}

static void test_plans_of_random_clips(void **state) {
    (void)state;
    enum { CLIPS_MAX = 20 };
    uint64_t seed = 2;
    for (int round = 0; round < 300; round++) {
        struct arena a;
        struct batch_shape s = round % 10 ? random_shape(&seed) : standard;
        struct batch b = make(&a, &s, CLIPS_MAX);
        for (int again = 0; again < 3; again++) { /* the same tables, for other batches */
            int64_t samples[CLIPS_MAX], least = batch_min_samples(&s);
            int clips = random_in(&seed, 1, CLIPS_MAX);
            for (int i = 0; i < clips; i++)
                samples[i] = least + (random_in(&seed, 0, 3) ? random_in(&seed, 0, 2000) : 0);
            batch_plan(&b, &s, clips, samples);
            check_plan(&b, &s, clips, samples);
        }
        arena_free(&a);
    }
}

static void test_most_clips(void **state) {
    (void)state;
    struct arena a;
    struct batch b = make(&a, &standard, BATCH_CLIPS_MAX);
    int64_t samples[BATCH_CLIPS_MAX];
    for (int i = 0; i < BATCH_CLIPS_MAX; i++)
        samples[i] = 400 + i;
    batch_plan(&b, &standard, BATCH_CLIPS_MAX, samples);
    check_plan(&b, &standard, BATCH_CLIPS_MAX, samples);
    arena_free(&a);
}

/* "Waste: under 320 samples a clip", but for clips shorter than one token's reach. */
static void test_waste(void **state) {
    (void)state;
    for (int64_t n = 400; n < 5000; n++)
        assert_true(batch_slot_samples(&standard, n) - n < 320);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_standard_table),
        cmocka_unit_test(test_formulas_of_random_stacks),
        cmocka_unit_test(test_plans_of_random_clips),
        cmocka_unit_test(test_most_clips),
        cmocka_unit_test(test_waste),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
