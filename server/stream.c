/* StreamingPredict: live audio in, results and summaries out while it comes. The engine keeps the stream
 * (engine/stream.h); here is what its caller may do, why it ends, and what is said then.
 *
 * A message is read only when the engine has taken the one before, and an event is taken only when there is
 * room to send: who sends too fast is held back by HTTP/2, who reads too slowly ends up holding back himself.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "server/stream_answer.h"
#include "server/stream_protocol.h"
#include "server/timbre.h"

enum {
    STREAM_UNSENT_MAX = 16, /* messages that wait to be sent; then events stay in the engine */
    STREAM_RETRY_MS = 1000, /* when to come again after max-streams */
    STREAM_DRAIN_SHARE = 2, /* a caller who has sent all has this part of drain-timeout-ms for his results */
};

/* Why a stream ends, and what its caller is told. */
struct ending {
    enum telemetry_end end; /* TELEMETRY_ENDS: it goes on */
    bool elsewhere;         /* it can go on there */
    struct status status;
    struct failure failure;
};

struct stream {
    struct stream_protocol protocol;
    struct engine_stream *engine; /* NULL: not open yet, or over */
    struct engine_model *model;   /* valid while `engine` is open */
    char name[REPOSITORY_NAME_BYTES], version[REPOSITORY_VERSION_BYTES], field[STREAM_FIELD_BYTES];
    struct stream_channel channels[ENGINE_STREAM_CHANNELS_MAX];
    double byte_s; /* audio that is analysed, in a byte */
    struct telemetry_stream telemetry;
    bool armed;          /* the engine will wake the call, which is held for it */
    bool asked;          /* for a summary; then the next message is read */
    bool finished;       /* the caller has sent all */
    int64_t waiting_ns;  /* since when for a message */
    int64_t finished_ns; /* since when */
    struct ending ending;
    int64_t resume_offset_ms; /* of the last message sent */
};

static struct stream *get(struct call *c) {
    return *(struct stream **)call_get_state(c);
}

static void advance(struct call *c, struct stream *s);

static const struct server_options *get_options(struct call *c) {
    return call_get_server(c)->options;
}

static struct telemetry *get_telemetry(struct call *c) {
    return call_get_server(c)->telemetry;
}

static void read_next(struct call *c, struct stream *s) {
    if (s->ending.end != TELEMETRY_ENDS || s->finished)
        return;
    s->waiting_ns = clock_now_ns();
    call_read_next(c);
}

/* ---- the end ---- */

static void close_engine(struct call *c, struct stream *s, enum telemetry_end end) {
    if (!s->engine)
        return;
    if (engine_stream_close(s->engine) && s->armed) {
        s->armed = false;
        call_unhold(c);
    }
    s->engine = NULL;
    telemetry_end_stream(get_telemetry(c), end);
}

/* What is complete comes first, then the last summary; the call ends with that. */
static void stop(struct stream *s, const struct ending *why) {
    s->ending = *why;
    engine_stream_stop(s->engine);
}

static void fail(struct call *c, struct stream *s, const struct status *st, const struct failure *f) {
    if (!s->engine)
        call_fail(c, st, f);
    else if (s->ending.end == TELEMETRY_ENDS)
        stop(s, &(struct ending){.end = TELEMETRY_END_ERROR, .status = *st, .failure = *f});
}

static void fail_no_memory(struct call *c, struct stream *s) {
    struct status st;
    status_set_no_memory(&st, 0, "a stream");
    close_engine(c, s, TELEMETRY_END_ERROR);
    call_fail(c, &st, NULL);
}

