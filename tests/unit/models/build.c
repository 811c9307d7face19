#include "build.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Building cannot be tested further when it fails. */
static void require(int ok) {
    if (!ok) {
        perror("building a test's input");
        exit(2);
    }
}

void bytes_put(struct bytes *b, const void *p, size_t n) {
    if (n >= b->capacity - b->count) {
        b->capacity = 2 * (b->count + n) + 64;
        b->data = realloc(b->data, b->capacity);
        require(b->data != NULL);
    }
    if (n)
        memcpy(b->data + b->count, p, n);
    b->count += n;
}

void bytes_put_text(struct bytes *b, const char *s) {
    bytes_put(b, s, strlen(s));
}

void bytes_put_number(struct bytes *b, uint64_t value, int bytes) {
    unsigned char p[8];
    for (int i = 0; i < bytes; i++)
        p[i] = (unsigned char)(value >> (8 * i));
    bytes_put(b, p, (size_t)bytes);
}

void bytes_free(struct bytes *b) {
    free(b->data);
    *b = (struct bytes){0};
}

void folder_init(struct folder *f) {
    strcpy(f->path, "/tmp/timbre-test-XXXXXX");
    require(mkdtemp(f->path) != NULL);
}

static void join(char *path, size_t size, const struct folder *f, const char *name) {
    require(snprintf(path, size, "%s/%s", f->path, name) < (int)size);
}

void folder_free(struct folder *f) {
    char path[512];
    DIR *d = opendir(f->path);
    require(d != NULL);
    for (struct dirent *e; (e = readdir(d));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        join(path, sizeof path, f, e->d_name);
        require(remove(path) == 0);
    }
    closedir(d);
    require(rmdir(f->path) == 0);
}

void folder_write(const struct folder *f, const char *name, const void *data, size_t bytes) {
    char path[512];
    join(path, sizeof path, f, name);
    FILE *file = fopen(path, "wb");
    require(file != NULL);
    require(fwrite(data, 1, bytes, file) == bytes);
    require(fclose(file) == 0);
}

void folder_write_text(const struct folder *f, const char *name, const char *text) {
    folder_write(f, name, text, strlen(text));
}

void folder_remove(const struct folder *f, const char *name) {
    char path[512];
    join(path, sizeof path, f, name);
    require(remove(path) == 0);
}

void folder_touch(const struct folder *f, const char *name, time_t s) {
    char path[512];
    const struct timespec times[2] = {{.tv_sec = s}, {.tv_sec = s}};
    join(path, sizeof path, f, name);
    require(utimensat(AT_FDCWD, path, times, 0) == 0);
}

const char *folder_find_name(const struct folder *f) {
    static char name[256];
    int count = 0;
    DIR *d = opendir(f->path);
    name[0] = 0;
    require(d != NULL);
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.') {
            count++;
            snprintf(name, sizeof name, "%s", e->d_name);
        }
    closedir(d);
    require(count <= 1);
    return name;
}

const char *folder_find_path(const struct folder *f) {
    static char path[512];
    join(path, sizeof path, f, folder_find_name(f));
    return path;
}

void build_safetensors(struct bytes *b, const char *header, const void *data, size_t bytes) {
    bytes_put_number(b, strlen(header), 8);
    bytes_put_text(b, header);
    bytes_put(b, data, bytes);
}

static void put_element(struct bytes *b, const char *dtype, float value) {
    uint32_t u;
    memcpy(&u, &value, sizeof u);
    if (strcmp(dtype, "F32") == 0)
        bytes_put_number(b, u, 4);
    else if (strcmp(dtype, "BF16") == 0)
        bytes_put_number(b, u >> 16, 2);
    else if (strcmp(dtype, "F16") == 0) /* for normal numbers that fit */
        bytes_put_number(
            b, value == 0 ? 0 : (u >> 31) << 15 | (((u >> 23 & 0xff) - 112) << 10) | (u >> 13 & 0x3ff), 2);
    else
        bytes_put_number(b, 0, 8);
}

void build_tensors(struct bytes *b, const struct build_tensor *t, int count) {
    struct bytes header = {0}, data = {0};
    char text[512];
    bytes_put_text(&header, "{");
    for (int i = 0; i < count; i++) {
        size_t begin = data.count;
        int64_t elements = 1;
        snprintf(text, sizeof text, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "", t[i].name,
                 t[i].dtype);
        bytes_put_text(&header, text);
        for (int d = 0; d < t[i].rank; d++) {
            snprintf(text, sizeof text, d ? ",%lld" : "%lld", (long long)t[i].shape[d]);
            bytes_put_text(&header, text);
            elements *= t[i].shape[d];
        }
        for (int64_t e = 0; e < elements; e++)
            put_element(&data, t[i].dtype, t[i].first + (float)e / 8);
        snprintf(text, sizeof text, "],\"data_offsets\":[%zu,%zu]}", begin, data.count);
        bytes_put_text(&header, text);
    }
    bytes_put(&header, "}", 2); /* with the zero */
    build_safetensors(b, (const char *)header.data, data.data, data.count);
    bytes_free(&header);
    bytes_free(&data);
}

