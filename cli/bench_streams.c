/* Live streams: each sends a chunk when its time has come, whatever becomes of the results. One thread sends
 * for all of them, off a wheel with a place for every millisecond of a chunk; results are counted on the
 * clients' threads. Every final result is expected at its place, so that a gap or a double is seen. */
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "cli/bench.h"

enum {
    GIVEN_CHUNKS = 2048,  /* whose times are kept */
    CATCH_UP_CHUNKS = 16, /* of one stream at a time, after the client had no room */
    LIVE_MS = 500,
    LINE_BYTES = 256,
    END_MS_MAX = 60 * 1000, /* for the last results */
    CHANNELS = TIMBRE_STREAM_CHANNELS_MAX,
    TICK_NS = 1000000,
};

struct load;

/* A connection. Callbacks of its streams run on its client's thread. */
struct lane {
    struct load *load;
    struct timbre_client *client;
    int model_rate_hz;
    pthread_mutex_t mutex; /* for the stats */
    struct bench_streams_stats stats;
};

struct live_channel {
    size_t place;        /* in the ring: of the next value */
    int64_t window_next; /* that is expected */
    double end_s;        /* of the last final result */
    uint64_t final;      /* results */
    int64_t promised;    /* by the last summary; -1: it has not come */
};

struct live {
    struct lane *lane;
    struct timbre_stream *stream;
    struct live *next; /* at its place of the wheel */
    int64_t start_tick, start_ns;
    int64_t chunks;                           /* sent */
    atomic_int_least64_t given[GIVEN_CHUNKS]; /* when chunk k was given, at k modulo GIVEN_CHUNKS */
    bool answered;                            /* the first result is there */
    bool gone;                                /* takes nothing any more */
    atomic_bool over;
    struct live_channel channels[CHANNELS];
};

/* What is sent: the tracks, one behind the other, round and round. */
struct ring {
    unsigned char *data;
    size_t values, value_bytes;
};

struct load {
    const struct bench_options *options;
    struct ring ring;
    size_t chunk_frames;
    struct lane *lanes;  /* [options->connections] */
    struct live *lives;  /* [options->streams] */
    struct live **wheel; /* [options->chunk_ms] */
    unsigned char *chunk;
    int64_t zero_ns, begin_ns, end_ns; /* of the first tick; of what is measured */
    uint64_t random;
    atomic_int open;
};

/* ---- results ---- */

static bool counts(const struct load *l, int64_t now_ns) {
    return now_ns >= l->begin_ns && now_ns < l->end_ns;
}

/* When the chunk was given that holds the last sample before `end_s`. */
static int64_t find_given_ns(struct live *s, double end_s) {
    const struct load *l = s->lane->load;
    const struct bench_options *o = l->options;
    const int64_t frame = llround(end_s * o->rate_hz) - 1;
    const int64_t chunk = frame > 0 ? frame / (int64_t)l->chunk_frames : 0;
    const int64_t due_ns = s->start_ns + (chunk + 1) * o->chunk_ms * TICK_NS;
    const int64_t given_ns = atomic_load(&s->given[chunk % GIVEN_CHUNKS]);
    /* Of a chunk long ago the time at which it was due is left. */
    return given_ns >= due_ns && given_ns - due_ns < (int64_t)(GIVEN_CHUNKS - 1) * o->chunk_ms * TICK_NS
               ? given_ns
               : due_ns;
}

/* Whether a final result is the one that has to come now. */
static void verify(struct bench_streams_stats *stats, const struct bench_options *o, struct live_channel *c,
                   const struct timbre_stream_result *r) {
    stats->got++;
    c->final++;
    if (o->utterances) { /* where they lie is not known here: but in the order of time, and apart */
        stats->doubled += r->end_s <= c->end_s;
        stats->misplaced += r->end_s > c->end_s && r->start_s < c->end_s - 1e-6;
        c->end_s = fmax(c->end_s, r->end_s);
        return;
    }
    const int64_t window = llround(r->start_s / o->hop_s);
    if (fabs(r->start_s - (double)window * o->hop_s) > 1e-3 || r->end_s > r->start_s + o->window_s + 1e-3)
        stats->misplaced++;
    else if (window < c->window_next)
        stats->doubled++;
    else
        stats->missing += (uint64_t)(window - c->window_next);
    c->window_next = window >= c->window_next ? window + 1 : c->window_next;
}

