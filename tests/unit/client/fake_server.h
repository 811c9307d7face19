/* fake_server: a gRPC server in this process whose answers are written in advance. */
#ifndef TIMBRE_TESTS_FAKE_SERVER_H
#define TIMBRE_TESTS_FAKE_SERVER_H

#include <stdbool.h>
#include <stddef.h>

struct fake_answer {
    int code; /* 0: OK with `reply` */
    const char *message;
    const void *reply; /* [reply_bytes] */
    size_t reply_bytes;
    bool no_reply;        /* OK, but without a message */
    const char *pushback; /* grpc-retry-pushback-ms; NULL: none */
    const void *details;  /* grpc-status-details-bin [details_bytes]; NULL: none */
    size_t details_bytes;
    int delay_ms; /* -1: never answers */
};

/* What the newest call brought. */
struct fake_request {
    char path[128], authorization[128], traceparent[128], user_agent[256];
    unsigned char *message; /* [bytes], valid until the next call */
    size_t bytes;
};

struct fake_server;

/* The n-th call gets answers[n], those after the last get the last. `answers` stays the caller's and is not
 * written to. Listens on 127.0.0.1, or on `address` when that is not NULL. */
struct fake_server *fake_server_new(const struct fake_answer *answers, int count, const char *address);
void fake_server_del(struct fake_server *s); /* cancels what is under way */
const char *fake_server_address(const struct fake_server *s);
int fake_server_count_calls(struct fake_server *s);
int fake_server_count_cancelled(struct fake_server *s);
/* Only when no call is under way. */
const struct fake_request *fake_server_get_request(struct fake_server *s);

#endif
