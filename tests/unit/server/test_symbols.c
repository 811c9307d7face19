/* server/symbols: the descriptor set that is linked in, and sets that are broken. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/google/protobuf/descriptor.pb-c.h"
#include "server/symbols.h"

extern const char timbre_descriptors_begin[], timbre_descriptors_end[];

static const char *const FILE_OF[][2] = {
    /* Each kind of name. */
    {"timbre.v1.Timbre", "timbre/v1/timbre.proto"},
    {"timbre.v1.Timbre.Predict", "timbre/v1/timbre.proto"},
    {"timbre.v1.PredictRequest", "timbre/v1/timbre.proto"},
    {"timbre.v1.PredictRequest.top_k", "timbre/v1/timbre.proto"},
    {"timbre.v1.StreamConfig.analysis", "timbre/v1/timbre.proto"},
    {"timbre.v1.Encoding", "timbre/v1/timbre.proto"},
    {"timbre.v1.ENCODING_ALAW", "timbre/v1/timbre.proto"},
    {"inference.GRPCInferenceService.ModelInfer", "inference/grpc_service.proto"},
    {"inference.ModelInferRequest.InferInputTensor", "inference/grpc_service.proto"},
    {"inference.ModelInferRequest.InferInputTensor.shape", "inference/grpc_service.proto"},
    {"grpc.health.v1.HealthCheckResponse.ServingStatus", "grpc/health/v1/health.proto"},
    {"grpc.health.v1.HealthCheckResponse.SERVING", "grpc/health/v1/health.proto"},
    {"grpc.reflection.v1.ServerReflection", "grpc/reflection/v1/reflection.proto"},
    {"grpc.reflection.v1alpha.ServerReflection", "grpc/reflection/v1alpha/reflection.proto"},
    {"google.rpc.Status", "google/rpc/status.proto"},
    {"google.rpc.RetryInfo", "google/rpc/error_details.proto"},
    {"google.protobuf.Any", "google/protobuf/any.proto"},
    {"google.protobuf.Duration.seconds", "google/protobuf/duration.proto"},
};

static const char *const NOWHERE[] = {
    "",
    ".",
    "timbre",
    "timbre.v1",
    "timbre.v1.",
    ".timbre.v1.Timbre",
    "timbre.v1.Timbre.",
    "timbre.v1.Timbre.Predic",
    "timbre.v1.Timbre.Predict.",
    "timbre.v1.Timbre.Predict.x",
    "timbre.v1.Timbres",
    "timbre.v1.Timb",
    "timbre.v1..Timbre",
    "timbre.v1.Encoding.ENCODING_ALAW",
    "timbre.v1.PredictRequest.top_k.x",
    "Timbre",
    "grpc.health.v1.SERVING",
};

static int set_up(void **state) {
    struct status st = {0};
    struct symbols *s = NULL;
    size_t bytes = (size_t)(timbre_descriptors_end - timbre_descriptors_begin);
    if (symbols_new(&s, timbre_descriptors_begin, bytes, &st))
        fail_msg("%s", st.message);
    *state = s;
    return 0;
}

static int tear_down(void **state) {
    symbols_del(*state);
    return 0;
}

static void every_kind_of_name_is_found(void **state) {
    for (size_t i = 0; i < sizeof FILE_OF / sizeof *FILE_OF; i++) {
        int file = symbols_find_file(*state, FILE_OF[i][1]);
        assert_true(file >= 0);
        if (symbols_find(*state, FILE_OF[i][0]) != file)
            fail_msg("%s is not found in %s", FILE_OF[i][0], FILE_OF[i][1]);
    }
}

static void other_names_are_not(void **state) {
    for (size_t i = 0; i < sizeof NOWHERE / sizeof *NOWHERE; i++)
        if (symbols_find(*state, NOWHERE[i]) >= 0)
            fail_msg("\"%s\" is found", NOWHERE[i]);
    assert_int_equal(symbols_find_file(*state, ""), -1);
    assert_int_equal(symbols_find_file(*state, "timbre/v1/timbre.prot"), -1);
    assert_int_equal(symbols_find_file(*state, "timbre/v1/timbre.proto2"), -1);
}

static void messages_are_told_from_the_rest(void **state) {
    assert_true(symbols_has_message(*state, "timbre.v1.PredictRequest"));
    assert_true(symbols_has_message(*state, "inference.ModelInferRequest.InferInputTensor"));
    assert_false(symbols_has_message(*state, "timbre.v1.Timbre"));
    assert_false(symbols_has_message(*state, "timbre.v1.Encoding"));
    assert_false(symbols_has_message(*state, "timbre.v1.PredictRequest.top_k"));
}

