/* sweeper: a thread that takes out of the queues what nobody waits for any more, so that who cancelled or is
 * late gets a reply at once and not when the device is free. It sleeps until somebody asks or a deadline
 * passes. */
#ifndef TIMBRE_ENGINE_SWEEPER_H
#define TIMBRE_ENGINE_SWEEPER_H

#include <stdint.h>

#include "base/status.h"

struct sweeper;
struct engine;
struct engine_request;
struct request_wake;

int sweeper_new(struct sweeper **s, struct status *st);
void sweeper_del(struct sweeper *s); /* its thread must be gone; NULL is fine */

void sweeper_ask(struct sweeper *s);                       /* something may be dead now */
void sweeper_note(struct sweeper *s, int64_t deadline_ns); /* or then; 0: nothing */
void sweeper_stop(struct sweeper *s);

/* Replies to requests that were taken out, linked by `next`: of the batcher and of the lists. */
void sweeper_drop_batched(struct engine *e, struct engine_request *dead);

#endif
