#include "base/team.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

enum { SPIN_ROUNDS = 3000 }; /* about 50 us: longer than the gap between two kernels */

struct worker {
    struct team *team;
    pthread_t thread;
    int index;
};

struct team {
    int threads;
    bool pin, caller_pinned;
    int pin_first;

    void (*fn)(void *arg, int thread, int threads);
    void *arg;

    bool everyone; /* fn is to run on every thread, not only on those that come in time */
    /* The number of the present generation (it goes up by one for each team_run and team_for) in the upper
     * half; below it CLOSED, and how many workers are inside. A worker enters while it is not closed; the
     * caller closes it when there is nothing left to do, and waits for those inside alone. So a worker that
     * sleeps, or whose processor is taken by somebody else, holds up nobody. */
    _Alignas(64) atomic_uint_least64_t gate;
    _Alignas(64) atomic_int running; /* with `everyone`: workers that have not run fn yet */
    _Alignas(64) atomic_int_least64_t next_tile;
    _Alignas(64) atomic_int sleeping;
    atomic_bool stop;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct worker workers[];
};

static inline void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    sched_yield();
#endif
}

/* The processors this process may use, as they were before the first team: afterwards the asking thread may
 * be pinned to one of them. */
static cpu_set_t processors;
static pthread_once_t processors_once = PTHREAD_ONCE_INIT;

static void find_processors(void) {
    CPU_ZERO(&processors);
    if (sched_getaffinity(0, sizeof processors, &processors) != 0)
        CPU_ZERO(&processors);
}

int team_count_processors(void) {
    pthread_once(&processors_once, find_processors);
    int n = CPU_COUNT(&processors);
    return n < 1 ? 1 : n;
}

static void pin_self(const struct team *t, int index) {
    int at = (t->pin_first + index) % CPU_COUNT(&processors);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &processors) || at-- > 0)
            continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        (void)pthread_setaffinity_np(pthread_self(), sizeof one, &one);
        return;
    }
}

#define CLOSED      ((uint_least64_t)1 << 31)
#define INSIDE_MASK (CLOSED - 1)

static uint_least64_t generation_of(uint_least64_t gate) {
    return gate >> 32;
}

/* Waits until there is another generation than `seen`, and returns it. */
static uint_least64_t wait_generation(struct team *t, uint_least64_t seen) {
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        uint_least64_t now = generation_of(atomic_load_explicit(&t->gate, memory_order_acquire));
        if (now != seen)
            return now;
        cpu_relax();
    }
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add(&t->sleeping, 1);
    while (generation_of(atomic_load(&t->gate)) == seen)
        pthread_cond_wait(&t->wake, &t->lock);
    atomic_fetch_sub(&t->sleeping, 1);
    pthread_mutex_unlock(&t->lock);
    return generation_of(atomic_load_explicit(&t->gate, memory_order_acquire));
}

/* False: it is closed already, or over. */
static bool enter(struct team *t, uint_least64_t generation) {
    uint_least64_t gate = atomic_load(&t->gate);
    do {
        if (generation_of(gate) != generation || (gate & CLOSED))
            return false;
    } while (!atomic_compare_exchange_weak(&t->gate, &gate, gate + 1));
    return true;
}

static void *worker_main(void *arg) {
    struct worker *w = arg;
    struct team *t = w->team;
    uint_least64_t seen = 0;
    if (t->pin)
        pin_self(t, w->index);
    for (;;) {
        seen = wait_generation(t, seen);
        if (atomic_load(&t->stop))
            return NULL;
        if (!enter(t, seen))
            continue;
        t->fn(t->arg, w->index, t->threads);
        if (t->everyone)
            atomic_fetch_sub_explicit(&t->running, 1, memory_order_release);
        atomic_fetch_sub_explicit(&t->gate, 1, memory_order_release);
    }
}

/* What fn and arg are must have been written. */
static void begin_generation(struct team *t) {
    atomic_store(&t->gate, (generation_of(atomic_load(&t->gate)) + 1) << 32);
    if (atomic_load(&t->sleeping) > 0) {
        pthread_mutex_lock(&t->lock);
        pthread_cond_broadcast(&t->wake);
        pthread_mutex_unlock(&t->lock);
    }
}