static void on_result(const struct timbre_stream_result *r, void *user) {
    struct live *s = user;
    struct lane *lane = s->lane;
    struct load *l = lane->load;
    struct bench_streams_stats *stats = &lane->stats;
    const int64_t now_ns = clock_now_ns();
    if (r->channel < 0 || r->channel >= l->options->channels)
        return;
    pthread_mutex_lock(&lane->mutex);
    if (!s->answered)
        histogram_add(&stats->first_ns, now_ns - s->start_ns);
    s->answered = true;
    if (r->final)
        verify(stats, l->options, &s->channels[r->channel], r);
    if (counts(l, now_ns)) {
        histogram_add(&stats->lag_ns, now_ns - find_given_ns(s, r->end_s));
        stats->results++;
        stats->final += r->final;
        stats->answers[r->answer >= 1 && r->answer <= 4 ? r->answer : 0]++;
        if (r->receipt.batch_size > 0) {
            stats->batches++;
            stats->batch_size += r->receipt.batch_size;
            stats->queue_ms += r->receipt.queue_ms;
            stats->compute_ms += r->receipt.compute_ms;
        }
    }
    pthread_mutex_unlock(&lane->mutex);
}

static void on_summary(const struct timbre_stream_summary *summary, void *user) {
    struct live *s = user;
    for (size_t c = 0; summary->final && c < summary->channels_count && c < CHANNELS; c++)
        s->channels[c].promised = summary->channels[c].results;
}

static void on_resume(const struct timbre_status *why, int64_t offset_ms, int wait_ms, void *user) {
    struct lane *lane = ((struct live *)user)->lane;
    (void)why, (void)offset_ms, (void)wait_ms;
    pthread_mutex_lock(&lane->mutex);
    lane->stats.resumed++;
    pthread_mutex_unlock(&lane->mutex);
}

static void on_end(const struct timbre_status *status, void *user) {
    struct live *s = user;
    struct lane *lane = s->lane;
    if (status->code != TIMBRE_CODE_OK) {
        pthread_mutex_lock(&lane->mutex);
        lane->stats.failed++;
        bench_count_error(&lane->stats.errors, status->code, status->message);
        pthread_mutex_unlock(&lane->mutex);
    }
    atomic_store(&s->over, true);
    atomic_fetch_sub(&lane->load->open, 1);
}

/* Windows of so many samples: as docs/streaming.md lays them. */
static int64_t count_windows(int64_t samples, int64_t window, int64_t hop) {
    if (samples <= window)
        return samples > 0;
    const int64_t full = (samples - window) / hop + 1;
    return full + ((full - 1) * hop + window < samples);
}

/* Of a stream that ended well: what did not come at its end. */
static void verify_end(struct bench_streams_stats *stats, struct live *s) {
    const struct load *l = s->lane->load;
    const struct bench_options *o = l->options;
    const int rate_hz = s->lane->model_rate_hz > 0 ? s->lane->model_rate_hz : o->rate_hz;
    const int64_t frames = s->chunks * (int64_t)l->chunk_frames;
    const int64_t windows = count_windows(llround((double)frames * rate_hz / o->rate_hz),
                                          llround(o->window_s * rate_hz), llround(o->hop_s * rate_hz));
    for (int c = 0; c < o->channels; c++) {
        struct live_channel *channel = &s->channels[c];
        const int64_t got = o->utterances ? (int64_t)channel->final : channel->window_next;
        const int64_t expected = o->utterances ? channel->promised : windows;
        if (expected > got)
            stats->missing += (uint64_t)(expected - got);
        else
            stats->misplaced += (uint64_t)(got - expected);
        if (channel->promised != (int64_t)channel->final) /* and the server's own count of them */
            stats->misplaced++;
    }
}

