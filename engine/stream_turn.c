/* A stream's turn: one stream thread looks into its mailbox, cuts a step of audio, and tells what is done. */
#include <stdlib.h>

#include "engine/stream_internal.h"

/* Steps of audio that one turn cuts before other streams have theirs. */
enum { STEPS_MAX = 4 };

/* What the mailbox held when the turn began. */
struct mail {
    bool summarise, finish, stop, closed;
    struct stream_window *done;
};

static struct mail open_mail(struct engine_stream *s) {
    pthread_mutex_lock(&s->lock);
    const struct mail m = {.summarise = s->summarise,
                           .finish = s->finish,
                           .stop = s->stop,
                           .closed = s->closed,
                           .done = s->done};
    if (s->fed.pieces)
        s->bytes = s->fed;
    s->fed = (struct stream_bytes){0};
    s->summarise = false;
    s->done = NULL;
    s->again = false;
    pthread_mutex_unlock(&s->lock);
    return m;
}

/* The bytes are the owner's to replace. */
static void give_bytes_back(struct engine_stream *s) {
    stream_drop_bytes(&s->bytes);
    pthread_mutex_lock(&s->lock);
    s->has_bytes = false;
    s->wants = true;
    pthread_mutex_unlock(&s->lock);
}

/* True when a step is left for another turn. */
static bool cut(struct engine_stream *s, struct stream_scratch *x, const struct mail *m) {
    int steps = 0;
    while (!s->ending && steps < STEPS_MAX && stream_cut(s, x, m->finish))
        steps++;
    const bool all_taken = s->bytes.at == s->bytes.count;
    if (s->bytes.pieces && (all_taken || s->ending))
        give_bytes_back(s);
    return !s->ending && steps == STEPS_MAX;
}

static void summarise(struct engine_stream *s, const struct mail *m) {
    const double every_s = s->options.summary_every_s;
    const double end_s = (double)(s->first_frame + s->frames) / s->options.format.rate_hz;
    bool due = m->summarise;
    pthread_mutex_lock(&s->lock);
    const bool full = s->events_count >= ENGINE_STREAM_EVENTS_MAX;
    s->summarise = s->summarise || (full && m->summarise); /* later */
    pthread_mutex_unlock(&s->lock);
    if (full)
        return;
    if (every_s > 0 && end_s >= s->summary_due_s) {
        due = true;
        while (s->summary_due_s <= end_s)
            s->summary_due_s += every_s;
    }
    if (due && !s->ending)
        stream_tell_summary(s, false);
}

/* Everything that was on its way is here: the end can be told. */
static void tell_end(struct engine_stream *s) {
    if (!s->ending || s->in_flight > 0 || s->told_last)
        return;
    s->told_last = true;
    stream_tell_summary(s, true);
    pthread_mutex_lock(&s->lock);
    s->ended = true;
    s->end = s->turn_end;
    s->end_status = s->turn_status;
    pthread_mutex_unlock(&s->lock);
}

void stream_free(struct engine_stream *s) {
    struct engine *e = s->engine;
    stream_free_windows(s);
    stream_drop_bytes(&s->bytes);
    stream_drop_bytes(&s->fed);
    stream_close_channels(s);
    summary_del(s->summary);
    for (struct stream_node *n = s->events, *next; n; n = next) {
        next = n->next;
        stream_free_node(n);
    }
    stream_free_node(s->taken);
    pthread_mutex_destroy(&s->lock);
    engine_model_release(s->model);
    free(s);
    pthread_mutex_lock(&e->lock);
    if (atomic_fetch_sub(&e->streams, 1) == 1)
        pthread_cond_broadcast(&e->closed_last);
    pthread_mutex_unlock(&e->lock);
}

/* The end of a turn. The wake is called without the lock; a stream that was closed is not woken. Once it is
 * not scheduled any more it may be gone. */
static void leave(struct engine_stream *s, bool more) {
    struct stream_turns *turns = s->engine->turns;
    void (*const wake)(void *) = s->options.wake;
    void *const arg = s->options.wake_arg;
    pthread_mutex_lock(&s->lock);
    const bool news = s->events || s->wants || (s->ended && !s->end_told);
    const bool call = s->armed && news;
    if (call)
        s->armed = false;
    const bool put = s->scheduled = more || s->again;
    pthread_mutex_unlock(&s->lock);
    if (put)
        stream_turns_put(turns, s);
    if (call)
        wake(arg);
}

static void take_turn(struct engine_stream *s, struct stream_scratch *x) {
    const struct status ok = {0};
    const struct mail m = open_mail(s);
    for (struct stream_window *w = m.done, *next; w; w = next) {
        next = w->next_done;
        stream_window_finish(s, w);
    }
    if (m.closed) {
        stream_end(s, ENGINE_STREAM_STOPPED, &ok);
        stream_cancel_windows(s);
        if (s->in_flight == 0)
            stream_free(s);
        else
            leave(s, false);
        return;
    }
    if (m.stop)
        stream_end(s, ENGINE_STREAM_STOPPED, &ok);
    const bool more = cut(s, x, &m);
    stream_tell(s);
    summarise(s, &m);
    tell_end(s);
    leave(s, more);
}

void *engine_stream_main(void *arg) {
    struct engine *e = arg;
    struct stream_scratch scratch = {0};
    for (struct engine_stream *s; (s = stream_turns_take(e->turns));)
        take_turn(s, &scratch);
    stream_free_scratch(&scratch);
    return NULL;
}
