#include "stream_bed.h"

#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"

static void wake(void *arg) {
    struct stream_bed *b = arg;
    sem_post(&b->woken);
}

void stream_bed_open(struct stream_bed *b, struct engine_stream_options *o) {
    struct status st;
    *b = (struct stream_bed){.labels = model_get_info(engine_model_get(o->model))->labels_count};
    assert_in_range(b->labels, 1, STREAM_BED_LABELS_MAX);
    sem_init(&b->woken, 0, 0);
    b->results = calloc(STREAM_BED_RESULTS_MAX, sizeof *b->results);
    assert_non_null(b->results);
    o->wake = wake;
    o->wake_arg = b;
    /* A stream that was closed leaves when its thread comes to it. */
    const int64_t patience_ns = clock_now_ns() + 10 * INT64_C(1000000000);
    int result;
    while ((result = engine_stream_open(&b->stream, o, &st)) != 0 && st.code == STATUS_RESOURCE_EXHAUSTED &&
           clock_now_ns() < patience_ns)
        sched_yield();
    if (result)
        fail_msg("%s", st.message);
}

static void keep_result(struct stream_bed *b, const struct engine_stream_event *e) {
    assert_true(b->count < STREAM_BED_RESULTS_MAX);
    struct stream_bed_result *r = &b->results[b->count++];
    *r = (struct stream_bed_result){.channel = e->channel,
                                    .start_s = e->start_s,
                                    .end_s = e->end_s,
                                    .speech_s = e->speech_s,
                                    .final = e->final,
                                    .outcome = e->outcome,
                                    .has_scores = e->scores != NULL,
                                    .has_smoothed = e->smoothed != NULL,
                                    .resume_offset_ms = e->resume_offset_ms};
    assert_int_equal(e->scores != NULL, e->outcome == ENGINE_OK);
    if (e->scores)
        memcpy(r->scores, e->scores, (size_t)b->labels * sizeof *e->scores);
    if (e->smoothed)
        memcpy(r->smoothed, e->smoothed, (size_t)b->labels * sizeof *e->smoothed);
}

static void keep_summary(struct stream_bed *b, const struct engine_stream_event *e) {
    const struct summary_report *r = e->summary;
    b->summaries++;
    b->resume_offset_ms = e->resume_offset_ms;
    b->talk_over_s = r->talk_over_s;
    b->start_s = r->start_s;
    b->end_s = r->end_s;
    for (int c = 0; c < r->channels_count; c++) {
        b->channels[c] = r->channels[c];
        if (r->channels[c].scores)
            memcpy(b->means[c], r->channels[c].scores, (size_t)b->labels * sizeof(float));
    }
}

/* False: there is no wake yet. */
static bool take_wake(struct stream_bed *b, bool wait) {
    if (!b->armed)
        return true;
    int result;
    do
        result = wait ? sem_wait(&b->woken) : sem_trywait(&b->woken);
    while (result && errno == EINTR);
    b->armed = result != 0;
    return result == 0;
}

static void keep(struct stream_bed *b, const struct engine_stream_event *e) {
    if (e->kind == ENGINE_STREAM_RESULT)
        keep_result(b, e);
    if (e->kind == ENGINE_STREAM_SUMMARY)
        keep_summary(b, e);
    if (e->kind == ENGINE_STREAM_END) {
        b->ended = true;
        b->end = e->end;
        b->status = e->status;
    }
    b->wants += e->kind == ENGINE_STREAM_WANTS;
}

void stream_bed_take(struct stream_bed *b, bool wait) {
    struct engine_stream_event e;
    const int wants = b->wants;
    while (!b->ended && !(wait && b->wants > wants) && take_wake(b, wait)) {
        if (engine_stream_take(b->stream, &e))
            keep(b, &e);
        else
            b->armed = true;
    }
}

void stream_bed_feed(struct stream_bed *b, const void *data, size_t bytes) {
    const struct engine_piece piece = {data, bytes};
    struct status st;
    if (b->ended)
        return;
    if (engine_stream_feed(b->stream, &piece, 1, NULL, NULL, &st))
        fail_msg("%s", st.message);
    stream_bed_take(b, true);
}

void stream_bed_feed_all(struct stream_bed *b, const void *data, size_t bytes, size_t most, unsigned seed) {
    for (size_t at = 0; at < bytes;) {
        seed = seed * 1664525u + 1013904223u;
        size_t n = most ? 1 + (seed >> 8) % most : bytes;
        n = n < bytes - at ? n : bytes - at;
        stream_bed_feed(b, (const char *)data + at, n);
        at += n;
    }
}

void stream_bed_end(struct stream_bed *b) {
    while (!b->ended)
        stream_bed_take(b, true);
}

void stream_bed_close(struct stream_bed *b) {
    if (!engine_stream_close(b->stream) && b->armed)
        take_wake(b, true);
    sem_destroy(&b->woken);
    free(b->results);
    b->results = NULL;
}

static const struct stream_bed_result *next_final(const struct stream_bed *b, int channel, int *at) {
    while (*at < b->count) {
        const struct stream_bed_result *r = &b->results[(*at)++];
        if (r->channel == channel && r->final)
            return r;
    }
    return NULL;
}

void stream_bed_assert_equal(const struct stream_bed *a, int channel_a, const struct stream_bed *b,
                             int channel_b) {
    int at_a = 0, at_b = 0;
    for (;;) {
        const struct stream_bed_result *x = next_final(a, channel_a, &at_a);
        const struct stream_bed_result *y = next_final(b, channel_b, &at_b);
        assert_int_equal(x != NULL, y != NULL);
        if (!x)
            return;
        assert_true(x->start_s == y->start_s && x->end_s == y->end_s && x->speech_s == y->speech_s);
        assert_int_equal(x->outcome, y->outcome);
        assert_memory_equal(x->scores, y->scores, sizeof x->scores);
        assert_memory_equal(x->smoothed, y->smoothed, sizeof x->smoothed);
    }
}
