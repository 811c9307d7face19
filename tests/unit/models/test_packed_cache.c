/* Packed weights kept in a file: what was written is read, whatever else lies there is refused, and nothing
 * of it keeps a model from being loaded. The linker puts the __wrap_ functions in the place of the real ones.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "build.h"
#include "models/packed_cache.h"

enum { BLOCKS = 3, BYTES = 2 * PACKED_CACHE_BLOCK_BYTES + 12345, FILES = 3 };
static const int64_t LATER_NS = INT64_C(60) * 1000000000;

static struct folder model_dir, cache_dir;
static unsigned char written[BYTES], packed[BYTES];
static struct checkpoint_file weights_file;
static struct config config;
static struct checkpoint checkpoint;
static struct sources sources;
static struct packed_cache_options options;

/* ---- what the code under test does ---- */

static char said[LOG_LINE_BYTES_MAX];
static int hashed;

void __wrap_log_write(enum log_level level, const char *component, const char *format, ...);
int __real_sha256_file(char *hex, const char *path, struct status *st);
int __wrap_sha256_file(char *hex, const char *path, struct status *st);
int64_t __real_file_clock_ns(void);
int64_t __wrap_file_clock_ns(void);

/* The model's files were all made long ago. */
static int64_t later_ns;

int64_t __wrap_file_clock_ns(void) {
    return __real_file_clock_ns() + later_ns;
}

void __wrap_log_write(enum log_level level, const char *component, const char *format, ...) {
    va_list args;
    (void)level, (void)component;
    va_start(args, format);
    vsnprintf(said, sizeof said, format, args);
    va_end(args);
}

int __wrap_sha256_file(char *hex, const char *path, struct status *st) {
    hashed++;
    return __real_sha256_file(hex, path, st);
}

static void check_said(const char *words) {
    if (!strstr(said, words))
        fail_msg("said \"%s\", and not \"%s\"", said, words);
}

/* ---- the bed ---- */

static int set_up(void **state) {
    (void)state;
    later_ns = LATER_NS;
    folder_init(&model_dir);
    folder_init(&cache_dir);
    folder_write_text(&model_dir, "config.json", "{}");
    folder_write_text(&model_dir, "model.safetensors", "not really weights");
    folder_write_text(&model_dir, "README.md", "---\nlicense: mit\n---\n");
    weights_file.name = "model.safetensors";
    checkpoint = (struct checkpoint){.files = &weights_file, .files_count = 1};
    config = (struct config){.files = {"config.json", "README.md"}, .files_count = 2};
    for (size_t i = 0; i < BYTES; i++)
        written[i] = (unsigned char)(i * 2654435761u >> 16);
    options = (struct packed_cache_options){.place = cache_dir.path,
                                            .threads = 2,
                                            .device = "cpu-x",
                                            .precision = "fp32",
                                            .layout_version = 7,
                                            .layout = 1234567890123,
                                            .bytes = BYTES,
                                            .begun_ns = file_clock_ns()};
    said[0] = 0;
    hashed = 0;
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    folder_free(&model_dir);
    folder_free(&cache_dir);
    return 0;
}

/* Opens what is there as a start would; true when it was read. What is new is packed and written. */
static bool start(void) {
    sources_init(&sources, model_dir.path, &checkpoint, &config);
    said[0] = 0;
    hashed = 0;
    memset(packed, 0x55, sizeof packed);
    struct packed_cache *c = packed_cache_new(model_dir.path, &options);
    assert_non_null(c);
    unsigned char *read = packed_cache_open(c, &sources) ? packed_cache_read(c, &sources) : NULL;
    const int hashed_to_open = hashed;
    if (read) {
        assert_memory_equal(read, written, BYTES);
        memset(read, 0, 100); /* as adopting does, and only here */
    } else {
        packed_cache_clear(c, packed);
        assert_int_equal(packed[0] | packed[options.bytes - 1], 0);
        memcpy(packed, written, BYTES);
    }
    sources_hash_begin(&sources);
    assert_int_equal(sources_hash_end(&sources, NULL), 0);
    char before[sizeof said];
    memcpy(before, said, sizeof said);
    packed_cache_write(c, &sources, packed);
    packed_cache_del(c);
    if (read || before[0]) /* why it was not read, rather than that it was written */
        memcpy(said, before, sizeof said);
    hashed = hashed_to_open;
    return read;
}

