/* Streams a two-channel call to a Timbre server at the pace at which it was spoken, and prints what is heard
 * in it.
 *
 *     stream localhost:9000 CALL [SPEED]
 *
 * CALL is raw G.711 mu-law at 8 kHz, the bytes of two channels in turn; the first channel is the agent, the
 * second the customer. SPEED 4 sends four times as fast as it was spoken. When the server ends or the
 * connection breaks, the library goes on by itself where the last result said. */
#define _POSIX_C_SOURCE 200809L /* clock_gettime, nanosleep */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <timbre/client.h>

enum { RATE_HZ = 8000, CHANNELS = 2, CHUNK_MS = 20, CHUNK_BYTES = RATE_HZ * CHANNELS * CHUNK_MS / 1000 };

/* All callbacks run on the client's thread: they must not wait. */

static void on_result(const struct timbre_stream_result *r, void *user) {
    (void)user;
    printf("%7.2f to %7.2f s  %s: ", r->start_s, r->end_s, r->role);
    if (!r->dominant) {
        printf("%s\n", timbre_answer_name(r->answer));
    } else {
        const struct timbre_score *smooth = NULL;
        for (size_t i = 0; i < r->smoothed_count; i++)
            if (!smooth || r->smoothed[i].score > smooth->score)
                smooth = &r->smoothed[i];
        printf("%s %.3f", r->dominant->label, r->dominant->score);
        if (smooth)
            printf(" (smoothed: %s %.3f)", smooth->label, smooth->score);
        printf("\n");
    }
    fflush(stdout);
}

static void on_summary(const struct timbre_stream_summary *s, void *user) {
    (void)user;
    printf("%.2f s, %.2f s of them talked over one another\n", s->end_s, s->talk_over_s);
    for (size_t i = 0; i < s->channels_count; i++) {
        const struct timbre_channel_summary *c = &s->channels[i];
        printf("%s: ", c->role);
        if (c->dominant)
            printf("%s %.3f", c->dominant->label, c->dominant->score);
        else
            printf("no scores");
        printf("; %lld results, %.2f s of speech\n", (long long)c->results, c->speech_s);
    }
}

static void on_resume(const struct timbre_status *why, int64_t offset_ms, int wait_ms, void *user) {
    (void)wait_ms, (void)user;
    printf("goes on from %g s: %s\n", (double)offset_ms / 1000, why->message);
    fflush(stdout);
}

/* Exactly once, and the last of all. */
static void on_end(const struct timbre_status *status, void *user) {
    *(struct timbre_status *)user = *status;
}

/* Sends every piece of the file when it has been spoken. */
static void send_call(FILE *call, double speed, struct timbre_stream *stream) {
    unsigned char chunk[CHUNK_BYTES];
    struct timespec now, start;
    double spoken_s = 0;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (size_t bytes; (bytes = fread(chunk, 1, sizeof chunk, call)) > 0;) {
        spoken_s += (double)bytes / (RATE_HZ * CHANNELS);
        clock_gettime(CLOCK_MONOTONIC, &now);
        const double early_s = spoken_s / speed - (double)(now.tv_sec - start.tv_sec) -
                               (double)(now.tv_nsec - start.tv_nsec) / 1e9;
        if (early_s > 0)
            nanosleep(&(struct timespec){.tv_sec = (time_t)early_s,
                                         .tv_nsec = (long)((early_s - (double)(time_t)early_s) * 1e9)},
                      NULL);
        if (timbre_stream_send(stream, chunk, bytes, -1, NULL))
            return; /* it has ended: on_end says why */
    }
    timbre_stream_finish(stream, NULL);
}

int main(int argc, char **argv) {
    struct timbre_client *client;
    struct timbre_stream *stream;
    struct timbre_status status, end;
    const double speed = argc > 3 ? atof(argv[3]) : 1;
    if (argc < 3 || argc > 4 || !(speed > 0)) {
        fprintf(stderr, "usage: stream ADDRESS CALL [SPEED]\n");
        return 2;
    }
    FILE *call = fopen(argv[2], "rb");
    if (!call) {
        perror(argv[2]);
        return 2;
    }
    /* For a server that asks for them: .tls_ca = "ca.pem", .token_file = "token". */
    const struct timbre_client_options client_options = {.target = argv[1], .attempts_max = 10};
    const struct timbre_stream_options options = {
        .encoding = TIMBRE_ENCODING_MULAW,
        .sample_rate_hz = RATE_HZ,
        .channels_count = CHANNELS,
        .channels = {{.name = "line 1", .role = "agent"}, {.name = "line 2", .role = "customer"}},
        .window_s = 6,
        .hop_s = 3,
        .speech_s_min = 0.5,
        .smoothing_s = 10,
        .on_result = on_result,
        .on_summary = on_summary,
        .on_resume = on_resume,
        .on_end = on_end,
        .user = &end,
    };
    if (timbre_client_new(&client, &client_options, &status) ||
        timbre_stream_open(client, &options, &stream, &status)) {
        fprintf(stderr, "%s\n", status.message);
        return 3;
    }
    send_call(call, speed, stream);
    timbre_stream_del(stream); /* waits for on_end */
    timbre_client_del(client);
    fclose(call);
    if (end.code != TIMBRE_CODE_OK)
        printf("%s: %s: %s\n", argv[2], timbre_code_name(end.code), end.message);
    return end.code == TIMBRE_CODE_OK ? 0 : 1;
}
