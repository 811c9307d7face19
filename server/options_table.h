/* options_table: the one table of what an operator can set, and how a value is read. Internal to options. */
#ifndef TIMBRE_SERVER_OPTIONS_TABLE_H
#define TIMBRE_SERVER_OPTIONS_TABLE_H

#include <stdio.h>

#include "server/options.h"

enum option_kind {
    OPTION_GROUP,      /* no option: a heading of the help */
    OPTION_CONFIG,     /* the config file itself; not in the file */
    OPTION_MODEL,      /* [NAME=]DIR, may be given again */
    OPTION_ADDRESS,    /* HOST:PORT, [IPV6]:PORT, unix:/PATH */
    OPTION_TCP,        /* HOST:PORT, [IPV6]:PORT, or empty for none */
    OPTION_PATH,       /* empty: none, NULL */
    OPTION_TEXT,       /* empty stays empty */
    OPTION_WORD,       /* one of `words`, kept as text */
    OPTION_CHOICE,     /* one of `words`, kept as its index */
    OPTION_SWITCH,     /* a flag without a value sets it */
    OPTION_SWITCH_OFF, /* a flag without a value clears it */
    OPTION_WHOLE,      /* a whole number in lo..hi */
    OPTION_BYTES,      /* likewise, with k, m, g behind it for 1024, 1024^2, 1024^3 */
    OPTION_NUMBER,     /* a number in lo..hi */
    OPTION_LEVEL,      /* likewise, or off: -INFINITY */
};

struct option_row {
    enum option_kind kind;
    const char *name;  /* of a group: its heading */
    const char *value; /* what the help calls the value; NULL: a switch */
    size_t offset;     /* in struct server_options */
    int width;         /* of a whole number there: 4 or 8 bytes */
    double lo, hi;
    double initial;           /* the default of numbers */
    const char *initial_text; /* of the others; NULL: nothing, false */
    const char *words;        /* separated by spaces */
    const char *help;         /* without the default, which is added */
};

extern const struct option_row option_rows[];
extern const int option_rows_count;

enum { OPTION_NAME_BYTES = 80, OPTION_ENV_BYTES = 96 };

/* "queue-depth" -> "TIMBRE_QUEUE_DEPTH". Returns `env` [OPTION_ENV_BYTES]. */
const char *option_env_name(char *env, const char *name);
/* The row with that name [bytes], never a group; NULL: none. */
const struct option_row *option_find(const char *name, size_t bytes);
/* The name that is nearest to a wrong one, or NULL when none is near. */
const char *option_suggest(const char *name);
bool option_is_switch(const struct option_row *row);
/* The default as an operator would write it: "64m", "127.0.0.1:9000", "" when there is none. Returns `text`.
 */
const char *option_default(const struct option_row *row, char *text, size_t bytes);
void option_print_help(FILE *to);

/* Reads `text`, which must stay and may be cut into its parts, into its place in `o` (a model is added).
 * Error, INVALID_ARGUMENT: only what is wrong with the value, such as "not a whole number in 1..64". */
int option_set(const struct option_row *row, struct server_options *o, char *text, struct status *st);
/* Sets every default. */
void option_set_defaults(struct server_options *o);

#endif