/* Everything that a file holds. */
static struct bytes read_file(void) {
    struct bytes b = {0};
    char *data;
    size_t bytes;
    assert_int_equal(file_read(&data, &bytes, folder_find_path(&cache_dir), SIZE_MAX, "", NULL), 0);
    bytes_put(&b, data, bytes);
    free(data);
    return b;
}

static void write_file(const struct bytes *b, size_t bytes) {
    const char *name = folder_find_name(&cache_dir);
    folder_write(&cache_dir, name, b->data, bytes);
    assert_int_equal(chmod(folder_find_path(&cache_dir), 0600), 0);
}

/* ---- tests of the file ---- */

static void test_round_trip(void **state) {
    struct stat info;
    (void)state;
    assert_false(start());
    check_said("written");
    assert_int_equal(stat(folder_find_path(&cache_dir), &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    assert_int_equal((info.st_size - BYTES) % 65536, 0);
    struct sources before = sources;
    assert_true(start());
    assert_int_equal(hashed, 0);
    for (int i = 0; i < FILES; i++) {
        assert_true(sources.files[i].is_known);
        assert_string_equal(sources.files[i].name, before.files[i].name);
        assert_string_equal(sources.files[i].sha256, before.files[i].sha256);
    }
    struct stat again;
    assert_int_equal(stat(folder_find_path(&cache_dir), &again), 0);
    assert_int_equal(again.st_ino, info.st_ino); /* it was not written once more */
}

/* Of one block, of whole ones, with a rest; and so large that it is laid out for huge pages. */
static void test_sizes(void **state) {
    static const size_t block = PACKED_CACHE_BLOCK_BYTES;
    const size_t sizes[] = {1, block, block + 1, 20 * block + 1};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        unsigned char *memory = malloc(sizes[i]);
        assert_non_null(memory);
        for (size_t at = 0; at < sizes[i]; at++)
            memory[at] = (unsigned char)(at * 2654435761u >> 13);
        options.bytes = sizes[i];
        for (int round = 0; round < 2; round++) {
            sources_init(&sources, model_dir.path, &checkpoint, &config);
            struct packed_cache *c = packed_cache_new(model_dir.path, &options);
            assert_int_equal(packed_cache_open(c, &sources), round);
            if (round) {
                const void *read = packed_cache_read(c, &sources);
                assert_non_null(read);
                assert_memory_equal(read, memory, sizes[i]);
            }
            sources_hash_begin(&sources);
            assert_int_equal(sources_hash_end(&sources, NULL), 0);
            packed_cache_write(c, &sources, memory);
            packed_cache_del(c);
        }
        free(memory);
    }
}

static void test_beside(void **state) {
    char path[512];
    (void)state;
    options.place = PACKED_CACHE_BESIDE;
    assert_false(start());
    assert_true(start());
    snprintf(path, sizeof path, "%s/packed-cpu-x-fp32.timbre", model_dir.path);
    assert_int_equal(file_kind(path), 1);
}

static void test_folder_is_made(void **state) {
    char place[128];
    struct stat info;
    (void)state;
    snprintf(place, sizeof place, "%s/new", cache_dir.path);
    options.place = place;
    assert_false(start());
    assert_true(start());
    assert_int_equal(stat(place, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0700);
    snprintf(said, sizeof said, "rm -r %s", place);
    assert_int_equal(system(said), 0);
}

/* Another program, device, precision, packing or model: each its own, or refused and replaced. */
static void test_made_for_something_else(void **state) {
    struct packed_cache_options first = options;
    (void)state;
    assert_false(start());
    options.layout_version++;
    assert_false(start());
    check_said("another version's");
    options = first;
    options.layout++;
    assert_false(start()); /* of the version before */
    check_said("another version's");
    options.layout++;
    assert_false(start());
    check_said("for another model");
    options = first;
    assert_false(start());
    options.bytes--;
    assert_false(start());
    check_said("for another model");
    options = first;
    assert_false(start());
    assert_true(start());
    options.device = "cpu-y";
    sources_init(&sources, model_dir.path, &checkpoint, &config);
    struct packed_cache *c = packed_cache_new(model_dir.path, &options);
    assert_false(packed_cache_open(c, &sources));
    packed_cache_del(c);
    options = first;
    options.precision = "bf16";
    c = packed_cache_new(model_dir.path, &options);
    assert_false(packed_cache_open(c, &sources));
    packed_cache_del(c);
    options = first;
    config.files[1] = "config.json"; /* other files than before */
    assert_false(start());
    check_said("other files");
    config.files_count = 1;
    assert_false(start());
    check_said("for another model");
}

/* Whether a start would read the file as it lies there. Writes nothing. */
static bool would_read(void) {
    sources_init(&sources, model_dir.path, &checkpoint, &config);
    struct packed_cache *c = packed_cache_new(model_dir.path, &options);
    const void *read = packed_cache_open(c, &sources) ? packed_cache_read(c, &sources) : NULL;
    const bool would = read != NULL;
    if (read)
        assert_memory_equal(read, written, BYTES);
    else
        for (int i = 0; i < FILES; i++)
            assert_false(sources.files[i].is_known);
    packed_cache_del(c);
    return would;
}

static void test_every_changed_byte(void **state) {
    (void)state;
    assert_false(start());
    struct bytes b = read_file();
    const size_t head = b.count - BYTES;
    size_t used = head; /* behind the last checksum there are zeros that mean nothing */
    while (b.data[used - 1] == 0)
        used--;
    assert_true(used > 1000 && used < head);
    for (size_t i = 0; i < used; i++) {
        b.data[i] ^= (unsigned char)(1 << i % 8);
        write_file(&b, b.count);
        if (would_read())
            fail_msg("byte %zu of %zu is another, and nobody notices", i, used);
        b.data[i] ^= (unsigned char)(1 << i % 8);
    }
    static const size_t block = PACKED_CACHE_BLOCK_BYTES;
    const size_t places[] = {0, 1, block - 1, block, block + 1, 2 * block - 1, 2 * block, BYTES - 1};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        b.data[head + places[i]] ^= 0x10;
        write_file(&b, b.count);
        if (would_read())
            fail_msg("byte %zu of the weights is another, and nobody notices", places[i]);
        check_said("damaged");
        b.data[head + places[i]] ^= 0x10;
    }
    /* Blocks in each other's place. */
    for (size_t i = 0; i < block; i++) {
        unsigned char other = b.data[head + i];
        b.data[head + i] = b.data[head + block + i];
        b.data[head + block + i] = other;
    }
    write_file(&b, b.count);
    assert_false(would_read());
    assert_false(start()); /* and it is replaced */
    assert_true(start());
    bytes_free(&b);
}

static void test_every_cut(void **state) {
    (void)state;
    assert_false(start());
    struct bytes b = read_file();
    const size_t head = b.count - BYTES, block = PACKED_CACHE_BLOCK_BYTES;
    const size_t lengths[] = {0,
                              1,
                              8,
                              16,
                              231,
                              232,
                              233,
                              1000,
                              head - 1,
                              head,
                              head + 1,
                              head + block - 1,
                              head + block,
                              head + 2 * block,
                              b.count - 1};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        write_file(&b, lengths[i]);
        if (would_read())
            fail_msg("cut to %zu bytes, and nobody notices", lengths[i]);
        check_said("cut short");
    }
    bytes_put(&b, "x", 1);
    write_file(&b, b.count);
    assert_false(would_read());
    check_said("too long");
    bytes_free(&b);
}

