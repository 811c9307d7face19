#include "base/queue.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/check.h"

struct queue {
    pthread_mutex_t lock; /* guards all below; held for a few instructions, never while taking another lock */
    pthread_cond_t not_empty, not_full;
    size_t depth, head, count;
    bool closed;
    void *items[]; /* ring of `depth` */
};

int queue_new(struct queue **out, size_t depth, struct status *st) {
    *out = NULL;
    size_t bytes;
    if (depth == 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "a queue needs a depth of at least 1");
    if (!check_mul_size(depth, sizeof(void *), &bytes) ||
        !check_add_size(bytes, sizeof(struct queue), &bytes))
        return status_set_no_memory(st, depth, "a queue");
    struct queue *q = calloc(1, bytes);
    if (!q)
        return status_set_no_memory(st, bytes, "a queue");
    q->depth = depth;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->not_empty, &monotonic);
    pthread_cond_init(&q->not_full, &monotonic);
    pthread_condattr_destroy(&monotonic);
    *out = q;
    return 0;
}

void queue_del(struct queue *q) {
    if (!q)
        return;
    pthread_cond_destroy(&q->not_full);
    pthread_cond_destroy(&q->not_empty);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

static bool put(struct queue *q, void *item, bool wait) {
    pthread_mutex_lock(&q->lock);
    while (wait && q->count == q->depth && !q->closed)
        pthread_cond_wait(&q->not_full, &q->lock);
    bool ok = !q->closed && q->count < q->depth;
    if (ok) {
        q->items[(q->head + q->count++) % q->depth] = item;
        pthread_cond_signal(&q->not_empty);
    }
    pthread_mutex_unlock(&q->lock);
    return ok;
}

bool queue_try_put(struct queue *q, void *item) {
    return put(q, item, false);
}

bool queue_put(struct queue *q, void *item) {
    return put(q, item, true);
}

static void *take(struct queue *q, const struct timespec *deadline) {
    void *item = NULL;
    pthread_mutex_lock(&q->lock);
    while (q->count == 0 && !q->closed) {
        if (!deadline)
            pthread_cond_wait(&q->not_empty, &q->lock);
        else if (pthread_cond_timedwait(&q->not_empty, &q->lock, deadline) != 0)
            break;
    }
    if (q->count) {
        item = q->items[q->head];
        q->head = (q->head + 1) % q->depth;
        q->count--;
        pthread_cond_signal(&q->not_full);
    }
    pthread_mutex_unlock(&q->lock);
    return item;
}

void *queue_take(struct queue *q) {
    return take(q, NULL);
}

void *queue_take_until(struct queue *q, int64_t deadline_ns) {
    struct timespec t = {.tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000};
    return take(q, &t);
}

void queue_close(struct queue *q) {
    pthread_mutex_lock(&q->lock);
    q->closed = true;
    pthread_cond_broadcast(&q->not_empty);
    pthread_cond_broadcast(&q->not_full);
    pthread_mutex_unlock(&q->lock);
}

size_t queue_count(struct queue *q) {
    pthread_mutex_lock(&q->lock);
    size_t n = q->count;
    pthread_mutex_unlock(&q->lock);
    return n;
}
