#include <stdlib.h>

#include "engine/stream_internal.h"

struct stream_turns {
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t not_empty;
    struct engine_stream *first, **last;
    bool closed;
};

int stream_turns_new(struct stream_turns **out, struct status *st) {
    struct stream_turns *t = *out = calloc(1, sizeof *t);
    if (!t)
        return status_set_no_memory(st, sizeof *t, "the engine");
    t->last = &t->first;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->not_empty, NULL);
    return 0;
}

void stream_turns_del(struct stream_turns *t) {
    if (!t)
        return;
    pthread_cond_destroy(&t->not_empty);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

void stream_turns_put(struct stream_turns *t, struct engine_stream *s) {
    pthread_mutex_lock(&t->lock);
    s->next = NULL;
    *t->last = s;
    t->last = &s->next;
    pthread_cond_signal(&t->not_empty);
    pthread_mutex_unlock(&t->lock);
}

struct engine_stream *stream_turns_take(struct stream_turns *t) {
    pthread_mutex_lock(&t->lock);
    while (!t->first && !t->closed)
        pthread_cond_wait(&t->not_empty, &t->lock);
    struct engine_stream *s = t->first;
    if (s) {
        t->first = s->next;
        if (!t->first)
            t->last = &t->first;
    }
    pthread_mutex_unlock(&t->lock);
    return s;
}

void stream_turns_close(struct stream_turns *t) {
    pthread_mutex_lock(&t->lock);
    t->closed = true;
    pthread_cond_broadcast(&t->not_empty);
    pthread_mutex_unlock(&t->lock);
}
