/* What goes out on a stream: options, and the messages of requests. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "client/pool.h"
#include "client/reply.h"
#include "client/stream.h"
#include "client/stream_reply.h"

enum { RATE_HZ_DEFAULT = 16000, RATE_HZ_MIN = 8000, RATE_HZ_MAX = 48000 };
enum { BUFFER_BYTES_DEFAULT = 16 << 20, BUFFER_S_DEFAULT = 60, STALL_MS_DEFAULT = 30000 };
enum { AUDIO_HEADER_BYTES = 6, AUDIO_TAG = 2 << 3 | 2 /* field 2, bytes */ };

#define OFFSET_MS_MAX    (366LL * 24 * 3600 * 1000)
#define BUFFER_BYTES_MAX ((int64_t)1 << 40)

static int64_t count_value_bytes(enum timbre_encoding encoding) {
    switch (encoding) {
    case TIMBRE_ENCODING_PCM16:
        return 2;
    case TIMBRE_ENCODING_FLOAT32:
        return 4;
    case TIMBRE_ENCODING_MULAW:
    case TIMBRE_ENCODING_ALAW:
        return 1;
    default:
        return 0;
    }
}

int stream_check_options(const struct timbre_stream_options *o, struct timbre_status *status) {
    const int bad = TIMBRE_CODE_INVALID_ARGUMENT;
    if (!o->on_end)
        return reply_fail(status, bad, "on_end: missing");
    if (!count_value_bytes(o->encoding))
        return reply_fail(status, bad, "encoding: %d is not a raw one", (int)o->encoding);
    if (o->sample_rate_hz && (o->sample_rate_hz < RATE_HZ_MIN || o->sample_rate_hz > RATE_HZ_MAX))
        return reply_fail(status, bad, "sample_rate_hz: %d is not in %d..%d", o->sample_rate_hz, RATE_HZ_MIN,
                          RATE_HZ_MAX);
    if (o->channels_count < 0 || o->channels_count > TIMBRE_STREAM_CHANNELS_MAX)
        return reply_fail(status, bad, "channels_count: %d is not in 1..%d", o->channels_count,
                          TIMBRE_STREAM_CHANNELS_MAX);
    if (o->buffer_bytes_max < 0 || o->buffer_bytes_max > BUFFER_BYTES_MAX)
        return reply_fail(status, bad, "buffer_bytes_max: %lld", (long long)o->buffer_bytes_max);
    if (o->stall_ms < -1)
        return reply_fail(status, bad, "stall_ms: %d", o->stall_ms);
    if (o->deadline_ms < TIMBRE_NO_DEADLINE)
        return reply_fail(status, bad, "deadline_ms: %d", o->deadline_ms);
    if (o->resume_offset_ms < 0 || o->resume_offset_ms > OFFSET_MS_MAX || o->resume_offset_ms % 1000)
        return reply_fail(status, bad, "resume_offset_ms: %lld is no whole number of seconds",
                          (long long)o->resume_offset_ms);
    for (int i = 0; i < TIMBRE_STREAM_CHANNELS_MAX; i++)
        if (!(o->resume_end_s[i] >= 0 && o->resume_end_s[i] <= OFFSET_MS_MAX / 1000.0))
            return reply_fail(status, bad, "resume_end_s: %g of channel %d", o->resume_end_s[i], i);
    return call_check_traceparent(o->traceparent, status);
}

/* ---- the options ---- */

static char *text_of(const char *s) {
    return s ? (char *)s : (char *)"";
}

static void fill_analysis(Timbre__V1__StreamConfig *m, const struct timbre_stream_options *o,
                          Timbre__V1__Windows *windows, Timbre__V1__Utterances *utterances) {
    windows->length_s = o->window_s;
    windows->hop_s = o->hop_s;
    windows->speech_s_min = o->speech_s_min;
    utterances->length_s_min = o->length_s_min;
    utterances->length_s_max = o->length_s_max;
    utterances->hangover_s = o->hangover_s;
    utterances->interim_every_s = o->interim_every_s;
    if (o->utterances) {
        m->analysis_case = TIMBRE__V1__STREAM_CONFIG__ANALYSIS_UTTERANCES;
        m->utterances = utterances;
    } else {
        m->analysis_case = TIMBRE__V1__STREAM_CONFIG__ANALYSIS_WINDOWS;
        m->windows = windows;
    }
}

