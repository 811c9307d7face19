/* timbre/client.h: asks a Timbre server how something is said.
 *
 *     struct timbre_client *client;
 *     struct timbre_status status;
 *     if (timbre_client_new(&client, &(struct timbre_client_options){.target = "localhost:9000"}, &status))
 *         errx(1, "%s", status.message);
 *     struct timbre_prediction *p;
 *     if (timbre_predict(client, &(struct timbre_predict_request){.audio = bytes, .audio_bytes = count}, &p,
 *                        &status) == 0)
 *         printf("%s\n", p->dominant ? p->dominant->label : p->message);
 *     timbre_prediction_free(p);
 *     timbre_client_del(client);
 *
 * In every struct that goes in, a field that is zero means the default told at the field, so designated
 * initialisers name only what differs. Strings that go in are copied; they may go when the function returns.
 * Strings that come out are zero-terminated and never NULL. They come from the server: they may hold any
 * bytes.
 *
 * Functions that can fail return 0, or -1 with *status filled; `status` may be NULL. On success it is filled
 * too (TIMBRE_CODE_OK, and how many attempts it took).
 *
 * Threads: a client may be used by any number of threads at once. It has one thread of its own, on which
 * callbacks run. A process must not fork and go on using a client, or make one, in the child (exec is fine).
 *
 * While the version is 0, structs may grow from one minor version to the next: compile against the header of
 * the library that is linked. */
#ifndef TIMBRE_CLIENT_H
#define TIMBRE_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define TIMBRE_EXPORT __attribute__((visibility("default")))
#else
#define TIMBRE_EXPORT
#endif

/* ---- what became of a call ---- */

/* Those of gRPC. Others than these are possible when something stands between client and server. */
enum timbre_code {
    TIMBRE_CODE_OK = 0,
    TIMBRE_CODE_CANCELLED = 1, /* by timbre_call_cancel or timbre_client_del */
    TIMBRE_CODE_UNKNOWN = 2,
    TIMBRE_CODE_INVALID_ARGUMENT = 3, /* the request is wrong and will be wrong again */
    TIMBRE_CODE_DEADLINE_EXCEEDED = 4,
    TIMBRE_CODE_NOT_FOUND = 5, /* no such model */
    TIMBRE_CODE_ALREADY_EXISTS = 6,
    TIMBRE_CODE_PERMISSION_DENIED = 7,
    TIMBRE_CODE_RESOURCE_EXHAUSTED = 8,  /* a limit, of the server or of this client; the message names it */
    TIMBRE_CODE_FAILED_PRECONDITION = 9, /* such as a file that needs what the server does not have */
    TIMBRE_CODE_ABORTED = 10,
    TIMBRE_CODE_OUT_OF_RANGE = 11,
    TIMBRE_CODE_UNIMPLEMENTED = 12,
    TIMBRE_CODE_INTERNAL = 13,    /* also: the reply could not be read */
    TIMBRE_CODE_UNAVAILABLE = 14, /* no connection, or the server is draining */
    TIMBRE_CODE_DATA_LOSS = 15,
    TIMBRE_CODE_UNAUTHENTICATED = 16, /* no token, or one the server does not know */
};

/* "INVALID_ARGUMENT" and so on; "UNKNOWN" for numbers that are none. */
TIMBRE_EXPORT const char *timbre_code_name(int code);

enum { TIMBRE_MESSAGE_BYTES = 512, TIMBRE_REASON_BYTES = 64 };

struct timbre_status {
    int code;           /* enum timbre_code */
    int attempts;       /* that were sent; 0: it failed in this process, before any */
    int retry_after_ms; /* when the server asks to come again; -1: it does not say, or says not to */
    char reason[TIMBRE_REASON_BYTES];   /* of google.rpc.ErrorInfo, such as "QUEUE_FULL"; else "" */
    char message[TIMBRE_MESSAGE_BYTES]; /* a sentence, cut to this size; "" when OK */
};

/* ---- the client ---- */

/* A deadline that never comes. */
#define TIMBRE_NO_DEADLINE (-1)

struct timbre_client_options {
    const char *target; /* required: "host:port", "[ipv6]:port", "dns:///name:port" or "unix:/path" */

    /* TLS, when `tls` is set or one of the files is named. Without: plain text, the token included. */
    bool tls;
    const char *tls_ca;             /* a PEM file of certificates to trust; NULL: those of this machine */
    const char *tls_cert, *tls_key; /* PEM files: the client's own; both or neither */
    const char *tls_server_name;    /* expected in the server's certificate; NULL: the host of `target` */

