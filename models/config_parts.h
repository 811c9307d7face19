/* config_parts: what the parts of config share. Internal to models/.
 *
 * A missing model file is told by its own name, never by the folder's, as in all of models/. */
#ifndef TIMBRE_MODELS_CONFIG_PARTS_H
#define TIMBRE_MODELS_CONFIG_PARTS_H

#include <cjson/cJSON.h>

#include "base/status.h"
#include "models/config.h"

enum { CONFIG_PATH_BYTES_MAX = 4096 };

/* One JSON file of the folder as a tree; cJSON_Delete. It is kept in c->files. *root is NULL, and that is no
 * error, when there is no such file. */
int config_open_json(struct config *c, cJSON **root, const char *dir, const char *file, struct status *st);

/* `dir`/`file` in `path`, which takes CONFIG_PATH_BYTES_MAX. Error: INVALID_ARGUMENT when it is longer. */
int config_join_path(char *path, const char *dir, const char *file, struct status *st);

/* Refuses an object that has the key twice: readers differ in which one counts. Error: INVALID_ARGUMENT. */
int config_check_once(const cJSON *object, const char *key, const char *where, struct status *st);

/* "<file>: <key>: <value> is not supported", FAILED_PRECONDITION; returns -1. */
int config_refuse(const char *where, const char *key, const char *value, const char *reason,
                  struct status *st);

/* preprocessor_config.json, or processor_config.json, or the defaults with a warning. `stated` is the
 * sampling rate of config.json, 0 when it has none. */
int config_read_preprocessor(struct config *c, const char *dir, int stated, struct status *st);

/* The card's licence, from the YAML block that opens README.md; no error when there is none. */
int config_read_licence(struct config *c, const char *dir, struct status *st);

/* {"0": "angry", ...} into c->labels, which must be empty. On failure c->labels may hold some. */
int config_read_label_map(struct config *c, const cJSON *object, const char *key, const char *where,
                          struct status *st);

void config_free_labels(struct config *c);

#endif
