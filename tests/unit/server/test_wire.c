/* Received messages: large fields taken out without a copy, strings checked, and nothing trusted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <grpc/grpc.h>

#include "proto/timbre/v1/timbre.pb-c.h"
#include "server/wire.h"

enum { AUDIO = 1 };

/* A message of `bytes`, cut into slices of at most `slice_bytes`. */
static struct wire_message make(const uint8_t *data, size_t bytes, size_t slice_bytes) {
    grpc_slice slices[512];
    size_t count = 0;
    for (size_t at = 0; at < bytes; at += slice_bytes)
        slices[count++] = grpc_slice_from_copied_buffer((const char *)data + at,
                                                        bytes - at < slice_bytes ? bytes - at : slice_bytes);
    struct wire_message m = {.buffer = grpc_raw_byte_buffer_create(slices, count), .bytes = bytes};
    for (size_t i = 0; i < count; i++)
        grpc_slice_unref(slices[i]);
    return m;
}

static size_t pack_request(uint8_t *to, uint8_t *audio, size_t audio_bytes, char *model) {
    Timbre__V1__PredictRequest r = TIMBRE__V1__PREDICT_REQUEST__INIT;
    Timbre__V1__AudioFormat format = TIMBRE__V1__AUDIO_FORMAT__INIT;
    r.audio.data = audio;
    r.audio.len = audio_bytes;
    r.format = &format;
    format.sample_rate_hz = 8000;
    r.model = model;
    r.top_k = 3;
    return timbre__v1__predict_request__pack(&r, to);
}

static Timbre__V1__PredictRequest *unpack_parts(const struct wire_message *m, struct wire_parts *parts,
                                                struct status *st) {
    return (Timbre__V1__PredictRequest *)wire_unpack_parts(m, &timbre__v1__predict_request__descriptor, AUDIO,
                                                           parts, st);
}

static void test_parts_do_not_depend_on_slices(void **state) {
    (void)state;
    uint8_t audio[200], packed[400], copy[200];
    for (size_t i = 0; i < sizeof audio; i++)
        audio[i] = (uint8_t)(i * 7);
    size_t bytes = pack_request(packed, audio, sizeof audio, "m");
    for (size_t slice_bytes = 1; slice_bytes <= bytes; slice_bytes++) {
        struct wire_message m = make(packed, bytes, slice_bytes);
        struct wire_parts parts;
        struct status st;
        Timbre__V1__PredictRequest *r = unpack_parts(&m, &parts, &st);
        assert_non_null(r);
        assert_int_equal(r->audio.len, 0);
        assert_int_equal(r->top_k, 3);
        assert_int_equal(r->format->sample_rate_hz, 8000);
        assert_string_equal(r->model, "m");
        assert_int_equal(parts.fields_count, 1);
        assert_int_equal(parts.fields[0].bytes, sizeof audio);
        assert_true(wire_field_copy(&parts.fields[0], 0, sizeof audio, copy));
        assert_memory_equal(copy, audio, sizeof audio);
        assert_true(wire_field_copy(&parts.fields[0], 50, 100, copy));
        assert_memory_equal(copy, audio + 50, 100);
        assert_false(wire_field_copy(&parts.fields[0], 101, 100, copy));
        wire_parts_free(&parts);
        timbre__v1__predict_request__free_unpacked(r, NULL);
        wire_message_free(&m);
    }
}

static void test_every_occurrence_is_found(void **state) {
    (void)state;
    uint8_t packed[64];
    size_t bytes = 0;
    for (int i = 0; i < WIRE_FIELDS_MAX; i++) {
        packed[bytes++] = AUDIO << 3 | 2;
        packed[bytes++] = 1;
        packed[bytes++] = (uint8_t)i;
    }
    struct wire_message m = make(packed, bytes, 5);
    struct wire_parts parts;
    struct status st;
    Timbre__V1__PredictRequest *r = unpack_parts(&m, &parts, &st);
    assert_non_null(r);
    assert_int_equal(parts.fields_count, WIRE_FIELDS_MAX);
    for (int i = 0; i < WIRE_FIELDS_MAX; i++)
        assert_int_equal(*(const uint8_t *)parts.fields[i].pieces[0].data, i);
    wire_parts_free(&parts);
    timbre__v1__predict_request__free_unpacked(r, NULL);
    wire_message_free(&m);

    packed[bytes++] = AUDIO << 3 | 2; /* one more than the limit */
    packed[bytes++] = 0;
    m = make(packed, bytes, 5);
    assert_null(unpack_parts(&m, &parts, &st));
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    wire_message_free(&m);
}

