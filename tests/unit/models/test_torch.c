/* Tests of models/torch_zip and models/torch_pickle: what torch.save writes is read, and nothing is ever run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "build.h"

static const float values[] = {1, 2, 3, 4, 5, 6};

/* An archive with this pickle and one storage "0" of `storage` bytes. */
static void build_archive(struct zip *z, const void *pickle, size_t bytes, size_t storage) {
    *z = (struct zip){0};
    zip_add(z, "archive/data.pkl", pickle, bytes);
    zip_add(z, "archive/byteorder", "little", 6);
    zip_add(z, "archive/data/0", values, storage);
    zip_add(z, "archive/version", "3\n", 2);
    zip_end(z);
}

static void check_archive_refused(const struct bytes *file, enum status_code code, const char *keyword) {
    struct memory m;
    struct status st = {0};
    assert_int_equal(memory_open(&m, torch_read, file->data, file->count, &st), -1);
    if (!strstr(st.message, keyword))
        fail_msg("\"%s\" does not hold \"%s\"", st.message, keyword);
    assert_int_equal(st.code, code);
}

static void check_pickle_refused(const void *pickle, size_t bytes, enum status_code code,
                                 const char *keyword) {
    struct zip z;
    build_archive(&z, pickle, bytes, sizeof values);
    check_archive_refused(&z.file, code, keyword);
    zip_free(&z);
}

#define REFUSED(pickle, code, keyword) check_pickle_refused(pickle, sizeof pickle - 1, code, keyword)

static void check_tensor_refused(int elements, int offset, int rows, int columns, int row_stride,
                                 enum status_code code, const char *keyword) {
    struct bytes b = {0};
    build_pickle(&b, "a", elements, offset, rows, columns, row_stride);
    check_pickle_refused(b.data, b.count, code, keyword);
    bytes_free(&b);
}

static void test_read(void **state) {
    (void)state;
    struct bytes b = {0};
    struct zip z;
    struct memory m;
    struct status st = {0};
    build_pickle(&b, "some.weight", 6, 2, 2, 2, 2);
    build_archive(&z, b.data, b.count, sizeof values);
    assert_int_equal(memory_open(&m, torch_read, z.file.data, z.file.count, &st), 0);
    assert_int_equal(m.checkpoint.tensors_count, 1);
    const struct tensor *t = checkpoint_find(&m.checkpoint, "some.weight");
    assert_non_null(t);
    assert_int_equal(t->dtype, TENSOR_F32);
    assert_int_equal(t->rank, 2);
    assert_int_equal(t->shape[0], 2);
    assert_int_equal(t->shape[1], 2);
    float read[4];
    assert_true(tensor_read_f32(t, read));
    assert_memory_equal(read, values + 2, sizeof read);
    memory_free(&m);
    zip_free(&z);
    bytes_free(&b);
}

static void test_tensors_refused(void **state) {
    (void)state;
    check_tensor_refused(6, 0, 2, 3, 2, STATUS_FAILED_PRECONDITION, "tensor a is not contiguous");
    check_tensor_refused(6, 1, 2, 3, 3, STATUS_INVALID_ARGUMENT, "outside its storage");
    check_tensor_refused(6, -1, 2, 3, 3, STATUS_INVALID_ARGUMENT, "outside its storage");
    check_tensor_refused(6, 0, -2, 3, 3, STATUS_INVALID_ARGUMENT, "not a number");
    check_tensor_refused(7, 0, 2, 3, 3, STATUS_INVALID_ARGUMENT, "fewer than its 7 elements");
    check_tensor_refused(-6, 0, 2, 3, 3, STATUS_INVALID_ARGUMENT, "fewer than its -6 elements");
    check_tensor_refused(6, 0, 2147483647, 2147483647, 2147483647, STATUS_INVALID_ARGUMENT,
                         "outside its storage");
}

