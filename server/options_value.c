/* options_value: from the text of one value to its place in struct server_options. */
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "base/check.h"
#include "server/options_table.h"

static void *place(const struct option_row *row, struct server_options *o) {
    return (char *)o + row->offset;
}

static int wrong(struct status *st, const char *what) {
    return status_set(st, STATUS_INVALID_ARGUMENT, "%s", what);
}

/* ---- numbers ---- */

/* Digits, perhaps behind a minus; *end is what follows. */
static bool read_whole(const char *text, long long *value, const char **end) {
    char *stop;
    const char first = text[0] == '-' ? text[1] : text[0];
    if (first < '0' || first > '9')
        return false;
    errno = 0;
    *value = strtoll(text, &stop, 10);
    *end = stop;
    return errno == 0;
}

static void store_whole(const struct option_row *row, struct server_options *o, long long value) {
    if (row->width == 8) {
        memcpy(place(row, o), &(int64_t){value}, sizeof(int64_t));
    } else if (row->width == 4) {
        memcpy(place(row, o), &(int32_t){(int32_t)value}, sizeof(int32_t));
    } else {
        memcpy(place(row, o), &(bool){value != 0}, sizeof(bool));
    }
}

static bool in_range(const struct option_row *row, long long value) {
    return value >= (long long)row->lo && value <= (long long)row->hi;
}

static int set_whole(const struct option_row *row, struct server_options *o, const char *text,
                     struct status *st) {
    long long value;
    const char *end;
    if (!read_whole(text, &value, &end) || *end || !in_range(row, value))
        return status_set(st, STATUS_INVALID_ARGUMENT, "not a whole number in %.0f..%.0f", row->lo, row->hi);
    store_whole(row, o, value);
    return 0;
}

/* The factor behind a number of bytes; 0: none such. */
static uint64_t read_unit(const char *text) {
    static const char letters[] = "kmg";
    if (!text[0])
        return 1;
    const char *letter = strchr(letters, text[0] | 0x20);
    if (!letter || (text[1] && strcmp(text + 1, "iB") != 0))
        return 0;
    return (uint64_t)1 << (10 * (letter - letters + 1));
}

static int set_bytes(const struct option_row *row, struct server_options *o, const char *text,
                     struct status *st) {
    long long value;
    const char *end;
    uint64_t unit, bytes;
    if (!read_whole(text, &value, &end) || value < 0 || !(unit = read_unit(end)) ||
        !check_mul_u64((uint64_t)value, unit, &bytes) || bytes > INT64_MAX ||
        !in_range(row, (long long)bytes))
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "not a whole number of bytes in %.0f..%.0f (k, m or g may stand behind it)",
                          row->lo, row->hi);
    store_whole(row, o, (long long)bytes);
    return 0;
}

/* strtod would also take spaces, hexadecimal numbers, "inf" and "nan". What is too large becomes infinite and
 * is out of every range. */
static bool read_number(const char *text, double *value) {
    char *end;
    if (text[0] == 0 || text[strspn(text, "0123456789.eE+-")])
        return false;
    *value = strtod(text, &end);
    return end != text && *end == 0;
}

static int set_number(const struct option_row *row, struct server_options *o, const char *text,
                      struct status *st) {
    double value;
    if (row->kind == OPTION_LEVEL && strcmp(text, "off") == 0)
        value = -INFINITY;
    else if (!read_number(text, &value) || value < row->lo || value > row->hi)
        return status_set(st, STATUS_INVALID_ARGUMENT, "not a number in %.15g..%.15g%s", row->lo, row->hi,
                          row->kind == OPTION_LEVEL ? ", nor off" : "");
    memcpy(place(row, o), &value, sizeof value);
    return 0;
}

/* ---- words ---- */

/* The index of `text` among the row's words; -1: none of them. */
static int find_word(const char *words, const char *text) {
    const size_t length = strlen(text);
    int i = 0;
    for (const char *w = words; *w; w += strcspn(w, " "), w += *w == ' ', i++)
        if (strcspn(w, " ") == length && memcmp(w, text, length) == 0)
            return i;
    return -1;
}

static int set_word(const struct option_row *row, struct server_options *o, const char *text,
                    struct status *st) {
    int i = find_word(row->words, text);
    if (i < 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "not one of %s", row->words);
    if (row->kind == OPTION_WORD)
        memcpy(place(row, o), &text, sizeof text);
    else
        store_whole(row, o, i);
    return 0;
}

static int set_switch(const struct option_row *row, struct server_options *o, const char *text,
                      struct status *st) {
    static const char words[] = "false true no yes off on 0 1";
    int i = find_word(words, text);
    if (i < 0)
        return wrong(st, "neither true nor false");
    bool on = i % 2 != 0;
    bool value = row->kind == OPTION_SWITCH ? on : !on;
    memcpy(place(row, o), &value, sizeof value);
    return 0;
}

/* ---- paths, models, addresses ---- */

static int set_path(const struct option_row *row, struct server_options *o, const char *text) {
    const char *path = text[0] || row->kind == OPTION_TEXT ? text : NULL;
    memcpy(place(row, o), &path, sizeof path);
    return 0;
}

static bool is_name_byte(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("._-", c);
}

