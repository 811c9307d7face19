/* Fuzzing models/torch_zip and models/torch_pickle. An input that begins like a zip archive is one; any other
 * is the pickle of an archive made around it, since no mutation would keep an archive's offsets right. */
#include <stdlib.h>
#include <string.h>

#include "models/builder.h"
#include "models/checkpoint.h"
#include "models/torch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_all(const struct checkpoint *c) {
    float to[256];
    for (int i = 0; i < c->tensors_count; i++)
        if (c->tensors[i].dtype != TENSOR_OTHER && c->tensors[i].elements <= 256)
            tensor_read_f32(&c->tensors[i], to);
}

/* Entries that point into the block itself: the pickle, and three storages of 24, 7 and 0 bytes behind it. */
static int read_pickle(struct checkpoint_builder *b, const struct file_map *m, uint64_t pickle_bytes,
                       struct status *st) {
    struct torch_entry entries[] = {{"data.pkl", 8, 0, pickle_bytes},
                                    {"data/0", 6, pickle_bytes, 24},
                                    {"data/1", 6, pickle_bytes, 7},
                                    {"data/2", 6, pickle_bytes + 24, 0}};
    const struct torch_zip z = {
        .map = m, .file = "pytorch_model.bin", .entries = entries, .count = 4, .capacity = 4, .prefix = ""};
    return torch_pickle_read(b, &z, st);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    bool is_archive = size >= 2 && memcmp(data, "PK", 2) == 0;
    uint64_t bytes = size + (is_archive ? 0 : 24);
    unsigned char *block = malloc(bytes + 1);
    if (!block)
        return 0;
    memset(block, 0x3f, bytes);
    if (size)
        memcpy(block, data, size);
    struct checkpoint_file file = {.name = "pytorch_model.bin", .map = {.data = block, .bytes = bytes}};
    struct checkpoint c = {.files = &file, .files_count = 1};
    struct checkpoint_builder b = {.checkpoint = &c};
    struct status st = {0};
    int rc = is_archive ? torch_read(&b, &file.map, file.name, &st) : read_pickle(&b, &file.map, size, &st);
    if (rc == 0)
        rc = checkpoint_sort(&c, &st);
    if (rc && (st.code == STATUS_OK || !st.message[0]))
        abort();
    if (!rc)
        read_all(&c);
    checkpoint_free_tensors(&c);
    free(block);
    return 0;
}
