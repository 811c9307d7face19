/* ffmpeg: the child process, what goes into it and what comes out of it. */
#include "audio/ffmpeg.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "audio/confine.h"
#include "audio/decode_internal.h"
#include "base/clock.h"

enum {
    CHILD_READ_BYTES = 1 << 16,
    CHILD_FRAME_BYTES_MAX = AUDIO_CHANNELS_MAX * 4,
    CHILD_MESSAGES_BYTES = 4096, /* the last of what it wrote to standard error */
    CHILD_FD_LOW = 10,           /* where the parent keeps the child's descriptors, so that none is 0 to 4 */
    CHILD_FD_REPORT = 3,         /* closed by a successful exec, else says why it failed */
    CHILD_FD_LANDLOCK = 4,
    AU_HEADER_BYTES = 24,
    AU_OFFSET_MAX = 1 << 16,
    AU_ENCODING_FLOAT = 6,
};

/* A child from start to end. Descriptors are -1 when closed. */
struct child {
    pid_t pid;
    int out, messages, report;
    int64_t deadline_ns;
    char said[CHILD_MESSAGES_BYTES + 1];
    size_t said_bytes;
    int wait_status;
    bool ended, reaped; /* wait_status is known */
};

/* The samples as the child writes them: Sun's AU format, whose header is 24 bytes of big-endian numbers. */
struct au_stream {
    unsigned char bytes[CHILD_READ_BYTES + CHILD_FRAME_BYTES_MAX];
    size_t held; /* bytes that wait for the rest of a header or frame */
    size_t skip; /* bytes of annotation still to pass over */
    bool opened, broken;
    float values[(CHILD_READ_BYTES + CHILD_FRAME_BYTES_MAX) / 4];
};

/* Demuxers of files that carry sound. Lists of other files (HLS, DASH, concat), devices, subtitles and
 * pictures are not among them. */
static const char formats[] = "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,dtshd,eac3,flac,flv,"
                              "gsm,iff,ircam,latm,loas,matroska,"
                              "mlp,mov,mp4,mp3,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,oma,qcp,rm,sox,"
                              "tak,truehd,tta,voc,w64,wav,wsd,wv,"
                              "xwma";

/* ---- finding the program ---- */

static int ffmpeg_refuse_missing(const char *name, struct status *st) {
    return status_set(
        st, STATUS_FAILED_PRECONDITION,
        "there is no program \"%.100s\": install ffmpeg (for example: apt install ffmpeg) or point "
        "FFMPEG_BIN to it",
        name);
}

/* `path` takes PATH_MAX bytes. */
static int ffmpeg_find(char *path, const char *name, struct status *st) {
    if (name == NULL)
        name = "ffmpeg";
    if (strchr(name, '/') != NULL) {
        if (access(name, X_OK) != 0 || realpath(name, path) == NULL)
            return ffmpeg_refuse_missing(name, st);
        return 0;
    }
    const char *folders = getenv("PATH");
    if (folders == NULL)
        folders = "/usr/local/bin:/usr/bin:/bin";
    while (*folders != '\0') {
        size_t length = strcspn(folders, ":");
        char candidate[PATH_MAX];
        int n = snprintf(candidate, sizeof candidate, "%.*s/%s", (int)length, folders, name);
        if (length > 0 && n > 0 && n < (int)sizeof candidate && access(candidate, X_OK) == 0 &&
            realpath(candidate, path) != NULL)
            return 0;
        folders += length + (folders[length] == ':');
    }
    return ffmpeg_refuse_missing(name, st);
}

/* ---- descriptors ---- */

