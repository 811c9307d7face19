/* ModelInferRequest, read: tensors raw and typed, parameters, outputs, and every refusal with the name of its
 * field. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <grpc/grpc.h>

#include "server/inference_request.h"

typedef Inference__ModelInferRequest__InferInputTensor Input;
typedef Inference__ModelInferRequest__InferInputTensor__ParametersEntry InputParameter;
typedef Inference__ModelInferRequest__InferRequestedOutputTensor Output;
typedef Inference__ModelInferRequest__InferRequestedOutputTensor__ParametersEntry OutputParameter;
typedef Inference__ModelInferRequest__ParametersEntry Parameter;
typedef Inference__InferParameter Value;

enum { SOME = 4, AUDIO = 0, RATE = 1 };

/* A request that is right, with what a test may change: AUDIO as FP32 [6] in typed contents, and room for
 * more. */
static struct request {
    Inference__ModelInferRequest message;
    Input inputs[SOME], *input_list[SOME];
    Inference__InferTensorContents contents[SOME];
    int64_t shapes[SOME][3];
    Parameter parameters[SOME], *parameter_list[SOME];
    Value values[SOME];
    Output outputs[SOME], *output_list[SOME];
    OutputParameter output_parameters[SOME], *output_parameter_list[SOME];
    Value output_values[SOME];
    InputParameter input_parameter, *input_parameter_list;
    ProtobufCBinaryData raw[SOME], element;
    float samples[6];
    int32_t integers[6];
} q;

static void reset(void) {
    memset(&q, 0, sizeof q);
    inference__model_infer_request__init(&q.message);
    for (int i = 0; i < SOME; i++) {
        inference__model_infer_request__infer_input_tensor__init(&q.inputs[i]);
        inference__infer_tensor_contents__init(&q.contents[i]);
        inference__model_infer_request__parameters_entry__init(&q.parameters[i]);
        inference__infer_parameter__init(&q.values[i]);
        inference__model_infer_request__infer_requested_output_tensor__init(&q.outputs[i]);
        inference__model_infer_request__infer_requested_output_tensor__parameters_entry__init(
            &q.output_parameters[i]);
        inference__infer_parameter__init(&q.output_values[i]);
        q.input_list[i] = &q.inputs[i];
        q.inputs[i].shape = q.shapes[i];
        q.inputs[i].n_shape = 1;
        q.inputs[i].contents = &q.contents[i];
        q.shapes[i][0] = 1;
        q.parameter_list[i] = &q.parameters[i];
        q.parameters[i].value = &q.values[i];
        q.output_list[i] = &q.outputs[i];
        q.output_parameter_list[i] = &q.output_parameters[i];
        q.output_parameters[i].value = &q.output_values[i];
    }
    for (int i = 0; i < 6; i++) {
        q.samples[i] = 0.25f * (float)i;
        q.integers[i] = 1000 * i - 2000;
    }
    q.message.inputs = q.input_list;
    q.message.parameters = q.parameter_list;
    q.message.outputs = q.output_list;
    q.message.raw_input_contents = q.raw;
    q.message.n_inputs = 1;
    q.inputs[AUDIO].name = (char *)"AUDIO";
    q.inputs[AUDIO].datatype = (char *)"FP32";
    q.shapes[AUDIO][0] = 6;
    q.contents[AUDIO].fp32_contents = q.samples;
    q.contents[AUDIO].n_fp32_contents = 6;
}

static Value *add_parameter(const char *name) {
    size_t at = q.message.n_parameters++;
    q.parameters[at].key = (char *)name;
    return &q.values[at];
}

static void add_integer(const char *name, int64_t value) {
    Value *v = add_parameter(name);
    v->parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM;
    v->int64_param = value;
}

static void add_double(const char *name, double value) {
    Value *v = add_parameter(name);
    v->parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_DOUBLE_PARAM;
    v->double_param = value;
}

static void add_text(const char *name, const char *value) {
    Value *v = add_parameter(name);
    v->parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_STRING_PARAM;
    v->string_param = (char *)value;
}

static void add_output(const char *name) {
    q.outputs[q.message.n_outputs++].name = (char *)name;
}

