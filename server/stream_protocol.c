#include "server/stream_protocol.h"

#include <stdio.h>

enum { AUDIO_FIELD = 2 }; /* StreamingPredictRequest.audio */

#define REQUEST(name) TIMBRE__V1__STREAMING_PREDICT_REQUEST__REQUEST_##name

/* Says where: the number of the message, and how far the audio had come. */
static int fail(const struct stream_protocol *p, enum status_code code, const char *what, struct status *st) {
    char audio[64] = "";
    if (p->audio_bytes)
        snprintf(audio, sizeof audio, " (after %lld bytes of audio)", (long long)p->audio_bytes);
    return status_set(st, code, "message %lld: %s%s", (long long)p->messages, what, audio);
}

static int fail_order(const struct stream_protocol *p, const char *what, struct failure *f,
                      struct status *st) {
    *f = (struct failure){.reason = "WRONG_ORDER"};
    return fail(p, STATUS_INVALID_ARGUMENT, what, st);
}

static int check_size(const struct stream_protocol *p, size_t bytes, struct failure *f, struct status *st) {
    char what[128];
    if (bytes <= (size_t)p->message_bytes_max)
        return 0;
    *f = (struct failure){.reason = "MESSAGE_TOO_LARGE", .limit = "max-stream-message-bytes"};
    snprintf(what, sizeof what, "%zu bytes, more than max-stream-message-bytes, which is %lld", bytes,
             (long long)p->message_bytes_max);
    return fail(p, STATUS_RESOURCE_EXHAUSTED, what, st);
}

static int unpack(const struct stream_protocol *p, const struct wire_message *in, struct stream_message *m,
                  struct failure *f, struct status *st) {
    struct status why;
    m->request = (Timbre__V1__StreamingPredictRequest *)wire_unpack_parts(
        in, &timbre__v1__streaming_predict_request__descriptor, AUDIO_FIELD, &m->parts, &why);
    if (m->request)
        return 0;
    *f = (struct failure){.reason = why.code == STATUS_INVALID_ARGUMENT ? "MALFORMED_MESSAGE" : NULL};
    return fail(p, why.code, why.message, st);
}

/* Audio is left out of the request (wire.h), so that it and another member of the oneof do not hide each
 * other: a message with both is none that protobuf writes. */
static int sort(struct stream_protocol *p, struct stream_message *m, struct failure *f, struct status *st) {
    const bool has_audio = m->parts.fields_count > 0;
    const bool has_other =
        m->request->request_case != TIMBRE__V1__STREAMING_PREDICT_REQUEST__REQUEST__NOT_SET;
    if (m->parts.fields_count > 1 || (has_audio && has_other))
        return fail_order(p, "more than one of config, audio and summary", f, st);
    if (!has_audio && !has_other)
        return fail_order(p, "none of config, audio and summary", f, st);
    m->kind = has_audio                                     ? STREAM_AUDIO
              : m->request->request_case == REQUEST(CONFIG) ? STREAM_CONFIG
                                                            : STREAM_SUMMARY_REQUEST;
    return 0;
}

static int check_order(struct stream_protocol *p, const struct stream_message *m, struct failure *f,
                       struct status *st) {
    if (m->kind == STREAM_CONFIG && p->configured)
        return fail_order(p, "a changed format is not possible: config came already", f, st);
    if (m->kind == STREAM_AUDIO && !p->configured)
        return fail_order(p, "the first message must be config, this is audio", f, st);
    if (m->kind == STREAM_SUMMARY_REQUEST && !p->configured)
        return fail_order(p, "the first message must be config, this is summary", f, st);
    return 0;
}

int stream_protocol_read(struct stream_protocol *p, const struct wire_message *in, struct stream_message *m,
                         struct failure *f, struct status *st) {
    *m = (struct stream_message){0};
    p->messages++;
    if (check_size(p, in->bytes, f, st) || unpack(p, in, m, f, st))
        return -1;
    if (sort(p, m, f, st) || check_order(p, m, f, st)) {
        stream_message_free(m);
        return -1;
    }
    if (m->kind == STREAM_CONFIG) {
        m->config = m->request->config;
        p->configured = true;
    } else if (m->kind == STREAM_AUDIO) {
        m->audio = &m->parts.fields[0];
        p->audio_bytes += (int64_t)m->audio->bytes;
    }
    return 0;
}

int stream_protocol_finish(const struct stream_protocol *p, struct failure *f, struct status *st) {
    if (p->configured)
        return 0;
    *f = (struct failure){.reason = "WRONG_ORDER"};
    return status_set(st, STATUS_INVALID_ARGUMENT,
                      "the stream ended without a message: the first must be config");
}

void stream_message_free(struct stream_message *m) {
    if (!m->request)
        return;
    wire_parts_free(&m->parts);
    protobuf_c_message_free_unpacked(&m->request->base, NULL);
    *m = (struct stream_message){0};
}
