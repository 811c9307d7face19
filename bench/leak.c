/* bench/leak: a planted leak, to be preloaded: of the calls of grpc_byte_buffer_destroy one in LEAK_ONE_IN
 * (10 when the environment does not say) is forgotten. bench/overload.py --leak must notice it.
 *
 * usage: LD_PRELOAD=libbench_leak.so LEAK_ONE_IN=10 timbre serve ... */
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdlib.h>

typedef void destroy_fn(void *buffer);
__attribute__((visibility("default"))) void grpc_byte_buffer_destroy(void *buffer); /* as libgrpc has it */

static destroy_fn *destroy;
static atomic_ulong calls;
static unsigned long one_in = 10;

__attribute__((constructor)) static void find_the_real_one(void) {
    const char *text = getenv("LEAK_ONE_IN");
    /* The detour is how POSIX says that a function is got out of dlsym. */
    *(void **)&destroy = dlsym(RTLD_NEXT, "grpc_byte_buffer_destroy");
    if (text && strtoul(text, NULL, 10) > 0)
        one_in = strtoul(text, NULL, 10);
}

void grpc_byte_buffer_destroy(void *buffer) {
    /* Scattered: requests and replies take turns, and an even rhythm would only ever meet one of them. */
    const unsigned long scattered = (atomic_fetch_add(&calls, 1) * 2654435761ul) >> 16;
    if (!destroy || (buffer && scattered % one_in == 0))
        return;
    destroy(buffer);
}