/* The engine has nothing more. */
static void end(struct call *c, struct stream *s, const struct engine_stream_event *e) {
    struct ending why = {.end = TELEMETRY_END_ERROR, .status = e->status};
    const bool finished = e->end == ENGINE_STREAM_FINISHED;
    if (e->end == ENGINE_STREAM_STOPPED) {
        why = s->ending;
        if (why.elsewhere)
            status_set(&why.status, why.status.code, "%.300s from resume_offset_ms %lld",
                       s->ending.status.message, (long long)s->resume_offset_ms);
    } else if (!finished) {
        why.failure = failure_of_engine(call_get_server(c), &why.status);
        if (why.status.code == STATUS_INVALID_ARGUMENT)
            why.failure = (struct failure){.reason = "BAD_AUDIO", .field = "audio"};
    }
    close_engine(c, s, finished ? TELEMETRY_END_CLIENT : why.end);
    if (finished)
        call_end(c);
    else
        call_fail(c, &why.status, &why.failure);
}

static Timbre__V1__StreamEnd convert_end(const struct stream *s, const struct engine_stream_event *e) {
    static const Timbre__V1__StreamEnd ends[] = {
        [TELEMETRY_END_CLIENT] = TIMBRE__V1__STREAM_END__STREAM_END_CLIENT,
        [TELEMETRY_END_DRAIN] = TIMBRE__V1__STREAM_END__STREAM_END_DRAIN,
        [TELEMETRY_END_LIFETIME] = TIMBRE__V1__STREAM_END__STREAM_END_LIFETIME,
        [TELEMETRY_END_IDLE] = TIMBRE__V1__STREAM_END__STREAM_END_IDLE,
        [TELEMETRY_END_STALL] = TIMBRE__V1__STREAM_END__STREAM_END_ERROR,
        [TELEMETRY_END_ERROR] = TIMBRE__V1__STREAM_END__STREAM_END_ERROR,
        [TELEMETRY_END_CANCELLED] = TIMBRE__V1__STREAM_END__STREAM_END_ERROR,
        [TELEMETRY_ENDS] = TIMBRE__V1__STREAM_END__STREAM_END_ERROR,
    };
    if (e->end == ENGINE_STREAM_FINISHED)
        return TIMBRE__V1__STREAM_END__STREAM_END_CLIENT;
    return ends[e->end == ENGINE_STREAM_STOPPED ? s->ending.end : TELEMETRY_END_ERROR];
}

/* ---- events ---- */

static void send_event(struct call *c, struct stream *s, const struct engine_stream_event *e) {
    const struct stream_answer_options o = {.model = engine_model_get(s->model),
                                            .model_name = s->name,
                                            .model_version = s->version,
                                            .request_id = call_get_request_id(c),
                                            .channels = s->channels,
                                            .end = convert_end(s, e)};
    struct stream_answer *a = stream_answer_new(e, &o);
    if (!a) {
        fail_no_memory(c, s);
        return;
    }
    s->resume_offset_ms = e->resume_offset_ms;
    call_send(c, &stream_answer_get(a)->base); /* there is room: STREAM_UNSENT_MAX */
    stream_answer_free(a);
}

static void take(struct call *c, struct stream *s, const struct engine_stream_event *e) {
    switch (e->kind) {
    case ENGINE_STREAM_RESULT:
        telemetry_count_result(get_telemetry(c), &s->telemetry, e->outcome, e->lag_ms * 1e-3);
        send_event(c, s, e);
        break;
    case ENGINE_STREAM_SUMMARY:
        send_event(c, s, e);
        if (s->asked && s->engine)
            read_next(c, s);
        s->asked = false;
        break;
    case ENGINE_STREAM_WANTS:
        read_next(c, s);
        break;
    case ENGINE_STREAM_END:
        end(c, s, e);
        break;
    }
}

/* Takes events as far as there is room to send them. on_sent goes on when there was none, on_wake when there
 * was no event. */
static void advance(struct call *c, struct stream *s) {
    struct engine_stream_event e;
    while (s->engine && !s->armed && call_count_unsent(c) < STREAM_UNSENT_MAX) {
        call_hold(c); /* the wake may come before engine_stream_take returns */
        if (engine_stream_take(s->engine, &e)) {
            call_unhold(c);
            take(c, s, &e);
        } else {
            s->armed = true;
        }
    }
}