static void test_globals_refused(void **state) {
    (void)state;
    REFUSED("\x80\2cposix\nsystem\nX\2\0\0\0id\x85R.", STATUS_FAILED_PRECONDITION,
            "pickle wants posix.system, which this program never runs");
    REFUSED("\x80\4\x8c\5posix\x8c\6system\x93\x8c\2id\x85R.", STATUS_FAILED_PRECONDITION, "posix.system");
    REFUSED("\x80\2ctorch\nload\n.", STATUS_FAILED_PRECONDITION, "torch.load");
    REFUSED("\x80\2ctorch._utils\n_rebuild_tensor_v2.evil\n.", STATUS_FAILED_PRECONDITION,
            "_rebuild_tensor_v2.evil");
    REFUSED("\x80\2cposix\nsys\033[2Jtem\n.", STATUS_FAILED_PRECONDITION, "posix.sys?[2Jtem");
    REFUSED("\x80\2ctorch\nFloatStorage\n)R.", STATUS_INVALID_ARGUMENT, "storage type is called");
    REFUSED("\x80\2ccollections\nOrderedDict\nN\x85R.", STATUS_INVALID_ARGUMENT, "OrderedDict");
    REFUSED("\x80\2}cposix", STATUS_INVALID_ARGUMENT, "does not end");
}

static void test_opcodes_refused(void **state) {
    (void)state;
    static const char never[] =
        "io\x81\x92PF\x82\x8b\x32ISVULdlgp\x97\x98"; /* NEWOBJ, INST, protocol 0, ... */
    for (size_t i = 0; i + 1 < sizeof never; i++) {
        struct bytes b = {0};
        bytes_put_text(&b, "\x80\2}");
        bytes_put(&b, never + i, 1);
        bytes_put_text(&b, "1\n1\n.");
        check_pickle_refused(b.data, b.count, STATUS_FAILED_PRECONDITION, "opcode");
        bytes_free(&b);
    }
    REFUSED("\x80\2R.", STATUS_INVALID_ARGUMENT, "stack is empty");
    REFUSED("\x80\2}}R.", STATUS_INVALID_ARGUMENT, "not a function");
    REFUSED("\x80\2(\x85.", STATUS_INVALID_ARGUMENT, "mark");
    REFUSED("\x80\2t.", STATUS_INVALID_ARGUMENT, "mark is missing");
    REFUSED("\x80\2u.", STATUS_INVALID_ARGUMENT, "mark is missing");
    REFUSED("\x80\2}(Nu.", STATUS_INVALID_ARGUMENT, "cannot hold");
    REFUSED("\x80\2)NNs.", STATUS_INVALID_ARGUMENT, "cannot hold");
    REFUSED("\x80\2}Na.", STATUS_INVALID_ARGUMENT, "cannot hold");
    REFUSED("\x80\2)}b.", STATUS_INVALID_ARGUMENT, "attributes");
    REFUSED("\x80\2h\5.", STATUS_INVALID_ARGUMENT, "memo");
    REFUSED("\x80\2}q\5h\4.", STATUS_INVALID_ARGUMENT, "memo");
    REFUSED("\x80\2q\0.", STATUS_INVALID_ARGUMENT, "stack is empty");
    REFUSED("\x80\2(q\0.", STATUS_INVALID_ARGUMENT, "mark");
    REFUSED("\x80\2X\377\0\0\0ab.", STATUS_INVALID_ARGUMENT, "ends early");
    REFUSED("\x80\2}", STATUS_INVALID_ARGUMENT, "ends early");
    REFUSED("", STATUS_INVALID_ARGUMENT, "ends early");
    REFUSED("\x80\2)Q.", STATUS_INVALID_ARGUMENT, "storage is not described");
}