/* Packed and unpacked again: a copy that owns its strings. */
static Timbre__V1__StreamConfig *copy_config(const Timbre__V1__StreamConfig *m) {
    const size_t bytes = timbre__v1__stream_config__get_packed_size(m);
    uint8_t *packed = malloc(bytes ? bytes : 1);
    if (!packed)
        return NULL;
    timbre__v1__stream_config__pack(m, packed);
    Timbre__V1__StreamConfig *copy = timbre__v1__stream_config__unpack(NULL, bytes, packed);
    free(packed);
    return copy;
}

static Timbre__V1__StreamConfig *make_config(const struct timbre_stream *s,
                                             const struct timbre_stream_options *o) {
    Timbre__V1__StreamConfig m = TIMBRE__V1__STREAM_CONFIG__INIT;
    Timbre__V1__AudioFormat format = TIMBRE__V1__AUDIO_FORMAT__INIT;
    Timbre__V1__Windows windows = TIMBRE__V1__WINDOWS__INIT;
    Timbre__V1__Utterances utterances = TIMBRE__V1__UTTERANCES__INIT;
    Timbre__V1__ChannelConfig channels[TIMBRE_STREAM_CHANNELS_MAX], *list[TIMBRE_STREAM_CHANNELS_MAX];
    format.encoding = (Timbre__V1__Encoding)o->encoding;
    format.sample_rate_hz = s->sample_rate_hz;
    format.channels = s->channels_count;
    for (int i = 0; i < s->channels_count; i++) {
        timbre__v1__channel_config__init(&channels[i]);
        channels[i].name = text_of(o->channels[i].name);
        channels[i].role = text_of(o->channels[i].role);
        channels[i].exclude = o->channels[i].exclude;
        list[i] = &channels[i];
    }
    m.format = &format;
    m.n_channels = (size_t)s->channels_count;
    m.channels = list;
    m.model = text_of(o->model);
    m.model_version = text_of(o->model_version);
    m.request_id = text_of(o->request_id);
    m.smoothing_s = o->smoothing_s;
    m.summary_every_s = o->summary_every_s;
    m.embedding = o->embedding;
    fill_analysis(&m, o, &windows, &utterances);
    return copy_config(&m);
}

static size_t choose_buffer_bytes(const struct timbre_stream *s, int64_t wanted) {
    const int64_t enough = BUFFER_S_DEFAULT * s->sample_rate_hz * s->frame_bytes;
    if (wanted == 0)
        wanted = enough > BUFFER_BYTES_DEFAULT ? enough : BUFFER_BYTES_DEFAULT;
    return (size_t)wanted;
}

int stream_take_options(struct timbre_stream *s, const struct timbre_stream_options *o,
                        struct timbre_status *status) {
    const int stall_ms = o->stall_ms ? o->stall_ms : STALL_MS_DEFAULT;
    s->on_result = o->on_result;
    s->on_summary = o->on_summary;
    s->on_resume = o->on_resume;
    s->on_end = o->on_end;
    s->user = o->user;
    s->sample_rate_hz = o->sample_rate_hz ? o->sample_rate_hz : RATE_HZ_DEFAULT;
    s->channels_count = o->channels_count ? o->channels_count : 1;
    s->frame_bytes = s->channels_count * count_value_bytes(o->encoding);
    s->resumes = !o->no_resume;
    s->stall_ns = stall_ms < 0 ? INT64_MAX : (int64_t)stall_ms * 1000000;
    s->deadline_ns = o->deadline_ms == 0 || o->deadline_ms == TIMBRE_NO_DEADLINE
                         ? INT64_MAX
                         : clock_now_ns() + (int64_t)o->deadline_ms * 1000000;
    s->offset_ms = o->resume_offset_ms;
    s->goes_on = o->resume_offset_ms > 0;
    for (int i = 0; i < s->channels_count; i++) {
        s->channels[i].had_end_s = o->resume_end_s[i];
        s->goes_on = s->goes_on || o->resume_end_s[i] > 0;
    }
    s->sent_end = stream_find_position(s, s->offset_ms);
    stream_buffer_init(&s->buffer, s->sent_end, choose_buffer_bytes(s, o->buffer_bytes_max));
    stream_times_init(&s->times, s->sent_end,
                      (int64_t)s->sample_rate_hz * STREAM_MARK_MS / 1000 * s->frame_bytes);
    s->traceparent = grpc_slice_from_copied_string(text_of(o->traceparent));
    s->summary = grpc_empty_slice();
    s->config = make_config(s, o);
    if (!s->config)
        return reply_fail(status, TIMBRE_CODE_RESOURCE_EXHAUSTED, "out of memory for a stream");
    return 0;
}

