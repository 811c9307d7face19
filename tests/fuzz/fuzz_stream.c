/* Fuzzing StreamingPredict: a sequence of messages goes through the code that reads and checks them in the
 * server, into a stream of an engine with a tiny model, and what comes of it is made into answers. The first
 * byte says into how small slices messages are cut and how the stream ends; then every message has its length
 * in two bytes before it. Whatever comes, a stream ends, tells no time twice, and leaves nothing behind. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <grpc/grpc.h>

#include "server/stream_answer.h"
#include "server/stream_protocol.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    SLICE_BITS = 5,
    SLICES_MAX = 1 << 16,
    LENGTH_BYTES = 2,
    MESSAGE_BYTES_MAX = 1 << 15,
    PATIENCE_S = 60, /* for an event; longer is for ever */
    STEP_NS = 50000,
};
enum ending { FINISH, STOP, FINISH_AND_STOP, LEAVE };

static struct engine *engine;
static struct engine_model *model;

/* The bell of all streams: one is open at a time. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int rings;
} bell = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};

/* One stream. */
struct run {
    struct stream_protocol protocol;
    struct engine_stream *stream; /* NULL: not open */
    struct stream_config config;
    double last_start_s[ENGINE_STREAM_CHANNELS_MAX], last_end_s[ENGINE_STREAM_CHANNELS_MAX];
    bool last_told, ended;
};

static void check(bool right) {
    if (!right)
        abort();
}

/* A refusal says why. */
static void check_refusal(const struct status *st) {
    check(st->code != STATUS_OK && st->message[0]);
}

static void start(void) {
    struct engine_options o;
    struct model_options m = {.device = "cpu", .precision = "fp32", .threads = 1};
    struct status st;
    grpc_init();
    engine_options_init(&o);
    o.audio.ffmpeg = "";
    o.prepare_threads = o.transcode_threads = o.stream_threads = 1;
    check(engine_new(&engine, &o, &st) == 0);
    check(engine_model_load(&model, engine, "base", TIMBRE_SOURCE_DIR "/tests/golden/base", &m, &st) == 0);
}

static struct wire_message make(const uint8_t *data, size_t size, size_t slice_bytes) {
    static grpc_slice slices[SLICES_MAX];
    size_t count = 0;
    for (size_t at = 0; at < size; count++) {
        const size_t bytes = size - at < slice_bytes ? size - at : slice_bytes;
        slices[count] = grpc_slice_from_copied_buffer((const char *)data + at, bytes);
        at += bytes;
    }
    struct wire_message m = {.buffer = grpc_raw_byte_buffer_create(slices, count), .bytes = size};
    for (size_t i = 0; i < count; i++)
        grpc_slice_unref(slices[i]);
    return m;
}

/* ---- events ---- */

static void ring(void *arg) {
    (void)arg;
    pthread_mutex_lock(&bell.lock);
    bell.rings++;
    pthread_cond_signal(&bell.changed);
    pthread_mutex_unlock(&bell.lock);
}

static void wait_for_bell(void) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE_S;
    pthread_mutex_lock(&bell.lock);
    while (bell.rings == 0)
        check(pthread_cond_timedwait(&bell.changed, &bell.lock, &until) == 0);
    check(--bell.rings == 0); /* once for every time that it was armed */
    pthread_mutex_unlock(&bell.lock);
}

static void check_result(struct run *r, const struct engine_stream_event *e) {
    const struct engine_stream_options *o = &r->config.options;
    check(e->channel >= 0 && e->channel < o->format.channels && !o->channels[e->channel].excluded);
    check(e->start_s >= r->last_start_s[e->channel] && e->start_s < e->end_s);
    check((e->scores != NULL) == (e->outcome == ENGINE_OK) && e->message);
    check(!e->final || e->end_s > r->last_end_s[e->channel]);
    for (int i = 0; e->scores && i < model_get_info(engine_model_get(model))->labels_count; i++)
        check(isfinite(e->scores[i]) && isfinite(e->logits[i]));
    if (!e->final)
        return;
    r->last_start_s[e->channel] = e->start_s;
    r->last_end_s[e->channel] = e->end_s;
}

static void check_summary(struct run *r, const struct engine_stream_event *e) {
    check(e->summary->channels_count == r->config.options.format.channels);
    r->last_told = e->last;
}

