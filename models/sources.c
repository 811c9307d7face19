#include "models/sources.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES_MAX = 4096 };

static int compare_names(const void *a, const void *b) {
    return strcmp(((const struct source *)a)->name, ((const struct source *)b)->name);
}

void sources_init(struct sources *s, const char *dir, const struct checkpoint *checkpoint,
                  const struct config *config) {
    memset(s, 0, sizeof *s);
    s->dir = dir;
    for (int i = 0; i < checkpoint->files_count; i++)
        s->files[s->count++].name = checkpoint->files[i].name;
    for (int i = 0; i < config->files_count; i++)
        s->files[s->count++].name = config->files[i];
    qsort(s->files, (size_t)s->count, sizeof *s->files, compare_names);
}

static void join_path(char *path, const struct sources *s, const struct source *f) {
    snprintf(path, PATH_BYTES_MAX, "%s/%s", s->dir, f->name); /* it was opened before, so it fits */
}

int sources_stamp(struct sources *s, struct status *st) {
    char path[PATH_BYTES_MAX];
    for (int i = 0; i < s->count; i++) {
        join_path(path, s, &s->files[i]);
        if (file_get_stamp(&s->files[i].stamp, path, st))
            return -1;
    }
    return 0;
}

bool sources_are_unchanged(const struct sources *s) {
    char path[PATH_BYTES_MAX];
    struct file_stamp now;
    for (int i = 0; i < s->count; i++) {
        join_path(path, s, &s->files[i]);
        if (file_get_stamp(&now, path, NULL) || !file_stamp_equals(&now, &s->files[i].stamp))
            return false;
    }
    return true;
}

static void *hash(void *arg) {
    struct sources *s = arg;
    char path[PATH_BYTES_MAX];
    for (int i = 0; i < s->count; i++) {
        struct source *f = &s->files[i];
        if (f->is_known)
            continue;
        join_path(path, s, f);
        if (sha256_file(f->sha256, path, &s->status)) {
            s->result = -1;
            return NULL;
        }
        f->is_known = true;
    }
    return NULL;
}

void sources_hash_begin(struct sources *s) {
    bool all_known = true;
    if (s->is_hashing)
        return;
    for (int i = 0; i < s->count; i++)
        all_known = all_known && s->files[i].is_known;
    s->result = 0;
    s->is_hashing = !all_known && pthread_create(&s->thread, NULL, hash, s) == 0;
    if (!all_known && !s->is_hashing)
        hash(s);
}

int sources_hash_end(struct sources *s, struct status *st) {
    if (s->is_hashing)
        pthread_join(s->thread, NULL);
    s->is_hashing = false;
    if (s->result && st)
        *st = s->status;
    return s->result;
}

int sources_report(const struct sources *s, struct model_info *info, struct status *st) {
    struct text lines;
    text_init_growing(&lines);
    info->files_count = 0;
    for (int i = 0; i < s->count; i++) {
        text_printf(&lines, "%s  %s\n", s->files[i].sha256, s->files[i].name);
        if (info->files_count == (int)(sizeof info->files / sizeof *info->files))
            continue;
        struct model_file *f = &info->files[info->files_count++];
        snprintf(f->name, sizeof f->name, "%s", s->files[i].name);
        memcpy(f->sha256, s->files[i].sha256, sizeof f->sha256);
    }
    int result = lines.failed ? status_set_no_memory(st, lines.length, "the digest")
                              : sha256_memory(info->digest, lines.data, lines.length, st);
    text_free(&lines);
    return result;
}
