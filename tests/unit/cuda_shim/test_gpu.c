/* gpu.h on the host: memory, graphs, what a capture refuses, GPUs, two threads. */
#include "tests/unit/cuda_shim/memory.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/host/record.h"
#include "tests/unit/cuda_shim/kernels.h"

enum { N = 100, WRONG_STREAM = 400, IN_CAPTURE = 900, UNJOINED = 904, ISOLATION = 905 };

static void fill(float *x, float value) {
    for (int i = 0; i < N; i++) {
        x[i] = value;
    }
}
static void check(const float *x, float value) {
    for (int i = 0; i < N; i++) {
        assert_true(x[i] == value);
    }
}

static void test_memory(void **state) {
    (void)state;
    struct gpu_info before, after;
    assert_int_equal(gpu_get_info(0, &before), 0);
    assert_string_equal(before.name, "host shim");
    assert_int_equal(before.sm, 90);
    assert_true(before.memory_free_bytes == before.memory_bytes);
    unsigned char *p;
    assert_int_equal(gpu_memory_new((void **)&p, 1001), 0);
    assert_int_equal((uintptr_t)p % 256, 0);
    struct gpu_stream *s = stream_new();
    unsigned char host[1001];
    assert_int_equal(gpu_copy_out(host, p, sizeof(host), s), 0);
    gpu_stream_del(s);
    for (int i = 0; i < 1001; i++) {
        assert_int_equal(host[i], 0xff);
    }
    assert_int_equal(gpu_get_info(0, &after), 0);
    assert_true(after.memory_free_bytes == before.memory_bytes - 1001);
    void *too_much = p;
    assert_int_equal(gpu_memory_new(&too_much, before.memory_bytes - 1000), GPU_OUT_OF_MEMORY);
    assert_null(too_much);
    gpu_memory_del(p);
    gpu_memory_del(NULL);
    assert_int_equal(gpu_memory_new((void **)&p, 0), 0);
    assert_null(p);
    assert_int_equal(gpu_get_info(0, &after), 0);
    assert_true(after.memory_free_bytes == before.memory_bytes);
    assert_int_equal(gpu_pinned_new((void **)&p, 10), 0);
    gpu_pinned_del(p);
}

static void add_one(void *arg) {
    float **y = arg;
    for (int i = 0; i < N; i++) {
        (*y)[i] += 1.0f;
    }
}

/* Copy in, two kernels, a call of a library, copy out: nothing runs before the launch; every launch reads
 * what then stands in memory, with the arguments of the capture. */
static void test_graph(void **state) {
    (void)state;
    struct gpu_stream *s = stream_new();
    float *in, *out, *x = memory_new(N * sizeof(float), NULL, s), *y = memory_new(N * sizeof(float), NULL, s);
    assert_int_equal(gpu_pinned_new((void **)&in, N * sizeof(float)), 0);
    assert_int_equal(gpu_pinned_new((void **)&out, N * sizeof(float)), 0);
    fill(in, 1.0f);
    fill(out, -1.0f);
    struct gpu_graph *g = NULL;
    assert_int_equal(gpu_capture_begin(s), 0);
    float add = 10.0f;
    float *where = y;
    assert_int_equal(gpu_zero(y, N * sizeof(float), s), 0);
    assert_int_equal(gpu_copy_in(x, in, N * sizeof(float), s), 0);
    graphs_add(s, y, x, add, N);
    graphs_add(s, y, y, 100.0f, N);
    assert_true(gpu_host_record(s, add_one, &where, sizeof(where)));
    assert_int_equal(gpu_copy_within(x, y, N * sizeof(float), s), 0);
    assert_int_equal(gpu_copy_out(out, x, N * sizeof(float), s), 0);
    add = 0.0f;
    where = NULL;
    assert_int_equal(gpu_capture_end(s, &g), 0);
    assert_int_equal(gpu_last_error(), 0);
    check(out, -1.0f);
    assert_false(gpu_host_record(s, add_one, &where, sizeof(where)));
    for (int i = 1; i < 4; i++) {
        fill(in, (float)i);
        assert_int_equal(gpu_graph_launch(g, s), 0);
        assert_int_equal(gpu_stream_wait(s), 0);
        check(out, 111.0f + (float)i);
    }
    gpu_graph_del(g);
    gpu_graph_del(NULL);
    assert_int_equal(gpu_capture_begin(s), 0); /* an empty one is a graph too */
    assert_int_equal(gpu_capture_end(s, &g), 0);
    assert_int_equal(gpu_graph_launch(g, s), 0);
    gpu_graph_del(g);
    gpu_memory_del(x);
    gpu_memory_del(y);
    gpu_pinned_del(in);
    gpu_pinned_del(out);
    gpu_stream_del(s);
}

