/* reply: from the bytes that a server sent to the structs of client.h. The bytes may be anything: what is not
 * a message, or breaks what client.h promises, is an error. */
#ifndef TIMBRE_CLIENT_REPLY_H
#define TIMBRE_CLIENT_REPLY_H

#include "client/client.h"

/* Each returns NULL with INTERNAL (what is wrong) or RESOURCE_EXHAUSTED in *status. Free with
 * timbre_prediction_free, timbre_models_free. */
struct timbre_prediction *reply_parse_prediction(const void *bytes, size_t count,
                                                 struct timbre_status *status);
struct timbre_models *reply_parse_models(const void *bytes, size_t count, struct timbre_status *status);
struct timbre_models *reply_parse_model(const void *bytes, size_t count, struct timbre_status *status);
/* A HealthCheckResponse; -1 as above. */
int reply_parse_health(const void *bytes, size_t count, bool *serving, struct timbre_status *status);

/* Takes what is of use from the trailer grpc-status-details-bin: `reason`, and `retry_after_ms` if that is
 * negative. What cannot be read is left alone. */
void reply_parse_details(const void *bytes, size_t count, struct timbre_status *status);

/* Sets code and message, leaves the rest; returns -1. `status` may be NULL. */
int reply_fail(struct timbre_status *status, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