void server_stream_sent(struct call *c) {
    if (get(c))
        advance(c, get(c));
}

void server_stream_wake(struct call *c, int value) {
    struct stream *s = get(c);
    (void)value;
    s->armed = false;
    advance(c, s);
}

/* ---- opening ---- */

static void wake(void *call) {
    call_wake(call, 0);
}

/* The engine names the field at the beginning, before a colon. */
static bool read_field(const char *message, char *field) {
    const size_t bytes = strspn(message, "abcdefghijklmnopqrstuvwxyz_0123456789[].");
    if (bytes == 0 || bytes >= STREAM_FIELD_BYTES || message[bytes] != ':')
        return false;
    memcpy(field, message, bytes);
    field[bytes] = 0;
    return true;
}

static void refuse_open(struct call *c, struct stream *s, const struct status *st) {
    static const char limit[] = "max-streams";
    struct failure f = failure_of_engine(call_get_server(c), st);
    if (st->code == STATUS_INVALID_ARGUMENT) {
        const bool named = read_field(st->message, s->field);
        f = (struct failure){.reason = "INVALID_FIELD", .field = named ? s->field : NULL};
    } else if (st->code == STATUS_RESOURCE_EXHAUSTED && strncmp(st->message, limit, sizeof limit - 1) == 0) {
        f = (struct failure){.reason = "TOO_MANY_STREAMS", .limit = limit, .retry_after_ms = STREAM_RETRY_MS};
    }
    call_fail(c, st, &f);
}

static double measure_byte_s(const struct stream_config *config) {
    static const int value_bytes[] = {
        [AUDIO_PCM16] = 2, [AUDIO_FLOAT32] = 4, [AUDIO_MULAW] = 1, [AUDIO_ALAW] = 1};
    const struct audio_format *format = &config->options.format;
    int analysed = 0;
    for (int i = 0; i < format->channels; i++)
        analysed += !config->options.channels[i].excluded;
    return (double)analysed / format->channels / format->rate_hz / value_bytes[format->encoding];
}

static void begin(struct call *c, struct stream *s, const struct repository_entry *entry,
                  struct stream_config *config) {
    struct status st;
    config->options.model = entry->model;
    config->options.wake = wake;
    config->options.wake_arg = c;
    if (engine_stream_open(&s->engine, &config->options, &st)) {
        s->engine = NULL;
        refuse_open(c, s, &st);
        return;
    }
    s->model = entry->model;
    memcpy(s->name, entry->name, sizeof s->name);
    memcpy(s->version, entry->version, sizeof s->version);
    memcpy(s->channels, config->channels, sizeof s->channels);
    s->byte_s = measure_byte_s(config);
    s->resume_offset_ms = config->options.resume_offset_ms;
    telemetry_begin_stream(get_telemetry(c), &s->telemetry, s->name);
    read_next(c, s);
    advance(c, s);
}

static void fail_field(struct call *c, const char *field, const struct status *st) {
    call_fail(c, st, &(struct failure){.reason = "INVALID_FIELD", .field = field});
}

static void open_stream(struct call *c, struct stream *s, const Timbre__V1__StreamConfig *from) {
    struct repository_entry *entry;
    struct stream_config config;
    struct status st;
    if (!call_set_request_id(c, from->request_id)) {
        status_set(&st, STATUS_INVALID_ARGUMENT, "request_id: up to %d printable ASCII characters",
                   CALL_REQUEST_ID_BYTES - 1);
        fail_field(c, "request_id", &st);
        return;
    }
    if (!timbre_find_model(c, from->model, from->model_version, &entry))
        return;
    const struct model_info *info = model_get_info(engine_model_get(entry->model));
    if (stream_config_init(&config, from, info->labels_count, s->field, &st)) {
        if (st.code == STATUS_INVALID_ARGUMENT)
            fail_field(c, s->field, &st);
        else
            call_fail(c, &st, NULL);
        return;
    }
    begin(c, s, entry, &config);
    stream_config_free(&config);
}