static void add_classification(int output, int64_t best) {
    q.outputs[output].parameters = &q.output_parameter_list[output];
    q.outputs[output].n_parameters = 1;
    q.output_parameters[output].key = (char *)"classification";
    q.output_values[output].parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM;
    q.output_values[output].int64_param = best;
}

/* AUDIO as BYTES [1], typed. */
static void make_bytes(const char *data, size_t bytes) {
    q.inputs[AUDIO].datatype = (char *)"BYTES";
    q.shapes[AUDIO][0] = 1;
    q.contents[AUDIO].n_fp32_contents = 0;
    q.element = (ProtobufCBinaryData){.len = bytes, .data = (uint8_t *)data};
    q.contents[AUDIO].bytes_contents = &q.element;
    q.contents[AUDIO].n_bytes_contents = 1;
}

static void add_rate(int32_t *rate_hz) {
    q.message.n_inputs = 2;
    q.inputs[RATE].name = (char *)"SAMPLE_RATE";
    q.inputs[RATE].datatype = (char *)"INT32";
    q.contents[RATE].int_contents = rate_hz;
    q.contents[RATE].n_int_contents = 1;
}

static void make_raw(int input, const void *data, size_t bytes) {
    inference__infer_tensor_contents__init(&q.contents[input]);
    q.raw[input] = (ProtobufCBinaryData){.len = bytes, .data = (uint8_t *)data};
    if (q.message.n_raw_input_contents <= (size_t)input)
        q.message.n_raw_input_contents = (size_t)input + 1;
}

/* ---- over the wire and back ---- */

static struct wire_message message;
static struct wire_parts parts;
static ProtobufCMessage *unpacked;
static struct inference_request request;
static struct status status;

/* The request as it comes from the wire in slices of `slice_bytes`. Returns what inference_request_init does.
 */
static int receive(size_t slice_bytes) {
    uint8_t packed[4096];
    grpc_slice slices[4096];
    size_t count = 0, bytes = inference__model_infer_request__get_packed_size(&q.message);
    assert_true(bytes <= sizeof packed);
    inference__model_infer_request__pack(&q.message, packed);
    for (size_t at = 0; at < bytes; at += slice_bytes)
        slices[count++] = grpc_slice_from_copied_buffer((const char *)packed + at,
                                                        bytes - at < slice_bytes ? bytes - at : slice_bytes);
    message = (struct wire_message){.buffer = grpc_raw_byte_buffer_create(slices, count), .bytes = bytes};
    for (size_t i = 0; i < count; i++)
        grpc_slice_unref(slices[i]);
    unpacked = wire_unpack_parts(&message, &inference__model_infer_request__descriptor, INFERENCE_RAW_FIELD,
                                 &parts, &status);
    assert_non_null(unpacked);
    return inference_request_init(&request, (const Inference__ModelInferRequest *)unpacked, &parts, &status);
}

static void drop(void) {
    inference_request_free(&request);
    wire_parts_free(&parts);
    protobuf_c_message_free_unpacked(unpacked, NULL);
    wire_message_free(&message);
}

static void accept(void) {
    if (receive(4096))
        fail_msg("%s", status.message);
}

/* The request is refused with this field, and a sentence that holds `words`. */
#define REFUSED(field_name, words)                                                                           \
    do {                                                                                                     \
        assert_int_equal(receive(4096), -1);                                                                 \
        assert_int_equal(status.code, STATUS_INVALID_ARGUMENT);                                              \
        assert_string_equal(request.field, field_name);                                                      \
        if (!strstr(status.message, words))                                                                  \
            fail_msg("\"%s\" is not in: %s", words, status.message);                                         \
        drop();                                                                                              \
        reset();                                                                                             \
    } while (0)

static void assert_audio(const void *expected, size_t bytes) {
    uint8_t copy[4096];
    size_t at = 0;
    assert_int_equal(request.bytes, bytes);
    for (size_t i = 0; i < request.pieces_count; i++) {
        assert_true(request.pieces[i].bytes > 0);
        memcpy(copy + at, request.pieces[i].data, request.pieces[i].bytes);
        at += request.pieces[i].bytes;
    }
    if (request.pieces)
        assert_int_equal(at, bytes);
    assert_memory_equal(request.pieces ? copy : request.data, expected, bytes);
}

static int setup(void **state) {
    (void)state;
    reset();
    return 0;
}

/* ---- tests ---- */

