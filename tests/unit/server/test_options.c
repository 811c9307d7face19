/* Tests of server/options: where a value comes from, which ones are refused and how that is told, and that
 * table, help and sample file agree. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "server/options_table.h"
#include "tests/unit/server/folder.h"

enum { ARGUMENTS_MAX = 200 };
#define SAMPLE TIMBRE_SOURCE_DIR "/deploy/timbre.conf"

/* ---- running it ---- */

static int run(struct server_options *o, struct status *st, va_list list) {
    static char *argv[ARGUMENTS_MAX];
    int argc = 0;
    argv[argc++] = (char *)"serve";
    for (char *a; (a = va_arg(list, char *));)
        argv[argc++] = a;
    argv[argc] = NULL;
    *st = (struct status){0};
    return options_init(o, argc, argv, "/shipped", st);
}

/* Flags, ended by NULL; what was read last, until the next call. */
static const struct server_options *take(const char *first, ...) {
    static struct server_options o;
    struct status st;
    va_list list;
    (void)first;
    options_free(&o);
    va_start(list, first);
    if (run(&o, &st, list))
        fail_msg("%s", st.message);
    va_end(list);
    return &o;
}

/* Flags that are refused with just this sentence. */
static void refuse(const char *wanted, ...) {
    struct server_options o;
    struct status st;
    va_list list;
    va_start(list, wanted);
    assert_int_equal(run(&o, &st, list), -1);
    va_end(list);
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    assert_string_equal(st.message, wanted);
    assert_null(o.memory);
}

static void refuse_some(const char *part, const char *flag, const char *value) {
    struct server_options o;
    struct status st = {0};
    char *argv[] = {(char *)"serve", (char *)flag, (char *)value};
    int result = options_init(&o, 3, argv, "/shipped", &st);
    if (result == 0 || !strstr(st.message, part))
        fail_msg("%s %s: %d \"%s\"", flag, value, result, st.message);
}

#define TAKE(...)           take("", __VA_ARGS__, NULL)
#define TAKE_NOTHING()      take("", NULL)
#define REFUSE(wanted, ...) refuse(wanted, __VA_ARGS__, NULL)

static const char *write_config(const char *text) {
    folder_write("timbre.conf", text);
    return folder_path("timbre.conf");
}

/* The file is refused with its path, then `wanted`. */
static void refuse_config(const char *text, const char *wanted) {
    char message[STATUS_MESSAGE_BYTES_MAX];
    const char *path = write_config(text);
    snprintf(message, sizeof message, "%s%s", path, wanted);
    REFUSE(message, "--config", path);
}

static int setup(void **state) {
    return folder_setup(state);
}

static int teardown(void **state) {
    extern char **environ;
    for (char **e = environ; *e;) { /* whatever a test has set */
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(*e, "="), *e);
        if (strncmp(name, "TIMBRE_", 7) == 0 || strcmp(name, "FFMPEG_BIN") == 0)
            unsetenv(name);
        else
            e++;
    }
    TAKE_NOTHING();
    return folder_teardown(state);
}

/* ---- defaults ---- */

