#include "engine/batcher.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "engine/request.h"

struct batcher {
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t not_empty, not_full;
    int depth, count;
    int64_t delay_ns;
    int64_t waiting_samples; /* slots of items not handed out */
    bool closed;
    struct engine_request *requests[]; /* [depth], in order of arrival */
};

int batcher_new(struct batcher **out, int depth, int delay_us, struct status *st) {
    size_t bytes = sizeof(struct batcher) + (size_t)depth * sizeof(struct engine_request *);
    struct batcher *b = *out = calloc(1, bytes);
    if (!b)
        return status_set_no_memory(st, bytes, "the batcher");
    b->depth = depth;
    b->delay_ns = (int64_t)delay_us * 1000;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->not_empty, &monotonic);
    pthread_cond_init(&b->not_full, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return 0;
}

void batcher_del(struct batcher *b) {
    if (!b)
        return;
    pthread_cond_destroy(&b->not_full);
    pthread_cond_destroy(&b->not_empty);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

bool batcher_put(struct batcher *b, struct engine_request *r) {
    pthread_mutex_lock(&b->lock);
    while (b->count == b->depth && !b->closed)
        pthread_cond_wait(&b->not_full, &b->lock);
    bool ok = !b->closed;
    if (ok) {
        r->ready_ns = clock_now_ns();
        r->next_item = 0;
        b->requests[b->count++] = r;
        for (int i = 0; i < r->items_count; i++)
            b->waiting_samples += r->items[i].slot;
        pthread_cond_signal(&b->not_empty);
    }
    pthread_mutex_unlock(&b->lock);
    return ok;
}

/* Class after aging: one better for every ENGINE_AGING_MS waited, without a floor, so that old bulk work
 * overtakes even a steady stream of live work with deadlines. */
static int64_t rank(const struct engine_request *r, int64_t now_ns) {
    return (int64_t)r->options.order - (now_ns - r->ready_ns) / ((int64_t)ENGINE_AGING_MS * 1000000);
}

/* The request to serve next, by index; requests stand in order of arrival, so the first of equals wins. */
static int find_best(const struct batcher *b, int64_t now_ns) {
    int best = 0;
    for (int i = 1; i < b->count; i++) {
        const struct engine_request *r = b->requests[i], *s = b->requests[best];
        int64_t r_rank = rank(r, now_ns), s_rank = rank(s, now_ns);
        int64_t r_deadline = r->options.deadline_ns ? r->options.deadline_ns : INT64_MAX;
        int64_t s_deadline = s->options.deadline_ns ? s->options.deadline_ns : INT64_MAX;
        if (r_rank < s_rank || (r_rank == s_rank && r_deadline < s_deadline))
            best = i;
    }
    return best;
}

static void remove_at(struct batcher *b, int index) {
    for (int i = index; i + 1 < b->count; i++)
        b->requests[i] = b->requests[i + 1];
    b->count--;
    pthread_cond_signal(&b->not_full);
}

/* Index of a request nobody waits for any more, or -1. */
static int find_dead(const struct batcher *b, int64_t now_ns) {
    for (int i = 0; i < b->count; i++) {
        const struct engine_request *r = b->requests[i];
        if (atomic_load(&r->cancelled) || atomic_load(&r->failed) ||
            (r->options.deadline_ns && now_ns > r->options.deadline_ns))
            return i;
    }
    return -1;
}

/* With work waiting but less than a full batch, gives others a moment to come. */
static void wait_for_company(struct batcher *b, int64_t samples_max) {
    if (b->delay_ns == 0)
        return;
    int64_t until = b->requests[0]->ready_ns + b->delay_ns;
    struct timespec t = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
    while (!b->closed && b->count && b->waiting_samples < samples_max && clock_now_ns() < until)
        if (pthread_cond_timedwait(&b->not_empty, &b->lock, &t) != 0)
            break;
}

static int fill(struct batcher *b, int64_t samples_max, int count_max, struct engine_item **items) {
    int64_t now_ns = clock_now_ns(), taken = 0;
    int count = 0;
    while (b->count && count < count_max) {
        int best = find_best(b, now_ns);
        struct engine_request *r = b->requests[best];
        while (count < count_max && r->next_item < r->items_count) {
            struct engine_item *item = &r->items[r->next_item];
            if (count && item->slot > samples_max - taken)
                return count;
            taken += item->slot;
            b->waiting_samples -= item->slot;
            items[count++] = item;
            r->next_item++;
        }
        if (r->next_item == r->items_count)
            remove_at(b, best);
    }
    return count;
}

bool batcher_take(struct batcher *b, int64_t samples_max, int count_max, struct engine_item **items,
                  int *count, struct engine_request **dropped, int *dropped_items) {
    *count = 0;
    *dropped = NULL;
    pthread_mutex_lock(&b->lock);
    while (b->count == 0 && !b->closed)
        pthread_cond_wait(&b->not_empty, &b->lock);
    if (b->count)
        wait_for_company(b, samples_max);
    bool any = b->count > 0;
    int dead = find_dead(b, clock_now_ns());
    if (dead >= 0) {
        struct engine_request *r = *dropped = b->requests[dead];
        *dropped_items = r->items_count - r->next_item;
        for (int i = r->next_item; i < r->items_count; i++)
            b->waiting_samples -= r->items[i].slot;
        remove_at(b, dead);
    } else if (any) {
        *count = fill(b, samples_max, count_max, items);
    }
    pthread_mutex_unlock(&b->lock);
    return any;
}

void batcher_close(struct batcher *b) {
    pthread_mutex_lock(&b->lock);
    b->closed = true;
    pthread_cond_broadcast(&b->not_empty);
    pthread_cond_broadcast(&b->not_full);
    pthread_mutex_unlock(&b->lock);
}