void stream_free_options(struct timbre_stream *s) {
    if (s->config)
        timbre__v1__stream_config__free_unpacked(s->config, NULL);
    for (int i = 0; i < s->channels_count; i++)
        free(s->channels[i].smoothed);
    grpc_slice_unref(s->traceparent);
    grpc_slice_unref(s->summary);
    stream_buffer_free(&s->buffer);
}

int64_t stream_find_position(const struct timbre_stream *s, int64_t offset_ms) {
    return offset_ms / 1000 * s->sample_rate_hz * s->frame_bytes;
}

/* ---- messages ---- */

static grpc_byte_buffer *to_buffer(grpc_slice slice) {
    grpc_byte_buffer *b = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return b;
}

static grpc_byte_buffer *pack(const Timbre__V1__StreamingPredictRequest *m) {
    grpc_slice slice = grpc_slice_malloc(timbre__v1__streaming_predict_request__get_packed_size(m));
    timbre__v1__streaming_predict_request__pack(m, GRPC_SLICE_START_PTR(slice));
    return to_buffer(slice);
}

grpc_byte_buffer *stream_make_config(struct timbre_stream *s) {
    Timbre__V1__StreamingPredictRequest m = TIMBRE__V1__STREAMING_PREDICT_REQUEST__INIT;
    struct stream_reply summary = {.message = NULL};
    if (GRPC_SLICE_LENGTH(s->summary)) /* it was read once before, so it can be read */
        stream_reply_parse(&summary, GRPC_SLICE_START_PTR(s->summary), GRPC_SLICE_LENGTH(s->summary), NULL);
    m.request_case = TIMBRE__V1__STREAMING_PREDICT_REQUEST__REQUEST_CONFIG;
    m.config = s->config;
    m.config->resume_offset_ms = s->offset_ms;
    m.config->resume_summary = summary.message;
    for (int i = 0; i < s->channels_count; i++) {
        Timbre__V1__ChannelConfig *c = m.config->channels[i];
        c->resume_end_s = s->channels[i].had_end_s;
        c->resume_smoothed = s->channels[i].smoothed;
        c->n_resume_smoothed = s->channels[i].smoothed_count;
    }
    grpc_byte_buffer *result = pack(&m);
    m.config->resume_summary = NULL; /* these are not the config's to free */
    for (int i = 0; i < s->channels_count; i++) {
        m.config->channels[i]->resume_smoothed = NULL;
        m.config->channels[i]->n_resume_smoothed = 0;
    }
    stream_reply_free(&summary);
    return result;
}

grpc_byte_buffer *stream_make_audio(struct timbre_stream *s, int64_t position, size_t bytes) {
    uint8_t header[AUDIO_HEADER_BYTES];
    size_t header_bytes = 0;
    header[header_bytes++] = AUDIO_TAG;
    size_t rest = bytes;
    for (; rest >= 0x80; rest >>= 7)
        header[header_bytes++] = (uint8_t)(rest | 0x80);
    header[header_bytes++] = (uint8_t)rest;
    grpc_slice slice = grpc_slice_malloc(header_bytes + bytes);
    memcpy(GRPC_SLICE_START_PTR(slice), header, header_bytes);
    stream_buffer_read(&s->buffer, position, GRPC_SLICE_START_PTR(slice) + header_bytes, bytes);
    return to_buffer(slice);
}

grpc_byte_buffer *stream_make_ask(void) {
    Timbre__V1__StreamingPredictRequest m = TIMBRE__V1__STREAMING_PREDICT_REQUEST__INIT;
    Timbre__V1__SummaryRequest ask = TIMBRE__V1__SUMMARY_REQUEST__INIT;
    m.request_case = TIMBRE__V1__STREAMING_PREDICT_REQUEST__REQUEST_SUMMARY;
    m.summary = &ask;
    return pack(&m);
}
