/* Tests of base/metrics: the text, to the letter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/metrics.h"

/* Allocations from now on that still succeed. */
static atomic_int allocations_left = INT_MAX;

static bool may_allocate(void) {
    return atomic_fetch_sub(&allocations_left, 1) > 0;
}

void *__real_calloc(size_t n, size_t bytes);
char *__real_strdup(const char *s);
void *__wrap_calloc(size_t n, size_t bytes);
char *__wrap_strdup(const char *s);

void *__wrap_calloc(size_t n, size_t bytes) {
    return may_allocate() ? __real_calloc(n, bytes) : NULL;
}

char *__wrap_strdup(const char *s) {
    return may_allocate() ? __real_strdup(s) : NULL;
}

static struct metrics *make(void) {
    struct metrics *m;
    struct status st;
    assert_int_equal(metrics_new(&m, &st), 0);
    return m;
}

static void assert_text(struct metrics *m, const char *expected) {
    struct text t;
    text_init_growing(&t);
    metrics_write(m, &t);
    assert_false(t.failed);
    assert_string_equal(t.data, expected);
    text_free(&t);
}

static void test_values(void **state) {
    (void)state;
    struct metrics *m = make();
    assert_text(m, "");
    struct metrics_family *f = metrics_add(m, METRICS_COUNTER, "timbre_a_total", "All a.", "", NULL, 0);
    assert_text(m, ""); /* no series yet */
    struct metrics_series *a = metrics_get(f);
    metrics_count(a, 1);
    metrics_count(a, 2.5);
    metrics_count(a, -1); /* a counter does not fall */
    metrics_count(a, NAN);
    metrics_observe(a, 1);
    struct metrics_family *g = metrics_add(m, METRICS_GAUGE, "timbre_b", "Some b.", "x,y", NULL, 0);
    struct metrics_series *b = metrics_get(g, "1", "2"), *c = metrics_get(g, "2", NULL);
    metrics_count(b, 5);
    metrics_count(b, -7);
    metrics_set(c, 0.1);
    assert_text(m, "# HELP timbre_a_total All a.\n# TYPE timbre_a_total counter\ntimbre_a_total 3.5\n"
                   "# HELP timbre_b Some b.\n# TYPE timbre_b gauge\n"
                   "timbre_b{x=\"1\",y=\"2\"} -2\ntimbre_b{x=\"2\",y=\"\"} 0.1\n");
    metrics_set(a, 123456789012.0); /* bytes and the like are not rounded */
    metrics_set(b, INFINITY);
    metrics_set(c, NAN);
    assert_text(m,
                "# HELP timbre_a_total All a.\n# TYPE timbre_a_total counter\ntimbre_a_total 123456789012\n"
                "# HELP timbre_b Some b.\n# TYPE timbre_b gauge\n"
                "timbre_b{x=\"1\",y=\"2\"} +Inf\ntimbre_b{x=\"2\",y=\"\"} NaN\n");
    metrics_set(b, -INFINITY);
    metrics_set(a, 0);
    metrics_set(c, 0);
    assert_text(m, "# HELP timbre_a_total All a.\n# TYPE timbre_a_total counter\ntimbre_a_total 0\n"
                   "# HELP timbre_b Some b.\n# TYPE timbre_b gauge\n"
                   "timbre_b{x=\"1\",y=\"2\"} -Inf\ntimbre_b{x=\"2\",y=\"\"} 0\n");
    metrics_del(m);
}

static void test_escaping(void **state) {
    (void)state;
    struct metrics *m = make();
    struct metrics_family *f = metrics_add(m, METRICS_GAUGE, "g", "a \\ b\nc \"d\"", "l", NULL, 0);
    metrics_get(f, "a\"b\\c\nd\te\x1a{},=");
    metrics_get(f, "\xc3\xa4\xff\\n");
    assert_text(m, "# HELP g a \\\\ b\\nc \"d\"\n# TYPE g gauge\n"
                   "g{l=\"a\\\"b\\\\c\\nd e {},=\"} 0\n"
                   "g{l=\"\xc3\xa4\xef\xbf\xbd\\\\n\"} 0\n");
    metrics_del(m);
}