int team_new(struct team **out, int threads, bool pin, int pin_first, struct status *st) {
    *out = NULL;
    if (threads < 0 || threads > TEAM_THREADS_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "threads: %d is not in 0..%d", threads,
                          TEAM_THREADS_MAX);
    if (threads == 0)
        threads = team_count_processors();
    if (threads > TEAM_THREADS_MAX)
        threads = TEAM_THREADS_MAX;
    size_t bytes = sizeof(struct team) + (size_t)threads * sizeof(struct worker);
    bytes = (bytes + 63) / 64 * 64;
    struct team *t = aligned_alloc(64, bytes);
    if (!t)
        return status_set_no_memory(st, bytes, "a thread team");
    memset(t, 0, bytes);
    t->threads = 1;
    t->pin = pin;
    t->pin_first = pin_first;
    pthread_once(&processors_once, find_processors);
    if (CPU_COUNT(&processors) == 0)
        t->pin = false;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->wake, NULL);
    for (int i = 1; i < threads; i++) {
        t->workers[i] = (struct worker){.team = t, .index = i};
        if (pthread_create(&t->workers[i].thread, NULL, worker_main, &t->workers[i]) != 0) {
            team_del(t);
            return status_set(st, STATUS_RESOURCE_EXHAUSTED, "cannot start thread %d of %d", i + 1, threads);
        }
        pthread_setname_np(t->workers[i].thread, "timbre-team");
        t->threads = i + 1;
    }
    *out = t;
    return 0;
}

void team_del(struct team *t) {
    if (!t)
        return;
    atomic_store(&t->stop, true);
    begin_generation(t);
    for (int i = 1; i < t->threads; i++)
        pthread_join(t->workers[i].thread, NULL);
    if (t->caller_pinned)
        (void)pthread_setaffinity_np(pthread_self(), sizeof processors, &processors);
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

int team_count_threads(const struct team *t) {
    return t->threads;
}

static void pause_round(int i) {
    if (i < SPIN_ROUNDS)
        cpu_relax();
    else
        sched_yield();
}

static void pin_caller(struct team *t) {
    if (t->pin && !t->caller_pinned) {
        pin_self(t, 0);
        t->caller_pinned = true;
    }
}

static void run(struct team *t, bool everyone, void (*fn)(void *arg, int thread, int threads), void *arg) {
    if (t->threads == 1) {
        fn(arg, 0, 1);
        return;
    }
    t->fn = fn;
    t->arg = arg;
    t->everyone = everyone;
    atomic_store(&t->running, t->threads - 1);
    begin_generation(t);
    fn(arg, 0, t->threads);
    for (int i = 0; everyone && atomic_load_explicit(&t->running, memory_order_acquire) > 0; i++)
        pause_round(i);
    atomic_fetch_or(&t->gate, CLOSED);
    for (int i = 0; atomic_load_explicit(&t->gate, memory_order_acquire) & INSIDE_MASK; i++)
        pause_round(i);
}

void team_run(struct team *t, void (*fn)(void *arg, int thread, int threads), void *arg) {
    pin_caller(t);
    run(t, true, fn, arg);
}

struct tiles {
    struct team *team;
    int64_t count;
    void (*fn)(void *arg, int64_t tile, int thread);
    void *arg;
};

static void run_tiles(void *arg, int thread, int threads) {
    struct tiles *job = arg;
    (void)threads;
    for (;;) {
        int64_t tile = atomic_fetch_add_explicit(&job->team->next_tile, 1, memory_order_relaxed);
        if (tile >= job->count)
            return;
        job->fn(job->arg, tile, thread);
    }
}

void team_for(struct team *t, int64_t tiles, void (*fn)(void *arg, int64_t tile, int thread), void *arg) {
    pin_caller(t);
    if (tiles <= 1 || t->threads == 1) {
        for (int64_t i = 0; i < tiles; i++)
            fn(arg, i, 0);
        return;
    }
    struct tiles job = {.team = t, .count = tiles, .fn = fn, .arg = arg};
    atomic_store(&t->next_tile, 0);
    run(t, false, run_tiles, &job);
}