/* ---- messages ---- */

/* The message's bytes go with the audio. */
static void feed(struct call *c, struct stream *s, struct wire_message *in, const struct wire_field *audio) {
    struct status st;
    if (audio->bytes == 0) {
        read_next(c, s);
    } else if (engine_stream_feed(s->engine, audio->pieces, audio->pieces_count, wire_release, in->buffer,
                                  &st)) {
        fail(c, s, &st, &(struct failure){0});
    } else {
        in->buffer = NULL;
        telemetry_count_stream_audio(get_telemetry(c), (double)audio->bytes * s->byte_s);
    }
}

static void handle(struct call *c, struct stream *s, struct wire_message *in) {
    struct stream_message m;
    struct failure f;
    struct status st;
    if (stream_protocol_read(&s->protocol, in, &m, &f, &st)) {
        fail(c, s, &st, &f);
        return;
    }
    switch (m.kind) {
    case STREAM_CONFIG:
        open_stream(c, s, m.config);
        break;
    case STREAM_AUDIO:
        feed(c, s, in, m.audio);
        break;
    case STREAM_SUMMARY_REQUEST:
        s->asked = true;
        engine_stream_summarise(s->engine);
        break;
    }
    stream_message_free(&m);
}

/* NULL: the call was failed. */
static struct stream *make(struct call *c) {
    struct stream **state = call_get_state(c);
    if (*state)
        return *state;
    struct stream *s = *state = calloc(1, sizeof *s);
    if (!s) {
        struct status st;
        status_set_no_memory(&st, sizeof *s, "a stream");
        call_fail(c, &st, NULL);
        return NULL;
    }
    s->protocol.message_bytes_max = get_options(c)->stream_message_bytes_max;
    s->ending.end = TELEMETRY_ENDS;
    return s;
}

void server_stream_message(struct call *c, struct wire_message *in) {
    struct stream *s = make(c);
    if (s && s->ending.end == TELEMETRY_ENDS)
        handle(c, s, in);
    wire_message_free(in);
}

void server_stream_half_close(struct call *c) {
    struct stream *s = make(c);
    struct failure f;
    struct status st;
    if (!s)
        return;
    s->finished = true;
    s->finished_ns = clock_now_ns();
    if (stream_protocol_finish(&s->protocol, &f, &st))
        call_fail(c, &st, &f);
    else if (s->engine && s->ending.end == TELEMETRY_ENDS)
        engine_stream_finish(s->engine);
}

/* ---- what the server decides ---- */

static bool is_served(struct repository *r, const struct engine_model *m) {
    for (int i = 0; i < repository_count(r); i++) {
        const struct repository_entry *e = repository_at(r, i);
        if (e->state == REPOSITORY_READY && e->model == m)
            return true;
    }
    return false;
}

static bool is_over(int64_t since_ns, int64_t now_ns, int64_t limit_ms) {
    return now_ns - since_ns > limit_ms * 1000000;
}

static bool must_drain(struct call *c, const struct stream *s, int64_t now_ns) {
    if (atomic_load(&call_get_server(c)->phase) < SERVER_DRAINING)
        return false;
    return !s->finished ||
           is_over(s->finished_ns, now_ns, get_options(c)->drain_timeout_ms / STREAM_DRAIN_SHARE);
}

