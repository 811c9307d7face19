/* text: writing text and JSON into a buffer that may or may not grow. */
#ifndef TIMBRE_BASE_TEXT_H
#define TIMBRE_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

struct text {
    char *data; /* always zero-terminated */
    size_t length, capacity;
    bool grows;  /* data is the text's own, on the heap */
    bool failed; /* it was cut, or memory ran out; check once at the end */
};

/* Writes into `buffer` of `capacity` > 0 bytes, which stays the caller's; what does not fit is cut. */
void text_init(struct text *t, char *buffer, size_t capacity);
void text_init_growing(struct text *t); /* grows on the heap; text_free */
void text_free(struct text *t);

void text_put(struct text *t, const char *s);
void text_printf(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* `s` in double quotes, escaped. Bytes that are not UTF-8 become U+FFFD, so that the result is always valid
 * JSON. */
void text_put_json_string(struct text *t, const char *s);

/* A decimal that reads back to the same float (double), the shortest but for subnormal numbers; NaN and
 * infinities, which JSON lacks, as null. */
void text_put_json_float(struct text *t, float value);
void text_put_json_double(struct text *t, double value);
/* "[1,2.5]"; NULL or count 0 gives "[]". */
void text_put_json_floats(struct text *t, const float *values, size_t count);

/* Whether `s` [bytes], with a zero behind it, is valid UTF-8 (RFC 3629). */
bool text_is_utf8(const char *s, size_t bytes);

#endif
