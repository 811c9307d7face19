#include "tests/unit/engine/batcher_bed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include <pthread.h>
#include <unistd.h>

#include "base/clock.h"

enum { PUTTERS = 3, WORKERS_MAX = 8 };

atomic_int batcher_bed_items_run;

struct engine_request *batcher_bed_put(struct batcher *b, struct batcher_lane *l, int items, int64_t slot,
                                       int64_t within_ns) {
    struct engine_request *r = calloc(1, sizeof *r);
    bool gone;
    assert_non_null(r);
    r->lane = l;
    r->options.order = ENGINE_UNARY;
    r->options.deadline_ns = within_ns ? clock_now_ns() + within_ns : 0;
    r->items = calloc((size_t)items, sizeof *r->items);
    assert_non_null(r->items);
    r->items_count = items;
    for (int i = 0; i < items; i++)
        r->items[i] = (struct engine_item){.request = r, .slot = slot, .count = slot};
    atomic_fetch_add(&l->arriving, 1);
    batcher_put(b, r, &gone);
    return r;
}

void batcher_bed_drop(struct engine_request *r) {
    free(r->items);
    free(r);
}

struct putter {
    const struct batcher_bed_many *many;
    unsigned seed;
    struct engine_request **requests;
    pthread_t thread;
};

/* Now and then so few that nothing waits. */
static void *put_many(void *arg) {
    struct putter *p = arg;
    const struct batcher_bed_many *m = p->many;
    for (int i = 0; i < m->requests; i++) {
        p->requests[i] = batcher_bed_put(m->batcher, m->lanes[rand_r(&p->seed) % m->lanes_count],
                                         1 + rand_r(&p->seed) % 3, 1 + rand_r(&p->seed) % m->slot_max, 0);
        if (rand_r(&p->seed) % 32 == 0)
            usleep((useconds_t)(rand_r(&p->seed) % 2000));
        while (i - atomic_load(&batcher_bed_items_run) / (2 * PUTTERS) > m->depth / (2 * PUTTERS))
            usleep(100);
    }
    return NULL;
}

void batcher_bed_run_many(const struct batcher_bed_many *m) {
    struct putter putters[PUTTERS];
    pthread_t workers[WORKERS_MAX];
    int index[WORKERS_MAX], items = 0;
    assert_true(m->workers <= WORKERS_MAX);
    atomic_store(&batcher_bed_items_run, 0);
    for (int i = 0; i < m->workers; i++) {
        index[i] = i;
        assert_int_equal(pthread_create(&workers[i], NULL, m->work, &index[i]), 0);
    }
    for (int i = 0; i < PUTTERS; i++) {
        struct engine_request **requests = calloc((size_t)m->requests, sizeof(struct engine_request *));
        assert_non_null(requests);
        putters[i] = (struct putter){.many = m, .seed = (unsigned)i, .requests = requests};
        assert_int_equal(pthread_create(&putters[i].thread, NULL, put_many, &putters[i]), 0);
    }
    for (int i = 0; i < PUTTERS; i++) {
        pthread_join(putters[i].thread, NULL);
        for (int k = 0; k < m->requests; k++)
            items += putters[i].requests[k]->items_count;
    }
    for (int i = 0; i < 20000 && atomic_load(&batcher_bed_items_run) < items; i++)
        usleep(1000);
    assert_int_equal(atomic_load(&batcher_bed_items_run), items);
    batcher_close(m->batcher);
    for (int i = 0; i < m->workers; i++)
        pthread_join(workers[i], NULL);
    for (int i = 0; i < PUTTERS; i++) {
        for (int k = 0; k < m->requests; k++) {
            for (int n = 0; n < putters[i].requests[k]->items_count; n++)
                assert_int_equal(putters[i].requests[k]->items[n].batch_size, 1);
            batcher_bed_drop(putters[i].requests[k]);
        }
        free(putters[i].requests);
    }
}
