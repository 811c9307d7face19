/* Fuzzing models/safetensors: any bytes as model.safetensors, and every tensor that comes out is read. */
#include <stdlib.h>
#include <string.h>

#include "models/builder.h"
#include "models/checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { READ_MAX = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct checkpoint_file file = {.name = "model.safetensors", .map = {.data = data, .bytes = size}};
    struct checkpoint c = {.files = &file, .files_count = 1};
    struct checkpoint_builder b = {.checkpoint = &c};
    struct status st = {0};
    int rc = safetensors_read(&b, &file.map, file.name, &st) || checkpoint_sort(&c, &st) ? -1 : 0;
    if (rc && (st.code == STATUS_OK || !st.message[0]))
        abort();
    for (int i = 0; !rc && i < c.tensors_count; i++) {
        const struct tensor *t = &c.tensors[i];
        if (checkpoint_find(&c, t->name) != t)
            abort();
        if (t->dtype == TENSOR_OTHER || t->elements > READ_MAX)
            continue;
        float *to = malloc((size_t)t->elements * sizeof *to + 1);
        if (to && t->dtype == TENSOR_F32 && tensor_read_f32(t, to) != tensor_is_finite_f32(t))
            abort();
        if (to)
            tensor_read_f32(t, to);
        free(to);
    }
    checkpoint_free_tensors(&c);
    return 0;
}