/* ---- sending ---- */

static int make_ring(struct ring *ring, const struct bench_clips *tracks, const struct bench_options *o) {
    size_t bytes = 0, at = 0;
    ring->value_bytes = bench_count_value_bytes(o->encoding);
    for (int i = 0; i < tracks->count; i++)
        if (!check_add_size(bytes, tracks->clips[i].bytes, &bytes))
            return cli_fail("bench", CLI_NOT_STARTED, "out of memory");
    ring->values = bytes / ring->value_bytes;
    ring->data = malloc(bytes + 1);
    if (!ring->data)
        return cli_fail("bench", CLI_NOT_STARTED, "out of memory for %zu bytes of audio", bytes);
    for (int i = 0; i < tracks->count; i++) {
        memcpy(ring->data + at, tracks->clips[i].audio, tracks->clips[i].bytes);
        at += tracks->clips[i].bytes;
    }
    return ring->values ? CLI_OK : cli_fail("bench", CLI_NOT_STARTED, "there is no audio to send");
}

/* The next chunk of a stream, interleaved, from the places of its channels on. */
static void make_chunk(const struct load *l, const struct live *s) {
    const struct ring *ring = &l->ring;
    const size_t width = ring->value_bytes, channels = (size_t)l->options->channels;
    for (size_t c = 0; c < channels; c++) {
        size_t place = s->channels[c].place;
        unsigned char *to = l->chunk + c * width;
        for (size_t i = 0; i < l->chunk_frames; i++, to += channels * width) {
            memcpy(to, ring->data + place * width, width);
            place = place + 1 < ring->values ? place + 1 : 0;
        }
    }
}

static void open_live(struct load *l, struct live *s) {
    const struct bench_options *o = l->options;
    struct timbre_status status;
    struct timbre_stream_options to = {.encoding = o->encoding,
                                       .sample_rate_hz = o->rate_hz,
                                       .channels_count = o->channels,
                                       .model = o->model,
                                       .utterances = o->utterances,
                                       .window_s = o->utterances ? 0 : o->window_s,
                                       .hop_s = o->utterances ? 0 : o->hop_s,
                                       .speech_s_min = o->speech_s_min,
                                       .on_result = on_result,
                                       .on_summary = on_summary,
                                       .on_resume = on_resume,
                                       .on_end = on_end,
                                       .user = s,
                                       .no_resume = o->no_resume,
                                       .deadline_ms = TIMBRE_NO_DEADLINE};
    for (int c = 0; c < o->channels; c++) {
        s->channels[c].place = bench_next_random(&l->random) % l->ring.values;
        s->channels[c].promised = -1;
    }
    atomic_fetch_add(&l->open, 1);
    if (timbre_stream_open(s->lane->client, &to, &s->stream, &status) == 0)
        return;
    s->stream = NULL;
    s->gone = true;
    on_end(&status, s);
}

/* Sends what is due of one stream. */
static void send_due(struct load *l, struct live *s, int64_t tick, struct bench_streams_result *r) {
    const struct bench_options *o = l->options;
    const int64_t due = (tick - s->start_tick) / o->chunk_ms;
    struct timbre_status status;
    for (int i = 0; i < CATCH_UP_CHUNKS && s->chunks < due && !s->gone; i++) {
        const int64_t now_ns = clock_now_ns();
        make_chunk(l, s);
        atomic_store(&s->given[s->chunks % GIVEN_CHUNKS], now_ns);
        if (timbre_stream_send(s->stream, l->chunk,
                               l->chunk_frames * (size_t)o->channels * l->ring.value_bytes, 0, &status)) {
            s->gone = status.code != TIMBRE_CODE_RESOURCE_EXHAUSTED;
            r->no_room += !s->gone;
            return;
        }
        if (counts(l, now_ns)) {
            const double late_ms =
                (double)(now_ns - s->start_ns - (s->chunks + 1) * o->chunk_ms * TICK_NS) * 1e-6;
            r->late_ms_max = fmax(r->late_ms_max, late_ms);
            r->audio_s += 1e-3 * o->chunk_ms * o->channels;
        }
        s->chunks++;
        for (int c = 0; c < o->channels; c++)
            s->channels[c].place = (s->channels[c].place + l->chunk_frames) % l->ring.values;
    }
}