static void test_defaults(void **state) {
    (void)state;
    const struct server_options *o = TAKE_NOTHING();
    struct engine_options engine;
    engine_options_init(&engine);
    assert_string_equal(o->grpc_address, "127.0.0.1:9000");
    assert_string_equal(o->http_address, "127.0.0.1:8080");
    assert_int_equal(o->models_count, 1);
    assert_string_equal(o->models[0].name, "default");
    assert_string_equal(o->models[0].dir, "/shipped");
    assert_null(o->models_dir);
    assert_false(o->model_control);
    assert_true(o->engine.batch_s_max == engine.batch_s_max);
    assert_true(o->engine.queued_s_max == engine.queued_s_max);
    assert_true(o->engine.silence_dbfs == engine.silence_dbfs);
    assert_int_equal(o->engine.delay_us, engine.delay_us);
    assert_int_equal(o->engine.queue_depth, engine.queue_depth);
    assert_int_equal(o->engine.prepare_threads, engine.prepare_threads);
    assert_int_equal(o->engine.transcode_threads, engine.transcode_threads);
    assert_true(o->engine.audio.duration_s_max == engine.audio.duration_s_max);
    assert_int_equal(o->engine.audio.decode_ms_max, engine.audio.decode_ms_max);
    assert_null(o->engine.audio.ffmpeg);
    assert_int_equal(o->engine.audio.bytes_max, 64 << 20); /* of the messages, not of the engine */
    assert_string_equal(o->model.device, "auto");
    assert_string_equal(o->model.precision, "auto");
    assert_int_equal(o->model.threads, 0);
    assert_true(o->model.pin);
    assert_null(o->model.labels_path);
    assert_int_equal(o->message_bytes_max, 64 << 20);
    assert_int_equal(o->receive_bytes_max, 1 << 30);
    assert_int_equal(o->calls_max, 4096);
    assert_int_equal(o->metadata_bytes_max, 16384);
    assert_int_equal(o->connection_streams_max, 1024);
    assert_int_equal(o->upload_timeout_ms, 60000);
    assert_int_equal(o->keepalive_time_ms, 7200000);
    assert_int_equal(o->keepalive_timeout_ms, 20000);
    assert_false(o->keepalive_without_calls);
    assert_int_equal(o->ping_interval_min_ms, 300000);
    assert_int_equal(o->connection_age_ms, 0);
    assert_int_equal(o->connection_age_grace_ms, 30000);
    assert_null(o->tls_cert);
    assert_null(o->tls_key);
    assert_null(o->tls_client_ca);
    assert_null(o->token_file);
    assert_false(o->open_health);
    assert_true(o->reflection);
    assert_int_equal(o->lame_duck_ms, 0);
    assert_int_equal(o->drain_timeout_ms, 30000);
    assert_int_equal(o->log_level, LOG_INFO);
    assert_false(o->log_json);
    assert_int_equal(o->access_log, SERVER_ACCESS_ERRORS);
}

/* ---- where a value comes from ---- */

static void test_precedence(void **state) {
    (void)state;
    const char *path = write_config("max-calls = 10\nqueue-depth = 11\nthreads = 12\n");
    setenv("TIMBRE_CONFIG", path, 1);
    setenv("TIMBRE_QUEUE_DEPTH", "21", 1);
    setenv("TIMBRE_THREADS", "22", 1);
    const struct server_options *o = TAKE("--threads", "33");
    assert_int_equal(o->calls_max, 10);
    assert_int_equal(o->engine.queue_depth, 21);
    assert_int_equal(o->model.threads, 33);
    folder_write("other.conf", "max-calls = 99\n");
    assert_int_equal(TAKE("--config", folder_path("other.conf"))->calls_max, 99);
    assert_int_equal(TAKE("--config=")->calls_max, 4096); /* no file at all */
    setenv("TIMBRE_CONFIG", "", 1);
    assert_int_equal(TAKE_NOTHING()->calls_max, 4096);
    setenv("TIMBRE_CONFIG", "/does/not/exist", 1);
    REFUSE("TIMBRE_CONFIG: /does/not/exist: No such file or directory", "--threads=3");
}

/* What a higher source overrides is read all the same: it may be next week's value. */
static void test_overridden_values_are_checked(void **state) {
    (void)state;
    setenv("TIMBRE_THREADS", "many", 1);
    REFUSE("TIMBRE_THREADS=many: not a whole number in 0..256", "--threads", "3");
}

static void test_models(void **state) {
    (void)state;
    const struct server_options *o = TAKE("--model", "a=/x/y", "--model=/z", "--model", "./odd=name/b");
    assert_int_equal(o->models_count, 3);
    assert_string_equal(o->models[0].name, "a");
    assert_string_equal(o->models[0].dir, "/x/y");
    assert_null(o->models[1].name);
    assert_string_equal(o->models[1].dir, "/z");
    assert_null(o->models[2].name);
    assert_string_equal(o->models[2].dir, "./odd=name/b");
    setenv("TIMBRE_MODEL", "e=/e,/f", 1);
    o = TAKE("--config", write_config("model = g=/g\nmodel = /h\nmodel = /i\n"));
    assert_int_equal(o->models_count, 2);
    assert_string_equal(o->models[0].name, "e");
    assert_string_equal(o->models[1].dir, "/f");
    assert_int_equal(TAKE("--model", "/j")->models_count,
                     1); /* flags instead of the environment's, not beside */
    unsetenv("TIMBRE_MODEL");
    assert_int_equal(TAKE("--config", folder_path("timbre.conf"))->models_count, 3);
    setenv("TIMBRE_MODEL", "", 1);
    o = TAKE("--config", folder_path("timbre.conf"));
    assert_int_equal(o->models_count, 1);
    assert_string_equal(o->models[0].dir, "/shipped");
    unsetenv("TIMBRE_MODEL");
    assert_int_equal(TAKE("--models-dir", "/m")->models_count, 0);
    o = TAKE("--models-dir", "/m", "--model", "/x");
    assert_int_equal(o->models_count, 1);
    assert_string_equal(o->models_dir, "/m");
}

