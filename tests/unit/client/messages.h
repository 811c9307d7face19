/* messages: replies of a server, as bytes. */
#ifndef TIMBRE_TESTS_MESSAGES_H
#define TIMBRE_TESTS_MESSAGES_H

#include <stddef.h>
#include <stdint.h>

struct bytes {
    uint8_t *data; /* free */
    size_t count;
};

/* A prediction of three labels, "anger" the highest; with windows and an embedding when asked. */
struct bytes messages_make_prediction(const char *request_id, int windows, int embedding);
struct bytes messages_make_model(void);
struct bytes messages_make_models(int count);
struct bytes messages_make_health(int serving);
/* google.rpc.Status with ErrorInfo, and RetryInfo unless retry_ms is negative. */
struct bytes messages_make_details(const char *reason, int retry_ms);

#endif