static void test_limits(void **state) {
    (void)state;
    struct bytes b = {0};
    bytes_put_text(&b, "\x80\2");
    for (int i = 0; i < 65; i++)
        bytes_put_text(&b, "(");
    check_pickle_refused(b.data, b.count, STATUS_RESOURCE_EXHAUSTED, "nested marks than the limit of 64");
    b.count = 2;
    for (int i = 0; i <= 1 << 16; i++)
        bytes_put_text(&b, "N");
    check_pickle_refused(b.data, b.count, STATUS_RESOURCE_EXHAUSTED, "stack than the limit of 65536");
    b.count = 2;
    for (int i = 0; i <= 1 << 18; i++)
        bytes_put_text(&b, "}q\1\x85");
    check_pickle_refused(b.data, b.count, STATUS_RESOURCE_EXHAUSTED, "the limit of");
    bytes_free(&b);
    REFUSED("\x80\2}r\377\377\377\377.", STATUS_RESOURCE_EXHAUSTED, "memo entries");
    REFUSED("\x80\2X\377\377\377\377a.", STATUS_RESOURCE_EXHAUSTED, "bytes in a text");
    REFUSED("\x80\2\x8a\11123456789.", STATUS_RESOURCE_EXHAUSTED, "bytes in a number");
}

static void test_not_a_state_dict(void **state) {
    (void)state;
    REFUSED("\x80\2].", STATUS_FAILED_PRECONDITION, "something else than a state dict");
    REFUSED("\x80\2N.", STATUS_FAILED_PRECONDITION, "something else than a state dict");
    REFUSED("\x80\2}}.", STATUS_FAILED_PRECONDITION, "something else than a state dict");
    REFUSED("\x80\2}X\12\0\0\0state_dict}s.", STATUS_FAILED_PRECONDITION, "dictionary \"state_dict\"");
}

/* Objects that hold themselves, values of every kind that is ignored, and attributes. */
static void test_harmless(void **state) {
    (void)state;
    static const char more[] =
        "\x94K\1h\0X\1\0\0\0bh\0X\1\0\0\0c]q\1h\1aX\1\0\0\0dG12345678X\1\0\0\0eM\1\2X\1\0\0\0"
        "f\x8a\2\377\377\x88\x89NN\x8c\1g)u}X\1\0\0\0x}sb.";
    struct bytes b = {0};
    struct zip z;
    struct memory m;
    struct status st = {0};
    build_pickle(&b, "a", 6, 0, 2, 3, 3);
    b.count -= 2; /* take off its "u." */
    bytes_put(&b, more, sizeof more - 1);
    build_archive(&z, b.data, b.count, sizeof values);
    assert_int_equal(memory_open(&m, torch_read, z.file.data, z.file.count, &st), 0);
    assert_int_equal(m.checkpoint.tensors_count, 2); /* b is the same tensor */
    memory_free(&m);
    zip_free(&z);
    bytes_free(&b);
}

/* Pickles that torch.save itself wrote (the seeds of the fuzzer), with made-up storages of 64 bytes each. */
static void open_seed(struct memory *m, const char *seed) {
    static const char *const keys[] = {"x/data/0", "x/data/1", "x/data/2", "x/data/3",
                                       "x/data/4", "x/data/5", "x/data/6"};
    static const unsigned char storage[64];
    char path[512], *pickle;
    size_t bytes;
    struct zip z = {0};
    struct status st = {0};
    snprintf(path, sizeof path, "%s/tests/fuzz/corpus/torch/%s", TIMBRE_SOURCE_DIR, seed);
    assert_int_equal(file_read(&pickle, &bytes, path, 1 << 20, "a seed", &st), 0);
    zip_add(&z, "x/data.pkl", pickle, bytes);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        zip_add(&z, keys[i], storage, sizeof storage);
    zip_end(&z);
    if (memory_open(m, torch_read, z.file.data, z.file.count, &st))
        fail_msg("%s: %s", seed, st.message);
    zip_free(&z);
    free(pickle);
}