static Google__Protobuf__FileDescriptorProto *unpack(const struct symbols *s, int file) {
    size_t bytes = 0;
    const void *data = symbols_get_file(s, file, &bytes);
    Google__Protobuf__FileDescriptorProto *f =
        google__protobuf__file_descriptor_proto__unpack(NULL, bytes, data);
    assert_non_null(f);
    return f;
}

static void a_file_is_whole_and_names_its_imports(void **state) {
    for (size_t i = 0; i < sizeof FILE_OF / sizeof *FILE_OF; i++) {
        int file = symbols_find_file(*state, FILE_OF[i][1]);
        uint64_t imports = symbols_get_imports(*state, file);
        Google__Protobuf__FileDescriptorProto *f = unpack(*state, file);
        assert_string_equal(f->name, FILE_OF[i][1]);
        assert_true(imports >> file & 1);
        for (size_t k = 0; k < f->n_dependency; k++) {
            int of = symbols_find_file(*state, f->dependency[k]);
            uint64_t all = symbols_get_imports(*state, of);
            assert_int_equal(imports & all, all);
        }
        google__protobuf__file_descriptor_proto__free_unpacked(f, NULL);
    }
    int status = symbols_find_file(*state, "google/rpc/status.proto");
    int any = symbols_find_file(*state, "google/protobuf/any.proto");
    assert_int_equal(symbols_get_imports(*state, status), (uint64_t)1 << status | (uint64_t)1 << any);
}

/* reflection.c answers questions about extensions with "there are none". */
static void nothing_is_extended(void **state) {
    for (size_t i = 0; i < sizeof FILE_OF / sizeof *FILE_OF; i++) {
        Google__Protobuf__FileDescriptorProto *f = unpack(*state, symbols_find_file(*state, FILE_OF[i][1]));
        assert_int_equal(f->n_extension, 0);
        for (size_t k = 0; k < f->n_message_type; k++)
            assert_int_equal(f->message_type[k]->n_extension, 0);
        google__protobuf__file_descriptor_proto__free_unpacked(f, NULL);
    }
}

static void refuse(const void *data, size_t bytes) {
    struct symbols *s = NULL;
    struct status st = {0};
    void *copy = malloc(bytes ? bytes : 1); /* so that reading past its end is seen */
    assert_non_null(copy);
    memcpy(copy, data, bytes);
    if (symbols_new(&s, copy, bytes, &st) == 0)
        symbols_del(s); /* cut between two files */
    else
        assert_int_equal(st.code, STATUS_INTERNAL);
    free(copy);
}

static void broken_sets_are_refused(void **state) {
    struct symbols *s = NULL;
    struct status st = {0};
    (void)state;
    size_t bytes = (size_t)(timbre_descriptors_end - timbre_descriptors_begin);
    for (size_t i = 0; i < bytes; i += i < 300 ? 1 : 97)
        refuse(timbre_descriptors_begin, i);
    static const char *const wrong[] = {"\x0a", "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "\x0a\x7f",
                                        "\x12\x01"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(symbols_new(&s, wrong[i], strlen(wrong[i]), &st), -1);
        refuse(wrong[i], strlen(wrong[i]));
    }
    /* An import that is not there: name "a", dependency "b". */
    static const char import[] = "\x0a\x06\x0a\x01"
                                 "a"
                                 "\x1a\x01"
                                 "b";
    assert_int_equal(symbols_new(&s, import, sizeof import - 1, &st), -1);
    assert_int_equal(st.code, STATUS_INTERNAL);
    /* More files than a set may have. */
    char many[2 * (SYMBOLS_FILES_MAX + 1)];
    for (size_t i = 0; i < sizeof many; i += 2) {
        many[i] = '\x0a';
        many[i + 1] = '\0';
    }
    assert_int_equal(symbols_new(&s, many, sizeof many, &st), -1);
    assert_int_equal(symbols_new(&s, many, sizeof many - 2, &st), 0);
    assert_int_equal(symbols_find(s, "a"), -1);
    symbols_del(s);
    symbols_del(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_of_name_is_found),
        cmocka_unit_test(other_names_are_not),
        cmocka_unit_test(messages_are_told_from_the_rest),
        cmocka_unit_test(a_file_is_whole_and_names_its_imports),
        cmocka_unit_test(nothing_is_extended),
        cmocka_unit_test(broken_sets_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
