/* A module that is not this program's: MODULE_ABI is what it says its interface is, and without it there is
 * no table at all. */
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

#ifdef MODULE_ABI
struct table {
    uint32_t abi;
    const char *name;
    uintptr_t rest[64];
};
EXPORT extern const struct table timbre_kernels_cuda;
const struct table timbre_kernels_cuda = {MODULE_ABI, "cuda", {0}};
#else
EXPORT extern const int nothing_of_timbre;
const int nothing_of_timbre = 1;
#endif
