#include "server/folder.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"

enum { KIND_FOLDER = 2, VERSION_DIGITS_MAX = 18 };

bool folder_is_name(const char *name) {
    const size_t bytes = strlen(name);
    return bytes > 0 && bytes < REPOSITORY_NAME_BYTES && name[0] != '.' &&
           strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == bytes;
}

/* A whole number from 1, written without a zero in front. */
static bool is_version(const char *name) {
    const size_t bytes = strlen(name);
    return bytes > 0 && bytes <= VERSION_DIGITS_MAX && name[0] != '0' && strspn(name, "0123456789") == bytes;
}

static int join(char path[FOLDER_DIR_BYTES], const char *dir, const char *name, struct status *st) {
    if (snprintf(path, FOLDER_DIR_BYTES, "%s/%s", dir, name) < FOLDER_DIR_BYTES)
        return 0;
    return status_set(st, STATUS_INVALID_ARGUMENT, "%.200s/%.100s: a path of more than %d bytes", dir, name,
                      FOLDER_DIR_BYTES - 1);
}

static int add_model(const char *name, const char *dir, struct folder_model *models, int *count,
                     struct status *st) {
    if (!folder_is_name(name))
        return status_set(
            st, STATUS_INVALID_ARGUMENT,
            "\"%.100s\" cannot be a model's name (letters, digits, . _ -; up to %d): rename the folder or "
            "say --model NAME=%.200s",
            name, REPOSITORY_NAME_BYTES - 1, dir);
    for (int i = 0; i < *count; i++)
        if (strcmp(models[i].name, name) == 0)
            return status_set(st, STATUS_INVALID_ARGUMENT,
                              "two models are called %s: %.150s and %.150s; say --model NAME=DIR", name,
                              models[i].dir, dir);
    if (*count == SERVER_MODELS_MAX)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "more than %d models, the limit", SERVER_MODELS_MAX);
    struct folder_model *m = &models[*count];
    if (strlen(dir) >= sizeof m->dir)
        return status_set(st, STATUS_INVALID_ARGUMENT, "model %s: a path of more than %d bytes", name,
                          FOLDER_DIR_BYTES - 1);
    memcpy(m->name, name, strlen(name) + 1);
    memcpy(m->dir, dir, strlen(dir) + 1);
    ++*count;
    return 0;
}

int folder_name_models(const struct server_options *o, struct folder_model models[SERVER_MODELS_MAX],
                       int *count, struct status *st) {
    *count = 0;
    for (int i = 0; i < o->models_count; i++) {
        const struct server_model_option *m = &o->models[i];
        char *real = m->name ? NULL : realpath(m->dir, NULL);
        if (!m->name && !real)
            return status_set(st, STATUS_NOT_FOUND, "--model %.300s: %s", m->dir, strerror(errno));
        const char *last = real ? strrchr(real, '/') : NULL;
        int failed = add_model(m->name ? m->name : last ? last + 1 : "", m->dir, models, count, st);
        free(real);
        if (failed)
            return -1;
    }
    return 0;
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_visible(const struct dirent *d) {
    return d->d_name[0] != '.';
}

/* Names in a folder, sorted; free each and the list. */
static int list_names(const char *dir, struct dirent ***names, int *count, struct status *st) {
    *count = scandir(dir, names, is_visible, by_name);
    if (*count >= 0)
        return 0;
    return status_set(st, STATUS_NOT_FOUND, "%.300s: %s", dir, strerror(errno));
}

static void free_names(struct dirent **names, int count) {
    for (int i = 0; i < count; i++)
        free(names[i]);
    free(names);
}

static bool is_model(const char *dir) {
    char path[FOLDER_DIR_BYTES];
    return join(path, dir, "config.json", NULL) == 0 && file_kind(path) != 0;
}

static bool holds_versions(const char *dir) {
    struct dirent **names;
    int count;
    bool found = false;
    if (list_names(dir, &names, &count, NULL))
        return false;
    for (int i = 0; i < count; i++) {
        char path[FOLDER_DIR_BYTES];
        found = found || (is_version(names[i]->d_name) && join(path, dir, names[i]->d_name, NULL) == 0 &&
                          file_kind(path) == KIND_FOLDER);
    }
    free_names(names, count);
    return found;
}

int folder_list_models(const char *dir, struct folder_model models[SERVER_MODELS_MAX], int *count,
                       struct status *st) {
    struct dirent **names;
    int names_count, failed = 0;
    if (list_names(dir, &names, &names_count, st))
        return status_prefix(st, "--models-dir");
    for (int i = 0; i < names_count && !failed; i++) {
        char path[FOLDER_DIR_BYTES];
        failed = join(path, dir, names[i]->d_name, st);
        if (failed || file_kind(path) != KIND_FOLDER)
            continue;
        if (is_model(path) || holds_versions(path))
            failed = add_model(names[i]->d_name, path, models, count, st);
        else
            log_write(LOG_WARN, "repository",
                      "%s is left out: neither config.json nor folders 1, 2, ... are in it", path);
    }
    free_names(names, names_count);
    return failed;
}

static void add_version(const char *version, const char *dir, struct folder_version *versions, int *count) {
    const long long number = atoll(version);
    if (*count == REPOSITORY_VERSIONS_MAX) {
        if (number < atoll(versions[0].version))
            return;
        memmove(versions, versions + 1, (size_t)-- * count * sizeof *versions);
    }
    int at = (*count)++;
    for (; at > 0 && atoll(versions[at - 1].version) > number; at--)
        versions[at] = versions[at - 1];
    memcpy(versions[at].version, version, strlen(version) + 1);
    memcpy(versions[at].dir, dir, strlen(dir) + 1);
}

int folder_list_versions(const char *name, const char *dir,
                         struct folder_version versions[REPOSITORY_VERSIONS_MAX], int *count,
                         struct status *st) {
    struct dirent **names;
    int names_count, found = 0, failed = 0;
    *count = 0;
    if (list_names(dir, &names, &names_count, st))
        return status_prefix(st, "model %s", name);
    if (is_model(dir)) {
        add_version("1", dir, versions, count);
        free_names(names, names_count);
        return 0;
    }
    for (int i = 0; i < names_count && !failed; i++) {
        char path[FOLDER_DIR_BYTES];
        if (!is_version(names[i]->d_name))
            continue;
        failed = join(path, dir, names[i]->d_name, st);
        if (failed || file_kind(path) != KIND_FOLDER)
            continue;
        found++;
        add_version(names[i]->d_name, path, versions, count);
    }
    free_names(names, names_count);
    if (failed)
        return -1;
    if (found == 0)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "model %s: neither config.json nor folders 1, 2, ... are in %.300s", name, dir);
    if (found > *count)
        log_write(LOG_WARN, "repository", "model %s has %d versions; the newest %d are taken", name, found,
                  *count);
    return 0;
}
