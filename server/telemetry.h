/* telemetry: the metrics of calls and of the process (docs/metrics.md tells each). Families are made once,
 * series are kept in arrays: counting takes no lock but the first time that a method ends with a code. Any
 * thread, unless said otherwise; every function takes NULL and does nothing then. */
#ifndef TIMBRE_SERVER_TELEMETRY_H
#define TIMBRE_SERVER_TELEMETRY_H

#include <stdbool.h>
#include <stddef.h>

#include "base/metrics.h"
#include "base/status.h"
#include "engine/engine.h"

struct telemetry;
enum { TELEMETRY_METHODS_MAX = 256 };

/* `methods` [count]: paths such as "/timbre.v1.Timbre/Predict"; copied. Measures in metrics_write from then
 * on, so telemetry_del comes after the last of those. Errors: RESOURCE_EXHAUSTED (memory,
 * TELEMETRY_METHODS_MAX). */
int telemetry_new(struct telemetry **t, struct metrics *m, const char *const *methods, int methods_count,
                  struct status *st);
void telemetry_del(struct telemetry *t);

/* A call arrived; a call ended, by a gRPC code. The two come in pairs. An index out of range counts as the
 * method "unknown", a code that is none as UNKNOWN. */
void telemetry_begin_call(struct telemetry *t, int method);
void telemetry_count_call(struct telemetry *t, int method, int code, double seconds);

/* A call was turned away: `reason` is that of its ErrorInfo, such as "QUEUE_FULL". Reasons that are no
 * refusals (the table is in telemetry.c), and NULL, are left out, so it may be called for every failure. */
void telemetry_count_refused(struct telemetry *t, const char *reason);
void telemetry_count_received(struct telemetry *t, size_t bytes); /* of messages, as they came */

/* A live stream was opened for a model; it ended. The two come in pairs. */
enum telemetry_end {
    TELEMETRY_END_CLIENT, /* he sent all */
    TELEMETRY_END_DRAIN,
    TELEMETRY_END_LIFETIME,
    TELEMETRY_END_IDLE,
    TELEMETRY_END_STALL,
    TELEMETRY_END_ERROR,
    TELEMETRY_END_CANCELLED, /* the caller left, or his deadline passed */
    TELEMETRY_ENDS
};
enum { TELEMETRY_OUTCOMES = ENGINE_ERROR + 1 };
struct telemetry_stream {
    struct metrics_series *results[TELEMETRY_OUTCOMES];
};
void telemetry_begin_stream(struct telemetry *t, struct telemetry_stream *s, const char *model);
void telemetry_end_stream(struct telemetry *t, enum telemetry_end end);
/* A result was sent, `lag_s` after the last byte that it needed had come. */
void telemetry_count_result(struct telemetry *t, const struct telemetry_stream *s,
                            enum engine_outcome outcome, double lag_s);
/* Audio of a stream has come: of each channel that is analysed. */
void telemetry_count_stream_audio(struct telemetry *t, double seconds);

void telemetry_set_ready(struct telemetry *t, bool ready); /* serving, with a model */
/* What runs, as labels. One thread at a time. */
void telemetry_set_build(struct telemetry *t, const char *version, const char *device, const char *precision);
/* `state`: one of enum repository_state, -1 when it is gone. Takes a lock. */
void telemetry_set_model(struct telemetry *t, const char *model, const char *version, int state);
/* Seconds since 1970; not shown before the first time. One thread. */
void telemetry_set_tls_expiry(struct telemetry *t, double expiry_s);

#endif
