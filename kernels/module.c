#include "kernels/module.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Where the module is, seen from the folder of the program: installed, and in the build tree. */
static const char *const places[] = {TIMBRE_MODULE_DIR_FROM_BIN "/libtimbre_cuda.so",
                                     "../kernels/cuda/libtimbre_cuda.so"};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const struct kernels *loaded;
static struct status reason;

/* Calls a function of the driver, int (*)(T). Loading the driver's library alone costs a machine without a
 * GPU nothing: there is none. (The numbers and names: cuda.h.) */
static int ask_driver(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    int count = 0;
    if (!driver)
        return status_set(&reason, STATUS_UNAVAILABLE, "no NVIDIA driver on this machine (libcuda.so.1)");
    int (*init)(unsigned flags), (*get_count)(int *count);
    *(void **)&init = dlsym(driver, "cuInit");
    *(void **)&get_count = dlsym(driver, "cuDeviceGetCount");
    if (!init || !get_count)
        return status_set(&reason, STATUS_UNAVAILABLE, "libcuda.so.1 is not an NVIDIA driver's");
    int error = init(0);
    if (error == 100) /* CUDA_ERROR_NO_DEVICE */
        return status_set(&reason, STATUS_UNAVAILABLE, "the NVIDIA driver sees no GPU");
    if (error == 34) /* CUDA_ERROR_STUB_LIBRARY */
        return status_set(&reason, STATUS_UNAVAILABLE,
                          "libcuda.so.1 is the toolkit's stub and not a driver: take its folder out of "
                          "LD_LIBRARY_PATH");
    if (error)
        return status_set(&reason, STATUS_UNAVAILABLE, "the NVIDIA driver does not start: cuInit says %d",
                          error);
    error = get_count(&count);
    if (error || count < 1)
        return status_set(&reason, STATUS_UNAVAILABLE, "the NVIDIA driver sees no GPU");
    return 0;
}

/* The folder of the running program, with a slash at the end; empty when it cannot be told. */
static void find_program_dir(char *dir, size_t bytes) {
    ssize_t n = readlink("/proc/self/exe", dir, bytes - 1);
    dir[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(dir, '/');
    dir[slash ? slash + 1 - dir : 0] = '\0';
}

static void *open_module(void) {
    const char *given = getenv("TIMBRE_CUDA_MODULE");
    char dir[PATH_MAX], path[PATH_MAX + 128];
    void *module = NULL;
    if (given && *given) {
        module = dlopen(given, RTLD_NOW | RTLD_LOCAL);
        if (!module)
            status_set(&reason, STATUS_UNAVAILABLE, "the CUDA module does not load: %s", dlerror());
        return module;
    }
    find_program_dir(dir, sizeof dir);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        snprintf(path, sizeof path, "%s%s", dir, places[i]);
        if (access(path, F_OK) != 0)
            continue;
        module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!module)
            status_set(&reason, STATUS_UNAVAILABLE, "the CUDA module does not load: %s", dlerror());
        return module;
    }
    status_set(&reason, STATUS_UNAVAILABLE,
               "this build has no CUDA module (libtimbre_cuda.so beside the program, or TIMBRE_CUDA_MODULE)");
    return NULL;
}

static void load(void) {
    if (ask_driver())
        return;
    void *module = open_module();
    if (!module)
        return;
    const struct kernels *k = dlsym(module, KERNELS_MODULE_SYMBOL);
    if (!k)
        status_set(&reason, STATUS_UNAVAILABLE, "the CUDA module is not Timbre's: it has no %s",
                   KERNELS_MODULE_SYMBOL);
    else if (k->abi != KERNELS_ABI)
        status_set(
            &reason, STATUS_UNAVAILABLE,
            "the CUDA module has version %u of the interface and the program %u: install both from one "
            "build",
            (unsigned)k->abi, (unsigned)KERNELS_ABI);
    else
        loaded = k;
}

const struct kernels *module_load_cuda(struct status *st) {
    pthread_once(&once, load);
    if (!loaded && st)
        *st = reason;
    return loaded;
}
