/* options: everything an operator can set, from flags, TIMBRE_* environment and a config file.
 *
 * One table (options.c) names every option once: `--max-message-bytes N` is TIMBRE_MAX_MESSAGE_BYTES in the
 * environment and `max-message-bytes = N` in the file (# begins a comment). Flags win over the environment,
 * the environment over the file, the file over the defaults. Whatever is unknown, twice, out of range or
 * impossible together is refused with a sentence that names option and source. */
#ifndef TIMBRE_SERVER_OPTIONS_H
#define TIMBRE_SERVER_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/log.h"
#include "base/text.h"
#include "engine/stream.h"

enum { SERVER_MODELS_MAX = ENGINE_MODELS_MAX, SERVER_MESSAGE_BYTES_MAX_DEFAULT = 64 << 20 };

struct server_model_option {
    const char *name; /* NULL: called by its folder's name */
    const char *dir;
};
enum server_gpu_fault { SERVER_GPU_FAULT_EXIT, SERVER_GPU_FAULT_CPU };
enum server_access_log { SERVER_ACCESS_OFF, SERVER_ACCESS_ERRORS, SERVER_ACCESS_ALL };

struct server_options {
    /* Where it listens. HOST:PORT or [IPV6]:PORT; port 0 takes a free one. */
    const char *grpc_address; /* grpc-address; also unix:/path; never empty; default 127.0.0.1:9000 */
    const char *http_address; /* http-address; "" = off; default 127.0.0.1:8080 */

    /* Models. */
    struct server_model_option models[SERVER_MODELS_MAX]; /* model [NAME=]DIR, again and again */
    int models_count; /* 0 and no models_dir: the shipped one, called "default" */
    const char
        *models_dir; /* models-dir: every folder in it is a model, or holds versions 1, 2, ...; NULL: none */
    bool model_control; /* model-control: clients may load and unload (off by default) */

    /* The engine: max-batch-seconds, batch-delay-us, queue-depth, max-queued-seconds, prepare-threads,
     * transcode-threads, stream-threads, max-streams, silence-dbfs (off = never), max-file-bytes is
     * max-message-bytes here, max-duration, decode-timeout-ms, ffmpeg-bin (also FFMPEG_BIN); device,
     * precision, threads, no-pin, cpu-mode, packed-cache, packed-cache-verify, devices, cuda-conv,
     * cuda-attention, cuda-graphs, gpu-memory-limit. */
    struct engine_options engine;
    struct model_options model;
    enum server_gpu_fault on_gpu_fault; /* on-gpu-fault exit|cpu: what becomes of it when a GPU is lost */

    /* Limits of the server. */
    int64_t message_bytes_max; /* max-message-bytes; default 64 MiB */
    int64_t receive_bytes_max; /* max-receive-bytes: of all messages that are being received; default 1 GiB */
    int64_t
        stream_message_bytes_max; /* max-stream-message-bytes: one message of StreamingPredict; default 1 MiB
                                   */
    int calls_max;                /* max-calls: open at a time, health and streams included; default 4096 */
    int metadata_bytes_max;       /* max-metadata-bytes of one call; default 16384 */
    int connection_streams_max;   /* max-concurrent-streams of one connection; default 1024 */
    int upload_timeout_ms; /* upload-timeout-ms: from a call's beginning to its whole message; default 60000
                            */
    int stream_idle_ms;  /* stream-idle-ms: a stream whose client sends nothing for so long is ended; default
                            60000 */
    int stream_stall_ms; /* stream-stall-ms: likewise one whose client does not read; default 15000 */
    int stream_lifetime_s;        /* stream-lifetime-s; 0 = for ever; default 21600 */
    int keepalive_time_ms;        /* grpc-keepalive-time-ms; default 7200000 */
    int keepalive_timeout_ms;     /* grpc-keepalive-timeout-ms; default 20000 */
    bool keepalive_without_calls; /* grpc-keepalive-permit-without-calls */
    int ping_interval_min_ms;     /* grpc-http2-min-recv-ping-interval-without-data-ms; default 300000 */
    int connection_age_ms;        /* max-connection-age-ms; 0 = for ever (default) */
    int connection_age_grace_ms;  /* max-connection-age-grace-ms; default 30000 */

    /* Security. */
    const char *tls_cert, *tls_key; /* tls-cert, tls-key: PEM files; both or neither */
    const char *tls_client_ca;      /* tls-client-ca: clients must show a certificate of it */
    const char *token_file;         /* token-file; NULL: no tokens asked for */
    bool open_health;               /* open-health: health needs no token */
    bool reflection;                /* no-reflection turns it off */

    /* Life. */
    int lame_duck_ms;     /* lame-duck-ms: still serving after SIGTERM; default 0 */
    int drain_timeout_ms; /* drain-timeout-ms: then running calls are cancelled; default 30000 */

    /* Logs. */
    enum log_level log_level;          /* log-level debug info warn error off */
    bool log_json;                     /* log-format text|json */
    enum server_access_log access_log; /* access-log off|errors|all; default errors */

    void *memory; /* what the strings above point into; options_free's */
};

/* Fills `o` with defaults, then file, environment, flags; all strings are good until options_free. argv[0] is
 * not looked at. `shipped_model` is served when no model is named. Returns 0; 1 when --help was printed; -1
 * with a status: INVALID_ARGUMENT; then there is nothing to free. */
int options_init(struct server_options *o, int argc, char **argv, const char *shipped_model,
                 struct status *st);
void options_free(struct server_options *o);

/* What is possible but hardly meant, a sentence each, for the log. Returns how many. */
enum { OPTIONS_WARNINGS_MAX = 4 };
int options_list_warnings(const struct server_options *o, const char *warnings[OPTIONS_WARNINGS_MAX]);

#endif