static void fd_close(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Moves a descriptor out of the way of those the child is to have. */
static int fd_raise(int fd) {
    if (fd < 0 || fd >= CHILD_FD_LOW)
        return fd;
    int raised = fcntl(fd, F_DUPFD_CLOEXEC, CHILD_FD_LOW);
    close(fd);
    return raised;
}

static int fd_open_pipe(int ends[2]) {
    if (pipe2(ends, O_CLOEXEC) != 0)
        return -1;
    ends[0] = fd_raise(ends[0]);
    ends[1] = fd_raise(ends[1]);
    return ends[0] >= 0 && ends[1] >= 0 ? 0 : -1;
}

/* The input as a file in memory that nobody can change any more. A pipe would not do: an MP4 file may have
 * its table of contents at its end. */
static int fd_open_input(const void *data, size_t bytes, struct status *st) {
    int fd = fd_raise(memfd_create("audio", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (fd < 0)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "no file in memory for the audio: %s",
                          strerror(errno));
    const char *p = data;
    while (bytes > 0) {
        ssize_t n = write(fd, p, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            status_set(st, STATUS_RESOURCE_EXHAUSTED, "no memory for a copy of the audio: %s",
                       strerror(errno));
            close(fd);
            return -1;
        }
        p += n;
        bytes -= (size_t)n;
    }
    lseek(fd, 0, SEEK_SET);
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0) {
        status_set(st, STATUS_UNAVAILABLE, "the audio cannot be sealed for ffmpeg: %s", strerror(errno));
        close(fd);
        return -1;
    }
    return fd;
}

/* ---- the child's side: system calls only, as other threads may have held any lock at the fork ---- */

struct child_setup {
    const char *program;
    char *const *arguments, *const *environment;
    int input, out, messages, report;
    const struct confinement *confinement;
};

static void child_reset_signals(void) {
    struct sigaction action = {.sa_handler = SIG_DFL};
    for (int signal = 1; signal < 65; signal++)
        sigaction(signal, &action, NULL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* When memory or processor time runs short, this process is to suffer and not the one that serves others. */
static void child_volunteer(void) {
    setpriority(PRIO_PROCESS, 0, 5);
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t ignored = write(fd, "1000", 4);
    (void)ignored;
    close(fd);
}

static void child_close_from(unsigned first) {
    if (syscall(SYS_close_range, first, ~0u, 0) == 0)
        return;
    for (unsigned fd = first; fd < 65536; fd++) /* before Linux 5.9 */
        close((int)fd);
}

static _Noreturn void child_run(const struct child_setup *s) {
    struct confinement confinement = *s->confinement;
    setpgid(0, 0);
    child_volunteer();
    bool ready = dup2(s->input, 0) == 0 && dup2(s->out, 1) == 1 && dup2(s->messages, 2) == 2 &&
                 dup2(s->report, CHILD_FD_REPORT) == CHILD_FD_REPORT &&
                 fcntl(CHILD_FD_REPORT, F_SETFD, FD_CLOEXEC) == 0;
    if (confinement.landlock_fd >= 0) {
        ready = ready && dup2(confinement.landlock_fd, CHILD_FD_LANDLOCK) == CHILD_FD_LANDLOCK &&
                fcntl(CHILD_FD_LANDLOCK, F_SETFD, FD_CLOEXEC) == 0;
        confinement.landlock_fd = CHILD_FD_LANDLOCK;
    }
    child_close_from(confinement.landlock_fd >= 0 ? CHILD_FD_LANDLOCK + 1 : CHILD_FD_REPORT + 1);
    child_reset_signals();
    int error = EPERM; /* of what was to confine it */
    if (ready && confine_holds(&confinement, confine_enter(&confinement))) {
        execve(s->program, s->arguments, s->environment);
        error = errno;
    }
    ssize_t ignored = write(CHILD_FD_REPORT, &error, sizeof error);
    (void)ignored;
    _exit(127);
}

/* ---- the parent's side ---- */

/* Signals stay blocked from before the fork until the child has no handlers of this process any more. */
static pid_t child_fork(const struct child_setup *s) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t pid = _Fork(); /* fork without the handlers that libraries registered for it */
    if (pid == 0)
        child_run(s);
    int error = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return pid;
}

static int child_start(struct child *c, const char *program, int input, const struct confinement *confinement,
                       const struct audio_limits *limits, struct status *st) {
    char seconds[32];
    /* One second more than allowed, so that too long a file is noticed and refused instead of cut. */
    snprintf(seconds, sizeof seconds, "%.0f",
             (limits->duration_s_max < 1e9 ? limits->duration_s_max : 1e9) + 1.0);
    const char *arguments[] = {"ffmpeg",
                               "-nostdin",
                               "-hide_banner",
                               "-nostats",
                               "-loglevel",
                               "error",
                               "-protocol_whitelist",
                               "file",
                               "-format_whitelist",
                               formats,
                               "-threads",
                               "1",
                               "-i",
                               "file:/proc/self/fd/0",
                               "-map",
                               "0:a:0",
                               "-vn",
                               "-sn",
                               "-dn",
                               "-map_metadata",
                               "-1",
                               "-map_chapters",
                               "-1",
                               "-filter_threads",
                               "1",
                               "-t",
                               seconds,
                               "-threads",
                               "1",
                               "-c:a",
                               "pcm_f32be",
                               "-f",
                               "au",
                               "pipe:1",
                               NULL};
    const char *environment[] = {"PATH=/usr/bin:/bin", "LANG=C", "LC_ALL=C", NULL};
    int out[2] = {-1, -1}, messages[2] = {-1, -1}, report[2] = {-1, -1}, result = -1;
    if (fd_open_pipe(out) != 0 || fd_open_pipe(messages) != 0 || fd_open_pipe(report) != 0) {
        status_set(st, STATUS_RESOURCE_EXHAUSTED, "no pipe to ffmpeg: %s", strerror(errno));
        goto done;
    }
    fcntl(out[1], F_SETPIPE_SZ, 1 << 20); /* fewer wake-ups; the default does too */
    struct child_setup setup = {
        .program = program,
        .arguments = (char *const *)arguments,
        .environment = (char *const *)environment,
        .input = input,
        .out = out[1],
        .messages = messages[1],
        .report = report[1],
        .confinement = confinement,
    };
    c->pid = child_fork(&setup);
    if (c->pid < 0) {
        status_set(st, STATUS_UNAVAILABLE, "ffmpeg cannot be started: %s", strerror(errno));
        goto done;
    }
    setpgid(c->pid, c->pid); /* the child does so too: whoever comes first */
    c->out = out[0], c->messages = messages[0], c->report = report[0];
    out[0] = messages[0] = report[0] = -1;
    result = 0;
done:
    for (int i = 0; i < 2; i++)
        fd_close(&out[i]), fd_close(&messages[i]), fd_close(&report[i]);
    return result;
}

/* Notes the end of the child when it is over. */
static bool child_reap(struct child *c, int options) {
    while (!c->reaped) {
        pid_t pid = waitpid(c->pid, &c->wait_status, options);
        if (pid == c->pid) {
            c->reaped = c->ended = true;
        } else if (pid == 0) {
            return false;
        } else if (errno != EINTR) {
            c->reaped =
                true; /* somebody else in this process waits for every child: it is gone, how is unknown */
        }
    }
    return true;
}

/* Gives the child until its deadline to end, then ends it. Afterwards there is nothing left of it. */
static void child_stop(struct child *c, bool at_once) {
    if (c->pid <= 0)
        return;
    const struct timespec pause = {.tv_nsec = 500 * 1000};
    while (!at_once && !child_reap(c, WNOHANG) && clock_now_ns() < c->deadline_ns)
        nanosleep(&pause, NULL);
    if (!c->reaped) {
        kill(-c->pid, SIGKILL);
        kill(c->pid, SIGKILL); /* in case it had not become its own group yet */
        child_reap(c, 0);
    }
    fd_close(&c->out);
    fd_close(&c->messages);
    fd_close(&c->report);
    c->pid = 0;
}

static void child_listen(struct child *c, const char *text, size_t bytes) {
    if (bytes > CHILD_MESSAGES_BYTES) {
        text += bytes - CHILD_MESSAGES_BYTES;
        bytes = CHILD_MESSAGES_BYTES;
    }
    size_t keep = c->said_bytes < CHILD_MESSAGES_BYTES - bytes ? c->said_bytes : CHILD_MESSAGES_BYTES - bytes;
    memmove(c->said, c->said + c->said_bytes - keep, keep);
    memcpy(c->said + keep, text, bytes);
    c->said_bytes = keep + bytes;
    c->said[c->said_bytes] = '\0';
}

/* ---- samples ---- */

static uint32_t read_u32(const unsigned char *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | (uint32_t)p[3];
}

static int au_open(struct au_stream *au, struct audio_attempt *a, int rate_hz,
                   const struct audio_limits *limits, struct status *st) {
    const unsigned char *p = au->bytes;
    uint32_t offset = read_u32(p + 4);
    if (memcmp(p, ".snd", 4) != 0 || offset < AU_HEADER_BYTES || offset > AU_OFFSET_MAX ||
        read_u32(p + 12) != AU_ENCODING_FLOAT) {
        au->broken = true;
        return 0;
    }
    au->opened = true;
    au->skip = offset - AU_HEADER_BYTES;
    return audio_sink_open(&a->sink, read_u32(p + 16), read_u32(p + 20), rate_hz, limits, st);
}

/* Takes `held` bytes, of which the last came just now; what is not used stays for the next time. */
static int au_take(struct au_stream *au, struct audio_attempt *a, int rate_hz,
                   const struct audio_limits *limits, struct status *st) {
    size_t used = 0;
    if (!au->opened) {
        if (au->held < AU_HEADER_BYTES)
            return 0;
        if (au_open(au, a, rate_hz, limits, st) != 0)
            return -1;
        if (au->broken)
            return 0;
        used = AU_HEADER_BYTES;
    }
    size_t skip = au->held - used < au->skip ? au->held - used : au->skip;
    au->skip -= skip;
    used += skip;
    size_t channels = (size_t)a->sink.channels, frames = (au->held - used) / (channels * 4);
    for (size_t i = 0; i < frames * channels; i++) {
        uint32_t bits = read_u32(au->bytes + used + 4 * i);
        memcpy(&au->values[i], &bits, sizeof bits);
    }
    used += frames * channels * 4;
    au->held -= used;
    memmove(au->bytes, au->bytes + used, au->held);
    return audio_sink_put(&a->sink, au->values, frames, st);
}

/* One read of samples. 1: there may be more. 0: no more. -1: the decoding is over, with `st`. */
static int child_read_samples(struct child *c, struct au_stream *au, struct audio_attempt *a, int rate_hz,
                              const struct audio_limits *limits, struct status *st) {
    ssize_t n = read(c->out, au->bytes + au->held, CHILD_READ_BYTES);
    if (n < 0 && errno == EINTR)
        return 1;
    if (n <= 0)
        return 0;
    au->held += (size_t)n;
    if (au_take(au, a, rate_hz, limits, st) != 0)
        return -1;
    return au->broken ? 0 : 1;
}

/* Samples and messages until the child closes both or its time is over. */
static int child_pump(struct child *c, struct au_stream *au, struct audio_attempt *a, int rate_hz,
                      const struct audio_limits *limits, struct status *st) {
    while (c->out >= 0 || c->messages >= 0) {
        int64_t left_ns = c->deadline_ns - clock_now_ns();
        if (left_ns <= 0)
            return status_set(st, STATUS_DEADLINE_EXCEEDED,
                              "ffmpeg took longer than decode-timeout-ms, which is %d ms",
                              limits->decode_ms_max);
        struct pollfd polled[2] = {{.fd = c->out, .events = POLLIN}, {.fd = c->messages, .events = POLLIN}};
        int wait_ms = left_ns < 1000000000 ? (int)(left_ns / 1000000) + 1 : 1000;
        if (poll(polled, 2, wait_ms) < 0 && errno != EINTR)
            return status_set(st, STATUS_INTERNAL, "waiting for ffmpeg failed: %s", strerror(errno));
        if (polled[0].revents != 0) {
            int more = child_read_samples(c, au, a, rate_hz, limits, st);
            if (more < 0)
                return -1;
            if (more == 0)
                fd_close(&c->out);
        }
        if (polled[1].revents != 0) {
            char text[1024];
            ssize_t n = read(c->messages, text, sizeof text);
            if (n > 0)
                child_listen(c, text, (size_t)n);
            else if (n == 0 || errno != EINTR)
                fd_close(&c->messages);
        }
    }
    return audio_sink_finish(&a->sink, st);
}

/* ---- what it said ---- */

/* The last line with something in it, without addresses, without paths, as printable ASCII. */
static void child_quote(const struct child *c, char *why, size_t why_bytes) {
    const char *end = c->said + c->said_bytes;
    while (end > c->said && isspace((unsigned char)end[-1]))
        end--;
    const char *line = end;
    while (line > c->said && line[-1] != '\n' && line[-1] != '\r')
        line--;
    size_t n = 0;
    while (line < end) {
        size_t word = 0;
        while (line + word < end && line[word] != ' ')
            word++;
        /* "file:/proc/self/fd/0:" and "@ 0x55d0c8f1a940]" tell the reader nothing */
        bool dropped = memchr(line, '/', word) != NULL || (word == 1 && line[0] == '@');
        bool address = word > 2 && line[0] == '0' && line[1] == 'x';
        if (address && line[word - 1] == ']' && n + 1 < why_bytes)
            why[n > 0 && why[n - 1] == ' ' ? n - 1 : n++] = ']';
        for (size_t i = 0; i < word && !dropped && !address && n + 1 < why_bytes; i++)
            why[n++] = line[i] > ' ' && line[i] <= '~' ? line[i] : '?';
        if (n > 0 && why[n - 1] != ' ' && n + 1 < why_bytes)
            why[n++] = ' ';
        line += word + (line + word < end);
    }
    while (n > 0 && why[n - 1] == ' ')
        n--;
    why[n] = '\0';
}

static void child_judge(const struct child *c, const struct au_stream *au, struct audio_attempt *a) {
    bool exited = c->ended && WIFEXITED(c->wait_status), fine = exited && WEXITSTATUS(c->wait_status) == 0;
    a->whole = fine && a->sink.frames > 0;
    if (strstr(c->said, "matches no streams") != NULL) {
        a->empty = true;
        snprintf(a->why, sizeof a->why, "the file has no audio stream");
    } else if (strstr(c->said, "not on whitelist") != NULL) {
        snprintf(a->why, sizeof a->why, "not a kind of file that carries audio");
    } else if (au->broken) {
        snprintf(a->why, sizeof a->why, "it did not answer with audio");
    } else if (fine && a->sink.frames == 0) {
        a->empty = true;
        snprintf(a->why, sizeof a->why, "the file holds no samples");
    } else if (c->ended && WIFSIGNALED(c->wait_status)) {
        snprintf(a->why, sizeof a->why, "it was ended by signal %d", WTERMSIG(c->wait_status));
    } else {
        child_quote(c, a->why, sizeof a->why);
        if (a->why[0] == '\0')
            snprintf(a->why, sizeof a->why, "it failed without a word");
    }
}

/* When the program could not be started at all, the child has said so in `report`. */
static int child_check_exec(struct child *c, const char *program, struct status *st) {
    int error = 0;
    ssize_t n;
    do
        n = read(c->report, &error, sizeof error);
    while (n < 0 && errno == EINTR);
    if (n != (ssize_t)sizeof error)
        return 0;
    bool passes = error == ENOMEM || error == EAGAIN || error == ETXTBSY;
    return status_set(st, passes ? STATUS_UNAVAILABLE : STATUS_FAILED_PRECONDITION,
                      "ffmpeg (%.200s) cannot be started: %s", program, strerror(error));
}

/* ---- the whole ---- */

int ffmpeg_decode(struct audio_attempt *a, const void *data, size_t bytes, int rate_hz,
                  const struct audio_limits *limits, struct status *st) {
    char program[PATH_MAX];
    if (ffmpeg_find(program, limits->ffmpeg, st) != 0)
        return -1;
    struct au_stream *au = calloc(1, sizeof *au);
    if (au == NULL)
        return status_set_no_memory(st, sizeof *au, "decoding");
    int result = -1, input = -1;
    struct child child = {.out = -1, .messages = -1, .report = -1};
    struct confinement confinement = {.landlock_fd = -1};
    if (confine_prepare(&confinement, program, (unsigned)limits->decode_ms_max / 1000 + 1, st) != 0)
        goto done;
    confinement.landlock_fd = fd_raise(confinement.landlock_fd);
    input = fd_open_input(data, bytes, st);
    if (input < 0)
        goto done;
    child.deadline_ns = clock_now_ns() + (int64_t)limits->decode_ms_max * 1000000;
    if (child_start(&child, program, input, &confinement, limits, st) != 0)
        goto done;
    fd_close(&input); /* the child's copy is enough */
    if (child_check_exec(&child, program, st) == 0)
        result = child_pump(&child, au, a, rate_hz, limits, st);
    child_stop(&child, result != 0 || au->broken);
    if (result == 0)
        child_judge(&child, au, a);
done:
    fd_close(&input);
    confine_free(&confinement);
    free(au);
    return result;
}

const char *ffmpeg_describe_confinement(char *text, size_t bytes) {
    struct confinement confinement;
    if (confine_prepare(&confinement, "/", 1, NULL) != 0)
        return confine_describe(text, bytes, 0, 0);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t pid = _Fork();
    if (pid == 0)
        _exit((int)confine_enter(&confinement));
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    struct child child = {.pid = pid, .out = -1, .messages = -1, .report = -1};
    unsigned parts = 0;
    if (pid > 0 && child_reap(&child, 0) && child.ended && WIFEXITED(child.wait_status))
        parts = (unsigned)WEXITSTATUS(child.wait_status);
    confine_describe(text, bytes, parts, confinement.landlock_abi);
    confine_free(&confinement);
    return text;
}
