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
    assert_int_equal(team_new(&t, threads, pin, 0, &st), 0);
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
    if (team_new(&inner, jobs[tile].threads, false, 0, &st)) {
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
    assert_int_equal(team_new(&t, -1, false, 0, &st), -1);
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    assert_int_equal(team_new(&t, TEAM_THREADS_MAX + 1, false, 0, &st), -1);
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

/* ---- where threads are ---- */

struct places {
    int processor[8]; /* of each thread; -1: not on one alone */
};

static void find_place(void *arg, int thread, int threads) {
    struct places *p = arg;
    cpu_set_t set;
    (void)threads;
    p->processor[thread] = -1;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) == 1)
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
            if (CPU_ISSET(cpu, &set))
                p->processor[thread] = cpu;
}

static int find_nth(const cpu_set_t *set, int n) {
    int at = n % CPU_COUNT(set), cpu = 0;
    while (!CPU_ISSET(cpu, set) || at-- > 0)
        cpu++;
    return cpu;
}

/* Each thread on its processor, beginning with any of them and around. */
static void test_where_threads_are(void **state) {
    cpu_set_t all;
    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    for (int threads = 1; threads <= 4; threads++)
        for (int first = 0; first < 5; first++) {
            struct team *t;
            struct status st;
            struct places places;
            assert_int_equal(team_new(&t, threads, true, first, &st), 0);
            team_run(t, find_place, &places);
            for (int i = 0; i < threads; i++)
                assert_int_equal(places.processor[i], find_nth(&all, first + i));
            team_del(t);
        }
}

static void find_place_of_tile(void *arg, int64_t tile, int thread) {
    (void)tile;
    find_place(arg, thread, 1);
}

/* The caller too, with the first tile, and when it is the only thread; without pin it is left alone. */
static void test_where_the_caller_is(void **state) {
    cpu_set_t all, after;
    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    for (int pin = 0; pin < 2; pin++) {
        struct team *t;
        struct status st;
        struct places places;
        assert_int_equal(team_new(&t, 1, pin, 1, &st), 0);
        team_for(t, 1, find_place_of_tile, &places);
        if (pin || CPU_COUNT(&all) == 1)
            assert_int_equal(places.processor[0], find_nth(&all, 1));
        else
            assert_int_equal(places.processor[0], -1);
        team_del(t);
        assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
        assert_true(CPU_EQUAL(&all, &after));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_thread_runs_once), cmocka_unit_test(test_every_tile_runs_once),
        cmocka_unit_test(test_nested_teams),           cmocka_unit_test(test_pauses),
        cmocka_unit_test(test_start_and_stop_at_once), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_pinning_is_undone),      cmocka_unit_test(test_where_threads_are),
        cmocka_unit_test(test_where_the_caller_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
