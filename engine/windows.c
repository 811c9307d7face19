#include "engine/windows.h"

int64_t windows_count(int64_t count, int64_t window, int64_t hop) {
    if (count <= 0)
        return 0;
    if (count <= window)
        return 1;
    int64_t full = (count - window) / hop + 1;
    int64_t covered = (full - 1) * hop + window;
    return covered < count ? full + 1 : full;
}

void windows_get(int64_t count, int64_t window, int64_t hop, int64_t k, int64_t *first, int64_t *length) {
    *first = k * hop;
    *length = count - *first < window ? count - *first : window;
}
