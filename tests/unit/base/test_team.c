/* Tests of base/team. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/team.h"

enum { TILES_MAX = 1000 };

struct job {
    int threads;
    atomic_int runs[TILES_MAX]; /* how often each tile or thread ran */
    atomic_bool bad_thread;
    int64_t plain[TILES_MAX]; /* written without atomics: team_run must make it visible */
};

static struct team *make(int threads, bool pin) {
    struct team *t;
    struct status st;
    assert_int_equal(team_new(&t, threads, pin, &st), 0);
    return t;
}

static void run_once(void *arg, int thread, int threads) {
    struct job *job = arg;
    if (threads != job->threads || thread < 0 || thread >= threads)
        atomic_store(&job->bad_thread, true);
    else
        atomic_fetch_add(&job->runs[thread], 1);
}

static void run_tile(void *arg, int64_t tile, int thread) {
    struct job *job = arg;
    if (thread < 0 || thread >= job->threads)
        atomic_store(&job->bad_thread, true);
    atomic_fetch_add(&job->runs[tile], 1);
    job->plain[tile] += tile + 1;
}

static void test_every_thread_runs_once(void **state) {
    (void)state;
    for (int threads = 1; threads <= 4; threads++) {
        struct team *t = make(threads, false);
        assert_int_equal(team_count_threads(t), threads);
        for (int round = 0; round < 500; round++) {
            struct job job = {.threads = threads};
            team_run(t, run_once, &job);
            assert_false(atomic_load(&job.bad_thread));
            for (int i = 0; i < threads; i++)
                assert_int_equal(atomic_load(&job.runs[i]), 1);
        }
        team_del(t);
    }
}

static void test_every_tile_runs_once(void **state) {
    (void)state;
    static const int64_t counts[] = {0, 1, 2, 3, 4, 5, 63, TILES_MAX};
    for (int threads = 1; threads <= 4; threads++) {
        struct team *t = make(threads, threads % 2 == 0);
        for (int round = 0; round < 50; round++) {
            for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
                static struct job job;
                memset(&job, 0, sizeof job);
                job.threads = threads;
                team_for(t, counts[c], run_tile, &job);
                assert_false(atomic_load(&job.bad_thread));
                for (int64_t i = 0; i < TILES_MAX; i++) {
                    assert_int_equal(atomic_load(&job.runs[i]), i < counts[c]);
                    assert_int_equal(job.plain[i], i < counts[c] ? i + 1 : 0);
                }
            }
        }
        team_del(t);
    }
}

/* One team on each thread of another: as several workers, each with a team of its own, would. */
static void run_inner(void *arg, int64_t tile, int thread) {
    struct team *inner;
    struct status st;
    struct job *jobs = arg;
    (void)thread;
    if (team_new(&inner, jobs[tile].threads, false, &st)) {
        atomic_store(&jobs[tile].bad_thread, true);
        return;
    }
    for (int round = 0; round < 10; round++)
        team_for(inner, 100, run_tile, &jobs[tile]);
    team_del(inner);
}

static void test_nested_teams(void **state) {
    (void)state;
    static struct job jobs[8];
    struct team *outer = make(3, false);
    for (int i = 0; i < 8; i++)
        jobs[i].threads = 1 + i % 4;
    team_for(outer, 8, run_inner, jobs);
    for (int i = 0; i < 8; i++) {
        assert_false(atomic_load(&jobs[i].bad_thread));
        for (int tile = 0; tile < 100; tile++)
            assert_int_equal(atomic_load(&jobs[i].runs[tile]), 10);
    }
    team_del(outer);
}

/* Sleeping workers wake, even when the work comes after a long pause. */
static void test_pauses(void **state) {
    (void)state;
    struct team *t = make(4, false);
    for (int round = 0; round < 30; round++) {
        struct job job = {.threads = 4};
        team_run(t, run_once, &job);
        for (int i = 0; i < 4; i++)
            assert_int_equal(atomic_load(&job.runs[i]), 1);
        for (int i = 0; i < round * 2000; i++)
            sched_yield();
    }
    team_del(t);
}

static void test_start_and_stop_at_once(void **state) {
    (void)state;
    for (int i = 0; i < 200; i++)
        team_del(make(1 + i % 8, i % 2));
    team_del(NULL);
}

static void test_limits(void **state) {
    (void)state;
    struct team *t;
    struct status st;
    assert_int_equal(team_new(&t, -1, false, &st), -1);
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    assert_int_equal(team_new(&t, TEAM_THREADS_MAX + 1, false, &st), -1);
    assert_non_null(strstr(st.message, "256"));
    t = make(0, false);
    assert_true(team_count_processors() >= 1);
    int expected = team_count_processors() < TEAM_THREADS_MAX ? team_count_processors() : TEAM_THREADS_MAX;
    assert_int_equal(team_count_threads(t), expected);
    team_del(t);
}

static void test_pinning_is_undone(void **state) {
    (void)state;
    cpu_set_t before, after;
    struct job job = {.threads = 2};
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    struct team *t = make(2, true);
    team_run(t, run_once, &job);
    team_del(t);
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_thread_runs_once), cmocka_unit_test(test_every_tile_runs_once),
        cmocka_unit_test(test_nested_teams),           cmocka_unit_test(test_pauses),
        cmocka_unit_test(test_start_and_stop_at_once), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_pinning_is_undone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