static void test_refused_in_capture(void **state) {
    (void)state;
    struct gpu_stream *s = stream_new();
    struct gpu_graph *g = NULL;
    void *p = NULL;
    assert_int_equal(gpu_capture_end(s, &g), 401);
    for (int what = 0; what < 5; what++) {
        struct gpu_graph *inner = NULL;
        assert_int_equal(gpu_capture_begin(s), 0);
        assert_int_equal(gpu_capture_end(s, &inner), 0);
        assert_int_equal(gpu_capture_begin(s), 0);
        int wanted = GPU_CAPTURE_INVALIDATED;
        if (what == 0) {
            assert_int_equal(gpu_stream_wait(s), IN_CAPTURE);
        } else if (what == 1) {
            assert_int_equal(gpu_memory_new(&p, 16), IN_CAPTURE);
        } else if (what == 2) {
            assert_int_equal(gpu_pinned_new(&p, 16), IN_CAPTURE);
        } else if (what == 3) {
            assert_int_equal(gpu_graph_launch(inner, s), IN_CAPTURE);
        } else {
            graphs_launch_badly(s, 2000, 0);
            wanted = GPU_INVALID_CONFIGURATION;
        }
        assert_int_equal(gpu_capture_end(s, &g), wanted);
        assert_null(g);
        assert_int_equal(gpu_last_error(), what == 4 ? GPU_INVALID_CONFIGURATION : GPU_OK);
        gpu_graph_del(inner);
    }
    assert_int_equal(gpu_memory_new(&p, 16), 0); /* all is well again */
    gpu_memory_del(p);
    gpu_stream_del(s);
}

static void test_events(void **state) {
    (void)state;
    struct gpu_stream *a = stream_new(), *b = stream_new();
    struct gpu_event *e, *f;
    struct gpu_graph *g = NULL;
    float *y = memory_new(N * sizeof(float), NULL, a), out[N];
    assert_int_equal(gpu_event_new(&e), 0);
    assert_int_equal(gpu_event_new(&f), 0);
    assert_int_equal(gpu_event_record(e, a), 0);
    assert_int_equal(gpu_stream_wait_event(b, e), 0);
    /* b joins a's capture by an event, and a waits for it. */
    assert_int_equal(gpu_capture_begin(a), 0);
    assert_int_equal(gpu_zero(y, N * sizeof(float), a), 0);
    assert_int_equal(gpu_event_record(e, a), 0);
    assert_int_equal(gpu_stream_wait_event(b, e), 0);
    graphs_add(b, y, y, 2.0f, N);
    assert_int_equal(gpu_event_record(f, b), 0);
    assert_int_equal(gpu_stream_wait_event(a, f), 0);
    graphs_add(a, y, y, 3.0f, N);
    assert_int_equal(gpu_capture_end(a, &g), 0);
    assert_int_equal(gpu_graph_launch(g, a), 0);
    assert_int_equal(gpu_copy_out(out, y, sizeof(out), a), 0);
    check(out, 5.0f);
    gpu_graph_del(g);
    /* Not waited for. */
    assert_int_equal(gpu_capture_begin(a), 0);
    assert_int_equal(gpu_event_record(e, a), 0);
    assert_int_equal(gpu_stream_wait_event(b, e), 0);
    assert_int_equal(gpu_capture_end(a, &g), UNJOINED);
    /* A graph cannot wait for what is outside of it. */
    assert_int_equal(gpu_event_record(f, b), 0);
    assert_int_equal(gpu_capture_begin(a), 0);
    assert_int_equal(gpu_stream_wait_event(a, f), ISOLATION);
    assert_int_equal(gpu_capture_end(a, &g), GPU_CAPTURE_INVALIDATED);
    gpu_memory_del(y);
    gpu_event_del(e);
    gpu_event_del(f);
    gpu_stream_del(a);
    gpu_stream_del(b);
}