/* The longest text that labels can make still is one sample, and values that differ after the cut are one. */
static void test_long_values(void **state) {
    (void)state;
    struct metrics *m = make();
    char junk[1000];
    memset(junk, 0xff, sizeof junk - 1);
    junk[sizeof junk - 1] = 0;
    struct metrics_family *f = metrics_add(m, METRICS_GAUGE, "g", "", "a,b,c,d,e,f,g,h", NULL, 0);
    struct metrics_series *s = metrics_get(f, junk, junk, junk, junk, junk, junk, junk, junk);
    assert_non_null(s);
    junk[500] = 'x';
    assert_ptr_equal(metrics_get(f, junk, junk, junk, junk, junk, junk, junk, junk), s);
    struct text t;
    text_init_growing(&t);
    metrics_write(m, &t);
    const char *end = "\xef\xbf\xbd\"} 0\n";
    assert_true(t.length > 8 * 255 * 3);
    assert_string_equal(t.data + t.length - strlen(end), end);
    text_free(&t);
    metrics_del(m);
}

static void test_histogram(void **state) {
    (void)state;
    struct metrics *m = make();
    const double bounds[] = {0.5, 1, 10};
    struct metrics_family *f = metrics_add(m, METRICS_HISTOGRAM, "h_seconds", "H.", "m", bounds, 3);
    struct metrics_series *s = metrics_get(f, "x");
    const double values[] = {0.25, 0.5, 0.75, 10, 11, NAN, -1};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        metrics_observe(s, values[i]);
    metrics_count(s, 1); /* not a histogram's */
    metrics_set(s, 1);
    assert_text(m, "# HELP h_seconds H.\n# TYPE h_seconds histogram\n"
                   "h_seconds_bucket{m=\"x\",le=\"0.5\"} 3\nh_seconds_bucket{m=\"x\",le=\"1\"} 4\n"
                   "h_seconds_bucket{m=\"x\",le=\"10\"} 5\nh_seconds_bucket{m=\"x\",le=\"+Inf\"} 6\n"
                   "h_seconds_sum{m=\"x\"} 21.5\nh_seconds_count{m=\"x\"} 6\n");
    metrics_del(m);

    m = make();
    s = metrics_get(metrics_add(m, METRICS_HISTOGRAM, "h", "H.", "", NULL, 0));
    metrics_observe(s, 3);
    assert_text(m, "# HELP h H.\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 3\nh_count 1\n");
    metrics_del(m);
}

static void test_seconds_bounds(void **state) {
    (void)state;
    struct metrics *m = make();
    assert_non_null(metrics_add(m, METRICS_HISTOGRAM, "h_seconds", "", "", metrics_seconds_bounds,
                                METRICS_SECONDS_BOUNDS));
    assert_true(metrics_seconds_bounds[0] == 0.0005);
    assert_true(metrics_seconds_bounds[METRICS_SECONDS_BOUNDS - 1] == 60);
    metrics_del(m);
}

static void test_made_once(void **state) {
    (void)state;
    struct metrics *m = make();
    const double bounds[] = {1, 2}, others[] = {1, 3}, falling[] = {2, 1}, endless[] = {1, INFINITY};
    struct metrics_family *f = metrics_add(m, METRICS_COUNTER, "a_total", "A.", "x", NULL, 0);
    struct metrics_family *h = metrics_add(m, METRICS_HISTOGRAM, "h", "H.", "", bounds, 2);
    assert_ptr_equal(metrics_add(m, METRICS_COUNTER, "a_total", "again", "x", NULL, 0), f);
    assert_ptr_equal(metrics_add(m, METRICS_HISTOGRAM, "h", "H.", "", bounds, 2), h);
    assert_ptr_equal(metrics_get(f, "1"), metrics_get(f, "1"));
    assert_ptr_not_equal(metrics_get(f, "1"), metrics_get(f, "2"));
    assert_null(metrics_add(m, METRICS_GAUGE, "a_total", "A.", "x", NULL, 0));
    assert_null(metrics_add(m, METRICS_COUNTER, "a_total", "A.", "y", NULL, 0));
    assert_null(metrics_add(m, METRICS_HISTOGRAM, "h", "H.", "", others, 2));
    assert_null(metrics_add(m, METRICS_HISTOGRAM, "h2", "H.", "", falling, 2));
    assert_null(metrics_add(m, METRICS_HISTOGRAM, "h2", "H.", "", endless, 2));
    assert_null(metrics_add(m, METRICS_HISTOGRAM, "h2", "H.", "", bounds, METRICS_BOUNDS_MAX + 1));
    assert_null(metrics_add(m, METRICS_COUNTER, "c_total", "C.", "", bounds, 2));
    const char *const bad_names[] = {"", "1a", "a-b", "a b", "\xc3\xa4", "a\n"};
    for (size_t i = 0; i < sizeof bad_names / sizeof *bad_names; i++)
        assert_null(metrics_add(m, METRICS_GAUGE, bad_names[i], "", "", NULL, 0));
    const char *const bad_labels[] = {",", "a,", ",a", "a,,b", "a b", "le", "x,le", "a,b,c,d,e,f,g,h,i"};
    for (size_t i = 0; i < sizeof bad_labels / sizeof *bad_labels; i++)
        assert_null(metrics_add(m, METRICS_GAUGE, "g", "", bad_labels[i], NULL, 0));
    char long_label[513];
    memset(long_label, 'a', sizeof long_label - 1);
    long_label[512] = 0;
    assert_null(metrics_add(m, METRICS_GAUGE, "g", "", long_label, NULL, 0));
    assert_non_null(metrics_add(m, METRICS_GAUGE, "g", "", long_label + 1, NULL, 0));
    metrics_del(m);
}

