#include "helpers.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <time.h>

const char audio[64] = "RIFF, as far as these tests are concerned";

struct fake_answer answer_ok(const struct bytes *b) {
    return (struct fake_answer){.reply = b->data, .reply_bytes = b->count};
}

struct timbre_client *new_client(const struct fake_server *s, struct timbre_client_options o) {
    struct timbre_client *c;
    struct timbre_status st;
    o.target = fake_server_address(s);
    if (timbre_client_new(&c, &o, &st))
        fail_msg("%s", st.message);
    assert_int_equal(st.code, 0);
    return c;
}

struct timbre_predict_request a_request(void) {
    return (struct timbre_predict_request){.audio = audio, .audio_bytes = sizeof audio};
}

void sleep_ms(long ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}