static void take(struct run *r, const struct engine_stream_event *e) {
    const struct stream_answer_options o = {.model = engine_model_get(model),
                                            .model_name = "base",
                                            .model_version = "1",
                                            .request_id = "id",
                                            .channels = r->config.channels};
    check(!r->ended);
    if (e->kind == ENGINE_STREAM_END) {
        check(r->last_told && e->end != ENGINE_STREAM_GOES_ON);
        check((e->end == ENGINE_STREAM_FAILED) == (e->status.code != STATUS_OK));
        r->ended = true;
    }
    if (e->kind != ENGINE_STREAM_RESULT && e->kind != ENGINE_STREAM_SUMMARY)
        return;
    check(!r->last_told);
    check(e->resume_offset_ms >= 0 && e->resume_offset_ms % ENGINE_STREAM_OFFSET_STEP_MS == 0);
    if (e->kind == ENGINE_STREAM_RESULT)
        check_result(r, e);
    else
        check_summary(r, e);
    struct stream_answer *a = stream_answer_new(e, &o);
    check(a && timbre__v1__streaming_predict_response__get_packed_size(stream_answer_get(a)) > 0);
    stream_answer_free(a);
}

/* Takes events until one of this kind, or the end. */
static void take_until(struct run *r, enum engine_stream_kind kind) {
    struct engine_stream_event e;
    for (;;) {
        if (!engine_stream_take(r->stream, &e)) {
            wait_for_bell();
            continue;
        }
        take(r, &e);
        if (e.kind == kind || e.kind == ENGINE_STREAM_END)
            return;
    }
}

/* ---- messages ---- */

static bool open_stream(struct run *r, const Timbre__V1__StreamConfig *from) {
    char field[STREAM_FIELD_BYTES] = "";
    struct status st = {0};
    const int labels = model_get_info(engine_model_get(model))->labels_count;
    if (stream_config_init(&r->config, from, labels, field, &st)) {
        check_refusal(&st);
        check(strncmp(st.message, field, strlen(field)) == 0 && field[0]);
        return false;
    }
    r->config.options.model = model;
    r->config.options.wake = ring;
    const bool opened = engine_stream_open(&r->stream, &r->config.options, &st) == 0;
    if (!opened)
        check_refusal(&st);
    stream_config_free(&r->config);
    return opened;
}

/* False: the stream does not go on. */
static bool handle(struct run *r, struct wire_message *in) {
    struct stream_message m;
    struct failure f = {0};
    struct status st = {0};
    bool goes_on = true;
    if (stream_protocol_read(&r->protocol, in, &m, &f, &st)) {
        check_refusal(&st);
        return false;
    }
    if (m.kind == STREAM_CONFIG) {
        goes_on = open_stream(r, m.config);
    } else if (m.kind == STREAM_SUMMARY_REQUEST) {
        engine_stream_summarise(r->stream);
        take_until(r, ENGINE_STREAM_SUMMARY);
    } else if (m.audio->bytes > 0) {
        check(engine_stream_feed(r->stream, m.audio->pieces, m.audio->pieces_count, wire_release, in->buffer,
                                 &st) == 0);
        in->buffer = NULL;
        take_until(r, ENGINE_STREAM_WANTS);
    }
    stream_message_free(&m);
    return goes_on && !r->ended;
}

static void read_messages(struct run *r, const uint8_t *data, size_t size, size_t slice_bytes) {
    bool goes_on = true;
    while (goes_on && size >= LENGTH_BYTES) {
        size_t bytes = data[0] | (size_t)data[1] << 8;
        data += LENGTH_BYTES;
        size -= LENGTH_BYTES;
        bytes = bytes < size ? bytes : size;
        struct wire_message in = make(data, bytes, slice_bytes);
        goes_on = handle(r, &in);
        wire_message_free(&in);
        data += bytes;
        size -= bytes;
    }
}

static void end(struct run *r, enum ending how) {
    struct engine_stream_event e;
    if (how == FINISH || how == FINISH_AND_STOP)
        engine_stream_finish(r->stream);
    if (how == STOP || how == FINISH_AND_STOP)
        engine_stream_stop(r->stream);
    if (how != LEAVE && !r->ended)
        take_until(r, ENGINE_STREAM_END);
    const bool armed = r->ended && !engine_stream_take(r->stream, &e);
    check(armed == r->ended);                       /* nothing comes after the end */
    check(engine_stream_close(r->stream) == armed); /* and nothing wakes */
}

/* Nothing of a stream stays: the engine gives it back by itself, soon. */
static void wait_until_gone(void) {
    const struct timespec step = {.tv_nsec = STEP_NS};
    for (int64_t i = 0; engine_count_streams(engine) > 0; i++) {
        check(i < (int64_t)PATIENCE_S * 1000000000 / STEP_NS);
        nanosleep(&step, NULL);
    }
    bell.rings = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static bool started;
    if (!started)
        start();
    started = true;
    if (size == 0)
        return 0;
    const size_t slice_bytes = (data[0] & ((1u << SLICE_BITS) - 1)) + 1;
    const enum ending how = (enum ending)(data[0] >> SLICE_BITS & 3);
    struct run *r = calloc(1, sizeof *r);
    check(r);
    r->protocol.message_bytes_max = MESSAGE_BYTES_MAX;
    read_messages(r, data + 1, size - 1, slice_bytes * slice_bytes);
    if (r->stream) {
        end(r, how);
        wait_until_gone();
    }
    free(r);
    return 0;
}
