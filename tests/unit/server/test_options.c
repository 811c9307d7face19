/* Tests of server/options: where a value comes from, which ones are refused and how that is told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/server/options_bed.h"

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
    assert_int_equal(o->engine.stream_threads, ENGINE_STREAM_THREADS_DEFAULT);
    assert_int_equal(o->engine.streams_max, ENGINE_STREAMS_MAX_DEFAULT);
    assert_true(o->engine.audio.duration_s_max == engine.audio.duration_s_max);
    assert_int_equal(o->engine.audio.decode_ms_max, engine.audio.decode_ms_max);
    assert_null(o->engine.audio.ffmpeg);
    assert_int_equal(o->engine.audio.bytes_max, 64 << 20); /* of the messages, not of the engine */
    assert_string_equal(o->model.device, "auto");
    assert_string_equal(o->model.precision, "fp32");
    assert_int_equal(o->model.threads, 0);
    assert_true(o->model.pin);
    assert_null(o->model.labels_path);
    assert_string_equal(o->model.devices, "0");
    assert_string_equal(o->model.cuda_conv, "auto");
    assert_string_equal(o->model.cuda_attention, "auto");
    assert_false(o->model.cuda_eager);
    assert_int_equal(o->model.gpu_memory_max_bytes, 0);
    assert_int_equal(o->on_gpu_fault, SERVER_GPU_FAULT_EXIT);
    assert_int_equal(o->message_bytes_max, 64 << 20);
    assert_int_equal(o->receive_bytes_max, 1 << 30);
    assert_int_equal(o->calls_max, 4096);
    assert_int_equal(o->metadata_bytes_max, 16384);
    assert_int_equal(o->connection_streams_max, 1024);
    assert_int_equal(o->upload_timeout_ms, 60000);
    assert_int_equal(o->stream_message_bytes_max, 1 << 20);
    assert_int_equal(o->stream_idle_ms, 60000);
    assert_int_equal(o->stream_stall_ms, 15000);
    assert_int_equal(o->stream_lifetime_s, 21600);
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
    const char *path = options_write_config("max-calls = 10\nqueue-depth = 11\nthreads = 12\n");
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
    o = TAKE("--config", options_write_config("model = g=/g\nmodel = /h\nmodel = /i\n"));
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
    options_refuse_config(text, ":65: model = /m: more than 64 models");
    char name[200] = "";
    memset(name, 'n', 128);
    strcpy(name + 128, "=/x");
    options_refuse_some("a name has 1 to 127", "--model", name);
    assert_int_equal(strlen(TAKE("--model", name + 1)->models[0].name), 127);
}

static void test_switches(void **state) {
    (void)state;
    assert_true(TAKE("--model-control")->model_control);
    assert_false(TAKE("--no-reflection")->reflection);
    assert_false(TAKE("--no-pin")->model.pin);
    setenv("TIMBRE_MODEL_CONTROL", "1", 1);
    setenv("TIMBRE_NO_PIN", "true", 1);
    const char *path = options_write_config("no-reflection = yes\nopen-health = on\n");
    const struct server_options *o = TAKE("--config", path, "--open-health=false");
    assert_true(o->model_control);
    assert_false(o->model.pin);
    assert_false(o->reflection);
    assert_false(o->open_health);
    assert_true(TAKE("--no-reflection=off")->reflection);
    options_refuse_some("neither true nor false", "--open-health=", "--no-pin");
    options_refuse_some("neither true nor false", "--open-health=True", "--no-pin");
    options_refuse_some("maybe: not an option", "--open-health", "maybe");
}

static void test_ffmpeg(void **state) {
    (void)state;
    setenv("FFMPEG_BIN", "/opt/ffmpeg", 1);
    const char *path = options_write_config("ffmpeg-bin = /file\n");
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
    const char *path = options_write_config("token-file = /t\nmodels-dir = /m\n");
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
        options_refuse_some("not a whole number in 1..1000000", flag, "--no-pin");
    }
    assert_true(TAKE("--max-batch-seconds", "30.5")->engine.batch_s_max == 30.5);
    assert_true(TAKE("--max-duration=1e3")->engine.audio.duration_s_max == 1000);
    static const char *const no_number[] = {"",    "x",    "nan",  "inf", "1e999", " 60",
                                            "60s", "0x40", "29.9", "1e6", "-60"};
    for (size_t i = 0; i < sizeof no_number / sizeof *no_number; i++) {
        char flag[64];
        snprintf(flag, sizeof flag, "--max-batch-seconds=%s", no_number[i]);
        options_refuse_some("not a number in 30..100000", flag, "--no-pin");
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
        options_refuse_some("not a whole number of bytes in 4096..1073741824", flag, "--no-pin");
    }
}

