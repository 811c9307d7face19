/* json: reading JSON that somebody else wrote, through cJSON, with limits.
 *
 * Getters never change their result on failure. A path in a message is what the caller passes as `where`
 * (for example "config.json"). */
#ifndef TIMBRE_BASE_JSON_H
#define TIMBRE_BASE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#include "base/status.h"

enum {
    JSON_BYTES_MAX = 100 * 1000 * 1000, /* what safetensors allows for its header */
    JSON_DEPTH_MAX = 64,
};

/* Parses exactly `bytes` bytes (no zero needed); free the result with cJSON_Delete. White space may follow,
 * nothing else. Errors, INVALID_ARGUMENT with `where`: too long, too deep, not JSON (with the byte offset).
 */
int json_parse(cJSON **root, const char *data, size_t bytes, const char *where, struct status *st);

/* A whole number in lo..hi. `key` absent or null: *value stays, 0. Of another type, not whole or out of
 * range: INVALID_ARGUMENT "<where>: <key>: ...". */
int json_get_int(const cJSON *object, const char *key, int64_t lo, int64_t hi, int64_t *value,
                 const char *where, struct status *st);
/* A finite number in lo..hi; absent or null keeps *value. */
int json_get_double(const cJSON *object, const char *key, double lo, double hi, double *value,
                    const char *where, struct status *st);
/* true or false; absent or null keeps *value. */
int json_get_bool(const cJSON *object, const char *key, bool *value, const char *where, struct status *st);
/* Points *value into the tree; absent or null keeps *value. */
int json_get_string(const cJSON *object, const char *key, const char **value, const char *where,
                    struct status *st);

#endif