static void test_wrong_models(void **state) {
    (void)state;
    REFUSE("--model a=/y: the name is taken by another model", "--model", "a=/x", "--model", "a=/y");
    REFUSE("--model =/y: no name before the =", "--model", "=/y");
    REFUSE("--model a=: no folder", "--model", "a=");
    REFUSE("--model : no folder", "--model", "");
    REFUSE("--model a b=/y: a name has 1 to 127 letters, digits, dots, dashes and underscores", "--model",
           "a b=/y");
    setenv("TIMBRE_MODEL", "/a,,/b", 1);
    REFUSE("TIMBRE_MODEL=/a,,/b: no folder", "--threads=1");
    unsetenv("TIMBRE_MODEL");
    char text[(SERVER_MODELS_MAX + 1) * 16 + 1], *at = text;
    for (int i = 0; i <= SERVER_MODELS_MAX; i++)
        at += sprintf(at, "model = /m\n");
    refuse_config(text, ":65: model = /m: more than 64 models");
    char name[200] = "";
    memset(name, 'n', 128);
    strcpy(name + 128, "=/x");
    refuse_some("a name has 1 to 127", "--model", name);
    assert_int_equal(strlen(TAKE("--model", name + 1)->models[0].name), 127);
}

static void test_switches(void **state) {
    (void)state;
    assert_true(TAKE("--model-control")->model_control);
    assert_false(TAKE("--no-reflection")->reflection);
    assert_false(TAKE("--no-pin")->model.pin);
    setenv("TIMBRE_MODEL_CONTROL", "1", 1);
    setenv("TIMBRE_NO_PIN", "true", 1);
    const char *path = write_config("no-reflection = yes\nopen-health = on\n");
    const struct server_options *o = TAKE("--config", path, "--open-health=false");
    assert_true(o->model_control);
    assert_false(o->model.pin);
    assert_false(o->reflection);
    assert_false(o->open_health);
    assert_true(TAKE("--no-reflection=off")->reflection);
    refuse_some("neither true nor false", "--open-health=", "--no-pin");
    refuse_some("neither true nor false", "--open-health=True", "--no-pin");
    refuse_some("maybe: not an option", "--open-health", "maybe");
}

static void test_ffmpeg(void **state) {
    (void)state;
    setenv("FFMPEG_BIN", "/opt/ffmpeg", 1);
    const char *path = write_config("ffmpeg-bin = /file\n");
    assert_string_equal(TAKE("--config", path)->engine.audio.ffmpeg, "/opt/ffmpeg");
    setenv("TIMBRE_FFMPEG_BIN", "/env", 1);
    assert_string_equal(TAKE("--config", path)->engine.audio.ffmpeg, "/env");
    assert_string_equal(TAKE("--ffmpeg-bin=")->engine.audio.ffmpeg, ""); /* never */
    unsetenv("TIMBRE_FFMPEG_BIN");
    unsetenv("FFMPEG_BIN");
    assert_string_equal(TAKE("--config", path)->engine.audio.ffmpeg, "/file");
}

static void test_empty_takes_away(void **state) {
    (void)state;
    const char *path = write_config("token-file = /t\nmodels-dir = /m\n");
    setenv("TIMBRE_TOKEN_FILE", "", 1);
    setenv("TIMBRE_HTTP_ADDRESS", "", 1);
    const struct server_options *o = TAKE("--config", path, "--models-dir=");
    assert_null(o->token_file);
    assert_null(o->models_dir);
    assert_string_equal(o->http_address, "");
}

/* ---- values ---- */

