/* Tests of models/checkpoint: which files count, shards, and reading values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "build.h"

static void write_tensor(const struct folder *f, const char *file, const char *name, float first) {
    struct bytes b = {0};
    const struct build_tensor t = {.name = name, .dtype = "F32", .rank = 1, .shape = {2}, .first = first};
    build_tensors(&b, &t, 1);
    folder_write(f, file, b.data, b.count);
    bytes_free(&b);
}

static void write_torch(const struct folder *f, const char *file, const char *name) {
    struct bytes b = {0};
    struct zip z = {0};
    const float values[6] = {0};
    build_pickle(&b, name, 6, 0, 2, 3, 3);
    zip_add(&z, "archive/data.pkl", b.data, b.count);
    zip_add(&z, "archive/data/0", values, sizeof values);
    zip_end(&z);
    folder_write(f, file, z.file.data, z.file.count);
    zip_free(&z);
    bytes_free(&b);
}

static void check_format(const struct folder *f, const char *format, const char *tensor) {
    struct checkpoint c;
    struct status st = {0};
    if (checkpoint_init(&c, f->path, &st))
        fail_msg("%s", st.message);
    assert_string_equal(c.format, format);
    assert_non_null(checkpoint_find(&c, tensor));
    assert_int_equal(c.tensors_count, 1);
    checkpoint_free(&c);
}

static void check_refused(const struct folder *f, enum status_code code, const char *keyword) {
    struct checkpoint c;
    struct status st = {0};
    assert_int_equal(checkpoint_init(&c, f->path, &st), -1);
    if (!strstr(st.message, keyword))
        fail_msg("\"%s\" does not hold \"%s\"", st.message, keyword);
    assert_int_equal(st.code, code);
    assert_null(c.tensors);
    assert_null(c.files);
}

static void test_order_of_files(void **state) {
    (void)state;
    struct folder f;
    folder_init(&f);
    check_refused(&f, STATUS_NOT_FOUND, "no weights");
    write_torch(&f, "shard.bin", "d");
    folder_write_text(&f, "pytorch_model.bin.index.json", "{\"weight_map\":{\"d\":\"shard.bin\"}}");
    check_format(&f, "torch, sharded", "d");
    write_torch(&f, "pytorch_model.bin", "c");
    check_format(&f, "torch", "c");
    write_tensor(&f, "shard.safetensors", "b", 1);
    folder_write_text(&f, "model.safetensors.index.json", "{\"weight_map\":{\"b\":\"shard.safetensors\"}}");
    check_format(&f, "safetensors, sharded", "b");
    write_tensor(&f, "model.safetensors", "a", 1);
    check_format(&f, "safetensors", "a");
    folder_write_text(&f, "model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
    check_refused(&f, STATUS_FAILED_PRECONDITION, "git lfs pull");
    folder_write_text(&f, "model.safetensors", "");
    check_refused(&f, STATUS_INVALID_ARGUMENT, "model.safetensors: 0 bytes");
    folder_write(&f, "model.safetensors", "\2\0\0\0\0\0\0\0{}", 10);
    check_refused(&f, STATUS_INVALID_ARGUMENT, "holds no tensors");
    folder_free(&f);
}

static void check_index(const struct folder *f, const char *index, enum status_code code,
                        const char *keyword) {
    folder_write_text(f, "model.safetensors.index.json", index);
    check_refused(f, code, keyword);
}

static void test_shards(void **state) {
    (void)state;
    struct folder f;
    struct checkpoint c;
    struct status st = {0};
    folder_init(&f);
    write_tensor(&f, "one.safetensors", "a", 1);
    write_tensor(&f, "two.safetensors", "b", 2);
    folder_write_text(
        &f, "model.safetensors.index.json",
        "{\"metadata\":{},\"weight_map\":{\"b\":\"two.safetensors\",\"a\":\"one.safetensors\"}}");
    assert_int_equal(checkpoint_init(&c, f.path, &st), 0);
    assert_int_equal(c.files_count, 2);
    float read[2];
    const struct tensor *t = checkpoint_find(&c, "b");
    assert_non_null(t);
    assert_string_equal(c.files[t->file].name, "two.safetensors");
    assert_true(tensor_read_f32(t, read));
    assert_true(read[0] == 2);
    checkpoint_release(&c, t);
    assert_true(tensor_read_f32(t, read));
    assert_true(read[1] == 2.125f);
    checkpoint_free(&c);

    const enum status_code bad = STATUS_INVALID_ARGUMENT;
    check_index(&f, "{\"weight_map\":{\"a\":\"../one.safetensors\"}}", bad,
                "not the name of a file in this folder");
    check_index(&f, "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", bad, "not the name of a file in this folder");
    check_index(&f, "{\"weight_map\":{\"a\":\"..\"}}", bad, "not the name of a file in this folder");
    check_index(&f, "{\"weight_map\":{\"a\":\"\"}}", bad, "not the name of a file in this folder");
    check_index(&f, "{\"weight_map\":{\"a\":7}}", bad, "not the name of a file in this folder");
    check_index(&f, "{\"weight_map\":{\"a\":\"three.safetensors\"}}", bad,
                "shard three.safetensors is missing");
    check_index(&f, "{\"weight_map\":{\"a\":\"two.safetensors\"}}", bad,
                "tensor a should be in two.safetensors");
    check_index(&f, "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"one.safetensors\"}}", bad,
                "tensor b should");
    check_index(&f, "{\"weight_map\":{}}", bad, "weight_map is empty");
    check_index(&f, "{\"weight_map\":[]}", bad, "weight_map is missing");
    check_index(&f, "{}", bad, "weight_map is missing");
    check_index(&f, "{", bad, "model.safetensors.index.json: not valid JSON");
    write_tensor(&f, "two.safetensors", "a", 2);
    check_index(&f, "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}", bad,
                "tensor a is a duplicate: both");
    folder_free(&f);
}

static void test_too_many_shards(void **state) {
    (void)state;
    struct folder f;
    struct bytes index = {0};
    folder_init(&f);
    bytes_put_text(&index, "{\"weight_map\":{");
    for (int i = 0; i <= CHECKPOINT_FILES_MAX; i++) {
        char name[32], shard[32], entry[96];
        snprintf(name, sizeof name, "t%d", i);
        snprintf(shard, sizeof shard, "%d.safetensors", i);
        snprintf(entry, sizeof entry, "%s\"%s\":\"%s\"", i ? "," : "", name, shard);
        write_tensor(&f, shard, name, 1);
        bytes_put_text(&index, entry);
    }
    bytes_put(&index, "}}", 2);
    folder_write(&f, "model.safetensors.index.json", index.data, index.count);
    check_refused(&f, STATUS_RESOURCE_EXHAUSTED, "more shards than the limit of 256");
    bytes_free(&index);
    folder_free(&f);
}

/* Every binary16 there is, against the definition. */
static void test_f16_is_exact(void **state) {
    (void)state;
    unsigned char data[2];
    struct tensor t = {.dtype = TENSOR_F16, .elements = 1, .data = data};
    for (unsigned h = 0; h < 65536; h++) {
        data[0] = (unsigned char)h;
        data[1] = (unsigned char)(h >> 8);
        int exponent = h >> 10 & 31, fraction = h & 1023;
        float expected = exponent == 0    ? ldexpf((float)fraction, -24)
                         : exponent == 31 ? fraction ? NAN : INFINITY
                                          : ldexpf((float)(1024 + fraction), exponent - 25);
        expected = h >> 15 ? -expected : expected;
        float value;
        assert_int_equal(tensor_read_f32(&t, &value), exponent != 31);
        assert_int_equal(signbit(value) != 0, h >> 15);
        assert_true(value == expected || (isnan(value) && isnan(expected)));
    }
}

