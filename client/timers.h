/* timers: calls that wait for their time, the earliest first. One thread. */
#ifndef TIMBRE_CLIENT_TIMERS_H
#define TIMBRE_CLIENT_TIMERS_H

#include <stddef.h>
#include <stdint.h>

/* Part of what waits. */
struct timer {
    int64_t at_ns;
    size_t place; /* in the heap, from 1; 0: not waiting */
};

/* A heap: place i is never later than places 2i and 2i + 1. */
struct timers {
    struct timer **heap; /* [1..count] */
    size_t count, capacity;
};

void timers_free(struct timers *t);                    /* none may be waiting */
int timers_add(struct timers *t, struct timer *timer); /* -1: out of memory */
void timers_remove(struct timers *t, struct timer *timer);
struct timer *timers_first(const struct timers *t); /* NULL: none */

#endif