static void test_limits(void **state) {
    (void)state;
    struct metrics *m = make();
    struct metrics_family *f = metrics_add(m, METRICS_COUNTER, "a_total", "A.", "x,y", NULL, 0);
    struct metrics_series *first = metrics_get(f, "0", ""), *other = NULL;
    for (int i = 0; i < METRICS_SERIES_MAX + 20; i++) {
        char value[20];
        snprintf(value, sizeof value, "%d", i);
        struct metrics_series *s = metrics_get(f, value, "");
        metrics_count(s, 1);
        if (i == METRICS_SERIES_MAX - 1)
            other = s;
        assert_true(i < METRICS_SERIES_MAX || s == other);
    }
    assert_ptr_equal(metrics_get(f, "0", ""), first);
    struct text t;
    text_init_growing(&t);
    metrics_write(m, &t);
    assert_non_null(strstr(t.data, "\na_total{x=\"1022\",y=\"\"} 1\n"));
    assert_null(strstr(t.data, "\"1023\""));
    assert_non_null(strstr(t.data, "\na_total{x=\"other\",y=\"other\"} 21\n"));
    int lines = 0;
    for (const char *c = t.data; *c; c++)
        lines += *c == '\n';
    assert_int_equal(lines, METRICS_SERIES_MAX + 2);
    text_free(&t);
    for (int i = 1; i <= METRICS_FAMILIES_MAX; i++) {
        char name[20];
        snprintf(name, sizeof name, "f%d", i);
        f = metrics_add(m, METRICS_GAUGE, name, "", "", NULL, 0);
        assert_true((f != NULL) == (i < METRICS_FAMILIES_MAX));
    }
    metrics_del(m);
}

static void never(void *arg) {
    (void)arg;
    fail();
}

static void test_null(void **state) {
    (void)state;
    assert_null(metrics_add(NULL, METRICS_GAUGE, "g", "", "x", NULL, 0));
    assert_null(metrics_get(NULL, "1"));
    metrics_count(NULL, 1);
    metrics_set(NULL, 1);
    metrics_observe(NULL, 1);
    metrics_on_write(NULL, never, NULL);
    struct text t;
    text_init_growing(&t);
    metrics_write(NULL, &t);
    assert_string_equal(t.data, "");
    text_free(&t);
    metrics_del(NULL);
}

/* When memory is used up there is no family or series, and nothing else happens. */
static void test_no_memory(void **state) {
    (void)state;
    int failures = 0;
    for (int left = 0; left < 8; left++) {
        struct metrics *m;
        struct status st;
        atomic_store(&allocations_left, left);
        int made = metrics_new(&m, &st);
        struct metrics_series *s = NULL;
        if (made == 0)
            s = metrics_get(metrics_add(m, METRICS_GAUGE, "g", "G.", "x", NULL, 0), "1");
        atomic_store(&allocations_left, INT_MAX);
        failures += !s;
        if (made == 0) {
            metrics_set(metrics_get(metrics_add(m, METRICS_GAUGE, "g", "G.", "x", NULL, 0), "1"), 1);
            assert_text(m, "# HELP g G.\n# TYPE g gauge\ng{x=\"1\"} 1\n");
        } else {
            assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
        }
        metrics_del(m);
    }
    assert_int_equal(failures, 7);
}

struct measured {
    struct metrics_family *f;
    int calls;
};

/* A measure may make series. */
static void measure(void *arg) {
    struct measured *x = arg;
    metrics_set(metrics_get(x->f, "1"), ++x->calls);
}

