#include "bed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

float bed_noise[BED_NOISE_SAMPLES];

void bed_options(struct engine_options *o) {
    unsigned seed = 7;
    for (size_t i = 0; i < BED_NOISE_SAMPLES; i++) {
        seed = seed * 1664525u + 1013904223u;
        bed_noise[i] = (float)((int)(seed >> 8) % 2001 - 1000) * 2e-4f;
    }
    engine_options_init(o);
    o->audio.ffmpeg = "";
}

struct engine *bed_start(const struct engine_options *o) {
    struct engine *e;
    struct status st;
    if (engine_new(&e, o, &st))
        fail_msg("%s", st.message);
    return e;
}

struct engine_model *bed_load(struct engine *e, const char *name) {
    const struct model_options o = {.threads = 1};
    struct engine_model *m;
    struct status st;
    if (engine_model_load(&m, e, name, BED_MODEL, &o, &st))
        fail_msg("%s", st.message);
    return m;
}

struct engine_request_options bed_raw(struct engine_model *m, struct queue *replies) {
    return (struct engine_request_options){
        .model = m,
        .format = {.encoding = AUDIO_FLOAT32, .rate_hz = BED_RATE_HZ, .channels = 1},
        .order = ENGINE_UNARY,
        .replies = replies,
    };
}

struct engine_request *bed_open(const struct engine_request_options *o, size_t samples) {
    struct engine_request *r;
    struct status st;
    assert_true(samples <= BED_NOISE_SAMPLES);
    assert_int_equal(engine_open(&r, o, &st), 0);
    assert_int_equal(engine_feed(r, bed_noise, samples * sizeof *bed_noise, &st), 0);
    return r;
}

struct engine_request *bed_send(const struct engine_request_options *o, size_t samples) {
    struct engine_request *r = bed_open(o, samples);
    struct status st;
    if (engine_finish(r, false, &st))
        fail_msg("%s", st.message);
    return r;
}

const void *bed_expect(struct queue *replies, enum status_code code) {
    struct engine_request *r = queue_take(replies);
    const struct engine_result *result = engine_get_result(r);
    if (result->status.code != code)
        fail_msg("%s: %s", status_code_name(result->status.code), result->status.message);
    assert_int_equal(result->outcome, code == STATUS_OK ? ENGINE_OK : ENGINE_ERROR);
    engine_close(r);
    return r;
}

void *bed_make_mp4(size_t bytes) {
    static const unsigned char begin[] = {0, 0, 0, 24, 'f', 't', 'y', 'p', 'M', '4', 'A', ' '};
    unsigned char *data = calloc(1, bytes);
    assert_non_null(data);
    assert_true(bytes >= sizeof begin);
    memcpy(data, begin, sizeof begin);
    return data;
}

bool bed_make_hanging_program(char *path) {
#if defined(__x86_64__)
    /* An ELF file of 64-bit x86 with one segment: pause() again and again. No compiler and no library is
     * needed, and no sanitizer is in it. */
    static const unsigned char program[] = {
        0x7f, 'E',  'L',  'F', 2,    1,    1,    0,    0,
        0,    0,    0,    0,   0,    0,    0, /* identification */
        2,    0,    62,   0,   1,    0,    0,    0,    0x78,
        0,    0x40, 0,    0,   0,    0,    0, /* entry 0x400078 */
        0x40, 0,    0,    0,   0,    0,    0,    0,    0,
        0,    0,    0,    0,   0,    0,    0, /* program headers at 64 */
        0,    0,    0,    0,   0x40, 0,    0x38, 0,    1,
        0,    0,    0,    0,   0,    0,    0, /* one of 56 bytes */
        1,    0,    0,    0,   5,    0,    0,    0,    0,
        0,    0,    0,    0,   0,    0,    0, /* load, read and execute */
        0,    0,    0x40, 0,   0,    0,    0,    0,    0,
        0,    0x40, 0,    0,   0,    0,    0, /* to 0x400000 */
        0x81, 0,    0,    0,   0,    0,    0,    0,    0x81,
        0,    0,    0,    0,   0,    0,    0,                /* 129 bytes */
        0,    0x10, 0,    0,   0,    0,    0,    0,          /* aligned to a page */
        0xb8, 34,   0,    0,   0,    0x0f, 0x05, 0xeb, 0xf7, /* mov eax, 34; syscall; jmp back */
    };
    strcpy(path, "/tmp/timbre-test-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, program, sizeof program), (ssize_t)sizeof program);
    assert_int_equal(fchmod(fd, 0755), 0);
    close(fd);
    return true;
#else
    (void)path;
    return false;
#endif
}
