#include "client/stream_buffer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { CAPACITY_MIN = 32 << 10 };

/* ---- bytes ---- */

void stream_buffer_init(struct stream_buffer *b, int64_t position, size_t bytes_max) {
    *b = (struct stream_buffer){.begin = position, .end = position, .bytes_max = bytes_max};
}

/* The part of [position, position + bytes) that lies in one piece. */
static size_t find_piece(const struct stream_buffer *b, int64_t position, size_t bytes, size_t *at) {
    assert(b->capacity > 0); /* what is held is held in a ring */
    *at = (size_t)(position % (int64_t)b->capacity);
    const size_t rest = b->capacity - *at;
    return bytes < rest ? bytes : rest;
}

static void overwrite(struct stream_buffer *b, int64_t from, int64_t to) {
    size_t at;
    for (size_t n; from < to; from += (int64_t)n) {
        n = find_piece(b, from, (size_t)(to - from), &at);
        explicit_bzero(b->ring + at, n);
    }
}

void stream_buffer_free(struct stream_buffer *b) {
    overwrite(b, b->begin, b->end);
    free(b->ring);
    b->ring = NULL;
    b->capacity = 0;
    b->begin = b->end;
}

size_t stream_buffer_count_free(const struct stream_buffer *b) {
    return b->bytes_max - (size_t)(b->end - b->begin);
}

static int grow(struct stream_buffer *b, size_t needed) {
    size_t capacity = b->capacity ? b->capacity : CAPACITY_MIN;
    while (capacity < needed)
        capacity = capacity > b->bytes_max / 2 ? b->bytes_max : 2 * capacity;
    if (capacity > b->bytes_max)
        capacity = b->bytes_max;
    struct stream_buffer larger = *b;
    larger.capacity = capacity;
    larger.ring = malloc(capacity);
    if (!larger.ring)
        return -1;
    size_t at;
    for (int64_t p = b->begin, n; p < b->end; p += n) {
        n = (int64_t)find_piece(&larger, p, (size_t)(b->end - p), &at);
        stream_buffer_read(b, p, larger.ring + at, (size_t)n);
    }
    overwrite(b, b->begin, b->end);
    free(b->ring);
    *b = larger;
    return 0;
}

int stream_buffer_add(struct stream_buffer *b, const void *data, size_t bytes) {
    const size_t needed = (size_t)(b->end - b->begin) + bytes;
    const unsigned char *from = data;
    if (needed > b->capacity && grow(b, needed))
        return -1;
    for (size_t n, at; bytes; bytes -= n, from += n, b->end += (int64_t)n) {
        n = find_piece(b, b->end, bytes, &at);
        memcpy(b->ring + at, from, n);
    }
    return 0;
}

void stream_buffer_read(const struct stream_buffer *b, int64_t position, void *out, size_t bytes) {
    unsigned char *to = out;
    for (size_t n, at; bytes; bytes -= n, to += n, position += (int64_t)n) {
        n = find_piece(b, position, bytes, &at);
        memcpy(to, b->ring + at, n);
    }
}

void stream_buffer_drop(struct stream_buffer *b, int64_t position) {
    if (position <= b->begin)
        return;
    overwrite(b, b->begin, position);
    b->begin = position;
}

/* ---- times ---- */

void stream_times_init(struct stream_times *t, int64_t position, int64_t step_bytes) {
    t->first = t->count = 0;
    t->begin = t->last_begin = position;
    t->step_bytes = step_bytes;
}

static struct stream_mark *get_mark(struct stream_times *t, size_t i) {
    return &t->marks[(t->first + i) % STREAM_MARKS_MAX];
}

static void halve(struct stream_times *t) {
    size_t kept = 0;
    for (size_t i = 1; i < t->count; i += 2)
        *get_mark(t, kept++) = *get_mark(t, i); /* the later of the two knows when both were there */
    t->count = kept;
}

void stream_times_add(struct stream_times *t, int64_t end, int64_t now_ns) {
    struct stream_mark *last = t->count ? get_mark(t, t->count - 1) : NULL;
    if (last && end - t->last_begin <= t->step_bytes) {
        *last = (struct stream_mark){end, now_ns};
        return;
    }
    t->last_begin = last ? last->end : t->begin;
    if (t->count == STREAM_MARKS_MAX)
        halve(t);
    t->count++;
    *get_mark(t, t->count - 1) = (struct stream_mark){end, now_ns};
}

void stream_times_drop(struct stream_times *t, int64_t position) {
    while (t->count && t->marks[t->first].end <= position) {
        t->begin = t->marks[t->first].end;
        t->first = (t->first + 1) % STREAM_MARKS_MAX;
        t->count--;
    }
}

int64_t stream_times_find(const struct stream_times *t, int64_t position) {
    size_t low = 0, high = t->count; /* the first mark that ends at `position` or later */
    if (position <= t->begin)
        return -1;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (t->marks[(t->first + middle) % STREAM_MARKS_MAX].end < position)
            low = middle + 1;
        else
            high = middle;
    }
    return low < t->count ? t->marks[(t->first + low) % STREAM_MARKS_MAX].at_ns : -1;
}