static void test_least(void **state) {
    (void)state;
    accept();
    assert_string_equal(request.model_name, "");
    assert_int_equal(request.format.encoding, AUDIO_FLOAT32);
    assert_int_equal(request.format.rate_hz, 0);
    assert_int_equal(request.format.channels, 1);
    assert_int_equal(request.order, ENGINE_UNARY);
    assert_true(request.window_s == 0 && request.hop_s == 0 && request.timeout_us == 0);
    assert_false(request.raw || request.batched);
    assert_int_equal(request.outputs_count, INFERENCE_OUTPUTS_DEFAULT);
    assert_audio(q.samples, sizeof q.samples);
    drop();
}

static void test_parameters(void **state) {
    (void)state;
    make_bytes("abcdef", 6);
    add_text("encoding", "pcm16");
    add_integer("sample_rate", 8000);
    add_integer("channels", 2);
    accept();
    assert_int_equal(request.format.encoding, AUDIO_PCM16);
    assert_int_equal(request.format.rate_hz, 8000);
    assert_int_equal(request.format.channels, 2);
    assert_audio("abcdef", 6);
    drop();

    reset();
    add_double("window_s", 2.5);
    add_text("hop_s", "0.5"); /* of a client without doubles */
    add_integer("priority", 2);
    add_integer("timeout", 1500);
    accept();
    assert_true(request.window_s == 2.5 && request.hop_s == 0.5);
    assert_int_equal(request.order, ENGINE_BULK);
    assert_int_equal(request.timeout_us, 1500);
    drop();

    reset();
    add_integer("window_s", 3);
    add_integer("sequence_id", 7);
    add_text("triton_enable_empty_final_response", "x");
    add_integer("priority", 1);
    accept();
    assert_true(request.hop_s == 1.5);
    assert_int_equal(request.order, ENGINE_UNARY);
    drop();
}

