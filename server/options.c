/* options: gathers the options from file, environment and flags, in this order, so that the later wins; then
 * looks at what does not go together. Everything is read and checked, also what another source overrides. */
#include "server/options.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "server/options_table.h"

enum { ROWS_MAX = 128, FILE_BYTES_MAX = 1 << 20, SHOWN_BYTES_MAX = 100 };
extern char **environ;

/* A string that `o` points to. */
struct owned {
    struct owned *next;
    char text[];
};

/* One source while it is read. */
struct reader {
    struct server_options *o;
    bool seen[ROWS_MAX]; /* given by this source */
    bool models_begun;   /* the models of lower sources are gone */
};

static char *copy_text(struct server_options *o, const char *text, size_t bytes, struct status *st) {
    struct owned *owned = malloc(sizeof *owned + bytes + 1);
    if (!owned) {
        status_set_no_memory(st, bytes, "options");
        return NULL;
    }
    memcpy(owned->text, text, bytes);
    owned->text[bytes] = 0;
    owned->next = o->memory;
    o->memory = owned;
    return owned->text;
}

/* Text from outside, as it may stand in a message. Returns `shown` [SHOWN_BYTES_MAX + 4]. */
static const char *show(char *shown, const char *text) {
    size_t n = 0;
    for (; text[n] && n < SHOWN_BYTES_MAX; n++)
        shown[n] = (unsigned char)text[n] < ' ' || text[n] == 0x7f ? '?' : text[n];
    strcpy(shown + n, text[n] ? "..." : "");
    return shown;
}

/* Takes one value; the message of an error says only what is wrong with it. */
static int take(struct reader *r, const struct option_row *row, const char *text, size_t bytes,
                struct status *st) {
    if (row->kind == OPTION_MODEL && !r->models_begun) {
        r->o->models_count = 0;
        r->models_begun = true;
    }
    char *copy = copy_text(r->o, text, bytes, st);
    return copy ? option_set(row, r->o, copy, st) : -1;
}

/* True the first time that this source gives the option; a model may come again. */
static bool is_first(struct reader *r, const struct option_row *row) {
    bool *seen = &r->seen[row - option_rows];
    bool first = !*seen || row->kind == OPTION_MODEL;
    *seen = true;
    return first;
}

/* ---- flags ---- */

struct flags {
    int argc;
    char **argv;
    int at;
    /* The flag at hand. */
    const struct option_row *row;
    const char *value;
};

static int refuse_flag(const char *flag, struct status *st) {
    char shown[SHOWN_BYTES_MAX + 4], name[OPTION_NAME_BYTES] = "";
    if (flag[0] != '-')
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: not an option; `timbre serve --help` tells them",
                          show(shown, flag));
    const size_t n = strcspn(flag, "=");
    memcpy(name, flag, n < sizeof name ? n : sizeof name - 1);
    const char *near = flag[1] == '-' ? option_suggest(name + 2) : NULL;
    return status_set(st, STATUS_INVALID_ARGUMENT, "%s: no such option; %s%s%s", show(shown, name),
                      near ? "did you mean --" : "`timbre serve --help` tells them", near ? near : "",
                      near ? "?" : "");
}

/* Goes to the next flag: 1, or 0 at the end, -1 when it is wrong. */
static int next_flag(struct flags *f, struct status *st) {
    if (f->at >= f->argc)
        return 0;
    const char *flag = f->argv[f->at++];
    const size_t n = strcspn(flag, "=");
    f->row = n > 2 && strncmp(flag, "--", 2) == 0 ? option_find(flag + 2, n - 2) : NULL;
    if (!f->row)
        return refuse_flag(flag, st);
    if (flag[n] == '=') {
        f->value = flag + n + 1;
    } else if (option_is_switch(f->row)) {
        f->value = "true";
    } else if (f->at < f->argc && strncmp(f->argv[f->at], "--", 2) != 0) {
        f->value = f->argv[f->at++];
    } else {
        return status_set(st, STATUS_INVALID_ARGUMENT, "--%s: without its %s", f->row->name, f->row->value);
    }
    return 1;
}

