/* Opening a model folder with every allocation failing in turn: each failure is an error with a message, and
 * whatever was taken before it is given back. The linker puts the functions below in the place of the real
 * ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cjson/cJSON.h>

#include "build.h"
#include "models/config.h"
#include "models/weights.h"

static bool counting;          /* only what the code under test takes */
static long left = -1;         /* allocations until the one that fails; negative: none fails */
static long taken, live, maps; /* all there were; blocks and maps not given back yet */

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void __real_free(void *p);
void *__real_mmap(void *p, size_t bytes, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *p, size_t bytes);

static bool fails(void) {
    if (!counting)
        return false;
    taken++;
    return left >= 0 && left-- == 0;
}

static void *count(void *p) {
    live += counting && p;
    return p;
}

void *__wrap_malloc(size_t bytes) {
    return fails() ? NULL : count(__real_malloc(bytes));
}

void *__wrap_calloc(size_t n, size_t bytes) {
    return fails() ? NULL : count(__real_calloc(n, bytes));
}

void *__wrap_realloc(void *p, size_t bytes) {
    if (fails())
        return NULL;
    return p ? __real_realloc(p, bytes) : count(__real_realloc(p, bytes));
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes) {
    return fails() ? NULL : count(__real_aligned_alloc(alignment, bytes));
}

void __wrap_free(void *p) {
    live -= counting && p;
    __real_free(p);
}

void *__wrap_mmap(void *p, size_t bytes, int protection, int flags, int fd, off_t offset) {
    if (fails())
        return MAP_FAILED;
    maps += counting;
    return __real_mmap(p, bytes, protection, flags, fd, offset);
}

int __wrap_munmap(void *p, size_t bytes) {
    maps -= counting;
    return __real_munmap(p, bytes);
}

/* ---- */

static struct folder folder;
static struct config config;

/* Everything between a folder's name and its weights. */
static int open_folder(const char *path, const char *labels, struct status *st) {
    struct checkpoint c;
    struct weights w;
    int rc = -1;
    if (config_init(&config, path, st))
        return -1;
    if (config_read_labels(&config, labels, st))
        goto free_config;
    if (checkpoint_init(&c, path, st))
        goto free_config;
    if (weights_init(&w, &c, st))
        goto free_checkpoint;
    weights_get(&w, "feature_extractor.conv_layers.0.conv.weight", 2, (int64_t[]){2, 3});
    weights_get_weight_norm(&w, "/conv", 2, 1, 3);
    weights_release(&w);
    weights_get(&w, "/large", 1, (int64_t[]){100});
    rc = w.failed ? -1 : 0;
    weights_free(&w);
free_checkpoint:
    checkpoint_free(&c);
free_config:
    config_free(&config);
    return rc;
}

static void check_every_failure(void) {
    char labels[128];
    snprintf(labels, sizeof labels, "%s/labels.json", folder.path);
    cJSON_Hooks hooks = {.malloc_fn = malloc, .free_fn = free};
    cJSON_InitHooks(&hooks);
    for (long n = 0;; n++) {
        struct status st = {0};
        live = maps = taken = 0;
        left = n;
        counting = true;
        int rc = open_folder(folder.path, labels, &st);
        counting = false;
        if (live != 0 || maps != 0)
            fail_msg("allocation %ld fails: %ld blocks and %ld maps are not given back (%s)", n, live, maps,
                     st.message);
        if (taken <= n) { /* there was no such allocation: all of them have failed once */
            if (rc)
                fail_msg("%s", st.message);
            assert_true(n > 20);
            break;
        }
        if (rc == 0)
            fail_msg("allocation %ld fails and nobody notices", n);
        assert_int_not_equal(st.code, STATUS_OK);
        assert_true(strlen(st.message) > 0);
    }
    cJSON_InitHooks(NULL);
}

static const struct build_tensor tensors[] = {
    {"hubert.feature_extractor.conv_layers.0.conv.weight", "F16", 2, {2, 3}, 1},
    {"conv.weight_g", "F32", 3, {1, 1, 3}, 1},
    {"conv.weight_v", "BF16", 3, {2, 1, 3}, 1},
    {"large", "F16", 1, {100}, 1},
};

static void write_tensors(const char *file, int first, int count_) {
    struct bytes b = {0};
    build_tensors(&b, tensors + first, count_);
    folder_write(&folder, file, b.data, b.count);
    bytes_free(&b);
}

static int set_up(void **state) {
    (void)state;
    folder_init(&folder);
    folder_write_text(&folder, "config.json",
                      "{\"model_type\":\"hubert\",\"id2label\":{\"0\":\"a\",\"1\":\"b\"}}");
    folder_write_text(&folder, "preprocessor_config.json", "{\"do_normalize\":true}");
    folder_write_text(&folder, "README.md", "---\nlicense: mit\n---\n");
    folder_write_text(&folder, "labels.json", "[\"x\",\"y\"]");
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    folder_free(&folder);
    return 0;
}

static void test_safetensors(void **state) {
    (void)state;
    write_tensors("model.safetensors", 0, 4);
    check_every_failure();
}

static void test_shards(void **state) {
    (void)state;
    write_tensors("one.safetensors", 0, 2);
    write_tensors("two.safetensors", 2, 2);
    folder_write_text(
        &folder, "model.safetensors.index.json",
        "{\"weight_map\":{\"conv.weight_g\":\"one.safetensors\",\"large\":\"two.safetensors\"}}");
    check_every_failure();
}

/* A torch file with what open_folder reads, so that the unpickler's own memory fails too. */
static void test_torch(void **state) {
    (void)state;
    static const struct {
        const char *name, *size;
    } made[] = {{"hubert.feature_extractor.conv_layers.0.conv.weight", "K\2K\3\x86K\3K\1\x86"},
                {"conv.weight_g", "K\1K\1K\3\x87K\3K\3K\1\x87"},
                {"conv.weight_v", "K\2K\1K\3\x87K\3K\3K\1\x87"},
                {"large", "Kd\x85K\1\x85"}};
    struct bytes b = {0};
    struct zip z = {0};
    float values[100];
    bytes_put_text(&b, "\x80\2}(");
    for (size_t i = 0; i < 4; i++) {
        bytes_put_text(&b, "X");
        bytes_put_number(&b, strlen(made[i].name), 4);
        bytes_put_text(&b, made[i].name);
        bytes_put(&b,
                  "ctorch._utils\n_rebuild_tensor_v2\n(("
                  "X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\0\0\0\0KdtQK\0",
                  sizeof "ctorch._utils\n_rebuild_tensor_v2\n(("
                         "X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\0\0\0\0KdtQK\0" -
                      1);
        bytes_put_text(&b, made[i].size);
        bytes_put(&b, "\x89NtRq\0", 6);
    }
    bytes_put_text(&b, "u.");
    for (int i = 0; i < 100; i++)
        values[i] = (float)(i + 1);
    zip_add(&z, "archive/data.pkl", b.data, b.count);
    zip_add(&z, "archive/data/0", values, sizeof values);
    zip_end(&z);
    folder_write(&folder, "pytorch_model.bin", z.file.data, z.file.count);
    zip_free(&z);
    bytes_free(&b);
    check_every_failure();
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {TEST(test_safetensors), TEST(test_shards), TEST(test_torch)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