static void test_measures(void **state) {
    (void)state;
    struct metrics *m = make();
    struct measured x = {.f = metrics_add(m, METRICS_GAUGE, "g", "G.", "x", NULL, 0)};
    metrics_on_write(m, measure, &x);
    assert_text(m, "# HELP g G.\n# TYPE g gauge\ng{x=\"1\"} 1\n");
    assert_text(m, "# HELP g G.\n# TYPE g gauge\ng{x=\"1\"} 2\n");
    for (int i = 0; i < 20; i++)
        metrics_on_write(m, measure, &x);
    x.calls = 0;
    assert_text(m, "# HELP g G.\n# TYPE g gauge\ng{x=\"1\"} 8\n");
    metrics_del(m);
}

/* ---- many threads ---- */

enum { THREADS = 8, ROUNDS = 20000 };

struct shared {
    struct metrics *m;
    struct metrics_family *f;
    struct metrics_series *count, *level, *times;
    atomic_bool over;
};

static void *update(void *arg) {
    struct shared *s = arg;
    for (int i = 0; i < ROUNDS; i++) {
        metrics_count(s->count, 1);
        metrics_count(s->level, i % 2 ? -0.5 : 0.5);
        metrics_observe(s->times, i % 4);
        char value[4] = {(char)('a' + i % 7), 0};
        if (i % 64 == 0)
            metrics_count(metrics_get(s->f, value), 1);
    }
    return NULL;
}

/* While others update, the buckets never fall and the last one is the count. */
static void *write_often(void *arg) {
    struct shared *s = arg;
    while (!atomic_load(&s->over)) {
        unsigned long long all, count;
        struct text t;
        text_init_growing(&t);
        metrics_write(s->m, &t);
        const char *last = strstr(t.data, "le=\"+Inf\"}"), *end = strstr(t.data, "h_count");
        assert_non_null(last);
        assert_non_null(end);
        assert_int_equal(sscanf(last, "le=\"+Inf\"} %llu", &all), 1);
        assert_int_equal(sscanf(end, "h_count %llu", &count), 1);
        assert_true(all == count);
        text_free(&t);
    }
    return NULL;
}

static void test_many_threads(void **state) {
    (void)state;
    struct shared s = {.m = make()};
    const double bounds[] = {0, 1, 2};
    s.f = metrics_add(s.m, METRICS_COUNTER, "a_total", "A.", "x", NULL, 0);
    s.count = metrics_get(metrics_add(s.m, METRICS_COUNTER, "b_total", "B.", "", NULL, 0));
    s.level = metrics_get(metrics_add(s.m, METRICS_GAUGE, "g", "G.", "", NULL, 0));
    s.times = metrics_get(metrics_add(s.m, METRICS_HISTOGRAM, "h", "H.", "", bounds, 3));
    pthread_t threads[THREADS], writer;
    assert_int_equal(pthread_create(&writer, NULL, write_often, &s), 0);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, update, &s), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    atomic_store(&s.over, true);
    pthread_join(writer, NULL);
    struct text t;
    text_init_growing(&t);
    metrics_write(s.m, &t);
    assert_non_null(strstr(t.data, "\nb_total 160000\n"));
    assert_non_null(strstr(t.data, "\ng 0\n"));
    assert_non_null(strstr(t.data, "\nh_bucket{le=\"0\"} 40000\nh_bucket{le=\"1\"} 80000\n"
                                   "h_bucket{le=\"2\"} 120000\nh_bucket{le=\"+Inf\"} 160000\n"
                                   "h_sum 240000\nh_count 160000\n"));
    unsigned total = 0;
    for (const char *line = t.data; (line = strstr(line, "\na_total{")); line++) {
        unsigned n;
        assert_int_equal(sscanf(line, "\na_total{x=\"%*[a-g]\"} %u", &n), 1);
        total += n;
    }
    assert_int_equal(total, THREADS * ((ROUNDS + 63) / 64));
    text_free(&t);
    metrics_del(s.m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),         cmocka_unit_test(test_escaping),
        cmocka_unit_test(test_long_values),    cmocka_unit_test(test_histogram),
        cmocka_unit_test(test_seconds_bounds), cmocka_unit_test(test_made_once),
        cmocka_unit_test(test_limits),         cmocka_unit_test(test_null),
        cmocka_unit_test(test_no_memory),      cmocka_unit_test(test_measures),
        cmocka_unit_test(test_many_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