/* ---- tests of the model's files ---- */

/* Other times alone: the files are read to see, and the file keeps the new ones. */
static void test_touched(void **state) {
    (void)state;
    assert_false(start());
    const struct stat empty = {0};
    struct stat before = empty, after = empty;
    assert_int_equal(stat(folder_find_path(&cache_dir), &before), 0);
    folder_touch(&model_dir, "config.json", 1000000000);
    assert_true(start());
    assert_int_equal(hashed, 1); /* the one that was touched */
    assert_true(start());
    assert_int_equal(hashed, 0);
    assert_int_equal(stat(folder_find_path(&cache_dir), &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    /* A copy of the model elsewhere, such as on another machine. */
    folder_write_text(&model_dir, "copy", "not really weights");
    char from[512], to[512];
    snprintf(from, sizeof from, "%s/copy", model_dir.path);
    snprintf(to, sizeof to, "%s/model.safetensors", model_dir.path);
    assert_int_equal(rename(from, to), 0);
    assert_true(start());
    assert_int_equal(hashed, 1);
}

static void test_changed(void **state) {
    (void)state;
    assert_false(start());
    folder_write_text(&model_dir, "model.safetensors", "not really Weights");
    assert_false(start());
    check_said("the model has changed");
    assert_int_equal(hashed, 1);
    assert_true(start());
    folder_write_text(&model_dir, "model.safetensors", "not really weights, and more");
    assert_false(start());
    check_said("the model has changed");
    assert_int_equal(hashed, 0); /* there was no need to */
    assert_true(start());
}

static void test_verify(void **state) {
    (void)state;
    assert_false(start());
    options.verify = true;
    assert_true(start());
    assert_int_equal(hashed, FILES);
}

static void test_changed_just_now(void **state) {
    (void)state;
    later_ns = 0;
    options.begun_ns = file_clock_ns();
    assert_false(start());
    check_said("changed just now");
    assert_string_equal(folder_find_name(&cache_dir), "");
}

static void test_changes_meanwhile(void **state) {
    (void)state;
    sources_init(&sources, model_dir.path, &checkpoint, &config);
    struct packed_cache *c = packed_cache_new(model_dir.path, &options);
    assert_false(packed_cache_open(c, &sources));
    sources_hash_begin(&sources);
    assert_int_equal(sources_hash_end(&sources, NULL), 0);
    folder_touch(&model_dir, "config.json", 1000000000);
    packed_cache_write(c, &sources, written);
    packed_cache_del(c);
    check_said("the model changes");
    assert_string_equal(folder_find_name(&cache_dir), "");
}

/* ---- tests of who may write it, and of what cannot be written ---- */

static void test_whose_file(void **state) {
    char real[512], aside[512];
    (void)state;
    assert_false(start());
    snprintf(real, sizeof real, "%s", folder_find_path(&cache_dir));
    snprintf(aside, sizeof aside, "%s/aside", model_dir.path);
    assert_int_equal(chmod(real, 0620), 0);
    assert_false(would_read());
    check_said("others may write");
    assert_int_equal(chmod(real, 0602), 0);
    assert_false(would_read());
    check_said("others may write");
    assert_int_equal(chmod(real, 0400), 0);
    assert_true(would_read());
    if (geteuid() == 0) {
        assert_int_equal(chown(real, 1, 1), 0);
        assert_false(would_read());
        check_said("another user");
        assert_int_equal(chown(real, 0, 0), 0);
    }
    assert_int_equal(rename(real, aside), 0);
    assert_int_equal(symlink(aside, real), 0);
    assert_false(would_read());
    check_said("not used");
    assert_int_equal(unlink(real), 0);
    assert_int_equal(mkfifo(real, 0600), 0); /* nobody waits for its other end */
    assert_false(would_read());
    check_said("no file");
    assert_int_equal(unlink(real), 0);
    assert_int_equal(mkdir(real, 0700), 0);
    assert_false(start());
    check_said("not used");
    assert_int_equal(rmdir(real), 0);
}

static void test_place_that_is_none(void **state) {
    char place[512];
    (void)state;
    snprintf(place, sizeof place, "%s/config.json", model_dir.path);
    options.place = place;
    assert_false(start());
    check_said("cannot be written");
    snprintf(place, sizeof place, "%s/none/none", model_dir.path);
    assert_false(start());
    check_said("cannot be written");
}

/* As on a full disk; the signal that a limit sends must not end the process. */
static void test_no_room(void **state) {
    struct rlimit old;
    (void)state;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    struct rlimit little = {.rlim_cur = BYTES / 2, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &little), 0);
    assert_false(start());
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    check_said("cannot be written");
    assert_string_equal(folder_find_name(&cache_dir), "");
    assert_false(start());
    assert_true(start());
}

static void test_another_writes(void **state) {
    char path[600];
    (void)state;
    assert_false(start());
    snprintf(path, sizeof path, "%s.new", folder_find_path(&cache_dir));
    assert_int_equal(unlink(folder_find_path(&cache_dir)), 0);
    int fd = open(path, O_RDWR | O_CREAT, 0644);
    assert_true(fd >= 0);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    assert_false(start());
    check_said("another process");
    /* It ended in the middle of it. */
    for (int i = 0; i < 2; i++)
        assert_int_equal(write(fd, written, BYTES), BYTES);
    close(fd);
    assert_false(start());
    check_said("written");
    assert_true(start());
    struct stat info;
    assert_int_equal(stat(folder_find_path(&cache_dir), &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    folder_find_name(&cache_dir); /* the temporary one is gone */
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_round_trip),
        TEST(test_sizes),
        TEST(test_beside),
        TEST(test_folder_is_made),
        TEST(test_made_for_something_else),
        TEST(test_every_changed_byte),
        TEST(test_every_cut),
        TEST(test_touched),
        TEST(test_changed),
        TEST(test_verify),
        TEST(test_changed_just_now),
        TEST(test_changes_meanwhile),
        TEST(test_whose_file),
        TEST(test_place_that_is_none),
        TEST(test_no_room),
        TEST(test_another_writes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
