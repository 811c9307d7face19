#include "client/timers.h"

#include <stdlib.h>

static void put(struct timers *t, size_t place, struct timer *timer) {
    t->heap[place] = timer;
    timer->place = place;
}

/* Moves `timer` from the free place up or down to where it belongs. */
static void settle(struct timers *t, size_t place, struct timer *timer) {
    for (; place > 1 && timer->at_ns < t->heap[place / 2]->at_ns; place /= 2)
        put(t, place, t->heap[place / 2]);
    for (size_t child; (child = 2 * place) <= t->count; place = child) {
        if (child < t->count && t->heap[child + 1]->at_ns < t->heap[child]->at_ns)
            child++;
        if (timer->at_ns <= t->heap[child]->at_ns)
            break;
        put(t, place, t->heap[child]);
    }
    put(t, place, timer);
}

void timers_free(struct timers *t) {
    free(t->heap);
    *t = (struct timers){0};
}

int timers_add(struct timers *t, struct timer *timer) {
    if (t->count + 1 >= t->capacity) {
        size_t capacity = t->capacity ? 2 * t->capacity : 64;
        struct timer **heap = realloc(t->heap, capacity * sizeof *heap);
        if (!heap)
            return -1;
        t->heap = heap;
        t->capacity = capacity;
    }
    settle(t, ++t->count, timer);
    return 0;
}

void timers_remove(struct timers *t, struct timer *timer) {
    size_t place = timer->place;
    struct timer *last = t->heap[t->count--];
    timer->place = 0;
    if (last != timer)
        settle(t, place, last);
}

struct timer *timers_first(const struct timers *t) {
    return t->count ? t->heap[1] : NULL;
}