static void test_bf16_is_exact(void **state) {
    (void)state;
    unsigned char data[2];
    struct tensor t = {.dtype = TENSOR_BF16, .elements = 1, .data = data};
    for (uint32_t h = 0; h < 65536; h++) {
        data[0] = (unsigned char)h;
        data[1] = (unsigned char)(h >> 8);
        float value;
        uint32_t bits;
        assert_int_equal(tensor_read_f32(&t, &value), (h >> 7 & 255) != 255);
        memcpy(&bits, &value, sizeof bits);
        assert_int_equal(bits, h << 16);
    }
}

/* One value that is not finite is found wherever it stands, also in the last block and at any alignment. */
static void test_not_finite_is_found(void **state) {
    (void)state;
    enum { COUNT = 4096 + 37 };
    static const uint32_t bad[] = {0x7f800000, 0xff800000, 0x7fc00000, 0xff800001, 0x7fffffff};
    static const uint32_t good[] = {0x7f7fffff, 0xff7fffff, 0, 0x80000000, 1};
    unsigned char *data = malloc(4 * COUNT + 1);
    float *to = malloc(4 * COUNT);
    assert_true(data && to);
    struct tensor t = {.dtype = TENSOR_F32, .data = data + 1, .elements = COUNT};
    for (int i = 0; i < COUNT; i++)
        memcpy(data + 1 + 4 * i, &good[i % 5], 4);
    assert_true(tensor_read_f32(&t, to));
    assert_true(tensor_is_finite_f32(&t));
    assert_memory_equal(to, data + 1, 4 * COUNT);
    for (int i = 0; i < COUNT; i++) {
        memcpy(data + 1 + 4 * i, &bad[i % 5], 4);
        assert_false(tensor_is_finite_f32(&t));
        if (i % 97 == 0 || i > COUNT - 10) {
            assert_false(tensor_read_f32(&t, to));
            assert_memory_equal(to, data + 1, 4 * COUNT);
        }
        memcpy(data + 1 + 4 * i, &good[i % 5], 4);
    }
    free(to);
    free(data);
}

/* The folders of tests/golden/, where each container was written by its own library. */
static void test_files_of_others(void **state) {
    (void)state;
    static const char *const folders[][2] = {{"base", "safetensors"}, {"torch_file", "torch"}};
    for (size_t i = 0; i < 2; i++) {
        char path[512];
        struct checkpoint c;
        struct status st = {0};
        snprintf(path, sizeof path, "%s/tests/golden/%s", TIMBRE_SOURCE_DIR, folders[i][0]);
        if (checkpoint_init(&c, path, &st))
            fail_msg("%s", st.message);
        assert_string_equal(c.format, folders[i][1]);
        assert_true(c.tensors_count > 30);
        assert_non_null(checkpoint_find(&c, "wav2vec2.feature_extractor.conv_layers.0.conv.weight"));
        for (int n = 1; n < c.tensors_count; n++)
            assert_true(strcmp(c.tensors[n - 1].name, c.tensors[n].name) < 0);
        checkpoint_free(&c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_of_files),  cmocka_unit_test(test_shards),
        cmocka_unit_test(test_too_many_shards), cmocka_unit_test(test_f16_is_exact),
        cmocka_unit_test(test_bf16_is_exact),   cmocka_unit_test(test_not_finite_is_found),
        cmocka_unit_test(test_files_of_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