static void refuse(const uint8_t *data, size_t bytes) {
    for (size_t slice_bytes = 1; slice_bytes <= 4; slice_bytes++) {
        struct wire_message m = make(data, bytes, slice_bytes);
        struct wire_parts parts;
        struct status st = {0};
        assert_null(unpack_parts(&m, &parts, &st));
        assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
        assert_non_null(strstr(st.message, "timbre.v1.PredictRequest"));
        wire_message_free(&m);
    }
}

static void test_malformed_is_refused(void **state) {
    (void)state;
    const uint8_t longer_than_message[] = {AUDIO << 3 | 2, 5, 1, 2};
    const uint8_t huge_length[] = {AUDIO << 3 | 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1};
    const uint8_t other_too_long[] = {3 << 3 | 2, 5, 'a'};
    const uint8_t group[] = {5 << 3 | 3, 5 << 3 | 4};
    const uint8_t endless_varint[] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01};
    const uint8_t cut_fixed[] = {5 << 3 | 1, 1, 2, 3};
    refuse(longer_than_message, sizeof longer_than_message);
    refuse(huge_length, sizeof huge_length);
    refuse(other_too_long, sizeof other_too_long);
    refuse(group, sizeof group);
    refuse(endless_varint, sizeof endless_varint);
    refuse(cut_fixed, sizeof cut_fixed);
}

static void test_text_is_utf8(void **state) {
    (void)state;
    uint8_t packed[64], inner[64];
    char bad[] = "a\xff";
    size_t bytes = pack_request(packed, (uint8_t[]){1}, 1, bad);
    refuse(packed, bytes);

    /* Also in a message within a message, in a oneof. */
    Timbre__V1__StreamingPredictRequest r = TIMBRE__V1__STREAMING_PREDICT_REQUEST__INIT;
    Timbre__V1__StreamConfig config = TIMBRE__V1__STREAM_CONFIG__INIT;
    Timbre__V1__ChannelConfig channel = TIMBRE__V1__CHANNEL_CONFIG__INIT, *channels[] = {&channel};
    r.request_case = TIMBRE__V1__STREAMING_PREDICT_REQUEST__REQUEST_CONFIG;
    r.config = &config;
    config.n_channels = 1;
    config.channels = channels;
    for (int broken = 0; broken < 2; broken++) {
        channel.role = broken ? bad : "agent";
        bytes = timbre__v1__streaming_predict_request__pack(&r, inner);
        struct wire_message m = make(inner, bytes, 3);
        struct status st = {0};
        ProtobufCMessage *got = wire_unpack(&m, &timbre__v1__streaming_predict_request__descriptor, &st);
        assert_true((got == NULL) == broken);
        if (got)
            protobuf_c_message_free_unpacked(got, NULL);
        else
            assert_non_null(strstr(st.message, "role"));
        wire_message_free(&m);
    }
}

static void test_empty_message(void **state) {
    (void)state;
    struct wire_message m = make(NULL, 0, 1);
    struct wire_parts parts;
    struct status st;
    Timbre__V1__PredictRequest *r = unpack_parts(&m, &parts, &st);
    assert_non_null(r);
    assert_int_equal(parts.fields_count, 0);
    wire_parts_free(&parts);
    timbre__v1__predict_request__free_unpacked(r, NULL);
    wire_message_free(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts_do_not_depend_on_slices),
        cmocka_unit_test(test_every_occurrence_is_found),
        cmocka_unit_test(test_malformed_is_refused),
        cmocka_unit_test(test_text_is_utf8),
        cmocka_unit_test(test_empty_message),
    };
    grpc_init();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    grpc_shutdown();
    return failed;
}
