/* Options as a test gives them, and what comes of it. */
#ifndef TIMBRE_TESTS_UNIT_SERVER_OPTIONS_BED_H
#define TIMBRE_TESTS_UNIT_SERVER_OPTIONS_BED_H

#include "server/options_table.h"
#include "tests/unit/server/folder.h"

/* For cmocka: a folder, and afterwards an environment without TIMBRE_*. */
#define OPTIONS_TEST(f) cmocka_unit_test_setup_teardown(f, folder_setup, options_teardown)
int options_teardown(void **state);

/* Flags that are taken; what was read, until the next call. */
#define TAKE(...)      options_take("", __VA_ARGS__, NULL)
#define TAKE_NOTHING() options_take("", NULL)
const struct server_options *options_take(const char *first, ...);

/* Flags that are refused with just this sentence. */
#define REFUSE(wanted, ...) options_refuse(wanted, __VA_ARGS__, NULL)
void options_refuse(const char *wanted, ...);
/* One flag and its value, refused with a sentence that holds `part`. */
void options_refuse_some(const char *part, const char *flag, const char *value);

/* Writes timbre.conf; its path. */
const char *options_write_config(const char *text);
/* Such a file is refused with its path, then `wanted`. */
void options_refuse_config(const char *text, const char *wanted);

#endif