/* All dtypes, a scalar, two views of one storage, a parameter, an empty tensor. */
static void test_what_torch_saves(void **state) {
    (void)state;
    static const struct {
        const char *name, *dtype;
        int rank, elements;
    } expected[] = {{"a", "F32", 2, 6}, {"b", "BF16", 3, 6}, {"e", "F32", 2, 0},  {"h", "F16", 1, 6},
                    {"i", "I64", 0, 1}, {"p", "F32", 1, 2},  {"v1", "F32", 1, 3}, {"v2", "F32", 1, 10}};
    struct memory m;
    open_seed(&m, "pickle_save");
    assert_int_equal(m.checkpoint.tensors_count, 8);
    for (int i = 0; i < 8; i++) {
        const struct tensor *t = &m.checkpoint.tensors[i];
        assert_string_equal(t->name, expected[i].name);
        assert_string_equal(t->dtype_name, expected[i].dtype);
        assert_int_equal(t->rank, expected[i].rank);
        assert_int_equal(t->elements, expected[i].elements);
    }
    assert_ptr_equal(m.checkpoint.tensors[6].data, m.checkpoint.tensors[7].data + 2 * 4);
    memory_free(&m);
    open_seed(&m, "pickle_protocol_4"); /* frames, memoize, stack_global */
    assert_int_equal(m.checkpoint.tensors_count, 2);
    assert_string_equal(m.checkpoint.tensors[1].dtype_name, "U8");
    memory_free(&m);
}

static void test_containers_refused(void **state) {
    (void)state;
    struct bytes b = {0}, whole = {0};
    struct zip z;
    build_pickle(&b, "a", 6, 0, 2, 3, 3);

    z = (struct zip){.method = 8};
    zip_add(&z, "archive/data.pkl", b.data, b.count);
    zip_end(&z);
    check_archive_refused(&z.file, STATUS_FAILED_PRECONDITION, "entry archive/data.pkl is compressed");
    zip_free(&z);

    zip_add(&z, "archive/data.pkl", b.data, b.count);
    zip_end(&z);
    check_archive_refused(&z.file, STATUS_INVALID_ARGUMENT, "storage data/0 is missing");
    zip_free(&z);

    zip_add(&z, "archive/data.pkl", b.data, b.count);
    zip_add(&z, "archive/data.pkl", b.data, b.count);
    zip_end(&z);
    check_archive_refused(&z.file, STATUS_INVALID_ARGUMENT, "duplicate");
    zip_free(&z);

    zip_add(&z, "archive/data.pkl", b.data, b.count);
    zip_add(&z, "archive/byteorder", "big", 3);
    zip_end(&z);
    check_archive_refused(&z.file, STATUS_FAILED_PRECONDITION, "byteorder");
    zip_free(&z);

    zip_add(&z, "archive/data.pkl", b.data, b.count);
    zip_add(&z, "archive/constants.pkl", ")", 1);
    zip_end(&z);
    check_archive_refused(&z.file, STATUS_FAILED_PRECONDITION, "TorchScript");
    zip_free(&z);

    zip_add(&z, "archive/other", b.data, b.count);
    zip_end(&z);
    check_archive_refused(&z.file, STATUS_INVALID_ARGUMENT, "no data.pkl");
    zip_free(&z);

    bytes_put(&whole, "\x80\2\x8a\12l\374\234F\371 j\250P\31.", 14);
    check_archive_refused(&whole, STATUS_FAILED_PRECONDITION, "before version 1.6");
    whole.count = 0;
    bytes_put_text(&whole, "no archive at all, but long enough to be one");
    check_archive_refused(&whole, STATUS_INVALID_ARGUMENT, "no zip archive");
    bytes_free(&whole);
    bytes_free(&b);
}

/* Cut anywhere, the archive is refused; with any one byte changed it is read or refused, and nothing else
 * happens. */