static bool is_help(const char *flag) {
    return strcmp(flag, "--help") == 0 || strcmp(flag, "-h") == 0;
}

/* Looks for --help (returns 1) and --config, before anything is read. */
static int find_config(int argc, char **argv, const char **config, struct status *st) {
    struct flags f = {.argc = argc, .argv = argv, .at = 1};
    for (;;) {
        if (f.at < argc && is_help(argv[f.at]))
            return 1;
        int more = next_flag(&f, st);
        if (more <= 0)
            return more;
        if (f.row->kind == OPTION_CONFIG)
            *config = f.value;
    }
}

static int read_flags(struct server_options *o, int argc, char **argv, struct status *st) {
    struct flags f = {.argc = argc, .argv = argv, .at = 1};
    struct reader r = {.o = o};
    char shown[SHOWN_BYTES_MAX + 4];
    while (next_flag(&f, st) > 0) {
        if (!is_first(&r, f.row))
            return status_set(st, STATUS_INVALID_ARGUMENT, "--%s: given twice", f.row->name);
        if (take(&r, f.row, f.value, strlen(f.value), st))
            return status_prefix(st, "--%s %s", f.row->name, show(shown, f.value));
    }
    return 0;
}

/* ---- environment ---- */

/* Kubernetes puts the addresses of services into the environment, so a service called "timbre" gives
 * TIMBRE_SERVICE_HOST, TIMBRE_PORT_9000_TCP_ADDR and more. Those are nobody's options. */
static bool is_service_link(const char *name, const char *value) {
    const size_t n = strlen(name);
    const char *port = strstr(name, "_PORT");
    if (strstr(name, "_SERVICE_PORT") || (n > 13 && strcmp(name + n - 13, "_SERVICE_HOST") == 0))
        return true;
    if (!port)
        return false;
    if (!port[5])
        return strstr(value, "://") != NULL;
    size_t digits = port[5] == '_' ? strspn(port + 6, "0123456789") : 0;
    const char *protocol = port + 6 + digits;
    return digits > 0 && (strncmp(protocol, "_TCP", 4) == 0 || strncmp(protocol, "_UDP", 4) == 0 ||
                          strncmp(protocol, "_SCTP", 5) == 0);
}