void zip_add(struct zip *z, const char *name, const void *data, size_t bytes) {
    size_t local = z->file.count;
    bytes_put(&z->file, "PK\3\4\0\0\10\10", 8); /* flags: sizes follow, UTF-8 */
    bytes_put_number(&z->file, (uint64_t)z->method, 2);
    for (int i = 0; i < 4; i++)
        bytes_put_number(&z->file, 0, 4); /* time and date, checksum, sizes */
    bytes_put_number(&z->file, strlen(name), 2);
    bytes_put_number(&z->file, 5, 2);
    bytes_put_text(&z->file, name);
    bytes_put(&z->file, "FB\1\0Z", 5);
    bytes_put(&z->file, data, bytes);
    bytes_put(&z->file, "PK\7\10\0\0\0\0", 8);
    bytes_put_number(&z->file, bytes, 4);
    bytes_put_number(&z->file, bytes, 4);

    bytes_put(&z->directory, "PK\1\2\0\0\0\0\10\10", 10);
    bytes_put_number(&z->directory, (uint64_t)z->method, 2);
    bytes_put_number(&z->directory, 0, 8);
    bytes_put_number(&z->directory, bytes, 4);
    bytes_put_number(&z->directory, bytes, 4);
    bytes_put_number(&z->directory, strlen(name), 2);
    bytes_put_number(&z->directory, 0, 4); /* no extra field, no comment */
    bytes_put_number(&z->directory, 0, 8);
    bytes_put_number(&z->directory, local, 4);
    bytes_put_text(&z->directory, name);
    z->entries++;
}

void zip_end(struct zip *z) {
    size_t at = z->file.count;
    bytes_put(&z->file, z->directory.data, z->directory.count);
    bytes_put(&z->file, "PK\5\6\0\0\0\0", 8);
    bytes_put_number(&z->file, (uint64_t)z->entries, 2);
    bytes_put_number(&z->file, (uint64_t)z->entries, 2);
    bytes_put_number(&z->file, z->directory.count, 4);
    bytes_put_number(&z->file, at, 4);
    bytes_put_number(&z->file, 0, 2);
}

void zip_free(struct zip *z) {
    bytes_free(&z->file);
    bytes_free(&z->directory);
    *z = (struct zip){0};
}

static void put_unicode(struct bytes *b, const char *s) {
    bytes_put_text(b, "X");
    bytes_put_number(b, strlen(s), 4);
    bytes_put_text(b, s);
}

static void put_int(struct bytes *b, int value) {
    bytes_put_text(b, "J");
    bytes_put_number(b, (uint32_t)value, 4);
}

void build_pickle(struct bytes *b, const char *name, int elements, int offset, int rows, int columns,
                  int row_stride) {
    bytes_put_text(b, "\x80\2ccollections\nOrderedDict\n)R(");
    put_unicode(b, name);
    bytes_put_text(b, "ctorch._utils\n_rebuild_tensor_v2\n((");
    put_unicode(b, "storage");
    bytes_put_text(b, "ctorch\nFloatStorage\n");
    put_unicode(b, "0");
    put_unicode(b, "cpu");
    put_int(b, elements);
    bytes_put_text(b, "tQ");
    put_int(b, offset);
    put_int(b, rows);
    put_int(b, columns);
    bytes_put_text(b, "\x86");
    put_int(b, row_stride);
    put_int(b, 1);
    bytes_put_text(b, "\x86\x89"
                      "ccollections\nOrderedDict\n)RtRu.");
}

int memory_open(struct memory *m, build_reader reader, const void *data, size_t bytes, struct status *st) {
    *m = (struct memory){0};
    unsigned char *copy = bytes ? malloc(bytes) : NULL;
    require(copy || !bytes);
    if (bytes)
        memcpy(copy, data, bytes);
    m->file = (struct checkpoint_file){.name = "a file", .map = {.data = copy, .bytes = bytes}};
    m->checkpoint = (struct checkpoint){.dir = "memory", .files = &m->file, .files_count = 1};
    struct checkpoint_builder b = {.checkpoint = &m->checkpoint};
    if (reader(&b, &m->file.map, "a file", st) || checkpoint_sort(&m->checkpoint, st)) {
        memory_free(m);
        return -1;
    }
    return 0;
}

void memory_free(struct memory *m) {
    checkpoint_free_tensors(&m->checkpoint);
    free((void *)(uintptr_t)m->file.map.data);
    *m = (struct memory){0};
}
