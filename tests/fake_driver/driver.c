/* A driver that answers the two questions that Timbre asks before it loads its CUDA module, and no other.
 * FAKE_INIT is what cuInit says (a CUresult). GPUs: TIMBRE_SHIM_GPUS in the environment, 1 by default. */
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT int cuInit(unsigned flags);
EXPORT int cuDeviceGetCount(int *count);

int cuInit(unsigned flags) {
    (void)flags;
    return FAKE_INIT;
}

int cuDeviceGetCount(int *count) {
    const char *given = getenv("TIMBRE_SHIM_GPUS");
    *count = given ? atoi(given) : 1;
    return FAKE_INIT;
}
