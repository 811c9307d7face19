/* Tests of base/file and base/sha256. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/sha256.h"

static char folder[] = "/tmp/timbre-test-XXXXXX";
static char path[64];

static int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    return rmdir(folder);
}

static void write_file(const void *data, size_t bytes) {
    snprintf(path, sizeof path, "%s/file", folder);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

static void test_map(void **state) {
    (void)state;
    struct file_map m;
    struct status st;
    write_file("hello", 5);
    assert_int_equal(file_map_init(&m, path, &st), 0);
    assert_int_equal(m.bytes, 5);
    assert_memory_equal(m.data, "hello", 5);
    file_map_release(&m, 0, 5);
    file_map_release(&m, 3, 99); /* outside: nothing happens */
    assert_memory_equal(m.data, "hello", 5);
    file_map_free(&m);
    write_file("", 0);
    assert_int_equal(file_map_init(&m, path, &st), 0);
    assert_null(m.data);
    assert_int_equal(m.bytes, 0);
    file_map_free(&m);
    unlink(path);
}

static void test_released_pages_come_back(void **state) {
    (void)state;
    enum { BYTES = 5 * 4096 + 17 };
    static unsigned char data[BYTES];
    struct file_map m;
    struct status st;
    for (int i = 0; i < BYTES; i++)
        data[i] = (unsigned char)(i * 7);
    write_file(data, BYTES);
    assert_int_equal(file_map_init(&m, path, &st), 0);
    assert_memory_equal(m.data, data, BYTES);
    file_map_release(&m, 100, BYTES - 100);
    assert_memory_equal(m.data, data, BYTES);
    file_map_free(&m);
    unlink(path);
}

static void test_errors_name_the_path(void **state) {
    (void)state;
    struct file_map m;
    struct status st;
    char *data, hex[SHA256_HEX_BYTES];
    size_t bytes;
    assert_int_equal(file_map_init(&m, "/nowhere/at/all", &st), -1);
    assert_int_equal(st.code, STATUS_NOT_FOUND);
    assert_non_null(strstr(st.message, "/nowhere/at/all"));
    assert_int_equal(file_read(&data, &bytes, "/nowhere/at/all", 10, "x", &st), -1);
    assert_int_equal(st.code, STATUS_NOT_FOUND);
    assert_null(data);
    assert_int_equal(sha256_file(hex, "/nowhere/at/all", &st), -1);
    assert_int_equal(st.code, STATUS_NOT_FOUND);
    assert_int_equal(file_map_init(&m, folder, &st), -1);
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    assert_int_equal(file_read(&data, &bytes, folder, 10, "x", &st), -1);
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    assert_int_equal(sha256_file(hex, folder, &st), -1);
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(st.message, folder));
    assert_int_equal(file_map_init(&m, "/dev/null", &st), -1);
    assert_non_null(strstr(st.message, "regular"));
}

static void test_read_to_the_limit(void **state) {
    (void)state;
    char *data;
    size_t bytes;
    struct status st;
    write_file("0123456789", 10);
    for (size_t limit = 10; limit <= 12; limit++) {
        assert_int_equal(file_read(&data, &bytes, path, limit, "test_bytes_max", &st), 0);
        assert_int_equal(bytes, 10);
        assert_string_equal(data, "0123456789"); /* and a zero */
        free(data);
    }
    assert_int_equal(file_read(&data, &bytes, path, 9, "test_bytes_max", &st), -1);
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(st.message, "test_bytes_max (9 bytes)"));
    assert_null(data);
    assert_int_equal(file_read(&data, &bytes, path, 0, "test_bytes_max", &st), -1);
    write_file("", 0);
    assert_int_equal(file_read(&data, &bytes, path, 0, "test_bytes_max", &st), 0);
    assert_int_equal(bytes, 0);
    assert_string_equal(data, "");
    free(data);
    unlink(path);
}

static void *write_pipe(void *arg) {
    (void)arg;
    FILE *f = fopen(path, "wb");
    for (int i = 0; f && i < 200000; i++)
        fputc(i % 251, f);
    return f && fclose(f) == 0 ? arg : NULL;
}

static void test_read_a_pipe(void **state) {
    (void)state;
    char *data;
    size_t bytes;
    struct status st;
    pthread_t writer;
    snprintf(path, sizeof path, "%s/pipe", folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    pthread_create(&writer, NULL, write_pipe, NULL);
    assert_int_equal(file_read(&data, &bytes, path, 1 << 20, "limit", &st), 0);
    pthread_join(writer, NULL);
    assert_int_equal(bytes, 200000);
    for (int i = 0; i < 200000; i++)
        assert_int_equal((unsigned char)data[i], i % 251);
    free(data);
    unlink(path);
    assert_int_equal(file_read(&data, &bytes, "/dev/zero", 100000, "limit", &st), -1); /* without end */
    assert_int_equal(st.code, STATUS_RESOURCE_EXHAUSTED);
}

static void test_kind(void **state) {
    (void)state;
    write_file("x", 1);
    assert_int_equal(file_kind(path), 1);
    assert_int_equal(file_kind(folder), 2);
    assert_int_equal(file_kind("/dev/null"), 0);
    assert_int_equal(file_kind("/nowhere"), 0);
    unlink(path);
}

/* The known answers of FIPS 180-4's examples. */
static void test_sha256_known_answers(void **state) {
    (void)state;
    static const struct {
        const char *text, *hex;
    } known[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    char hex[SHA256_HEX_BYTES];
    struct status st;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        assert_int_equal(sha256_memory(hex, known[i].text, strlen(known[i].text), &st), 0);
        assert_string_equal(hex, known[i].hex);
        write_file(known[i].text, strlen(known[i].text));
        assert_int_equal(sha256_file(hex, path, &st), 0);
        assert_string_equal(hex, known[i].hex);
    }
    enum { MILLION = 1000000 };
    char *many = malloc(MILLION);
    assert_non_null(many);
    memset(many, 'a', MILLION);
    write_file(many, MILLION); /* more than one piece */
    free(many);
    assert_int_equal(sha256_file(hex, path, &st), 0);
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_map),
        cmocka_unit_test(test_released_pages_come_back),
        cmocka_unit_test(test_errors_name_the_path),
        cmocka_unit_test(test_read_to_the_limit),
        cmocka_unit_test(test_read_a_pipe),
        cmocka_unit_test(test_kind),
        cmocka_unit_test(test_sha256_known_answers),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