/* Environment of the same prefix that is not for this program's options. */
static bool is_known_elsewhere(const char *name) {
    static const char *const names[] = {"TIMBRE_CPU",          "TIMBRE_CONFIG",     "TIMBRE_BIN",
                                        "TIMBRE_DATA",         "TIMBRE_TOKEN",      "TIMBRE_CUDA_MODULE",
                                        "TIMBRE_CUDA_OVERLAP", "TIMBRE_CUDA_FAULT", "TIMBRE_CUDA_PLAN_ROWS"};
    static const char shim[] = "TIMBRE_SHIM_"; /* what stands in for a GPU in tests */
    if (strncmp(name, shim, sizeof shim - 1) == 0)
        return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

static int refuse_variable(const char *name, struct status *st) {
    char shown[SHOWN_BYTES_MAX + 4], option[OPTION_NAME_BYTES], env[OPTION_ENV_BYTES];
    snprintf(option, sizeof option, "%.*s", OPTION_NAME_BYTES - 1, name + strlen("TIMBRE_"));
    for (char *c = option; *c; c++)
        *c = (char)(*c == '_' ? '-' : *c >= 'A' && *c <= 'Z' ? *c - 'A' + 'a' : *c);
    const char *near = option_suggest(option);
    return status_set(st, STATUS_INVALID_ARGUMENT, "%s in the environment: no option is called so%s%s",
                      show(shown, name), near ? "; did you mean " : "",
                      near ? option_env_name(env, near) : "");
}

static int check_variables(struct status *st) {
    char env[OPTION_ENV_BYTES];
    for (char **e = environ; e && *e; e++) {
        char name[256];
        const size_t n = strcspn(*e, "=");
        bool known = false;
        if (strncmp(*e, "TIMBRE_", 7) != 0 || (*e)[n] != '=')
            continue;
        snprintf(name, sizeof name, "%.*s", n < sizeof name ? (int)n : (int)sizeof name - 1, *e);
        for (int i = 0; i < option_rows_count && !known; i++)
            known = option_rows[i].kind != OPTION_GROUP &&
                    strcmp(option_env_name(env, option_rows[i].name), name) == 0;
        if (!known && !is_known_elsewhere(name) && !is_service_link(name, *e + n + 1))
            return refuse_variable(name, st);
    }
    return 0;
}

/* Models are separated by commas; an empty list takes those of the file away. */
static int take_models(struct reader *r, const struct option_row *row, const char *text, struct status *st) {
    r->o->models_count = 0;
    r->models_begun = true;
    while (*text) {
        size_t n = strcspn(text, ",");
        if (take(r, row, text, n, st))
            return -1;
        text += n;
        text += *text == ',';
    }
    return 0;
}

static int read_environment(struct server_options *o, struct status *st) {
    struct reader r = {.o = o};
    char env[OPTION_ENV_BYTES], shown[SHOWN_BYTES_MAX + 4];
    if (check_variables(st))
        return -1;
    for (int i = 0; i < option_rows_count; i++) {
        const struct option_row *row = &option_rows[i];
        if (row->kind == OPTION_GROUP || row->kind == OPTION_CONFIG)
            continue;
        const char *text = getenv(option_env_name(env, row->name));
        if (!text && strcmp(row->name, "ffmpeg-bin") == 0)
            text = getenv(strcpy(env, "FFMPEG_BIN"));
        if (!text)
            continue;
        if (row->kind == OPTION_MODEL ? take_models(&r, row, text, st)
                                      : take(&r, row, text, strlen(text), st))
            return status_prefix(st, "%s=%s", env, show(shown, text));
    }
    return 0;
}

/* ---- the file ---- */

/* Takes spaces away on both sides. */
static char *trim(char *text) {
    text += strspn(text, " \t\r");
    size_t n = strlen(text);
    while (n && strchr(" \t\r", text[n - 1]))
        text[--n] = 0;
    return text;
}

/* A # at the beginning or after a space begins a comment; elsewhere it belongs to the value. */
static void cut_comment(char *line) {
    for (char *c = line; *c; c++)
        if (*c == '#' && (c == line || c[-1] == ' ' || c[-1] == '\t')) {
            *c = 0;
            return;
        }
}

/* "key = value"; the message of an error lacks file and line. */
static int read_line(struct reader *r, char *line, struct status *st) {
    char shown[SHOWN_BYTES_MAX + 4];
    cut_comment(line);
    line = trim(line);
    if (!line[0])
        return 0;
    char *equals = strchr(line, '=');
    if (!equals)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: not of the form option = value",
                          show(shown, line));
    *equals = 0;
    const char *key = trim(line), *value = trim(equals + 1);
    const struct option_row *row = option_find(key, strlen(key));
    if (!row) {
        const char *near = option_suggest(strncmp(key, "--", 2) == 0 ? key + 2 : key);
        return status_set(st, STATUS_INVALID_ARGUMENT, "no option is called %s%s%s", show(shown, key),
                          near ? "; did you mean " : "", near ? near : "");
    }
    if (row->kind == OPTION_CONFIG)
        return status_set(st, STATUS_INVALID_ARGUMENT, "config names this file, so it cannot stand in it");
    if (!is_first(r, row))
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: given twice", row->name);
    if (value[0] == '"' || value[0] == '\'')
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: values are written without quotes", row->name);
    if (take(r, row, value, strlen(value), st))
        return status_prefix(st, "%s = %s", row->name, show(shown, value));
    return 0;
}

static int read_lines(struct server_options *o, char *text, const char *path, struct status *st) {
    struct reader r = {.o = o};
    int number = 1;
    for (char *line = text, *next; line; line = next, number++) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        if (read_line(&r, line, st))
            return status_prefix(st, "%.200s:%d", path, number);
    }
    return 0;
}

