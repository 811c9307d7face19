/* waiting: requests that wait for a thread that prepares them. Better classes first, with aging (engine.h),
 * by arrival within a class. A list rather than a queue, so that who left can be taken out of its middle. */
#ifndef TIMBRE_ENGINE_WAITING_H
#define TIMBRE_ENGINE_WAITING_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct waiting;
struct engine_request;

/* At most `requests_max` requests of `audio_us_max` together; one alone may be longer. */
int waiting_new(struct waiting **w, int requests_max, int64_t audio_us_max, struct status *st);
void waiting_del(struct waiting *w); /* must be empty; NULL is fine */

enum waiting_result { WAITING_OK, WAITING_FULL, WAITING_CLOSED };
/* Anything but WAITING_OK: the caller keeps it. Patient requests (request.h) are never too many: the door has
 * counted them. *gone: nobody waits for it any more already, so somebody should sweep. */
enum waiting_result waiting_put(struct waiting *w, struct engine_request *r, bool *gone);

struct engine_request *waiting_take(struct waiting *w); /* waits; NULL: closed and empty */

/* Takes out the requests that nobody waits for any more, linked by `next`; NULL: none. *earliest_ns is
 * lowered to the first deadline of those that stay. */
struct engine_request *waiting_sweep(struct waiting *w, int64_t now_ns, int64_t *earliest_ns);

void waiting_close(struct waiting *w);

#endif
