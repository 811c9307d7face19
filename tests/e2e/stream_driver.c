/* A program that streams as its standard input says, and prints every callback and every answer as a line of
 * JSON: the C client's streams under test.
 *
 *     stream_driver ADDRESS [name=value]...    options of the client and of the stream, and
 *         callback=cancel|finish|send     what on_result does besides
 *         stress=ROUNDS                   no commands: many streams from several threads, ended in every way
 *
 * Commands, a line each: send BYTES [WAIT_MS], ask, finish, cancel, delete (the stream), delete_client,
 * sleep MS. The byte at position p of the call is byte_at(p). */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/client.h"

enum { STRESS_THREADS = 8, PIECE_BYTES_MAX = 1 << 20 };

static struct timbre_stream *stream;
static const char *callback = "";
static int64_t position; /* of the next byte */
static size_t buffer_bytes;

static unsigned char byte_at(int64_t p) {
    return (unsigned char)((uint32_t)p * UINT32_C(2654435761) >> 15);
}

static void sleep_ms(long ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* Without what JSON would have to escape. */
static const char *plain(char *text) {
    for (char *c = text; *c; c++)
        if (*c < ' ' || *c > '~' || *c == '"' || *c == '\\')
            *c = '?';
    return text;
}

/* ---- callbacks ---- */

static void on_result(const struct timbre_stream_result *r, void *user) {
    (void)user;
    flockfile(stdout); /* the main thread prints too, and this is one line */
    printf("{\"event\": \"result\", \"channel\": %d, \"name\": \"%s\", \"role\": \"%s\", \"start\": %.17g, "
           "\"end\": %.17g, \"answer\": %d, \"final\": %d, \"resume\": %lld, \"lag\": ",
           r->channel, r->channel_name, r->role, r->start_s, r->end_s, r->answer, r->final,
           (long long)r->resume_offset_ms);
    if (r->lag_ms == r->lag_ms) /* not NaN */
        printf("%.3f", r->lag_ms);
    else
        printf("null");
    printf(", \"label\": \"%s\", \"model\": \"%s\", \"scores\": [", r->dominant ? r->dominant->label : "",
           r->receipt.model);
    for (size_t i = 0; i < r->scores_count; i++)
        printf("%s%.9g", i ? ", " : "", (double)r->scores[i].score);
    printf("], \"smoothed\": [");
    for (size_t i = 0; i < r->smoothed_count; i++)
        printf("%s%.9g", i ? ", " : "", (double)r->smoothed[i].score);
    printf("]}\n");
    funlockfile(stdout);
    if (!strcmp(callback, "cancel"))
        timbre_stream_cancel(stream);
    if (!strcmp(callback, "finish"))
        timbre_stream_finish(stream, NULL);
    if (!strcmp(callback, "send")) { /* what has room, and what would have to wait */
        struct timbre_status st[2];
        unsigned char *much = calloc(1, buffer_bytes);
        timbre_stream_send(stream, much, 2, 0, &st[0]);
        timbre_stream_send(stream, much, buffer_bytes, -1, &st[1]);
        free(much);
        printf("{\"event\": \"sent\", \"codes\": [%d, %d]}\n", st[0].code, st[1].code);
    }
}

static void on_summary(const struct timbre_stream_summary *s, void *user) {
    (void)user;
    printf("{\"event\": \"summary\", \"final\": %d, \"end\": %d, \"channels\": %zu, \"end_s\": %.17g, "
           "\"results\": %lld, \"resume\": %lld}\n",
           s->final, s->end, s->channels_count, s->end_s,
           (long long)(s->channels_count ? s->channels[0].results : -1), (long long)s->resume_offset_ms);
}

static void on_resume(const struct timbre_status *why, int64_t offset_ms, int wait_ms, void *user) {
    (void)user;
    printf("{\"event\": \"resume\", \"code\": %d, \"attempts\": %d, \"offset\": %lld, \"wait\": %d}\n",
           why->code, why->attempts, (long long)offset_ms, wait_ms);
}

static void on_end(const struct timbre_status *st, void *user) {
    struct timbre_status copy = *st;
    (void)user;
    printf("{\"event\": \"end\", \"code\": %d, \"attempts\": %d, \"reason\": \"%s\", \"message\": \"%s\"}\n",
           st->code, st->attempts, st->reason, plain(copy.message));
}

/* ---- options ---- */

static void set_option(struct timbre_client_options *c, struct timbre_stream_options *o, char *text) {
    char *value = strchr(text, '=');
    if (!value)
        exit(2);
    *value++ = 0;
    const struct {
        const char *name;
        int *number;
    } numbers[] = {
        {"attempts_max", &c->attempts_max},     {"backoff_initial_ms", &c->backoff_initial_ms},
        {"backoff_max_ms", &c->backoff_max_ms}, {"rate", &o->sample_rate_hz},
        {"channels", &o->channels_count},       {"stall_ms", &o->stall_ms},
        {"deadline_ms", &o->deadline_ms},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(text, numbers[i].name)) {
            *numbers[i].number = atoi(value);
            return;
        }
    if (!strcmp(text, "token"))
        c->token = value;
    else if (!strcmp(text, "encoding"))
        o->encoding = (enum timbre_encoding)atoi(value);
    else if (!strcmp(text, "buffer"))
        o->buffer_bytes_max = (int64_t)(buffer_bytes = (size_t)atoll(value));
    else if (!strcmp(text, "offset_ms"))
        o->resume_offset_ms = atoll(value);
    else if (!strcmp(text, "had_s"))
        o->resume_end_s[0] = atof(value);
    else if (!strcmp(text, "no_resume"))
        o->no_resume = atoi(value);
    else if (!strcmp(text, "traceparent"))
        o->traceparent = value;
    else if (!strcmp(text, "smoothing_s"))
        o->smoothing_s = atof(value);
    else if (!strcmp(text, "window_s"))
        o->window_s = atof(value);
    else if (!strcmp(text, "utterances"))
        o->utterances = atoi(value);
    else if (!strcmp(text, "role"))
        o->channels[0].role = value;
    else if (!strcmp(text, "exclude"))
        o->channels[atoi(value)].exclude = true;
    else if (!strcmp(text, "callback"))
        callback = value;
    else
        exit(2);
}

/* ---- commands ---- */

static int send_bytes(struct timbre_stream *s, int64_t at, size_t bytes, int wait_ms,
                      struct timbre_status *st) {
    unsigned char *data = malloc(bytes ? bytes : 1);
    for (size_t i = 0; i < bytes; i++)
        data[i] = byte_at(at + (int64_t)i);
    const int result = timbre_stream_send(s, data, bytes, wait_ms, st);
    free(data);
    return result;
}

static void run_command(struct timbre_client **client, const char *word, long long number, int wait_ms) {
    struct timbre_status st = {.code = 0};
    if (!strcmp(word, "send")) {
        if (send_bytes(stream, position, (size_t)number, wait_ms, &st) == 0)
            position += number;
    } else if (!strcmp(word, "ask")) {
        timbre_stream_ask_summary(stream, &st);
    } else if (!strcmp(word, "finish")) {
        timbre_stream_finish(stream, &st);
    } else if (!strcmp(word, "cancel")) {
        timbre_stream_cancel(stream);
    } else if (!strcmp(word, "delete")) {
        timbre_stream_del(stream);
        stream = NULL;
    } else if (!strcmp(word, "delete_client")) {
        timbre_client_del(*client);
        *client = NULL;
    } else if (!strcmp(word, "sleep")) {
        sleep_ms((long)number);
    } else {
        exit(2);
    }
    printf("{\"event\": \"%s\", \"code\": %d, \"message\": \"%s\"}\n", word, st.code, plain(st.message));
}

/* ---- stress ---- */

struct stress {
    const struct timbre_client_options *client_options;
    const struct timbre_stream_options *options;
    int rounds;
    unsigned seed;
};

static void count_end(const struct timbre_status *st, void *user) {
    (void)st;
    atomic_fetch_add((atomic_int *)user, 1);
}

static void count_nothing(const struct timbre_stream_result *r, void *user) {
    (void)r;
    if (atomic_load((atomic_int *)user))
        abort(); /* after on_end */
}

static void *run_stress(void *arg) {
    const struct stress *x = arg;
    unsigned seed = x->seed;
    for (int i = 0; i < x->rounds; i++) {
        struct timbre_client *client;
        struct timbre_stream *streams[4];
        atomic_int ends[4];
        if (timbre_client_new(&client, x->client_options, NULL))
            abort();
        for (int k = 0; k < 4; k++) {
            struct timbre_stream_options o = *x->options;
            atomic_init(&ends[k], 0);
            o.on_end = count_end;
            o.on_result = count_nothing;
            o.user = &ends[k];
            if (timbre_stream_open(client, &o, &streams[k], NULL))
                abort();
        }
        for (int k = 0; k < 12; k++) {
            send_bytes(streams[k % 4], k / 4 * 4000, 4000, 100, NULL);
            if (rand_r(&seed) % 4 == 0)
                timbre_stream_cancel(streams[rand_r(&seed) % 4]);
            if (rand_r(&seed) % 4 == 0)
                timbre_stream_ask_summary(streams[rand_r(&seed) % 4], NULL);
            if (rand_r(&seed) % 3 == 0)
                sleep_ms(rand_r(&seed) % 5);
        }
        const bool client_first = rand_r(&seed) % 2;
        if (client_first)
            timbre_client_del(client);
        for (int k = 0; k < 4; k++) {
            if (rand_r(&seed) % 2)
                timbre_stream_finish(streams[k], NULL);
            else
                timbre_stream_cancel(streams[k]);
            timbre_stream_del(streams[k]);
            if (atomic_load(&ends[k]) != 1)
                abort();
        }
        if (!client_first)
            timbre_client_del(client);
    }
    return NULL;
}

static void stress(const struct timbre_client_options *client_options,
                   const struct timbre_stream_options *options, int rounds) {
    pthread_t threads[STRESS_THREADS];
    struct stress x[STRESS_THREADS];
    for (int i = 0; i < STRESS_THREADS; i++) {
        x[i] = (struct stress){client_options, options, rounds, (unsigned)i + 1};
        pthread_create(&threads[i], NULL, run_stress, &x[i]);
    }
    for (int i = 0; i < STRESS_THREADS; i++)
        pthread_join(threads[i], NULL);
    printf("{\"event\": \"stressed\"}\n");
}

int main(int argc, char **argv) {
    struct timbre_client_options client_options = {.target = argv[1]};
    struct timbre_stream_options options = {.encoding = TIMBRE_ENCODING_MULAW,
                                            .sample_rate_hz = 8000,
                                            .channels_count = 2,
                                            .on_result = on_result,
                                            .on_summary = on_summary,
                                            .on_resume = on_resume,
                                            .on_end = on_end};
    struct timbre_client *client;
    struct timbre_status st;
    int rounds = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 2; i < argc; i++) {
        if (!strncmp(argv[i], "stress=", 7))
            rounds = atoi(argv[i] + 7);
        else
            set_option(&client_options, &options, argv[i]);
    }
    if (rounds) {
        stress(&client_options, &options, rounds);
        return 0;
    }
    if (timbre_client_new(&client, &client_options, &st))
        return 3;
    const int value_bytes = options.encoding == TIMBRE_ENCODING_FLOAT32 ? 4
                            : options.encoding == TIMBRE_ENCODING_PCM16 ? 2
                                                                        : 1;
    position =
        options.resume_offset_ms / 1000 * options.sample_rate_hz * options.channels_count * value_bytes;
    const int opened = timbre_stream_open(client, &options, &stream, &st);
    printf("{\"event\": \"open\", \"code\": %d, \"message\": \"%s\"}\n", st.code, plain(st.message));
    char line[256], word[32];
    while (opened == 0 && fgets(line, sizeof line, stdin)) {
        long long number = 0;
        int wait_ms = -1;
        if (sscanf(line, "%31s %lld %d", word, &number, &wait_ms) >= 1)
            run_command(&client, word, number, wait_ms);
    }
    timbre_stream_del(stream);
    timbre_client_del(client);
    printf("{\"event\": \"bye\"}\n");
    return 0;
}