static void test_every_truncation_and_change(void **state) {
    (void)state;
    struct bytes b = {0};
    struct zip z;
    struct memory m;
    build_pickle(&b, "a", 6, 0, 2, 3, 3);
    build_archive(&z, b.data, b.count, sizeof values);
    for (size_t n = 0; n < z.file.count; n++) {
        struct status st = {0};
        assert_int_equal(memory_open(&m, torch_read, z.file.data, n, &st), -1);
        assert_int_not_equal(st.code, STATUS_OK);
    }
    static const unsigned char changes[] = {0x01, 0x80, 0xff};
    for (size_t i = 0; i < z.file.count * 3; i++) {
        struct status st = {0};
        z.file.data[i / 3] ^= changes[i % 3];
        if (memory_open(&m, torch_read, z.file.data, z.file.count, &st) == 0)
            memory_free(&m);
        else
            assert_int_not_equal(st.code, STATUS_OK);
        z.file.data[i / 3] ^= changes[i % 3];
    }
    zip_free(&z);
    bytes_free(&b);
}

/* The same archive with all sizes and offsets in zip64 fields, as writers do beyond 4 GB. */
static void test_zip64(void **state) {
    (void)state;
    struct bytes b = {0}, directory = {0};
    struct zip z = {0};
    struct memory m;
    struct status st = {0};
    build_pickle(&b, "a", 6, 0, 2, 3, 3);
    zip_add(&z, "x/data.pkl", b.data, b.count);
    size_t second = z.file.count;
    zip_add(&z, "x/data/0", values, sizeof values);
    const struct {
        const char *name;
        size_t bytes, local;
    } entries[] = {{"x/data.pkl", b.count, 0}, {"x/data/0", sizeof values, second}};
    for (int i = 0; i < 2; i++) {
        bytes_put(&directory, "PK\1\2\0\0\0\0\0\0\0\0", 12);
        bytes_put_number(&directory, 0, 8);
        bytes_put_number(&directory, UINT64_MAX, 8);
        bytes_put_number(&directory, strlen(entries[i].name), 2);
        bytes_put_number(&directory, 5 + 28, 2);
        bytes_put_number(&directory, 0, 2);
        bytes_put_number(&directory, 0, 8);
        bytes_put_number(&directory, UINT32_MAX, 4);
        bytes_put_text(&directory, entries[i].name);
        bytes_put(&directory, "FB\1\0Z\1\0\30\0", 9);
        bytes_put_number(&directory, entries[i].bytes, 8);
        bytes_put_number(&directory, entries[i].bytes, 8);
        bytes_put_number(&directory, entries[i].local, 8);
    }
    size_t at = z.file.count;
    bytes_put(&z.file, directory.data, directory.count);
    size_t end = z.file.count;
    bytes_put(&z.file, "PK\6\6", 4);
    bytes_put_number(&z.file, 44, 8);
    bytes_put_number(&z.file, 0, 4);
    bytes_put_number(&z.file, 0, 8);
    bytes_put_number(&z.file, 2, 8);
    bytes_put_number(&z.file, 2, 8);
    bytes_put_number(&z.file, directory.count, 8);
    bytes_put_number(&z.file, at, 8);
    bytes_put(&z.file, "PK\6\7\0\0\0\0", 8);
    bytes_put_number(&z.file, end, 8);
    bytes_put_number(&z.file, 1, 4);
    bytes_put(&z.file, "PK\5\6\0\0\0\0\377\377\377\377\377\377\377\377\377\377\377\377\0\0", 22);
    assert_int_equal(memory_open(&m, torch_read, z.file.data, z.file.count, &st), 0);
    assert_non_null(checkpoint_find(&m.checkpoint, "a"));
    memory_free(&m);
    z.file.data[end + 8] ^= 0xff; /* a field that is not needed */
    z.file.data[z.file.count - 22 - 20 + 9] ^= 0x01;
    check_archive_refused(&z.file, STATUS_INVALID_ARGUMENT, "zip64 end");
    zip_free(&z);
    bytes_free(&directory);
    bytes_free(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_tensors_refused),
        cmocka_unit_test(test_globals_refused),
        cmocka_unit_test(test_opcodes_refused),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_not_a_state_dict),
        cmocka_unit_test(test_harmless),
        cmocka_unit_test(test_what_torch_saves),
        cmocka_unit_test(test_containers_refused),
        cmocka_unit_test(test_every_truncation_and_change),
        cmocka_unit_test(test_zip64),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