static void turn(struct load *l, int64_t tick, struct bench_streams_result *r) {
    for (struct live *s = l->wheel[tick % l->options->chunk_ms]; s; s = s->next)
        if (tick == s->start_tick)
            open_live(l, s);
        else if (tick > s->start_tick && !s->gone)
            send_due(l, s, tick, r);
}

/* ---- the beginning and the end ---- */

static void merge(struct bench_streams_stats *to, const struct bench_streams_stats *from) {
    histogram_merge(&to->lag_ns, &from->lag_ns);
    histogram_merge(&to->first_ns, &from->first_ns);
    for (int i = 0; i < 5; i++)
        to->answers[i] += from->answers[i];
    to->results += from->results;
    to->final += from->final;
    to->batches += from->batches;
    to->batch_size += from->batch_size;
    to->queue_ms += from->queue_ms;
    to->compute_ms += from->compute_ms;
    to->got += from->got;
    to->missing += from->missing;
    to->doubled += from->doubled;
    to->misplaced += from->misplaced;
    to->resumed += from->resumed;
    to->failed += from->failed;
    bench_merge_errors(&to->errors, &from->errors);
}

static void gather(struct load *l, struct bench_streams_stats *s) {
    memset(s, 0, sizeof *s);
    for (int i = 0; i < l->options->connections; i++) {
        pthread_mutex_lock(&l->lanes[i].mutex);
        merge(s, &l->lanes[i].stats);
        pthread_mutex_unlock(&l->lanes[i].mutex);
    }
}

static void show(struct load *l, int64_t *shown_ns, struct bench_streams_stats *s) {
    const int64_t now_ns = clock_now_ns();
    char line[LINE_BYTES];
    if (now_ns - *shown_ns < (int64_t)LIVE_MS * 1000000)
        return;
    *shown_ns = now_ns;
    gather(l, s);
    snprintf(line, sizeof line,
             "%5.1f s  %d streams  %llu results  lag p50 %.1f ms  p99 %.1f ms  max %.1f ms  %llu failed",
             (double)(now_ns - l->begin_ns) * 1e-9, atomic_load(&l->open), (unsigned long long)s->results,
             (double)histogram_quantile(&s->lag_ns, 0.5) * 1e-6,
             (double)histogram_quantile(&s->lag_ns, 0.99) * 1e-6, (double)s->lag_ns.max * 1e-6,
             (unsigned long long)s->failed);
    bench_show_line(line);
}

/* Ends all streams, and waits for what they still owe. */
static void end_lives(struct load *l) {
    const struct bench_options *o = l->options;
    const int64_t until_ns = clock_now_ns() + (int64_t)END_MS_MAX * 1000000;
    for (int i = 0; i < o->streams; i++)
        if (l->lives[i].stream)
            timbre_stream_finish(l->lives[i].stream, NULL);
    while (atomic_load(&l->open) > 0 && clock_now_ns() < until_ns)
        bench_sleep_until(clock_now_ns() + TICK_NS);
    for (int i = 0; i < o->streams; i++) {
        struct live *s = &l->lives[i];
        if (s->stream && !atomic_load(&s->over))
            timbre_stream_cancel(s->stream); /* and counts as failed */
        timbre_stream_del(s->stream);
    }
}