    /* Sent as `authorization: Bearer TOKEN`. At most one of the two. */
    const char *token;
    const char *token_file; /* its first line; read once, by timbre_client_new */

    int deadline_ms; /* of calls that name none, all attempts together; 0: 60000; TIMBRE_NO_DEADLINE: never */

    /* Retries. A call is sent again when the answer was UNAVAILABLE, after a wait that doubles from
     * backoff_initial_ms to backoff_max_ms and is half chance; and when it was RESOURCE_EXHAUSTED and the
     * server said when to come again (grpc-retry-pushback-ms). Never beyond the deadline, never after a
     * cancel. */
    int attempts_max;       /* in all; 0: 4; 1: no retry */
    int backoff_initial_ms; /* 0: 100 */
    int backoff_max_ms;     /* 0: 5000 */

    int64_t reply_bytes_max; /* a larger reply is RESOURCE_EXHAUSTED; 0: 16777216 (16 MiB) */

    bool round_robin; /* spread calls over all addresses of the target's name; false: use the first that
                         answers */
    int keepalive_ms; /* ping a silent connection that has calls on it so often; 0: never. Servers of this
                         project allow 300000 and more, unless told otherwise */
    const char *user_agent; /* put before the library's own; NULL: nothing */
};

struct timbre_client;

/* Makes a client. It connects when the first call is made, and again whenever the connection was lost.
 * Errors: INVALID_ARGUMENT (an option out of range or missing: named; a file that cannot be read, or that is
 * not PEM), RESOURCE_EXHAUSTED (memory, threads). On an error *client is NULL. */
TIMBRE_EXPORT int timbre_client_new(struct timbre_client **client,
                                    const struct timbre_client_options *options,
                                    struct timbre_status *status);

/* Cancels what is under way, waits until the last callback has returned, and frees. No other thread may be in
 * a function of this client any more, and it must not be called from a callback. NULL is fine. */
TIMBRE_EXPORT void timbre_client_del(struct timbre_client *client);

/* The token of calls that begin from now on, and of streams that are resumed; NULL or "": none. Errors:
 * INVALID_ARGUMENT (not printable ASCII, or longer than 8192 bytes), RESOURCE_EXHAUSTED. */
TIMBRE_EXPORT int timbre_client_set_token(struct timbre_client *client, const char *token,
                                          struct timbre_status *status);

/* "0.1.0". */
TIMBRE_EXPORT const char *timbre_client_version(void);

/* ---- Predict ---- */

enum timbre_encoding {
    TIMBRE_ENCODING_FILE = 0,    /* a whole file: WAV, FLAC, MP3, Ogg, Opus, M4A, WebM, ... */
    TIMBRE_ENCODING_PCM16 = 2,   /* raw: signed 16 bit, little-endian, interleaved */
    TIMBRE_ENCODING_FLOAT32 = 3, /* raw: IEEE 754, little-endian, interleaved */
    TIMBRE_ENCODING_MULAW = 4,   /* raw: G.711, a byte a sample */
    TIMBRE_ENCODING_ALAW = 5,
};

enum timbre_priority {
    TIMBRE_PRIORITY_NORMAL = 0,
    TIMBRE_PRIORITY_BULK = 2, /* after everything else; nothing starves */
};

struct timbre_predict_request {
    const void *audio; /* [audio_bytes]; copied once, unless `release` is set */
    size_t audio_bytes;
    /* Not NULL: the bytes are not copied. They must stay as they are until the library calls
     * release(release_arg), once, in any case, on any thread; it must not block or call into this library.
     * That can be after the result: what a call that was cancelled or late has given to the connection is
     * free when the connection is rid of it. When the function that is given the request fails at once,
     * release has been called when it returns. */
    void (*release)(void *release_arg);
    void *release_arg;

    enum timbre_encoding encoding;
    int sample_rate_hz; /* of raw encodings: 1000 to 768000; 0: 16000 */
    int channels;       /* of raw encodings: 1 to 64, averaged; 0: 1 */

    const char *model;         /* NULL or "": the server's first */
    const char *model_version; /* NULL or "": the newest */
    double window_s;     /* answers for windows of this length, 0.05 to 30; 0: one answer for the whole, and
                            windows of 10 s for recordings of more than 30 s */
    double hop_s;        /* from one window to the next, 0.01 to window_s; 0: half of window_s */
    double speech_s_min; /* windows with less speech than this are TIMBRE_ANSWER_NO_SPEECH, 0 to window_s; 0:
                            only silence is */
    int top_k;           /* so many labels, the highest first; 0: all, in the model's own order */
    bool embedding;      /* also the pooled hidden states */
    enum timbre_priority priority;

