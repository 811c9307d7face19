/* Fuzzing models/config and models/labels: the first byte says which of a folder's files the rest is. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "models/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[64];
static struct config config; /* large */

static void path_of(char *path, size_t bytes, const char *name) {
    snprintf(path, bytes, "%s/%s", folder, name);
}

static void write_file(const char *name, const void *data, size_t size) {
    char path[128];
    path_of(path, sizeof path, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f))
        exit(2);
}

static void clean_up(void) {
    static const char *const names[] = {"config.json", "preprocessor_config.json", "processor_config.json",
                                        "README.md", "labels"};
    char path[128];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        path_of(path, sizeof path, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

static void set_up(void) {
    /* In memory where that is there; the speed of the fuzzer depends on it. */
    strcpy(folder, access("/dev/shm", W_OK) == 0 ? "/dev/shm/timbre-fuzz-XXXXXX" : "/tmp/timbre-fuzz-XXXXXX");
    if (!mkdtemp(folder))
        exit(2);
    atexit(clean_up);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char plain[] = "{\"model_type\":\"hubert\"}";
    static const char *const names[] = {"config.json", "preprocessor_config.json", "processor_config.json",
                                        "README.md", "labels"};
    if (!folder[0])
        set_up();
    if (size == 0)
        return 0;
    unsigned which = data[0] % 5u;
    char path[128];
    write_file("config.json", plain, sizeof plain - 1);
    write_file(names[which], data + 1, size - 1);
    struct status st = {0};
    if (config_init(&config, folder, &st) == 0) {
        if (config.heads < 1 || config.hidden % config.heads || config.conv.levels < 1 ||
            config.sampling_rate < 1)
            abort();
        path_of(path, sizeof path, "labels");
        if (which == 4 && config_read_labels(&config, path, &st) && !st.message[0])
            abort();
        config_free(&config);
    } else if (st.code == STATUS_OK || !st.message[0]) {
        abort();
    }
    if (which) {
        path_of(path, sizeof path, names[which]);
        unlink(path);
    }
    return 0;
}
