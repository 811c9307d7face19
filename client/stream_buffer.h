/* stream_buffer: the audio of a stream that is to be sent, or may have to be sent again, and when it was
 * given. Positions are bytes since the beginning of the call. Not thread-safe. */
#ifndef TIMBRE_CLIENT_STREAM_BUFFER_H
#define TIMBRE_CLIENT_STREAM_BUFFER_H

#include <stddef.h>
#include <stdint.h>

/* A ring that grows as needed: the byte at position p is at p % capacity. What is dropped is overwritten. */
struct stream_buffer {
    unsigned char *ring;
    size_t capacity, bytes_max;
    int64_t begin, end; /* what is kept */
};

void stream_buffer_init(struct stream_buffer *b, int64_t position, size_t bytes_max);
void stream_buffer_free(struct stream_buffer *b); /* keeps nothing after that; begin is end */
size_t stream_buffer_count_free(const struct stream_buffer *b);
/* At most stream_buffer_count_free bytes. -1: out of memory, and nothing was added. */
int stream_buffer_add(struct stream_buffer *b, const void *data, size_t bytes);
/* Bytes from `position` on, all of which must be kept. */
void stream_buffer_read(const struct stream_buffer *b, int64_t position, void *out, size_t bytes);
/* Forgets what is before `position`, which is at most the end. */
void stream_buffer_drop(struct stream_buffer *b, int64_t position);

/* When audio was given: up to `end` of it by at_ns. */
struct stream_mark {
    int64_t end, at_ns;
};

enum { STREAM_MARKS_MAX = 1024, STREAM_MARK_MS = 20 };

/* One mark for so much audio as STREAM_MARK_MS has, or for what came at once; when they are all used, two
 * become one. */
struct stream_times {
    struct stream_mark marks[STREAM_MARKS_MAX];
    size_t first, count;
    int64_t begin;      /* where the first mark's audio begins */
    int64_t last_begin; /* and the last one's */
    int64_t step_bytes;
};

/* `step_bytes`: what STREAM_MARK_MS of audio take. */
void stream_times_init(struct stream_times *t, int64_t position, int64_t step_bytes);
void stream_times_add(struct stream_times *t, int64_t end, int64_t now_ns);
/* Forgets what is before `position`; with the end: all. */
void stream_times_drop(struct stream_times *t, int64_t position);
/* When everything before `position` had been given, in steps as above; -1: not known (any more). */
int64_t stream_times_find(const struct stream_times *t, int64_t position);

#endif