    const char *request_id;  /* up to 128 printable ASCII characters; NULL or "": the server makes one */
    const char *traceparent; /* W3C trace context to send along; NULL or "": none */
    int deadline_ms;         /* 0: the client's; TIMBRE_NO_DEADLINE: never */
};

/* Only TIMBRE_ANSWER_OK carries scores. */
enum timbre_answer {
    TIMBRE_ANSWER_OK = 1,
    TIMBRE_ANSWER_NO_SPEECH = 2, /* silence */
    TIMBRE_ANSWER_TOO_SHORT = 3,
    TIMBRE_ANSWER_ERROR = 4,
};

/* "ok", "no_speech", "too_short", "error"; "unknown" for numbers that are none. */
TIMBRE_EXPORT const char *timbre_answer_name(int answer);

struct timbre_score {
    const char *label; /* the model's own */
    int index;         /* of the label in timbre_model.labels */
    float score;       /* 0 to 1 and 1 together, for the usual softmax output */
    float logit;
};

struct timbre_window {
    double start_s, end_s;
    int answer;                        /* enum timbre_answer */
    const struct timbre_score *scores; /* [scores_count] */
    size_t scores_count;
};

/* Where an answer comes from. */
struct timbre_receipt {
    const char *model, *model_version, *digest, *device, *precision;
    int batch_size;    /* clips in the batch it rode in */
    double queue_ms;   /* waited for the device */
    double compute_ms; /* of the batch */
    double audio_s;    /* that was run */
};

/* All that it points to lives until timbre_prediction_free. */
struct timbre_prediction {
    int answer;                        /* enum timbre_answer */
    const char *message;               /* why there is no score, else "" */
    double duration_s;                 /* of the recording */
    const struct timbre_score *scores; /* [scores_count] */
    size_t scores_count;
    const struct timbre_score *dominant; /* the highest; NULL without scores and for regressions */
    const float *embedding;              /* [embedding_count] */
    size_t embedding_count;
    const struct timbre_window *windows; /* [windows_count] */
    size_t windows_count;
    struct timbre_receipt receipt;
    const char *request_id;
};

/* Any thread. NULL is fine. */
TIMBRE_EXPORT void timbre_prediction_free(struct timbre_prediction *prediction);

/* Asks and waits for the answer; not from a callback. On an error *prediction is NULL. Errors: those the
 * server answers with (enum timbre_code), UNAVAILABLE, DEADLINE_EXCEEDED, INVALID_ARGUMENT (audio,
 * deadline_ms, traceparent), RESOURCE_EXHAUSTED (memory; more than 2146435071 bytes), INTERNAL (the reply
 * could not be read), FAILED_PRECONDITION (called from a callback). */
TIMBRE_EXPORT int timbre_predict(struct timbre_client *client, const struct timbre_predict_request *request,
                                 struct timbre_prediction **prediction, struct timbre_status *status);

/* The result of timbre_predict_start. `prediction` is NULL when status->code is not OK, else the callback's
 * to free (then or later, on any thread); `status` goes when the callback returns. It runs on the client's
 * own thread, which moves all calls: it must return soon and must not wait. It may start and cancel calls. */
typedef void timbre_predict_callback(struct timbre_prediction *prediction, const struct timbre_status *status,
                                     void *user);

struct timbre_call;

/* Asks; exactly one callback follows, unless this returns -1. Nothing limits the number of calls under way
 * but the memory of their audio. `call`, when not NULL, takes a handle for timbre_call_cancel, set
 * before the callback can run. Errors: INVALID_ARGUMENT and RESOURCE_EXHAUSTED as above, CANCELLED (from a
 * callback while timbre_client_del waits). */
TIMBRE_EXPORT int timbre_predict_start(struct timbre_client *client,
                                       const struct timbre_predict_request *request,
                                       timbre_predict_callback *callback, void *user,
                                       struct timbre_call **call, struct timbre_status *status);

/* Asks the call to end soon: its callback comes with CANCELLED, or with what became of it if that was faster.
 * Any thread, any number of times, also after the callback and after timbre_client_del. */
TIMBRE_EXPORT void timbre_call_cancel(struct timbre_call *call);

/* Gives the handle back; the call goes on. Once a handle, at any time. NULL is fine. */
TIMBRE_EXPORT void timbre_call_release(struct timbre_call *call);

/* ---- StreamingPredict ---- */

enum { TIMBRE_STREAM_CHANNELS_MAX = 8 };

struct timbre_stream_channel {
    const char *name, *role; /* up to 64 bytes; shown in results */
    bool exclude;            /* the server drops it before anything is computed from it */
};

