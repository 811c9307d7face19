#include "base/text.h"

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void text_init(struct text *t, char *buffer, size_t capacity) {
    *t = (struct text){.data = buffer, .capacity = capacity};
    buffer[0] = 0;
}

void text_init_growing(struct text *t) {
    static char empty[1] = "";
    *t = (struct text){.data = empty, .capacity = 1, .grows = true};
}

void text_free(struct text *t) {
    if (t->grows && t->capacity > 1)
        free(t->data);
    *t = (struct text){0};
}

/* Makes room for `more` bytes and the zero; false when it stays as it is. */
static bool reserve(struct text *t, size_t more) {
    if (t->failed)
        return false;
    if (more < t->capacity - t->length)
        return true;
    if (t->grows && more < SIZE_MAX / 4 - t->capacity) {
        size_t capacity = 2 * (t->capacity + more) + 64;
        char *data = realloc(t->capacity > 1 ? t->data : NULL, capacity);
        if (data) {
            if (t->length == 0)
                data[0] = 0;
            t->data = data;
            t->capacity = capacity;
            return true;
        }
    }
    t->failed = true;
    return false;
}

static void put_bytes(struct text *t, const char *s, size_t n) {
    if (n == 0)
        return;
    if (!reserve(t, n)) {
        size_t room = t->capacity - t->length - 1;
        if (t->grows)
            return;
        n = n < room ? n : room; /* a fixed buffer keeps what fits */
    }
    memcpy(t->data + t->length, s, n);
    t->length += n;
    t->data[t->length] = 0;
}

void text_put(struct text *t, const char *s) {
    put_bytes(t, s, strlen(s));
}

void text_printf(struct text *t, const char *format, ...) {
    char small[512], *big = NULL;
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(small, sizeof small, format, args);
    if (n >= (int)sizeof small && (big = malloc((size_t)n + 1)))
        vsnprintf(big, (size_t)n + 1, format, again);
    if (n < 0 || (n >= (int)sizeof small && !big))
        t->failed = true;
    else
        put_bytes(t, big ? big : small, (size_t)n);
    free(big);
    va_end(again);
    va_end(args);
}

/* Length of the valid UTF-8 sequence at `s` (RFC 3629), or 0. */
static size_t utf8_length(const unsigned char *s) {
    unsigned char lo = 0x80, hi = 0xbf;
    size_t n;
    if (s[0] < 0x80)
        return 1;
    if (s[0] >= 0xc2 && s[0] <= 0xdf) {
        n = 2;
    } else if (s[0] >= 0xe0 && s[0] <= 0xef) {
        n = 3;
        lo = s[0] == 0xe0 ? 0xa0 : 0x80;
        hi = s[0] == 0xed ? 0x9f : 0xbf;
    } else if (s[0] >= 0xf0 && s[0] <= 0xf4) {
        n = 4;
        lo = s[0] == 0xf0 ? 0x90 : 0x80;
        hi = s[0] == 0xf4 ? 0x8f : 0xbf;
    } else {
        return 0;
    }
    if (s[1] < lo || s[1] > hi)
        return 0;
    for (size_t i = 2; i < n; i++)
        if (s[i] < 0x80 || s[i] > 0xbf)
            return 0;
    return n;
}

void text_put_json_string(struct text *t, const char *string) {
    put_bytes(t, "\"", 1);
    for (const unsigned char *s = (const unsigned char *)string; *s;) {
        size_t n = utf8_length(s);
        if (n == 0) {
            put_bytes(t, "\xef\xbf\xbd", 3);
            n = 1;
        } else if (*s == '"' || *s == '\\') {
            char pair[2] = {'\\', (char)*s};
            put_bytes(t, pair, 2);
        } else if (*s < 0x20) {
            text_printf(t, "\\u%04x", *s);
        } else {
            put_bytes(t, (const char *)s, n);
        }
        s += n;
    }
    put_bytes(t, "\"", 1);
}

/* Readers take "-0" for a whole number and lose its sign. */
static bool is_minus_zero(double value) {
    return value == 0 && signbit(value);
}

void text_put_json_double(struct text *t, double value) {
    char digits[40];
    if (!isfinite(value)) {
        text_put(t, "null");
        return;
    }
    for (int precision = 15; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        if (strtod(digits, NULL) == value)
            break;
    }
    text_put(t, is_minus_zero(value) ? "-0.0" : digits);
}

void text_put_json_float(struct text *t, float value) {
    char digits[40];
    if (!isfinite(value)) {
        text_put(t, "null");
        return;
    }
    for (int precision = 6; precision <= 9; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, (double)value);
        if (strtof(digits, NULL) == value)
            break;
    }
    text_put(t, is_minus_zero(value) ? "-0.0" : digits);
}

void text_put_json_floats(struct text *t, const float *values, size_t count) {
    text_put(t, "[");
    for (size_t i = 0; values && i < count; i++) {
        if (i)
            text_put(t, ",");
        text_put_json_float(t, values[i]);
    }
    text_put(t, "]");
}

bool text_is_utf8(const char *s, size_t bytes) {
    for (size_t i = 0; i < bytes;) {
        size_t n = utf8_length((const unsigned char *)s + i);
        if (n == 0 || n > bytes - i)
            return false;
        i += n;
    }
    return true;
}