/* Whether an open stream has to end now. Who has sent all is let be, as he will end by himself. */
static bool find_ending(struct call *c, const struct stream *s, int64_t now_ns, struct ending *why) {
    const struct server_options *o = get_options(c);
    if (must_drain(c, s, now_ns)) {
        *why =
            (struct ending){.end = TELEMETRY_END_DRAIN, .elsewhere = true, .failure = {.reason = "DRAINING"}};
        status_set(&why->status, STATUS_UNAVAILABLE, "the server is draining: go on elsewhere");
    } else if (!s->finished && !is_served(call_get_server(c)->repository, s->model)) {
        *why = (struct ending){
            .end = TELEMETRY_END_DRAIN, .elsewhere = true, .failure = {.reason = "MODEL_UNLOADED"}};
        status_set(&why->status, STATUS_UNAVAILABLE,
                   "model %s is unloaded or replaced: go on in a new stream", s->name);
    } else if (!s->finished && o->stream_lifetime_s &&
               is_over(call_get_begin_ns(c), now_ns, (int64_t)o->stream_lifetime_s * 1000)) {
        *why = (struct ending){.end = TELEMETRY_END_LIFETIME,
                               .elsewhere = true,
                               .failure = {.reason = "STREAM_LIFETIME", .limit = "stream-lifetime-s"}};
        status_set(&why->status, STATUS_UNAVAILABLE,
                   "stream-lifetime-s: the stream is %d s old: go on in a new one", o->stream_lifetime_s);
    } else if (!s->finished && call_is_reading(c) && is_over(s->waiting_ns, now_ns, o->stream_idle_ms)) {
        *why = (struct ending){.end = TELEMETRY_END_IDLE,
                               .failure = {.reason = "STREAM_IDLE", .limit = "stream-idle-ms"}};
        status_set(&why->status, STATUS_DEADLINE_EXCEEDED, "stream-idle-ms: no message came for %d ms",
                   o->stream_idle_ms);
    } else {
        return false;
    }
    return true;
}

static void check_stream(struct call *c, struct stream *s, int64_t now_ns) {
    struct ending why;
    if (s->ending.end == TELEMETRY_ENDS && find_ending(c, s, now_ns, &why))
        stop(s, &why);
}

static void fail_stalled(struct call *c) {
    struct status st;
    status_set(&st, STATUS_RESOURCE_EXHAUSTED, "stream-stall-ms: results wait, and none was read for %d ms",
               get_options(c)->stream_stall_ms);
    if (get(c))
        close_engine(c, get(c), TELEMETRY_END_STALL);
    call_abort(c, &st, &(struct failure){.reason = "STREAM_STALL", .limit = "stream-stall-ms"});
}

static void fail_silent(struct call *c) {
    struct status st;
    status_set(&st, STATUS_DEADLINE_EXCEEDED, "stream-idle-ms: no config came for %d ms",
               get_options(c)->stream_idle_ms);
    call_fail(c, &st, &(struct failure){.reason = "STREAM_IDLE", .limit = "stream-idle-ms"});
}

void server_stream_tick(struct call *c, int64_t now_ns) {
    struct stream *s = get(c);
    if (call_get_stalled_ns(c, now_ns) > (int64_t)get_options(c)->stream_stall_ms * 1000000)
        fail_stalled(c);
    else if (s && s->engine)
        check_stream(c, s, now_ns);
    else if (!s && is_over(call_get_begin_ns(c), now_ns, get_options(c)->stream_idle_ms))
        fail_silent(c);
}

void server_stream_drain(struct call *c) {
    struct stream *s = get(c);
    struct status st;
    if (s && s->engine) {
        check_stream(c, s, clock_now_ns());
    } else {
        status_set(&st, STATUS_UNAVAILABLE, "the server is draining: try another");
        call_fail(c, &st, &(struct failure){.reason = "DRAINING"});
    }
}

void server_stream_cancel(struct call *c) {
    if (get(c))
        close_engine(c, get(c), TELEMETRY_END_CANCELLED);
}

void server_stream_free(struct call *c) {
    struct stream *s = get(c);
    if (s)
        close_engine(c, s, TELEMETRY_END_CANCELLED);
    free(s);
}