static void test_numbers(void **state) {
    (void)state;
    assert_int_equal(TAKE("--queue-depth", "1")->engine.queue_depth, 1);
    assert_int_equal(TAKE("--queue-depth=1000000")->engine.queue_depth, 1000000);
    static const char *const wrong[] = {"",   "x",   "0",   "1000001", "-1", "+1",  " 1",
                                        "1 ", "1.0", "0x1", "1e3",     "1k", "--1", "99999999999999999999"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char flag[64];
        snprintf(flag, sizeof flag, "--queue-depth=%s", wrong[i]);
        refuse_some("not a whole number in 1..1000000", flag, "--no-pin");
    }
    assert_true(TAKE("--max-batch-seconds", "30.5")->engine.batch_s_max == 30.5);
    assert_true(TAKE("--max-duration=1e3")->engine.audio.duration_s_max == 1000);
    static const char *const no_number[] = {"",    "x",    "nan",  "inf", "1e999", " 60",
                                            "60s", "0x40", "29.9", "1e6", "-60"};
    for (size_t i = 0; i < sizeof no_number / sizeof *no_number; i++) {
        char flag[64];
        snprintf(flag, sizeof flag, "--max-batch-seconds=%s", no_number[i]);
        refuse_some("not a number in 30..100000", flag, "--no-pin");
    }
    assert_true(TAKE("--silence-dbfs=-40.5")->engine.silence_dbfs == -40.5);
    assert_true(TAKE("--silence-dbfs", "-40")->engine.silence_dbfs == -40);
    assert_true(TAKE("--silence-dbfs", "off")->engine.silence_dbfs == -INFINITY);
    REFUSE("--silence-dbfs 3: not a number in -200..0, nor off", "--silence-dbfs", "3");
}

static void test_bytes(void **state) {
    (void)state;
    assert_int_equal(TAKE("--max-message-bytes", "4096")->message_bytes_max, 4096);
    assert_int_equal(TAKE("--max-message-bytes", "5k")->message_bytes_max, 5 << 10);
    assert_int_equal(TAKE("--max-message-bytes", "5M")->message_bytes_max, 5 << 20);
    assert_int_equal(TAKE("--max-message-bytes", "1GiB")->message_bytes_max, 1 << 30);
    assert_true(TAKE("--max-receive-bytes", "1024g")->receive_bytes_max == (int64_t)1 << 40);
    assert_int_equal(TAKE("--max-metadata-bytes", "64KiB")->metadata_bytes_max, 65536);
    assert_int_equal(TAKE("--max-message-bytes", "5M")->engine.audio.bytes_max, 5 << 20);
    static const char *const wrong[] = {"",
                                        "k",
                                        "4kk",
                                        "4kb",
                                        "4 k",
                                        "4095",
                                        "1048577k",
                                        "-1k",
                                        "2g",
                                        "1t",
                                        "4.5k",
                                        "9223372036854775807k",
                                        "17179869185g"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char flag[64];
        snprintf(flag, sizeof flag, "--max-message-bytes=%s", wrong[i]);
        refuse_some("not a whole number of bytes in 4096..1073741824", flag, "--no-pin");
    }
}

static void test_words(void **state) {
    (void)state;
    assert_string_equal(TAKE("--device", "ref")->model.device, "ref");
    assert_int_equal(TAKE("--log-level", "off")->log_level, LOG_OFF);
    assert_int_equal(TAKE("--log-level", "debug")->log_level, LOG_DEBUG);
    assert_true(TAKE("--log-format", "json")->log_json);
    assert_int_equal(TAKE("--access-log", "all")->access_log, SERVER_ACCESS_ALL);
    assert_int_equal(TAKE("--access-log", "off")->access_log, SERVER_ACCESS_OFF);
    REFUSE("--device gpu: not one of auto cpu cuda ref", "--device", "gpu");
    REFUSE("--log-level INFO: not one of debug info warn error off", "--log-level", "INFO");
    REFUSE("--access-log : not one of off errors all", "--access-log", "");
    REFUSE("--access-log off errors: not one of off errors all", "--access-log", "off errors");
}

