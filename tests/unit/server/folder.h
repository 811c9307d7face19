/* A folder for one test, and what the test wrote to the log. */
#ifndef TIMBRE_TESTS_UNIT_SERVER_FOLDER_H
#define TIMBRE_TESTS_UNIT_SERVER_FOLDER_H

#include <stddef.h>

enum { FOLDER_PATH_BYTES = 256 };

/* Make and remove it: for cmocka's setup and teardown. */
int folder_setup(void **state);
int folder_teardown(void **state);

/* The path of a file in it; good until the eighth call after. */
const char *folder_path(const char *name);
/* Writes a file anew in its place, and in a way that gives another inode and no moment without it. */
void folder_write(const char *name, const char *text);
void folder_write_bytes(const char *name, const void *data, size_t bytes);
void folder_replace(const char *name, const char *text);

/* Between the two, standard error goes to a file; its text, which is good until the next call, comes back. */
void folder_begin_log(void);
const char *folder_end_log(void);

#endif
