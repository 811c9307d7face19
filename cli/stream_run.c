/* The audio of a stream: where it comes from, and when it is sent. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "cli/stream.h"

enum {
    CHUNKS_PER_S = 50, /* of a file at real-time pace: as telephony sends it */
    NO_ROOM_MS = 10,   /* until it is tried again, at the latest */
    ATTEND_MS = 60 * 1000,
};

/* ---- a file ---- */

static size_t count_value_bytes(enum audio_encoding encoding) {
    return encoding == AUDIO_FLOAT32 ? 4 : encoding == AUDIO_PCM16 ? 2 : 1;
}

static int check_format(const char *path, const struct audio_format *f) {
    if (f->rate_hz < ENGINE_STREAM_RATE_HZ_MIN || f->rate_hz > ENGINE_STREAM_RATE_HZ_MAX)
        return cli_fail("stream", CLI_SOME_FAILED, "%s: %d Hz; a stream takes %d to %d Hz", path, f->rate_hz,
                        ENGINE_STREAM_RATE_HZ_MIN, ENGINE_STREAM_RATE_HZ_MAX);
    if (f->channels > ENGINE_STREAM_CHANNELS_MAX)
        return cli_fail("stream", CLI_SOME_FAILED, "%s: %d channels; a stream takes up to %d", path,
                        f->channels, ENGINE_STREAM_CHANNELS_MAX);
    return CLI_OK;
}

int stream_read_file(struct stream_audio *audio, struct stream_arguments *a) {
    struct audio_format *f = &a->analysis.format;
    struct status st;
    *audio = (struct stream_audio){.data = NULL};
    if (strcmp(a->path, "-") != 0) {
        char *data;
        size_t bytes;
        if (file_read(&data, &bytes, a->path, a->engine.audio.bytes_max, "max-file-bytes", &st))
            return cli_fail("stream", CLI_SOME_FAILED, "%s", st.message);
        if (f->encoding == AUDIO_FILE) {
            struct audio_channels channels;
            const int failed = engine_read_channels(&channels, data, bytes, &a->engine.audio, &st);
            free(data);
            if (failed)
                return cli_fail("stream", CLI_SOME_FAILED, "%s: %s", a->path, st.message);
            data = channels.data;
            bytes = channels.bytes;
            *f = channels.format;
        }
        audio->data = data;
        audio->bytes = bytes;
    }
    audio->frame_bytes = count_value_bytes(f->encoding) * (size_t)f->channels;
    return check_format(a->path, f);
}

/* ---- the loop ---- */

struct run {
    const struct stream_arguments *arguments;
    const struct stream_audio *audio;
    const struct stream_backend *backend;
    void *self;
    bool input;      /* from standard input */
    size_t position; /* of the file: bytes sent */
    size_t begin;    /* where they begin */
    int64_t start_ns;
    size_t held;   /* bytes of standard input in `block` */
    bool complete; /* no more will come */
    bool failed;   /* standard input cannot be read */
    char block[STREAM_SEND_BYTES_MAX];
};

static volatile sig_atomic_t interrupted;
static int signal_fd;

/* The first one ends the audio; the second one, which is not caught any more, the program. */
static void on_signal(int number) {
    const int error = errno;
    const uint64_t one = 1;
    (void)number;
    interrupted = 1;
    const ssize_t ignored = write(signal_fd, &one, sizeof one);
    (void)ignored;
    errno = error;
}

/* Bytes of the file up to the end of the last chunk whose time has come. */
static size_t count_due(const struct run *r, int64_t now_ns) {
    const struct audio_format *f = &r->arguments->analysis.format;
    const size_t all = r->audio->bytes;
    if (r->arguments->pace == 0)
        return all;
    const size_t frames = (all - r->begin) / r->audio->frame_bytes;
    const double passed_s = (double)(now_ns - r->start_ns) * 1e-9 * r->arguments->pace;
    if (passed_s * f->rate_hz >= (double)frames)
        return all;
    const size_t chunk = (size_t)f->rate_hz / CHUNKS_PER_S;
    const size_t chunks = (size_t)(passed_s * f->rate_hz) / chunk;
    return r->begin + chunks * chunk * r->audio->frame_bytes;
}

/* When more will be due. */
static int64_t find_next_ns(const struct run *r) {
    const struct audio_format *f = &r->arguments->analysis.format;
    const size_t chunk = (size_t)f->rate_hz / CHUNKS_PER_S;
    const size_t all = (r->audio->bytes - r->begin) / r->audio->frame_bytes;
    size_t frames = (r->position - r->begin) / r->audio->frame_bytes / chunk * chunk + chunk;
    frames = frames < all ? frames : all;
    return r->start_ns + (int64_t)((double)frames / f->rate_hz / r->arguments->pace * 1e9) + 1;
}

