/* replay: runs a fuzz target once over every file of the folders given; the program's end is its verdict. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { INPUT_BYTES_MAX = 64 << 20 };

static int replay_file(const char *path) {
    char *data;
    size_t bytes;
    struct status st;
    if (file_read(&data, &bytes, path, INPUT_BYTES_MAX, "a fuzz input", &st)) {
        fprintf(stderr, "%s\n", st.message);
        return -1;
    }
    LLVMFuzzerTestOneInput((const uint8_t *)data, bytes);
    free(data);
    return 0;
}

int main(int argc, char **argv) {
    int files = 0;
    LLVMFuzzerTestOneInput((const uint8_t *)"", 0);
    for (int i = 1; i < argc; i++) {
        DIR *folder = opendir(argv[i]);
        if (!folder) {
            fprintf(stderr, "%s: no such folder, so nothing to replay\n", argv[i]);
            continue;
        }
        for (struct dirent *e; (e = readdir(folder));) {
            char path[4096];
            if (e->d_name[0] == '.' ||
                snprintf(path, sizeof path, "%s/%s", argv[i], e->d_name) >= (int)sizeof path)
                continue;
            if (replay_file(path))
                return 1;
            files++;
        }
        closedir(folder);
    }
    printf("%d inputs\n", files);
    return 0;
}
