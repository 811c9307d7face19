/* stream_config: timbre.v1.StreamConfig put into the engine's terms. Checked here is what the engine cannot
 * see: names, and the lengths of lists. The ranges are the engine's, which names fields as the message does.
 */
#ifndef TIMBRE_SERVER_STREAM_CONFIG_H
#define TIMBRE_SERVER_STREAM_CONFIG_H

#include "base/arena.h"
#include "engine/stream.h"
#include "proto/timbre/v1/timbre.pb-c.h"

enum {
    STREAM_NAME_BYTES = 65,  /* of a channel's name or role */
    STREAM_FIELD_BYTES = 96, /* such as "resume_summary.channels[3].timeline[7].scores" */
};

/* How results call a channel. */
struct stream_channel {
    char name[STREAM_NAME_BYTES], role[STREAM_NAME_BYTES];
};

struct stream_config {
    struct engine_stream_options options; /* all but model, wake and wake_arg. Points into the message too */
    struct stream_channel channels[ENGINE_STREAM_CHANNELS_MAX]; /* [options.format.channels] */
    struct summary_report before;                               /* what options.before points to */
    struct arena block;
};

/* Of every field but model, model_version and request_id. `from` must stay as long as `c`; `labels_count`
 * are the model's. Errors: INVALID_ARGUMENT, with the field's name in `field` [STREAM_FIELD_BYTES] and at the
 * beginning of the message; RESOURCE_EXHAUSTED. Then there is nothing to free. */
int stream_config_init(struct stream_config *c, const Timbre__V1__StreamConfig *from, int labels_count,
                       char *field, struct status *st);
void stream_config_free(struct stream_config *c);

#endif