/* What became of a window or utterance. All that it points to goes when the callback returns. */
struct timbre_stream_result {
    int channel;
    const char *channel_name, *role;
    double start_s, end_s;             /* seconds of audio since the beginning of the call */
    double speech_s;                   /* of that, speech */
    int answer;                        /* enum timbre_answer */
    const char *message;               /* why there is no score, else "" */
    const struct timbre_score *scores; /* [scores_count] all labels, in the model's own order */
    size_t scores_count;
    const struct timbre_score *smoothed; /* [smoothed_count]; 0 unless smoothing_s was asked for */
    size_t smoothed_count;
    const struct timbre_score *dominant; /* NULL without scores and for regressions */
    bool final;             /* false: an interim result, replaced by a later one with the same start */
    const float *embedding; /* [embedding_count] */
    size_t embedding_count;
    struct timbre_receipt receipt;
    int64_t resume_offset_ms;
    /* From when the library was given the last byte of this stretch until the result came; NaN when it was
     * given before a reconnection. Bytes given within 20 ms of audio count as given with the last of them. */
    double lag_ms;
};

struct timbre_timeline_segment {
    double start_s, end_s, speech_s;
    const float *scores; /* [scores_count] in the order of the labels */
    size_t scores_count;
};

struct timbre_channel_summary {
    int channel;
    const char *channel_name, *role;
    bool excluded;
    const struct timbre_score *scores; /* [scores_count] means over final results, weighted by their speech */
    size_t scores_count;
    const struct timbre_score *dominant; /* or NULL */
    const struct timbre_score *trend;    /* [trend_count] last third less first third */
    size_t trend_count;
    double speech_s, silence_s, no_speech_share;
    int64_t results, no_speech_results, forwards;
    const struct timbre_timeline_segment *timeline; /* [timeline_count] */
    size_t timeline_count;
};

enum timbre_stream_end {
    TIMBRE_STREAM_GOES_ON = 0,
    TIMBRE_STREAM_CLIENT = 1,   /* all was sent and answered */
    TIMBRE_STREAM_DRAIN = 2,    /* the server goes */
    TIMBRE_STREAM_LIFETIME = 3, /* its limit of a stream's length */
    TIMBRE_STREAM_IDLE = 4,     /* nothing was sent for too long */
    TIMBRE_STREAM_ERROR = 5,
};

struct timbre_stream_summary {
    bool final;
    int end; /* enum timbre_stream_end, of this server's part of the stream */
    const struct timbre_channel_summary *channels; /* [channels_count] */
    size_t channels_count;
    double talk_over_s;
    double start_s, end_s;
    int64_t resume_offset_ms;
    const char *request_id;
};

struct timbre_stream_options {
    enum timbre_encoding encoding; /* a raw one; required */
    int sample_rate_hz;            /* 8000 to 48000; 0: 16000 */
    int channels_count;            /* 0: 1 */
    struct timbre_stream_channel channels[TIMBRE_STREAM_CHANNELS_MAX];

    const char *model, *model_version;    /* as in a predict request */
    bool utterances;                      /* else windows */
    double window_s, hop_s, speech_s_min; /* 0: the server's defaults, as all that follow */
    double length_s_min, length_s_max, hangover_s, interim_every_s;
    double smoothing_s;
    double summary_every_s;
    bool embedding;

    /* On the client's own thread, one at a time and never after on_end; they must return soon, must not wait,
     * and may call any function of the stream but timbre_stream_send with a wait and timbre_stream_del. Any
     * may be NULL but on_end. */
    void (*on_result)(const struct timbre_stream_result *result, void *user);
    /* With automatic resume, the summaries that end a part of a stream are not shown; the last one is, also
     * when the stream cannot go on: then just before on_end. */
    void (*on_summary)(const struct timbre_stream_summary *summary, void *user);
    /* The connection was lost, or the server went; the stream goes on at `offset_ms` in `wait_ms`. */
    void (*on_resume)(const struct timbre_status *why, int64_t offset_ms, int wait_ms, void *user);
    void (*on_end)(const struct timbre_status *status, void *user); /* exactly once; OK: all was answered */
    void *user;

    /* Resume: when a stream ends with UNAVAILABLE (or with RESOURCE_EXHAUSTED and a time to come again), it
     * is opened again, and what is needed of the audio is sent again, so that every result comes exactly
     * once. attempts_max and backoff as the client's, counted anew after every result. */
    bool no_resume;
    int64_t
        buffer_bytes_max; /* audio kept for that, and to be sent; 0: 16777216, or a minute of audio where
                             that is more. When what must be kept passes it, timbre_stream_send has no room */
    int stall_ms; /* a connection on which nothing moved for so long although audio waits to be sent, or
                     the rest of the results or a summary that was asked for is owed, is given up, and the
                     stream resumed; 0: 30000; -1: never */