/* The bytes of NAME in [NAME=]DIR; 0: without one. A = behind a slash belongs to the folder. */
static size_t name_length(const char *text) {
    size_t n = strcspn(text, "=/");
    return text[n] == '=' ? n : 0;
}

static int add_model(struct server_options *o, char *text, struct status *st) {
    enum { NAME_BYTES_MAX = 127 };
    size_t n = name_length(text);
    struct server_model_option m = {.dir = text};
    if (text[0] == '=')
        return wrong(st, "no name before the =");
    if (n) {
        text[n] = 0;
        m.name = text;
        m.dir = text + n + 1;
    }
    for (size_t i = 0; i < n; i++)
        if (!is_name_byte(text[i]) || n > NAME_BYTES_MAX)
            return status_set(st, STATUS_INVALID_ARGUMENT,
                              "a name has 1 to %d letters, digits, dots, dashes and underscores",
                              NAME_BYTES_MAX);
    if (!m.dir[0])
        return wrong(st, "no folder");
    for (int i = 0; n && i < o->models_count; i++)
        if (o->models[i].name && strcmp(o->models[i].name, m.name) == 0)
            return wrong(st, "the name is taken by another model");
    if (o->models_count == SERVER_MODELS_MAX)
        return status_set(st, STATUS_INVALID_ARGUMENT, "more than %d models", SERVER_MODELS_MAX);
    o->models[o->models_count++] = m;
    return 0;
}

static bool is_port(const char *text) {
    long long port;
    const char *end;
    return text[0] != '-' && read_whole(text, &port, &end) && !*end && port <= 65535;
}

static int check_ipv6(const char *text, struct status *st) {
    char host[INET6_ADDRSTRLEN];
    struct in6_addr address;
    const char *end = strchr(text, ']');
    if (!end || end[1] != ':' || !is_port(end + 2))
        return wrong(st, "not [IPV6]:PORT with a port in 0..65535");
    size_t n = (size_t)(end - text - 1);
    if (n < sizeof host) {
        memcpy(host, text + 1, n);
        host[n] = 0;
    }
    if (n >= sizeof host || inet_pton(AF_INET6, host, &address) != 1)
        return wrong(st, "what is between the brackets is no IPv6 address");
    return 0;
}

static int check_address(const struct option_row *row, const char *text, struct status *st) {
    const struct sockaddr_un *un = NULL;
    if (!text[0])
        return row->kind == OPTION_TCP ? 0 : wrong(st, "empty, so nothing could be called");
    if (strncmp(text, "unix:", 5) == 0 && row->kind == OPTION_ADDRESS) {
        if (!text[5] || strlen(text + 5) >= sizeof un->sun_path)
            return status_set(st, STATUS_INVALID_ARGUMENT, "the path has not 1 to %zu bytes",
                              sizeof un->sun_path - 1);
        return 0;
    }
    if (text[0] == '[')
        return check_ipv6(text, st);
    const char *colon = strchr(text, ':');
    if (colon && strchr(colon + 1, ':'))
        return wrong(st, "an IPv6 address stands in brackets: [::1]:9000");
    if (!colon || colon == text || !is_port(colon + 1) || text[strcspn(text, " \t/")])
        return wrong(st, "not HOST:PORT with a port in 0..65535");
    return 0;
}

/* ---- all kinds ---- */

int option_set(const struct option_row *row, struct server_options *o, char *text, struct status *st) {
    switch (row->kind) {
    case OPTION_GROUP:
    case OPTION_CONFIG:
        break;
    case OPTION_MODEL:
        return add_model(o, text, st);
    case OPTION_ADDRESS:
    case OPTION_TCP:
        if (check_address(row, text, st))
            return -1;
        memcpy(place(row, o), &(const char *){text}, sizeof text);
        return 0;
    case OPTION_PATH:
    case OPTION_TEXT:
        return set_path(row, o, text);
    case OPTION_WORD:
    case OPTION_CHOICE:
        return set_word(row, o, text, st);
    case OPTION_SWITCH:
    case OPTION_SWITCH_OFF:
        return set_switch(row, o, text, st);
    case OPTION_WHOLE:
        return set_whole(row, o, text, st);
    case OPTION_BYTES:
        return set_bytes(row, o, text, st);
    case OPTION_NUMBER:
    case OPTION_LEVEL:
        return set_number(row, o, text, st);
    }
    return 0;
}

void option_set_defaults(struct server_options *o) {
    engine_options_init(&o->engine);
    for (int i = 0; i < option_rows_count; i++) {
        const struct option_row *row = &option_rows[i];
        if (row->kind == OPTION_WHOLE || row->kind == OPTION_BYTES)
            store_whole(row, o, (long long)row->initial);
        else if (row->kind == OPTION_NUMBER || row->kind == OPTION_LEVEL)
            memcpy(place(row, o), &row->initial, sizeof row->initial);
        else if (row->kind == OPTION_CHOICE)
            store_whole(row, o, find_word(row->words, row->initial_text));
        else if (row->kind == OPTION_SWITCH_OFF)
            memcpy(place(row, o), &(bool){true}, sizeof(bool));
        else if (row->initial_text)
            memcpy(place(row, o), &row->initial_text, sizeof row->initial_text);
    }
}
