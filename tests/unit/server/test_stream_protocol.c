/* Which message of StreamingPredict may come when; what is told of a wrong one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <grpc/grpc.h>

#include "server/stream_protocol.h"

enum { BYTES_MAX = 4096, ROOM = 2 * BYTES_MAX };

static struct stream_protocol protocol;
static struct wire_message in;
static struct stream_message message;
static struct failure failure;
static struct status status;

static int setup(void **state) {
    (void)state;
    protocol = (struct stream_protocol){.message_bytes_max = BYTES_MAX};
    return 0;
}

/* Reads bytes that came in slices of `slice_bytes`. */
static int read_bytes(const uint8_t *data, size_t bytes, size_t slice_bytes) {
    grpc_slice slices[ROOM];
    size_t count = 0;
    for (size_t at = 0; at < bytes; at += slice_bytes)
        slices[count++] = grpc_slice_from_copied_buffer((const char *)data + at,
                                                        bytes - at < slice_bytes ? bytes - at : slice_bytes);
    in = (struct wire_message){.buffer = grpc_raw_byte_buffer_create(slices, count), .bytes = bytes};
    for (size_t i = 0; i < count; i++)
        grpc_slice_unref(slices[i]);
    failure = (struct failure){0};
    return stream_protocol_read(&protocol, &in, &message, &failure, &status);
}

static void drop(void) {
    stream_message_free(&message);
    wire_message_free(&in);
}

static size_t pack_config(uint8_t *to) {
    Timbre__V1__StreamingPredictRequest r = TIMBRE__V1__STREAMING_PREDICT_REQUEST__INIT;
    Timbre__V1__StreamConfig c = TIMBRE__V1__STREAM_CONFIG__INIT;
    c.model = (char *)"m";
    r.request_case = TIMBRE__V1__STREAMING_PREDICT_REQUEST__REQUEST_CONFIG;
    r.config = &c;
    return timbre__v1__streaming_predict_request__pack(&r, to);
}

static size_t pack_audio(uint8_t *to, const char *audio, size_t bytes) {
    Timbre__V1__StreamingPredictRequest r = TIMBRE__V1__STREAMING_PREDICT_REQUEST__INIT;
    r.request_case = TIMBRE__V1__STREAMING_PREDICT_REQUEST__REQUEST_AUDIO;
    r.audio = (ProtobufCBinaryData){.len = bytes, .data = (uint8_t *)audio};
    return timbre__v1__streaming_predict_request__pack(&r, to);
}

static size_t pack_summary(uint8_t *to) {
    Timbre__V1__StreamingPredictRequest r = TIMBRE__V1__STREAMING_PREDICT_REQUEST__INIT;
    Timbre__V1__SummaryRequest s = TIMBRE__V1__SUMMARY_REQUEST__INIT;
    r.request_case = TIMBRE__V1__STREAMING_PREDICT_REQUEST__REQUEST_SUMMARY;
    r.summary = &s;
    return timbre__v1__streaming_predict_request__pack(&r, to);
}

static void accept_config(void) {
    uint8_t data[ROOM];
    assert_int_equal(read_bytes(data, pack_config(data), 3), 0);
    assert_int_equal(message.kind, STREAM_CONFIG);
    assert_string_equal(message.config->model, "m");
    drop();
}

static void accept_audio(const char *audio, size_t bytes, size_t slice_bytes) {
    uint8_t data[ROOM], copy[ROOM];
    assert_int_equal(read_bytes(data, pack_audio(data, audio, bytes), slice_bytes), 0);
    assert_int_equal(message.kind, STREAM_AUDIO);
    assert_int_equal(message.audio->bytes, bytes);
    assert_true(wire_field_copy(message.audio, 0, bytes, copy));
    assert_memory_equal(copy, audio, bytes);
    drop();
}

static void refuse(const uint8_t *data, size_t bytes, enum status_code code, const char *reason,
                   const char *text) {
    assert_int_equal(read_bytes(data, bytes, BYTES_MAX), -1);
    assert_int_equal(status.code, code);
    assert_string_equal(failure.reason, reason);
    assert_string_equal(status.message, text);
    assert_null(message.request);
    wire_message_free(&in);
}

static void refuse_order(const uint8_t *data, size_t bytes, const char *text) {
    refuse(data, bytes, STATUS_INVALID_ARGUMENT, "WRONG_ORDER", text);
}