static void test_addresses(void **state) {
    (void)state;
    static const char *const good[] = {"0.0.0.0:9000", "[::]:0",        "[2001:db8::1]:65535", "host.name:1",
                                       "unix:/x",      "unix:relative", "localhost:0",         "127.0.0.1:9"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_string_equal(TAKE("--grpc-address", good[i])->grpc_address, good[i]);
    static const char *const wrong[][2] = {{"", "empty, so nothing could be called"},
                                           {"9000", "not HOST:PORT"},
                                           {":9000", "not HOST:PORT"},
                                           {"host", "not HOST:PORT"},
                                           {"host:", "not HOST:PORT"},
                                           {"host:65536", "not HOST:PORT"},
                                           {"host:-1", "not HOST:PORT"},
                                           {"host:x", "not HOST:PORT"},
                                           {"ho st:1", "not HOST:PORT"},
                                           {"http://host:1", "in brackets"},
                                           {"//host:1", "not HOST:PORT"},
                                           {"::1:9000", "in brackets"},
                                           {"[::1]", "not [IPV6]:PORT"},
                                           {"[::1]9000", "not [IPV6]:PORT"},
                                           {"[::1:9000", "not [IPV6]:PORT"},
                                           {"[::1]:99999", "not [IPV6]:PORT"},
                                           {"[host]:1", "no IPv6 address"},
                                           {"[]:1", "no IPv6 address"},
                                           {"unix:", "the path has not 1 to 107 bytes"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        refuse_some(wrong[i][1], "--grpc-address", wrong[i][0]);
    char path[200] = "unix:";
    memset(path + 5, 'p', 108);
    refuse_some("the path has not 1 to 107 bytes", "--grpc-address", path);
    path[5 + 107] = 0;
    assert_string_equal(TAKE("--grpc-address", path)->grpc_address, path);
    memset(path, '1', sizeof path - 1);
    path[0] = '[';
    strcpy(path + 190, "]:1");
    refuse_some("no IPv6 address", "--grpc-address", path);
    refuse_some("not HOST:PORT", "--http-address", "unix:/x");
    assert_string_equal(TAKE("--http-address", "")->http_address, "");
}

/* ---- what is no option ---- */

static void test_wrong_flags(void **state) {
    (void)state;
    REFUSE("--queue-dept: no such option; did you mean --queue-depth?", "--queue-dept", "5");
    REFUSE("--queue-depht: no such option; did you mean --queue-depth?", "--queue-depht=5");
    REFUSE("--zzz: no such option; `timbre serve --help` tells them", "--zzz");
    REFUSE("--queue: no such option; `timbre serve --help` tells them", "--queue",
           "5"); /* no abbreviations */
    REFUSE("--: no such option; `timbre serve --help` tells them", "--");
    REFUSE("--: no such option; `timbre serve --help` tells them", "--=3");
    REFUSE("-q: no such option; `timbre serve --help` tells them", "-q");
    REFUSE("file.wav: not an option; `timbre serve --help` tells them", "--no-pin", "file.wav");
    REFUSE(": not an option; `timbre serve --help` tells them", "");
    REFUSE("--Security: no such option; `timbre serve --help` tells them", "--Security");
    REFUSE("--queue-depth: without its N", "--queue-depth");
    REFUSE("--token-file: without its FILE", "--token-file", "--no-pin");
    REFUSE("--queue-depth: given twice", "--queue-depth", "5", "--queue-depth", "5");
    REFUSE("--no-pin: given twice", "--no-pin", "--no-pin");
    REFUSE("--config: given twice", "--config=", "--config=");
    REFUSE("--device a?b: not one of auto cpu cuda ref", "--device", "a\nb");
    char flag[3000] = "--";
    memset(flag + 2, 'x', sizeof flag - 3);
    refuse_some("xxx: no such option", flag, "5");
    char value[3000];
    memset(value, '7', sizeof value);
    value[sizeof value - 1] = 0;
    refuse_some("777...: not a whole number", "--queue-depth", value);
}

static void test_wrong_variables(void **state) {
    (void)state;
    setenv("TIMBRE_QUEU_DEPTH", "4", 1);
    REFUSE("TIMBRE_QUEU_DEPTH in the environment: no option is called so; did you mean TIMBRE_QUEUE_DEPTH",
           "--no-pin");
    unsetenv("TIMBRE_QUEU_DEPTH");
    setenv("TIMBRE_NONSENSE", "4", 1);
    REFUSE("TIMBRE_NONSENSE in the environment: no option is called so", "--no-pin");
    unsetenv("TIMBRE_NONSENSE");
    setenv("TIMBRE_QUEUE_DEPTH", "", 1);
    REFUSE("TIMBRE_QUEUE_DEPTH=: not a whole number in 1..1000000", "--no-pin");
    unsetenv("TIMBRE_QUEUE_DEPTH");
    setenv("TIMBRE_queue_depth", "5", 1);
    refuse_some("TIMBRE_queue_depth in the environment", "--no-pin", "--no-reflection");
    unsetenv("TIMBRE_queue_depth");
    char name[400] = "TIMBRE_";
    memset(name + 7, 'X', 300);
    setenv(name, "1", 1);
    refuse_some("XX... in the environment", "--no-pin", "--no-reflection");
    unsetenv(name);
}

/* What others put there under the same prefix; the last ones by Kubernetes, for services called timbre,
 * timbre-grpc and timbre-http. */
static void test_variables_of_others(void **state) {
    (void)state;
    static const char *const others[][2] = {{"TIMBRE_CPU", "avx2"},
                                            {"TIMBRE_BIN", "x"},
                                            {"TIMBRE_DATA", "x"},
                                            {"TIMBRE_TOKEN", "x"},
                                            {"TIMBREX", "x"},
                                            {"TIMBRE_SERVICE_HOST", "10.0.0.1"},
                                            {"TIMBRE_SERVICE_PORT", "9000"},
                                            {"TIMBRE_SERVICE_PORT_GRPC", "9000"},
                                            {"TIMBRE_PORT", "tcp://10.0.0.1:9000"},
                                            {"TIMBRE_PORT_9000_TCP", "tcp://10.0.0.1:9000"},
                                            {"TIMBRE_PORT_9000_TCP_PROTO", "tcp"},
                                            {"TIMBRE_PORT_9000_TCP_PORT", "9000"},
                                            {"TIMBRE_PORT_9000_TCP_ADDR", "10.0.0.1"},
                                            {"TIMBRE_GRPC_SERVICE_HOST", "10.0.0.1"},
                                            {"TIMBRE_HTTP_PORT", "udp://10.0.0.1:8080"},
                                            {"TIMBRE_HTTP_PORT_8080_UDP", "udp://10.0.0.1:8080"}};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        setenv(others[i][0], others[i][1], 1);
    TAKE_NOTHING();
    unsetenv("TIMBREX");
    static const char *const options[][2] = {{"TIMBRE_PORT", "9000"},
                                             {"TIMBRE_PORTS", "1"},
                                             {"TIMBRE_PORT_X_TCP", "1"},
                                             {"TIMBRE_PORT__TCP", "1"},
                                             {"TIMBRE_SERVICE_HOSTS", "1"}};
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        setenv(options[i][0], options[i][1], 1);
        refuse_some(options[i][0], "--no-pin", "--no-reflection");
        unsetenv(options[i][0]);
    }
}

/* ---- the file ---- */

static void test_file_syntax(void **state) {
    (void)state;
    const struct server_options *o =
        TAKE("--config", write_config("# comment\r\n\r\n\t queue-depth=5 \r\nthreads   =   7 # why\n"
                                      "token-file = /a b#c\t# comment\nmodels-dir = /x=y\n"
                                      "http-address =\nlog-level = warn"));
    assert_int_equal(o->engine.queue_depth, 5);
    assert_int_equal(o->model.threads, 7);
    assert_string_equal(o->token_file, "/a b#c");
    assert_string_equal(o->models_dir, "/x=y");
    assert_string_equal(o->http_address, "");
    assert_int_equal(o->log_level, LOG_WARN);
    TAKE("--config", write_config(""));
}

static void test_wrong_files(void **state) {
    (void)state;
    refuse_config("\nqueue-dept = 5\n", ":2: no option is called queue-dept; did you mean queue-depth");
    refuse_config("foo = 5\n", ":1: no option is called foo");
    refuse_config("--threads = 5\n", ":1: no option is called --threads; did you mean threads");
    refuse_config("Security = 5\n", ":1: no option is called Security");
    refuse_config("= 5\n", ":1: no option is called ");
    refuse_config("threads\n", ":1: threads: not of the form option = value");
    refuse_config("threads = x\n", ":1: threads = x: not a whole number in 0..256");
    refuse_config("threads =\n", ":1: threads = : not a whole number in 0..256");
    refuse_config("threads = 1\n\nthreads = 2\n", ":3: threads: given twice");
    refuse_config("config = /x\n", ":1: config names this file, so it cannot stand in it");
    refuse_config("token-file = \"/x\"\n", ":1: token-file: values are written without quotes");
    refuse_config("[section]\n", ":1: [section]: not of the form option = value");
    refuse_config("thr\x1b = 5\n", ":1: no option is called thr?");
    folder_write_bytes("timbre.conf", "threads = 1\n\0\n", 14);
    refuse_some("holds zero bytes", "--config", folder_path("timbre.conf"));
    refuse_some("a folder, not a file", "--config", folder_path("."));
    char *big = malloc((1 << 20) + 2);
    memset(big, '#', (1 << 20) + 1);
    big[(1 << 20) + 1] = 0;
    folder_write("timbre.conf", big);
    free(big);
    refuse_some("more than the limit of a config file", "--config", folder_path("timbre.conf"));
}

/* ---- what does not go together ---- */

static void test_together(void **state) {
    (void)state;
    REFUSE("tls-cert without tls-key: TLS needs both", "--tls-cert", "c");
    REFUSE("tls-key without tls-cert: TLS needs both", "--tls-key", "k");
    REFUSE("tls-client-ca without tls-cert and tls-key: certificates of clients need TLS", "--tls-client-ca",
           "a");
    REFUSE("grpc-address and http-address are both localhost:5", "--grpc-address=localhost:5",
           "--http-address=localhost:5");
    REFUSE("max-receive-bytes is less than max-message-bytes, so a message could never come",
           "--max-receive-bytes=32m");
    TAKE("--grpc-address=localhost:0", "--http-address=localhost:0");
    TAKE("--tls-cert=c", "--tls-key=k", "--tls-client-ca=a");
    TAKE("--max-receive-bytes=64m");
    setenv("TIMBRE_TLS_KEY", "k", 1); /* from different sources too */
    TAKE("--tls-cert=c");
}

static int warn(const struct server_options *o, const char *part) {
    const char *warnings[OPTIONS_WARNINGS_MAX];
    int count = options_list_warnings(o, warnings), found = 0;
    for (int i = 0; i < count; i++)
        found += strstr(warnings[i], part) != NULL;
    assert_int_equal(count, found); /* and no other */
    return found;
}

static void test_warnings(void **state) {
    (void)state;
    assert_int_equal(warn(TAKE_NOTHING(), "x"), 0);
    static const char *const far[] = {"0.0.0.0:1", "[::]:1", "host:1", "10.0.0.1:1"};
    static const char *const near[] = {"127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1", "unix:/x"};
    for (size_t i = 0; i < sizeof far / sizeof *far; i++) {
        assert_int_equal(warn(TAKE("--grpc-address", far[i]), "x"), 0);
        assert_int_equal(warn(TAKE("--grpc-address", far[i], "--token-file=t"), "tokens can be read"), 1);
        assert_int_equal(
            warn(TAKE("--grpc-address", far[i], "--token-file=t", "--tls-cert=c", "--tls-key=k"), "x"), 0);
        assert_int_equal(warn(TAKE("--grpc-address", far[i], "--model-control"), "anybody can unload"), 1);
    }
    for (size_t i = 0; i < sizeof near / sizeof *near; i++)
        assert_int_equal(warn(TAKE("--grpc-address", near[i], "--token-file=t", "--model-control"), "x"), 0);
    assert_int_equal(warn(TAKE("--open-health"), "open-health without token-file"), 1);
    assert_int_equal(warn(TAKE("--open-health", "--token-file=t"), "x"), 0);
}

/* ---- table, help, sample ---- */

static void test_table(void **state) {
    (void)state;
    assert_true(option_rows_count < 128);
    for (int i = 0; i < option_rows_count; i++) {
        const struct option_row *row = &option_rows[i];
        if (row->kind == OPTION_GROUP)
            continue;
        assert_true(strlen(row->name) < OPTION_NAME_BYTES && strlen(row->help) < 300);
        assert_ptr_equal(option_find(row->name, strlen(row->name)), row); /* no name twice */
        assert_int_equal(option_is_switch(row), row->value == NULL);
        if (row->kind == OPTION_WHOLE || row->kind == OPTION_BYTES || row->kind == OPTION_NUMBER ||
            row->kind == OPTION_LEVEL)
            assert_true(row->lo < row->hi && row->initial >= row->lo && row->initial <= row->hi);
        if (row->kind == OPTION_WHOLE)
            assert_true(row->width == 8 || (row->width == 4 && row->hi <= INT32_MAX));
        if (row->kind == OPTION_WORD || row->kind == OPTION_CHOICE)
            assert_non_null(strstr(row->words, row->initial_text));
    }
}

static void test_help(void **state) {
    (void)state;
    FILE *f = fopen(folder_path("help"), "w+");
    assert_non_null(f);
    option_print_help(f);
    fclose(f);
    char *text;
    size_t bytes;
    assert_int_equal(file_read(&text, &bytes, folder_path("help"), 65536, "", NULL), 0);
    for (int i = 0; i < option_rows_count; i++) {
        char wanted[128];
        snprintf(wanted, sizeof wanted, "  --%s%s", option_rows[i].name, option_rows[i].value ? " " : "\x20");
        if (option_rows[i].kind != OPTION_GROUP && !strstr(text, wanted)) {
            snprintf(wanted, sizeof wanted, "  --%s\n", option_rows[i].name); /* a long switch */
            assert_non_null(strstr(text, wanted));
        }
    }
    for (const char *line = text; *line; line += strcspn(line, "\n") + 1)
        assert_true(strcspn(line, "\n") <= 105);
    assert_non_null(strstr(text, "default 64m\n"));
    free(text);
}

static void test_help_is_printed(void **state) {
    (void)state;
    int out = dup(STDOUT_FILENO);
    fflush(stdout);
    assert_non_null(freopen("/dev/null", "w", stdout));
    static const char *const last[] = {"--help", "-h"};
    int results[3];
    for (int i = 0; i < 2; i++) {
        struct server_options o;
        char *argv[] = {(char *)"serve", (char *)"--threads", (char *)"nonsense", (char *)last[i]};
        results[i] = options_init(&o, 4, argv, "/shipped", NULL);
    }
    struct server_options o;
    struct status st = {0};
    char *argv[] = {(char *)"serve", (char *)"--token-file", (char *)"-h"}; /* a value */
    results[2] = options_init(&o, 3, argv, "/shipped", &st);
    fflush(stdout);
    dup2(out, STDOUT_FILENO);
    close(out);
    assert_int_equal(results[0], 1);
    assert_int_equal(results[1], 1);
    assert_int_equal(results[2], 0);
    assert_string_equal(o.token_file, "-h");
    options_free(&o);
}

/* Takes the # away in front of every option of the sample; text is "# ...", options are "#option = ...". */
static char *uncomment(const char *sample) {
    char *text = calloc(1, strlen(sample) + 1), *to = text;
    assert_non_null(text);
    for (const char *line = sample; *line;) {
        size_t n = strcspn(line, "\n") + 1;
        const bool option = line[0] == '#' && line[1] >= 'a' && line[1] <= 'z';
        assert_true(option || line[0] == '\n' || strncmp(line, "# ", 2) == 0 || strncmp(line, "#\n", 2) == 0);
        memcpy(to, line + option, n - option);
        to += n - option;
        line += n;
    }
    return text;
}

/* The sample names every option once, with its default where it has one, and is right as it stands. */
static void test_sample(void **state) {
    (void)state;
    char *sample;
    size_t bytes;
    struct status st = {0};
    if (file_read(&sample, &bytes, SAMPLE, 1 << 20, "", &st))
        fail_msg("%s", st.message);
    for (int i = 0; i < option_rows_count; i++) {
        const struct option_row *row = &option_rows[i];
        char value[64], wanted[256];
        if (row->kind == OPTION_GROUP || row->kind == OPTION_CONFIG)
            continue;
        option_default(row, value, sizeof value);
        if (option_is_switch(row))
            strcpy(value, "false");
        snprintf(wanted, sizeof wanted, "\n#%s = %s%s", row->name, value, value[0] ? "\n" : "");
        if (!strstr(sample, wanted))
            fail_msg("the sample lacks \"%s\"", wanted + 1);
    }
    TAKE("--config", SAMPLE);
    char *text = uncomment(sample);
    const struct server_options *o = TAKE("--config", write_config(text));
    assert_int_equal(o->models_count, 1);
    assert_non_null(o->tls_client_ca);
    free(text);
    free(sample);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_defaults),
        TEST(test_precedence),
        TEST(test_overridden_values_are_checked),
        TEST(test_models),
        TEST(test_wrong_models),
        TEST(test_switches),
        TEST(test_ffmpeg),
        TEST(test_empty_takes_away),
        TEST(test_numbers),
        TEST(test_bytes),
        TEST(test_words),
        TEST(test_addresses),
        TEST(test_wrong_flags),
        TEST(test_wrong_variables),
        TEST(test_variables_of_others),
        TEST(test_file_syntax),
        TEST(test_wrong_files),
        TEST(test_together),
        TEST(test_warnings),
        TEST(test_table),
        TEST(test_help),
        TEST(test_help_is_printed),
        TEST(test_sample),
    };
    unsetenv("TIMBRE_CPU");
    unsetenv("FFMPEG_BIN");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
