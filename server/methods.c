/* All methods of all services, found by path. */
#include <string.h>

#include "server/internal.h"

static const struct method *const services[] = {timbre_methods, inference_methods, health_methods,
                                                reflection_methods};
enum { SERVICES = sizeof services / sizeof *services };

const struct method *methods_find(const char *path, size_t bytes) {
    for (int i = 0; i < SERVICES; i++)
        for (const struct method *m = services[i]; m->path; m++)
            if (strlen(m->path) == bytes && memcmp(m->path, path, bytes) == 0)
                return m;
    return NULL;
}

int methods_count(void) {
    static int count;
    if (count == 0)
        for (int i = 0; i < SERVICES; i++)
            for (const struct method *m = services[i]; m->path; m++)
                count++;
    return count;
}

const struct method *methods_at(int index) {
    for (int i = 0; i < SERVICES; i++)
        for (const struct method *m = services[i]; m->path; m++)
            if (index-- == 0)
                return m;
    return NULL;
}

int methods_index(const struct method *wanted) {
    int index = 0;
    for (int i = 0; i < SERVICES; i++)
        for (const struct method *m = services[i]; m->path; m++, index++)
            if (m == wanted)
                return index;
    return -1;
}
