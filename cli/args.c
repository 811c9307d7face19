#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/cli.h"

bool cli_parse_int(const char *option, const char *text, long lo, long hi, long *value) {
    char *end;
    errno = 0;
    long n = strtol(text, &end, 10);
    if (errno || end == text || *end || n < lo || n > hi) {
        fprintf(stderr, "timbre: %s %s: not a whole number in %ld..%ld\n", option, text, lo, hi);
        return false;
    }
    *value = n;
    return true;
}

bool cli_parse_double(const char *option, const char *text, double lo, double hi, double *value) {
    char *end;
    double d = strtod(text, &end);
    if (end == text || *end || !isfinite(d) || d < lo || d > hi) {
        fprintf(stderr, "timbre: %s %s: not a number in %g..%g\n", option, text, lo, hi);
        return false;
    }
    *value = d;
    return true;
}

bool cli_parse_choice(const char *option, const char *text, const char *names) {
    const size_t length = strlen(text);
    for (const char *n = names; *n; n += strcspn(n, " "), n += *n == ' ')
        if (strcspn(n, " ") == length && memcmp(n, text, length) == 0)
            return true;
    fprintf(stderr, "timbre: %s %s: not one of %s\n", option, text, names);
    return false;
}

bool cli_parse_raw(const char *option, const char *text, enum audio_encoding *encoding) {
    static const char *const names[] = {
        [AUDIO_PCM16] = "pcm16", [AUDIO_FLOAT32] = "float32", [AUDIO_MULAW] = "mulaw", [AUDIO_ALAW] = "alaw"};
    for (int i = AUDIO_PCM16; i <= AUDIO_ALAW; i++)
        if (strcmp(text, names[i]) == 0) {
            *encoding = (enum audio_encoding)i;
            return true;
        }
    fprintf(stderr, "timbre: %s %s: not one of pcm16, float32, mulaw, alaw\n", option, text);
    return false;
}

enum timbre_encoding cli_client_encoding(enum audio_encoding encoding) {
    switch (encoding) {
    case AUDIO_PCM16:
        return TIMBRE_ENCODING_PCM16;
    case AUDIO_FLOAT32:
        return TIMBRE_ENCODING_FLOAT32;
    case AUDIO_MULAW:
        return TIMBRE_ENCODING_MULAW;
    case AUDIO_ALAW:
        return TIMBRE_ENCODING_ALAW;
    default:
        return TIMBRE_ENCODING_FILE;
    }
}

const char *cli_default_model(void) {
    static char installed[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", installed, sizeof installed - 1);
    if (n > 0) {
        static const char relative[] = "/../" TIMBRE_DATA_DIR_FROM_BIN "/timbre/models/default";
        installed[n] = 0;
        char *slash = strrchr(installed, '/');
        if (slash && (size_t)(slash - installed) + sizeof relative <= sizeof installed) {
            memcpy(slash, relative, sizeof relative);
            if (file_kind(installed) == 2)
                return installed;
        }
    }
    return TIMBRE_SOURCE_MODEL;
}

int cli_fail(const char *command, int exit_status, const char *format, ...) {
    va_list args;
    fprintf(stderr, "timbre %s: ", command);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    return exit_status;
}

void cli_print_warnings(const char *command, const struct model *m) {
    const struct model_info *info = model_get_info(m);
    for (int i = 0; i < info->warnings_count; i++)
        fprintf(stderr, "timbre %s: warning: %s\n", command, info->warnings[i]);
}
