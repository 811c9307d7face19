#include <string.h>

#include "kernels/kernels.h"
#include "kernels/module.h"

const struct kernels *kernels_find(const char *name, struct status *st) {
    static const struct kernels *const all[] = {&kernels_ref, &kernels_cpu};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strcmp(name, all[i]->name) == 0)
            return all[i];
    if (strcmp(name, "cuda") == 0)
        return module_load_cuda(st);
    status_set(st, STATUS_INVALID_ARGUMENT, "device %s: not one of auto, cpu, cuda, ref", name);
    return NULL;
}