static void test_a_stream(void **state) {
    (void)state;
    uint8_t data[ROOM];
    accept_config();
    accept_audio("abcdefgh", 8, 1);
    accept_audio("", 0, 1);
    accept_audio("ijk", 3, 100);
    assert_int_equal(read_bytes(data, pack_summary(data), 100), 0);
    assert_int_equal(message.kind, STREAM_SUMMARY_REQUEST);
    drop();
    assert_int_equal(stream_protocol_finish(&protocol, &failure, &status), 0);
    assert_int_equal(protocol.messages, 5);
    assert_int_equal(protocol.audio_bytes, 11);
}

static void test_config_comes_first(void **state) {
    (void)state;
    uint8_t data[ROOM];
    refuse_order(data, pack_audio(data, "abc", 3),
                 "message 1: the first message must be config, this is audio");
    setup(state);
    refuse_order(data, pack_summary(data), "message 1: the first message must be config, this is summary");
    setup(state);
    assert_int_equal(stream_protocol_finish(&protocol, &failure, &status), -1);
    assert_int_equal(status.code, STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(status.message, "the first must be config"));
}

static void test_config_comes_once(void **state) {
    (void)state;
    uint8_t data[ROOM];
    accept_config();
    accept_audio("abcdefgh", 8, 5);
    refuse_order(data, pack_config(data),
                 "message 3: a changed format is not possible: config came already "
                 "(after 8 bytes of audio)");
}

static void test_one_thing_in_a_message(void **state) {
    (void)state;
    uint8_t data[ROOM];
    size_t bytes = pack_config(data);
    refuse_order(data, 0, "message 1: none of config, audio and summary");
    bytes += pack_audio(data + bytes, "abc", 3);
    refuse_order(data, bytes, "message 2: more than one of config, audio and summary");
    bytes = pack_audio(data, "abc", 3);
    bytes += pack_audio(data + bytes, "abc", 3);
    refuse_order(data, bytes, "message 3: more than one of config, audio and summary");
    static const uint8_t unknown[] = {0x78, 0x01}; /* field 15: a message of a later version */
    refuse_order(unknown, sizeof unknown, "message 4: none of config, audio and summary");
}

static void test_no_message(void **state) {
    (void)state;
    static const uint8_t cut[] = {0x12, 0x05, 'a'}, no_utf8[] = {0x0a, 0x03, 0x0a, 0x01, 0xff};
    accept_config();
    accept_audio("abcd", 4, 4);
    refuse(cut, sizeof cut, STATUS_INVALID_ARGUMENT, "MALFORMED_MESSAGE",
           "message 3: the request is not a timbre.v1.StreamingPredictRequest message "
           "(after 4 bytes of audio)");
    assert_int_equal(read_bytes(no_utf8, sizeof no_utf8, 1), -1);
    assert_non_null(strstr(status.message, "model is not UTF-8"));
    wire_message_free(&in);
}

static void test_a_message_may_be_so_large(void **state) {
    (void)state;
    static char audio[ROOM];
    static uint8_t data[2 * ROOM];
    const size_t head = pack_audio(data, audio, BYTES_MAX) - BYTES_MAX;
    accept_config();
    accept_audio(audio, BYTES_MAX - head, BYTES_MAX);
    refuse(data, pack_audio(data, audio, BYTES_MAX - head + 1), STATUS_RESOURCE_EXHAUSTED,
           "MESSAGE_TOO_LARGE",
           "message 3: 4097 bytes, more than max-stream-message-bytes, which is 4096 "
           "(after 4093 bytes of audio)");
    assert_string_equal(failure.limit, "max-stream-message-bytes");
}

static int start(void **state) {
    (void)state;
    grpc_init();
    return 0;
}

static int finish(void **state) {
    (void)state;
    grpc_shutdown();
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_a_stream, setup),
        cmocka_unit_test_setup(test_config_comes_first, setup),
        cmocka_unit_test_setup(test_config_comes_once, setup),
        cmocka_unit_test_setup(test_one_thing_in_a_message, setup),
        cmocka_unit_test_setup(test_no_message, setup),
        cmocka_unit_test_setup(test_a_message_may_be_so_large, setup),
    };
    return cmocka_run_group_tests(tests, start, finish);
}
