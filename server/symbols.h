/* symbols: a set of .proto files in the form protoc writes (a FileDescriptorSet), and which file declares
 * what. */
#ifndef TIMBRE_SERVER_SYMBOLS_H
#define TIMBRE_SERVER_SYMBOLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct symbols;
enum { SYMBOLS_FILES_MAX = 64 };

/* Reads `set` [bytes], which must hold every file that another one imports, and stay. Errors: INTERNAL (it is
 * not such a set, or has more files than SYMBOLS_FILES_MAX), RESOURCE_EXHAUSTED. */
int symbols_new(struct symbols **s, const void *set, size_t bytes, struct status *st);
void symbols_del(struct symbols *s); /* NULL is fine */

/* The number of a file by its name, such as "timbre/v1/timbre.proto"; -1: none. */
int symbols_find_file(const struct symbols *s, const char *name);
/* The number of the file that declares a message, field, oneof, enum, enum value, service, method or
 * extension, by its full name such as "timbre.v1.Timbre.Predict"; -1: none. As in protobuf, an enum's values
 * are named beside their enum and not in it. */
int symbols_find(const struct symbols *s, const char *full_name);
bool symbols_has_message(const struct symbols *s, const char *full_name);

/* The file itself, as a FileDescriptorProto; valid as long as `set`. */
const void *symbols_get_file(const struct symbols *s, int file, size_t *bytes);
/* A bit for the file and for each that it imports, directly or not. */
uint64_t symbols_get_imports(const struct symbols *s, int file);

#endif
