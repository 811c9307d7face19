/* folder: models on disk. A model's folder is either the model itself (config.json lies in it; its version is
 * "1") or holds a folder for each version, named 1, 2, ... */
#ifndef TIMBRE_SERVER_FOLDER_H
#define TIMBRE_SERVER_FOLDER_H

#include "server/repository.h"

enum { FOLDER_DIR_BYTES = 4096 };

struct folder_model {
    char name[REPOSITORY_NAME_BYTES], dir[FOLDER_DIR_BYTES];
};
struct folder_version {
    char version[REPOSITORY_VERSION_BYTES], dir[FOLDER_DIR_BYTES];
};

/* Whether it can be a model's name: 1 to REPOSITORY_NAME_BYTES - 1 of A-Z a-z 0-9 . _ -, not beginning with a
 * dot. Such a name is a single component of a path. */
bool folder_is_name(const char *name);

/* The models of --model, named by their folders where they have no name. Errors, INVALID_ARGUMENT: a name
 * that is none, or twice. */
int folder_name_models(const struct server_options *o, struct folder_model models[SERVER_MODELS_MAX],
                       int *count, struct status *st);

/* Adds every folder of `dir` that is a model, by name; others are left out with a warning. Errors: NOT_FOUND,
 * INVALID_ARGUMENT (a name that is none, or taken already), RESOURCE_EXHAUSTED (SERVER_MODELS_MAX). */
int folder_list_models(const char *dir, struct folder_model models[SERVER_MODELS_MAX], int *count,
                       struct status *st);

/* The versions in a model's folder, ascending; of more than REPOSITORY_VERSIONS_MAX the newest, with a
 * warning. Errors: NOT_FOUND (no such folder), INVALID_ARGUMENT (it is no model and holds no versions). */
int folder_list_versions(const char *name, const char *dir,
                         struct folder_version versions[REPOSITORY_VERSIONS_MAX], int *count,
                         struct status *st);

#endif
