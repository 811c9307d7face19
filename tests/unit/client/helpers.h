/* helpers: what the tests of the client share. */
#ifndef TIMBRE_TESTS_CLIENT_HELPERS_H
#define TIMBRE_TESTS_CLIENT_HELPERS_H

#include "client/client.h"
#include "fake_server.h"
#include "messages.h"

extern const char audio[64];

struct fake_answer answer_ok(const struct bytes *b);
struct timbre_client *new_client(const struct fake_server *s,
                                 struct timbre_client_options o); /* fails the test */
struct timbre_predict_request a_request(void);
void sleep_ms(long ms);

#endif