static void measure(struct load *l, struct bench_streams_result *r) {
    const struct bench_options *o = l->options;
    const double ramp_s = o->utterances ? 1 : o->hop_s;
    int64_t shown_ns = 0, tick = 0;
    l->zero_ns = clock_now_ns() + TICK_NS;
    l->begin_ns = l->zero_ns + (int64_t)((ramp_s + o->warmup_s) * 1e9);
    l->end_ns = l->begin_ns + (int64_t)(o->duration_s * 1e9);
    for (int i = 0; i < o->streams; i++) {
        struct live *s = &l->lives[i];
        s->lane = &l->lanes[i % o->connections];
        s->start_tick = (int64_t)(bench_next_random(&l->random) % (uint64_t)(ramp_s * 1000 + 1));
        s->start_ns = l->zero_ns + s->start_tick * TICK_NS;
        s->next = l->wheel[s->start_tick % o->chunk_ms];
        l->wheel[s->start_tick % o->chunk_ms] = s;
    }
    bench_catch_signal();
    double cpu_before_s = bench_measure_cpu_s();
    bool begun = false;
    for (int64_t due_ns = l->zero_ns; due_ns < l->end_ns && !bench_is_interrupted(); due_ns += TICK_NS) {
        if (clock_now_ns() < due_ns)
            bench_sleep_until(due_ns);
        if (!begun && due_ns >= l->begin_ns) {
            cpu_before_s = bench_measure_cpu_s();
            begun = true;
        }
        turn(l, tick++, r);
        show(l, &shown_ns, &r->stats);
    }
    const int64_t stopped_ns = bench_is_interrupted() ? clock_now_ns() : l->end_ns;
    r->cpu_s = bench_measure_cpu_s() - cpu_before_s;
    r->elapsed_s = fmax((double)(stopped_ns - l->begin_ns) * 1e-9, 1e-9);
    end_lives(l);
}

static void verify_all(struct load *l) {
    for (int i = 0; i < l->options->streams; i++) {
        struct live *s = &l->lives[i];
        bool well = s->stream && atomic_load(&s->over);
        for (int c = 0; c < l->options->channels; c++)
            well = well && s->channels[c].promised >= 0;
        if (well)
            verify_end(&s->lane->stats, s);
    }
}

int bench_run_streams(struct bench_streams_result *r, const struct bench_options *o,
                      const struct bench_clips *tracks) {
    struct load l = {.options = o, .random = o->seed * 2 + 1};
    l.chunk_frames = (size_t)o->rate_hz * (size_t)o->chunk_ms / 1000;
    int result = make_ring(&l.ring, tracks, o);
    l.lanes = calloc((size_t)o->connections, sizeof *l.lanes);
    l.lives = calloc((size_t)o->streams, sizeof *l.lives);
    l.wheel = calloc((size_t)o->chunk_ms, sizeof *l.wheel);
    l.chunk = malloc(l.chunk_frames * (size_t)o->channels * l.ring.value_bytes + 1);
    if (!l.lanes || !l.lives || !l.wheel || !l.chunk)
        result = cli_fail("bench", CLI_NOT_STARTED, "out of memory");
    for (int i = 0; i < o->connections && l.lanes; i++) {
        l.lanes[i].load = &l;
        pthread_mutex_init(&l.lanes[i].mutex, NULL);
    }
    for (int i = 0; i < o->connections && result == CLI_OK; i++)
        result = bench_connect(&l.lanes[i].client, &l.lanes[i].model_rate_hz, o);
    if (result == CLI_OK)
        measure(&l, r);
    for (int i = 0; i < o->connections && l.lanes; i++)
        timbre_client_del(l.lanes[i].client);
    if (result == CLI_OK) {
        verify_all(&l);
        gather(&l, &r->stats);
    }
    for (int i = 0; i < o->connections && l.lanes; i++)
        pthread_mutex_destroy(&l.lanes[i].mutex);
    free(l.lanes);
    free(l.lives);
    free(l.wheel);
    free(l.chunk);
    free(l.ring.data);
    bench_clear_live();
    return result;
}