    const char *request_id, *traceparent; /* as in a predict request */
    int deadline_ms;                      /* of the whole stream; 0: TIMBRE_NO_DEADLINE */

    /* To go on with a stream of another process: what its last result and summary told. */
    int64_t resume_offset_ms;
    double resume_end_s[TIMBRE_STREAM_CHANNELS_MAX];
};

struct timbre_stream;

/* Begins a stream; it connects by itself. *stream is set before a callback can run. Errors: INVALID_ARGUMENT
 * (an option: named), RESOURCE_EXHAUSTED, CANCELLED (the client is being deleted); then no callback comes.
 * What the server refuses comes to on_end.
 */
TIMBRE_EXPORT int timbre_stream_open(struct timbre_client *client,
                                     const struct timbre_stream_options *options,
                                     struct timbre_stream **stream, struct timbre_status *status);

/* Adds audio: any number of bytes, which are copied. Without room (buffer_bytes_max) it waits up to `wait_ms`
 * (0: not at all; -1: as long as it takes) and then takes nothing: RESOURCE_EXHAUSTED, which more bytes than
 * buffer_bytes_max are at once. FAILED_PRECONDITION: after finish or cancel, the stream has ended, or a
 * callback would have to wait. One thread at a time. */
TIMBRE_EXPORT int timbre_stream_send(struct timbre_stream *stream, const void *audio, size_t bytes,
                                     int wait_ms, struct timbre_status *status);

/* Asks for a rolling summary, of what was sent before. What is asked before the last question has gone out is
 * the same question. Any thread. FAILED_PRECONDITION: as of timbre_stream_send. */
TIMBRE_EXPORT int timbre_stream_ask_summary(struct timbre_stream *stream, struct timbre_status *status);

/* No more audio: the last results, the summary and on_end follow. Any thread, more than once is fine.
 * FAILED_PRECONDITION: it was cancelled, or has ended. */
TIMBRE_EXPORT int timbre_stream_finish(struct timbre_stream *stream, struct timbre_status *status);

/* Ends it soon: on_end comes with CANCELLED, or with what became of it if that was faster. Any thread, any
 * number of times until timbre_stream_del. */
TIMBRE_EXPORT void timbre_stream_cancel(struct timbre_stream *stream);

/* Waits for on_end (cancel first, or finish) and frees; not from a callback. Also after timbre_client_del.
 * NULL is fine. */
TIMBRE_EXPORT void timbre_stream_del(struct timbre_stream *stream);

/* ---- models and health ---- */

struct timbre_model {
    const char *name, *version, *digest;
    const char *family, *head;
    const char *const *labels; /* [labels_count] in the order of the logits */
    size_t labels_count;
    const char *output; /* "softmax", "sigmoid", "none" or "softmax of gender" */
    int sample_rate_hz;
    double min_audio_s;
    double frame_s;
    int hidden; /* size of the embedding */
    int64_t parameters;
    const char *licence; /* "" when the model does not say */
    const char *device, *precision;
};

/* All that it points to lives until timbre_models_free. */
struct timbre_models {
    const struct timbre_model *models; /* [count] the server's first model first */
    size_t count;
};

TIMBRE_EXPORT void timbre_models_free(struct timbre_models *models); /* NULL is fine */

/* The models that can be asked now. `deadline_ms` as in a request. Waits; not from a callback. On an error
 * *models is NULL. Errors: as timbre_predict. */
TIMBRE_EXPORT int timbre_list_models(struct timbre_client *client, int deadline_ms,
                                     struct timbre_models **models, struct timbre_status *status);

/* One model (*models has a count of 1). `name` NULL or "": the server's first; `version` NULL or "": the
 * newest. Errors: as timbre_predict, NOT_FOUND. */
TIMBRE_EXPORT int timbre_get_model(struct timbre_client *client, const char *name, const char *version,
                                   int deadline_ms, struct timbre_models **models,
                                   struct timbre_status *status);

/* Whether the server (`service` NULL or "") or one of its services serves now, by grpc.health.v1. Errors: as
 * timbre_predict, NOT_FOUND (no such service). */
TIMBRE_EXPORT int timbre_check_health(struct timbre_client *client, const char *service, int deadline_ms,
                                      bool *serving, struct timbre_status *status);

#ifdef __cplusplus
}
#endif

#endif