static void test_parameters_refused(void **state) {
    static const struct {
        const char *name;
        double value;
        const char *field;
    } numbers[] = {
        {"window_s", 0.01, "parameters.window_s"},
        {"window_s", 30.5, "parameters.window_s"},
        {"window_s", -1, "parameters.window_s"},
        {"hop_s", 1, "parameters.hop_s"},
        {"priority", 0.5, "parameters.priority"},
        {"priority", -1, "parameters.priority"},
        {"timeout", -1, "parameters.timeout"},
        {"channels", 0, "parameters.channels"},
        {"channels", 65, "parameters.channels"},
        {"sample_rate", 999, "parameters.sample_rate"},
        {"sample_rate", 1e9, "parameters.sample_rate"},
        {"sample_rate", 8000.5, "parameters.sample_rate"},
        {"windows", 1, "parameters"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        add_double(numbers[i].name, numbers[i].value);
        REFUSED(numbers[i].field, "");
    }
    add_double("window_s", 1);
    add_double("hop_s", 1.5);
    REFUSED("parameters.hop_s", "window_s");
    add_text("window_s", "1x");
    REFUSED("parameters.window_s", "number");
    add_text("window_s", "");
    REFUSED("parameters.window_s", "number");
    add_text("window_s", "nan");
    REFUSED("parameters.window_s", "nan");
    add_parameter("timeout"); /* no value */
    REFUSED("parameters.timeout", "number");
    make_bytes("abc", 3);
    add_text("encoding", "wav");
    REFUSED("parameters.encoding", "mulaw");
    add_text("encoding", "mulaw");
    REFUSED("parameters.encoding", "FP32");
    make_bytes("abc", 3);
    add_integer("sample_rate", 8000); /* of a file */
    REFUSED("parameters.sample_rate", "encoding");
    make_bytes("abc", 3);
    add_integer("channels", 1);
    REFUSED("parameters.channels", "encoding");
}

static void test_raw_in_any_slices(void **state) {
    const uint8_t file[] = "\x05\0\0\0hello";
    int32_t rate_hz = 44100;
    (void)state;
    for (size_t slice_bytes = 1; slice_bytes < 64; slice_bytes++) {
        reset();
        make_bytes("", 0);
        make_raw(AUDIO, file, 9);
        if (receive(slice_bytes))
            fail_msg("%s", status.message);
        assert_true(request.raw);
        assert_int_equal(request.format.encoding, AUDIO_FILE);
        assert_audio("hello", 5);
        drop();

        reset();
        add_rate(&rate_hz);
        make_raw(AUDIO, q.samples, sizeof q.samples);
        make_raw(RATE, &rate_hz, sizeof rate_hz);
        if (receive(slice_bytes))
            fail_msg("%s", status.message);
        assert_int_equal(request.format.rate_hz, 44100);
        assert_audio(q.samples, sizeof q.samples);
        drop();
    }
}

static void test_raw_refused(void **state) {
    int32_t rate_hz = 8000;
    (void)state;
    make_raw(AUDIO, q.samples, 23);
    REFUSED("inputs.AUDIO", "23 raw bytes");
    make_raw(AUDIO, q.samples, sizeof q.samples);
    make_raw(1, &rate_hz, 4);
    REFUSED("raw_input_contents", "2 of them for 1");
    make_raw(AUDIO, q.samples, sizeof q.samples);
    q.contents[AUDIO].fp32_contents = q.samples;
    q.contents[AUDIO].n_fp32_contents = 1;
    REFUSED("inputs.contents", "must be empty");
    make_bytes("", 0);
    make_raw(AUDIO, "\x01\0\0", 3);
    REFUSED("inputs.AUDIO", "too few");
    make_bytes("", 0);
    make_raw(AUDIO, "\x05\0\0\0abcd", 8);
    REFUSED("inputs.AUDIO", "5 bytes, but 4 follow");
    make_bytes("", 0);
    make_raw(AUDIO, "\x03\0\0\0abcd", 8);
    REFUSED("inputs.AUDIO", "3 bytes, but 4 follow");
    make_bytes("", 0);
    make_raw(AUDIO, "\0\0\0\0", 4);
    REFUSED("inputs.AUDIO", "no bytes");
    add_rate(&rate_hz);
    make_raw(AUDIO, q.samples, sizeof q.samples);
    make_raw(RATE, &rate_hz, 3);
    REFUSED("inputs.SAMPLE_RATE", "3 raw bytes");
}

static void test_int16(void **state) {
    const int16_t expected[] = {-2000, -1000, 0, 1000, 2000, 3000};
    (void)state;
    q.inputs[AUDIO].datatype = (char *)"INT16";
    q.contents[AUDIO].n_fp32_contents = 0;
    q.contents[AUDIO].int_contents = q.integers;
    q.contents[AUDIO].n_int_contents = 6;
    accept();
    assert_int_equal(request.format.encoding, AUDIO_PCM16);
    assert_audio(expected, sizeof expected);
    drop();

    q.integers[3] = 32768;
    REFUSED("inputs.AUDIO.contents", "int_contents[3]");
    q.inputs[AUDIO].datatype = (char *)"INT16";
    make_raw(AUDIO, expected, sizeof expected);
    accept();
    assert_audio(expected, sizeof expected);
    drop();
}

static void test_shapes(void **state) {
    static const int64_t wrong[][3] = {{5, 0, 0},         {7, 0, 0}, {0, 0, 0}, {-1, 0, 0},
                                       {INT64_MAX, 0, 0}, {2, 3, 0}, {2, 6, 0}, {6, 1, 0}};
    (void)state;
    q.inputs[AUDIO].n_shape = 2;
    q.shapes[AUDIO][0] = 1;
    q.shapes[AUDIO][1] = 6;
    accept();
    assert_true(request.batched);
    drop();
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        reset();
        memcpy(q.shapes[AUDIO], wrong[i], sizeof wrong[i]);
        q.inputs[AUDIO].n_shape = wrong[i][1] ? 2 : 1;
        assert_int_equal(receive(4096), -1);
        assert_memory_equal(request.field, "inputs.AUDIO", 12);
        drop();
    }
    reset();
    q.inputs[AUDIO].n_shape = 0;
    REFUSED("inputs.AUDIO.shape", "[n]");
    q.inputs[AUDIO].n_shape = 3;
    REFUSED("inputs.AUDIO.shape", "[n]");
    add_integer("channels", 4);
    REFUSED("inputs.AUDIO.shape", "4 channels");
    make_bytes("abc", 3);
    q.shapes[AUDIO][0] = 2;
    REFUSED("inputs.AUDIO.shape", "one recording");
}

