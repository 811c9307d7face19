/* reply_parts: what the replies of several methods have in common (reply.c). */
#ifndef TIMBRE_CLIENT_REPLY_PARTS_H
#define TIMBRE_CLIENT_REPLY_PARTS_H

#include "client/client.h"
#include "client/pool.h"
#include "proto/timbre/v1/timbre.pb-c.h"

/* A message of `type`, in the pool; NULL with INTERNAL. */
void *reply_unpack(struct pool *p, const ProtobufCMessageDescriptor *type, const void *bytes, size_t count,
                   struct timbre_status *status);
/* In the pool, with the message's own strings; NULL: out of memory. */
const struct timbre_score *reply_take_scores(struct pool *p, Timbre__V1__Score **scores, size_t count);
/* `m` may be NULL. */
void reply_take_receipt(struct timbre_receipt *r, const Timbre__V1__Receipt *m);
/* RESOURCE_EXHAUSTED; -1. */
int reply_fail_memory(struct timbre_status *status);

#endif