static int read_config(struct server_options *o, const char *path, const char *source, struct status *st) {
    char *text;
    size_t bytes;
    if (file_read(&text, &bytes, path, FILE_BYTES_MAX, "the limit of a config file", st)) {
        st->code = STATUS_INVALID_ARGUMENT;
        return status_prefix(st, "%s", source);
    }
    int result = strlen(text) == bytes
                     ? read_lines(o, text, path, st)
                     : status_set(st, STATUS_INVALID_ARGUMENT,
                                  "%.200s: holds zero bytes, so it is no config file", path);
    free(text);
    return result;
}

/* ---- what does not go together ---- */

static bool is_plain_network(const struct server_options *o) {
    const char *a = o->grpc_address;
    const bool local = strncmp(a, "unix:", 5) == 0 || strncmp(a, "127.", 4) == 0 ||
                       strncmp(a, "localhost:", 10) == 0 || strncmp(a, "[::1]", 5) == 0;
    return !o->tls_cert && !local;
}

static int check_together(const struct server_options *o, struct status *st) {
    const char *port = strrchr(o->grpc_address, ':');
    if (o->tls_cert && !o->tls_key)
        return status_set(st, STATUS_INVALID_ARGUMENT, "tls-cert without tls-key: TLS needs both");
    if (o->tls_key && !o->tls_cert)
        return status_set(st, STATUS_INVALID_ARGUMENT, "tls-key without tls-cert: TLS needs both");
    if (o->tls_client_ca && !o->tls_cert)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "tls-client-ca without tls-cert and tls-key: certificates of clients need TLS");
    if (strcmp(o->grpc_address, o->http_address) == 0 && strcmp(port, ":0") != 0)
        return status_set(st, STATUS_INVALID_ARGUMENT, "grpc-address and http-address are both %s",
                          o->grpc_address);
    if (o->receive_bytes_max < o->message_bytes_max)
        return status_set(st, STATUS_INVALID_ARGUMENT,
                          "max-receive-bytes is less than max-message-bytes, so a message could never come");
    return 0;
}

int options_list_warnings(const struct server_options *o, const char *warnings[OPTIONS_WARNINGS_MAX]) {
    int count = 0;
    if (o->token_file && is_plain_network(o))
        warnings[count++] = "token-file without tls-cert on an address that others reach: tokens can be read "
                            "on the way";
    if (o->open_health && !o->token_file)
        warnings[count++] = "open-health without token-file: health needs no token anyway";
    if (o->model_control && !o->token_file && !o->tls_client_ca && is_plain_network(o))
        warnings[count++] = "model-control on an address that others reach, with neither tokens nor "
                            "certificates of clients: anybody can unload models";
    return count;
}

int options_init(struct server_options *o, int argc, char **argv, const char *shipped_model,
                 struct status *st) {
    const char *config = NULL, *source = "--config";
    *o = (struct server_options){0};
    option_set_defaults(o);
    int result = find_config(argc, argv, &config, st);
    if (result > 0) {
        option_print_help(stdout);
        return 1;
    }
    if (!config) {
        config = getenv("TIMBRE_CONFIG");
        source = "TIMBRE_CONFIG";
    }
    if (result || (config && config[0] && read_config(o, config, source, st)) || read_environment(o, st) ||
        read_flags(o, argc, argv, st) || check_together(o, st)) {
        options_free(o);
        return -1;
    }
    o->engine.audio.bytes_max = (size_t)o->message_bytes_max;
    if (o->models_count == 0 && !o->models_dir && shipped_model)
        o->models[o->models_count++] = (struct server_model_option){.name = "default", .dir = shipped_model};
    return 0;
}

void options_free(struct server_options *o) {
    for (struct owned *owned = o->memory, *next; owned; owned = next) {
        next = owned->next;
        free(owned);
    }
    o->memory = NULL;
}