static void test_inputs_refused(void **state) {
    int32_t rate_hz = 8000, none[2] = {-5, 7};
    (void)state;
    q.message.n_inputs = 0;
    REFUSED("inputs", "AUDIO is missing");
    q.inputs[AUDIO].name = (char *)"SPEECH";
    REFUSED("inputs", "SPEECH");
    q.inputs[1] = q.inputs[0];
    q.message.n_inputs = 2;
    REFUSED("inputs", "twice");
    q.inputs[AUDIO].datatype = (char *)"FP64";
    REFUSED("inputs.AUDIO.datatype", "FP64");
    q.inputs[AUDIO].contents = NULL;
    REFUSED("inputs.AUDIO.contents", "has 0");
    make_bytes("", 0);
    REFUSED("inputs.AUDIO", "no bytes");
    make_bytes("abc", 3);
    q.contents[AUDIO].n_bytes_contents = 0;
    REFUSED("inputs.AUDIO.contents", "has 0");
    q.inputs[AUDIO].parameters = &q.input_parameter_list;
    q.input_parameter_list = &q.input_parameter;
    inference__model_infer_request__infer_input_tensor__parameters_entry__init(&q.input_parameter);
    q.input_parameter.key = (char *)"shared_memory_region";
    q.inputs[AUDIO].n_parameters = 1;
    REFUSED("inputs.parameters", "shared memory");
    add_rate(&rate_hz);
    q.inputs[RATE].datatype = (char *)"INT64";
    REFUSED("inputs.SAMPLE_RATE.datatype", "INT64");
    add_rate(none);
    REFUSED("inputs.SAMPLE_RATE", "-5");
    add_rate(none);
    q.contents[RATE].n_int_contents = 2;
    REFUSED("inputs.SAMPLE_RATE.contents", "1 element");
    add_rate(none);
    q.shapes[RATE][0] = 2;
    REFUSED("inputs.SAMPLE_RATE.shape", "[1]");
    add_rate(&rate_hz);
    add_integer("sample_rate", 16000);
    REFUSED("parameters.sample_rate", "8000");
}

static void test_outputs(void **state) {
    (void)state;
    add_output("EMBEDDING");
    add_output("PROBABILITIES");
    add_classification(1, 3);
    accept();
    assert_int_equal(request.outputs_count, 2);
    assert_int_equal(request.outputs[0].id, INFERENCE_EMBEDDING);
    assert_int_equal(request.outputs[0].best, 0);
    assert_int_equal(request.outputs[1].id, INFERENCE_PROBABILITIES);
    assert_int_equal(request.outputs[1].best, 3);
    drop();
    reset();
    add_output("SCORES");
    REFUSED("outputs", "SCORES");
    add_output("LABELS");
    add_output("LABELS");
    REFUSED("outputs", "twice");
    add_output("LABELS");
    add_classification(0, 1);
    REFUSED("outputs.classification", "LABELS");
    add_output("LOGITS");
    add_classification(0, 0);
    REFUSED("outputs.classification", "0 is not in");
    add_output("LOGITS");
    add_classification(0, 1);
    q.output_parameters[0].key = (char *)"shared_memory_byte_size";
    REFUSED("outputs.parameters", "shared memory");
}

static void test_id(void **state) {
    char id[INFERENCE_ID_BYTES + 1] = "";
    (void)state;
    memset(id, 'x', INFERENCE_ID_BYTES);
    q.message.id = id;
    REFUSED("id", "128");
    id[INFERENCE_ID_BYTES - 1] = '\0';
    q.message.id = id;
    accept();
    assert_string_equal(request.id, id);
    drop();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_least, setup),
        cmocka_unit_test_setup(test_parameters, setup),
        cmocka_unit_test_setup(test_parameters_refused, setup),
        cmocka_unit_test_setup(test_raw_in_any_slices, setup),
        cmocka_unit_test_setup(test_raw_refused, setup),
        cmocka_unit_test_setup(test_int16, setup),
        cmocka_unit_test_setup(test_shapes, setup),
        cmocka_unit_test_setup(test_inputs_refused, setup),
        cmocka_unit_test_setup(test_outputs, setup),
        cmocka_unit_test_setup(test_id, setup),
    };
    grpc_init();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    grpc_shutdown();
    return failed;
}