/* False: there is no room. */
static bool send_file(struct run *r) {
    const size_t due = count_due(r, clock_now_ns());
    while (r->position < due) {
        size_t bytes = due - r->position;
        if (bytes > STREAM_SEND_BYTES_MAX)
            bytes = STREAM_SEND_BYTES_MAX;
        const enum stream_sent sent = r->backend->send(r->self, r->audio->data + r->position, bytes);
        if (sent == STREAM_NO_ROOM)
            return false;
        r->position = sent == STREAM_OVER ? r->audio->bytes : r->position + bytes;
    }
    r->complete = r->position == r->audio->bytes;
    return true;
}

/* Sends the whole frames that are held. False: there is no room. */
static bool send_input(struct run *r) {
    size_t bytes = r->held - r->held % r->audio->frame_bytes;
    if (r->complete && !interrupted)
        bytes = r->held; /* what is left of a frame is an error that the other side tells */
    if (bytes == 0)
        return true;
    if (r->backend->send(r->self, r->block, bytes) == STREAM_NO_ROOM)
        return false;
    r->held -= bytes;
    memmove(r->block, r->block + bytes, r->held);
    return true;
}

static void read_input(struct run *r) {
    const ssize_t n = read(STDIN_FILENO, r->block + r->held, sizeof r->block - r->held);
    if (n > 0) {
        r->held += (size_t)n;
        return;
    }
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n < 0) {
        cli_fail("stream", CLI_SOME_FAILED, "standard input: %s", strerror(errno));
        r->failed = true;
    }
    r->complete = true;
}

/* Waits until something is to be done: events, a signal, bytes of standard input, a chunk's time. */
static void wait_for_more(struct run *r, bool has_room) {
    const bool wants_input = r->input && has_room && !r->complete;
    int64_t timeout_ns = (int64_t)ATTEND_MS * 1000000;
    if (!has_room)
        timeout_ns = (int64_t)NO_ROOM_MS * 1000000;
    else if (!r->complete && !r->input)
        timeout_ns = find_next_ns(r) - clock_now_ns();
    timeout_ns = timeout_ns < 0 ? 0 : timeout_ns;
    const struct timespec timeout = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    struct pollfd fds[] = {{.fd = signal_fd, .events = POLLIN},
                           {.fd = wants_input ? STDIN_FILENO : -1, .events = POLLIN}};
    if (ppoll(fds, 2, &timeout, NULL) <= 0)
        return;
    uint64_t count;
    if (fds[0].revents) {
        const ssize_t ignored = read(signal_fd, &count, sizeof count);
        (void)ignored;
    }
    if (fds[1].revents)
        read_input(r);
}

static void send_all(struct run *r) {
    bool finished = false;
    r->start_ns = clock_now_ns();
    while (r->backend->attend(r->self)) {
        bool has_room = true;
        r->complete = r->complete || interrupted;
        if (r->input)
            has_room = send_input(r);
        else if (!r->complete)
            has_room = send_file(r);
        if (r->complete && has_room && !finished) {
            r->backend->finish(r->self);
            finished = true;
        }
        wait_for_more(r, has_room);
    }
}

/* Where a stream that goes on has to begin. */
static int skip_had(struct run *r) {
    const struct engine_stream_options *o = &r->arguments->analysis;
    const size_t frames = (size_t)(o->resume_offset_ms / 1000) * (size_t)o->format.rate_hz;
    if (r->input)
        return CLI_OK;
    if (frames > r->audio->bytes / r->audio->frame_bytes)
        return cli_fail("stream", CLI_USAGE, "--resume-offset %lld is behind the end of %s",
                        (long long)o->resume_offset_ms, r->arguments->path);
    r->begin = r->position = frames * r->audio->frame_bytes;
    return CLI_OK;
}

int stream_run(const struct stream_arguments *a, const struct stream_audio *audio) {
    const struct sigaction act = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    struct stream_output out;
    struct run *r = calloc(1, sizeof *r);
    signal_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!r || signal_fd < 0) {
        free(r);
        return cli_fail("stream", CLI_NOT_STARTED, "out of memory or descriptors");
    }
    r->arguments = a;
    r->audio = audio;
    r->backend = a->server.target ? &stream_server : &stream_local;
    r->input = strcmp(a->path, "-") == 0;
    int result = skip_had(r);
    stream_output_init(&out, a);
    if (result == CLI_OK)
        result = r->backend->open(&r->self, a, &out, signal_fd);
    if (result == CLI_OK) {
        sigaction(SIGINT, &act, NULL);
        sigaction(SIGTERM, &act, NULL);
        send_all(r);
        stream_output_end(&out);
    }
    const int ended = r->backend->end(r->self);
    if (result == CLI_OK)
        result = ended != CLI_OK ? ended : out.failed || r->failed ? CLI_SOME_FAILED : CLI_OK;
    free(r);
    close(signal_fd);
    return result;
}