static void test_launch_errors(void **state) {
    (void)state;
    struct gpu_stream *s = stream_new();
    graphs_launch_no_grid(s); /* no launch, so no error either */
    assert_int_equal(gpu_last_error(), 0);
    graphs_launch_badly(s, 1025, 0);
    graphs_launch_badly(s, 32, 0);
    assert_int_equal(gpu_last_error(), GPU_INVALID_CONFIGURATION);
    assert_int_equal(gpu_last_error(), 0);
    graphs_launch_badly(s, 32, 228 * 1024);
    assert_int_equal(gpu_last_error(), GPU_INVALID_CONFIGURATION);
    assert_non_null(strstr(gpu_error_text(GPU_INVALID_CONFIGURATION), "cudaErrorInvalidConfiguration"));
    assert_true(gpu_error_is_lost(GPU_ILLEGAL_ADDRESS));
    assert_false(gpu_error_is_lost(GPU_OUT_OF_MEMORY));
    gpu_stream_del(s);
}

static void test_gpus(void **state) {
    (void)state;
    int count = -1;
    assert_int_equal(gpu_count(&count), 0);
    assert_int_equal(count, 1);
    assert_int_not_equal(gpu_use(1), 0);
    setenv("TIMBRE_SHIM_GPUS", "2", 1);
    assert_int_equal(gpu_count(&count), 0);
    assert_int_equal(count, 2);
    assert_int_equal(gpu_use(1), 0);
    struct gpu_stream *s = stream_new();
    graphs_launch_badly(s, 32, 0);
    assert_int_equal(gpu_last_error(), 0);
    assert_int_equal(gpu_use(0), 0);
    graphs_launch_badly(s, 32, 0); /* a stream of the other GPU */
    assert_int_equal(gpu_last_error(), WRONG_STREAM);
    gpu_stream_del(s);
    setenv("TIMBRE_SHIM_GPUS", "0", 1);
    assert_int_equal(gpu_count(&count), GPU_NO_DEVICE);
    assert_int_equal(count, 0);
    unsetenv("TIMBRE_SHIM_GPUS");
}

enum { ROUNDS = 20 };

static void *work(void *arg) {
    struct gpu_stream *s;
    void *x, *y;
    float *sum = arg, host[N];
    if (gpu_stream_new(&s) != 0 || gpu_memory_new(&x, sizeof(host)) != 0 ||
        gpu_memory_new(&y, sizeof(host)) != 0) {
        return NULL;
    }
    gpu_zero(x, sizeof(host), s);
    for (int i = 0; i < ROUNDS; i++) {
        graphs_add(s, y, x, 1.0f, N);
        graphs_add(s, x, y, *sum, N);
        if (gpu_last_error() != 0) {
            return NULL;
        }
    }
    gpu_copy_out(host, x, sizeof(host), s);
    *sum = host[0] + host[N - 1];
    gpu_memory_del(x);
    gpu_memory_del(y);
    gpu_stream_del(s);
    return arg;
}

static void test_two_threads(void **state) {
    (void)state;
    pthread_t threads[2];
    float sums[2] = {1.0f, 3.0f};
    void *ends[2];
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, work, &sums[i]), 0);
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_join(threads[i], &ends[i]), 0);
        assert_ptr_equal(ends[i], &sums[i]);
    }
    assert_true(sums[0] == 2.0f * ROUNDS * 2.0f);
    assert_true(sums[1] == 2.0f * ROUNDS * 4.0f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),      cmocka_unit_test(test_graph),
        cmocka_unit_test(test_events),      cmocka_unit_test(test_refused_in_capture),
        cmocka_unit_test(test_gpus),        cmocka_unit_test(test_launch_errors),
        cmocka_unit_test(test_two_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
