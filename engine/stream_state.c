/* What of a stream its parts agree on: that a turn follows, that it ends, that an event is over. */
#include <stdlib.h>

#include "engine/stream_internal.h"

bool stream_schedule(struct engine_stream *s) {
    const bool put = !s->scheduled;
    s->scheduled = true;
    s->again = !put;
    return put;
}

void stream_end(struct engine_stream *s, enum engine_stream_end end, const struct status *st) {
    if (s->ending)
        return;
    s->ending = true;
    s->turn_end = end;
    s->turn_status = *st;
}

void stream_free_node(struct stream_node *n) {
    if (n)
        arena_free(&n->block);
    free(n);
}