static void test_gpus(void **state) {
    (void)state;
    const struct server_options *o = TAKE("--devices", "0,1", "--cuda-conv", "gemm", "--cuda-attention=fused",
                                          "--cuda-graphs", "no", "--gpu-memory-limit", "20g");
    assert_string_equal(o->model.devices, "0,1");
    assert_string_equal(o->model.cuda_conv, "gemm");
    assert_string_equal(o->model.cuda_attention, "fused");
    assert_true(o->model.cuda_eager);
    assert_true(o->model.gpu_memory_max_bytes == INT64_C(20) << 30);
    setenv("TIMBRE_ON_GPU_FAULT", "cpu", 1);
    setenv("TIMBRE_CUDA_GRAPHS", "no", 1);
    setenv("TIMBRE_CUDA_MODULE", "/a/module.so", 1); /* read elsewhere */
    setenv("TIMBRE_SHIM_GPUS", "2", 1);
    o = TAKE("--cuda-graphs=yes");
    assert_int_equal(o->on_gpu_fault, SERVER_GPU_FAULT_CPU);
    assert_false(o->model.cuda_eager);
    unsetenv("TIMBRE_ON_GPU_FAULT");
    unsetenv("TIMBRE_CUDA_GRAPHS");
    unsetenv("TIMBRE_CUDA_MODULE");
    unsetenv("TIMBRE_SHIM_GPUS");
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
    REFUSE("--cuda-graphs maybe: not one of yes no", "--cuda-graphs", "maybe");
    REFUSE("--on-gpu-fault stay: not one of exit cpu", "--on-gpu-fault", "stay");
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
        options_refuse_some(wrong[i][1], "--grpc-address", wrong[i][0]);
    char path[200] = "unix:";
    memset(path + 5, 'p', 108);
    options_refuse_some("the path has not 1 to 107 bytes", "--grpc-address", path);
    path[5 + 107] = 0;
    assert_string_equal(TAKE("--grpc-address", path)->grpc_address, path);
    memset(path, '1', sizeof path - 1);
    path[0] = '[';
    strcpy(path + 190, "]:1");
    options_refuse_some("no IPv6 address", "--grpc-address", path);
    options_refuse_some("not HOST:PORT", "--http-address", "unix:/x");
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
    options_refuse_some("xxx: no such option", flag, "5");
    char value[3000];
    memset(value, '7', sizeof value);
    value[sizeof value - 1] = 0;
    options_refuse_some("777...: not a whole number", "--queue-depth", value);
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
    options_refuse_some("TIMBRE_queue_depth in the environment", "--no-pin", "--no-reflection");
    unsetenv("TIMBRE_queue_depth");
    char name[400] = "TIMBRE_";
    memset(name + 7, 'X', 300);
    setenv(name, "1", 1);
    options_refuse_some("XX... in the environment", "--no-pin", "--no-reflection");
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
        options_refuse_some(options[i][0], "--no-pin", "--no-reflection");
        unsetenv(options[i][0]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        OPTIONS_TEST(test_defaults),
        OPTIONS_TEST(test_precedence),
        OPTIONS_TEST(test_overridden_values_are_checked),
        OPTIONS_TEST(test_models),
        OPTIONS_TEST(test_wrong_models),
        OPTIONS_TEST(test_switches),
        OPTIONS_TEST(test_ffmpeg),
        OPTIONS_TEST(test_empty_takes_away),
        OPTIONS_TEST(test_numbers),
        OPTIONS_TEST(test_bytes),
        OPTIONS_TEST(test_gpus),
        OPTIONS_TEST(test_words),
        OPTIONS_TEST(test_addresses),
        OPTIONS_TEST(test_wrong_flags),
        OPTIONS_TEST(test_wrong_variables),
        OPTIONS_TEST(test_variables_of_others),
    };
    unsetenv("TIMBRE_CPU");
    unsetenv("FFMPEG_BIN");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
