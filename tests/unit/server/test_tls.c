/* Tests of server/tls: which files are refused, and, with a server and clients of the gRPC core, which
 * certificate a client sees before and after a reload and which clients are let in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <grpc/grpc.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>

#include "server/tls.h"
#include "tests/unit/server/certificates.h"
#include "tests/unit/server/folder.h"

/* The gRPC core is not built with the thread sanitizer, which then understands nothing of its locks. */
#ifdef __SANITIZE_THREAD__
__attribute__((visibility("default"))) const char *__tsan_default_options(void);
const char *__tsan_default_options(void) {
    return "ignore_noninstrumented_modules=1";
}
#endif

enum { HOUR = 3600 };

static struct certificate *authority, *first, *second;

static int setup(void **state) {
    authority = certificate_make("authority", NULL, -HOUR, 1000L * HOUR);
    first = certificate_make("first", authority, -HOUR, 500L * HOUR);
    second = certificate_make("second", authority, -HOUR, 500L * HOUR);
    return folder_setup(state);
}

static int teardown(void **state) {
    certificate_free(authority);
    certificate_free(first);
    certificate_free(second);
    return folder_teardown(state);
}

static void write_pair(const struct certificate *c) {
    folder_write("cert", c->cert_pem);
    folder_write("key", c->key_pem);
}

static struct tls *make(bool client_ca) {
    struct tls *t = NULL;
    struct status st = {0};
    folder_begin_log();
    int result =
        tls_new(&t, folder_path("cert"), folder_path("key"), client_ca ? folder_path("ca") : NULL, &st);
    folder_end_log();
    if (result)
        fail_msg("%s", st.message);
    return t;
}

/* ---- files ---- */

static void refuse_with(const char *cert, const char *key, const char *ca, const char *wanted) {
    struct tls *t;
    struct status st = {0};
    folder_write("cert", cert);
    folder_write("key", key);
    if (ca)
        folder_write("ca", ca);
    assert_int_equal(tls_new(&t, folder_path("cert"), folder_path("key"), ca ? folder_path("ca") : NULL, &st),
                     -1);
    assert_null(t);
    assert_int_equal(st.code, STATUS_INVALID_ARGUMENT);
    if (!strstr(st.message, wanted))
        fail_msg("\"%s\" is not in \"%s\"", wanted, st.message);
    assert_null(strstr(st.message, "PRIVATE"));
}

static char *join(const char *a, const char *b) {
    static char text[16384];
    snprintf(text, sizeof text, "%s%s", a, b);
    return text;
}

static void test_wrong_files(void **state) {
    (void)state;
    const char *cert = first->cert_pem, *key = first->key_pem;
    refuse_with("", key, NULL, "cert: no certificate in PEM form");
    refuse_with("nonsense", key, NULL, "cert: no certificate in PEM form");
    refuse_with(key, key, NULL, "cert: no certificate in PEM form");
    refuse_with(cert, "", NULL, "key: no private key in PEM form");
    refuse_with(cert, cert, NULL, "key: no private key in PEM form");
    refuse_with(cert, second->key_pem, NULL, "key: the key does not belong to the certificate of tls-cert");
    refuse_with(join(cert, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), key, NULL,
                "cert: a certificate in it is broken");
    refuse_with(cert, key, "", "ca: no certificate in PEM form");
    refuse_with(cert, key, key, "ca: no certificate in PEM form");
    char *encrypted = certificate_encrypt_key(first, "secret");
    refuse_with(cert, encrypted, NULL, "key: the key has a passphrase");
    free(encrypted);
    struct certificate *old = certificate_make("old", authority, -2L * HOUR, -HOUR);
    struct certificate *new = certificate_make("new", authority, HOUR, 2L * HOUR);
    struct certificate *weak = certificate_make_rsa("weak", 512);
    refuse_with(old->cert_pem, old->key_pem, NULL, "cert: the certificate has expired");
    refuse_with(new->cert_pem, new->key_pem, NULL, "cert: the certificate is not valid yet");
    refuse_with(weak->cert_pem, weak->key_pem, NULL,
                "cert: the certificate cannot be used (ee key too small)");
    refuse_with(cert, key, old->cert_pem, "ca: no certificate in it is valid now");
    struct tls *t;
    struct status st = {0};
    assert_int_equal(tls_new(&t, folder_path("missing"), folder_path("key"), NULL, &st), -1);
    assert_non_null(strstr(st.message, "tls-cert: "));
    assert_non_null(strstr(st.message, "missing: No such file"));
    /* One that ended among authorities is no reason to stop. */
    folder_write("ca", join(old->cert_pem, authority->cert_pem));
    tls_del(make(true));
    certificate_free(old);
    certificate_free(new);
    certificate_free(weak);
}

static void test_expiry(void **state) {
    (void)state;
    struct certificate *soon = certificate_make("soon", authority, -HOUR, 24L * HOUR);
    write_pair(first);
    struct tls *t = make(false);
    double left_s = tls_get_expiry_s(t) - (double)time(NULL);
    assert_true(left_s > 499.9 * HOUR && left_s < 500.1 * HOUR);
    write_pair(soon);
    folder_begin_log();
    tls_poll(t);
    const char *log = folder_end_log();
    assert_non_null(strstr(log, " warn  tls: "));
    assert_non_null(strstr(log, "certificate read anew, valid until 2"));
    left_s = tls_get_expiry_s(t) - (double)time(NULL);
    assert_true(left_s > 23.9 * HOUR && left_s < 24.1 * HOUR);
    tls_del(t);
    tls_del(NULL);
    certificate_free(soon);
}

/* ---- a server and its clients ---- */

struct service {
    grpc_server *server;
    grpc_completion_queue *cq;
    pthread_t thread;
    int ports[2];
};

/* Every call is answered UNIMPLEMENTED until the queue is shut down. */
static void *answer(void *arg) {
    struct service *s = arg;
    for (;;) {
        grpc_call *call = NULL;
        grpc_call_details details;
        grpc_metadata_array metadata;
        grpc_call_details_init(&details);
        grpc_metadata_array_init(&metadata);
        assert_int_equal(grpc_server_request_call(s->server, &call, &details, &metadata, s->cq, s->cq, s),
                         GRPC_CALL_OK);
        grpc_event e = grpc_completion_queue_next(s->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        const bool more = e.type == GRPC_OP_COMPLETE && e.tag == s && e.success;
        if (more) {
            int cancelled;
            grpc_op ops[3] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
                              {.op = GRPC_OP_SEND_STATUS_FROM_SERVER},
                              {.op = GRPC_OP_RECV_CLOSE_ON_SERVER}};
            ops[1].data.send_status_from_server.status = GRPC_STATUS_UNIMPLEMENTED;
            ops[2].data.recv_close_on_server.cancelled = &cancelled;
            assert_int_equal(grpc_call_start_batch(call, ops, 3, call, NULL), GRPC_CALL_OK);
            while (grpc_completion_queue_next(s->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).tag != call)
                ;
            grpc_call_unref(call);
        }
        grpc_call_details_destroy(&details);
        grpc_metadata_array_destroy(&metadata);
        if (!more)
            return NULL;
    }
}

static void serve(struct service *s, struct tls *t, int ports) {
    s->server = grpc_server_create(NULL, NULL);
    s->cq = grpc_completion_queue_create_for_next(NULL);
    grpc_server_register_completion_queue(s->server, s->cq, NULL);
    for (int i = 0; i < ports; i++) {
        grpc_server_credentials *credentials = tls_make_credentials(t);
        s->ports[i] = grpc_server_add_http2_port(s->server, "127.0.0.1:0", credentials);
        grpc_server_credentials_release(credentials);
        assert_true(s->ports[i] > 0);
    }
    grpc_server_start(s->server);
    assert_int_equal(pthread_create(&s->thread, NULL, answer, s), 0);
}

static void stop(struct service *s) {
    grpc_server_shutdown_and_notify(s->server, s->cq, NULL);
    pthread_join(s->thread, NULL);
    grpc_server_cancel_all_calls(s->server);
    grpc_completion_queue_shutdown(s->cq);
    while (grpc_completion_queue_next(s->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
           GRPC_QUEUE_SHUTDOWN)
        ;
    grpc_server_destroy(s->server);
    grpc_completion_queue_destroy(s->cq);
}

struct client {
    grpc_channel *channel;
    grpc_completion_queue *cq;
};

static struct client connect_to(int port, const struct certificate *own) {
    char target[32];
    snprintf(target, sizeof target, "127.0.0.1:%d", port);
    grpc_arg args[] = {
        {.type = GRPC_ARG_STRING,
         .key = (char *)GRPC_SSL_TARGET_NAME_OVERRIDE_ARG,
         .value.string = (char *)"localhost"},
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, .value.integer = 1}};
    grpc_channel_args channel_args = {.num_args = 2, .args = args};
    grpc_ssl_pem_key_cert_pair pair = {.private_key = own ? own->key_pem : NULL,
                                       .cert_chain = own ? own->cert_pem : NULL};
    grpc_channel_credentials *credentials =
        grpc_ssl_credentials_create(authority->cert_pem, own ? &pair : NULL, NULL, NULL);
    struct client c = {.channel = grpc_channel_create(target, credentials, &channel_args),
                       .cq = grpc_completion_queue_create_for_next(NULL)};
    grpc_channel_credentials_release(credentials);
    return c;
}

static void disconnect(struct client *c) {
    grpc_channel_destroy(c->channel);
    grpc_completion_queue_shutdown(c->cq);
    while (grpc_completion_queue_next(c->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
           GRPC_QUEUE_SHUTDOWN)
        ;
    grpc_completion_queue_destroy(c->cq);
}

/* Makes one call; returns its status, and the common name of the server's certificate in `name`. */
static grpc_status_code call(struct client *c, char name[64]) {
    grpc_slice method = grpc_slice_from_static_string("/any/Method"), details = grpc_empty_slice();
    gpr_timespec deadline =
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_seconds(10, GPR_TIMESPAN));
    grpc_call *call = grpc_channel_create_call(c->channel, NULL, GRPC_PROPAGATE_DEFAULTS, c->cq, method, NULL,
                                               deadline, NULL);
    grpc_status_code code = GRPC_STATUS_UNKNOWN;
    grpc_metadata_array initial, trailing;
    grpc_metadata_array_init(&initial);
    grpc_metadata_array_init(&trailing);
    grpc_op ops[4] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
                      {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
                      {.op = GRPC_OP_RECV_INITIAL_METADATA},
                      {.op = GRPC_OP_RECV_STATUS_ON_CLIENT}};
    ops[2].data.recv_initial_metadata.recv_initial_metadata = &initial;
    ops[3].data.recv_status_on_client.trailing_metadata = &trailing;
    ops[3].data.recv_status_on_client.status = &code;
    ops[3].data.recv_status_on_client.status_details = &details;
    assert_int_equal(grpc_call_start_batch(call, ops, 4, call, NULL), GRPC_CALL_OK);
    grpc_completion_queue_next(c->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    grpc_auth_context *context = grpc_call_auth_context(call);
    name[0] = 0;
    if (context) {
        grpc_auth_property_iterator i =
            grpc_auth_context_find_properties_by_name(context, GRPC_X509_CN_PROPERTY_NAME);
        const grpc_auth_property *p = grpc_auth_property_iterator_next(&i);
        if (p)
            snprintf(name, 64, "%.*s", (int)p->value_length, p->value);
        grpc_auth_context_release(context);
    }
    grpc_metadata_array_destroy(&initial);
    grpc_metadata_array_destroy(&trailing);
    grpc_slice_unref(details);
    grpc_call_unref(call);
    return code;
}

/* A new connection gets through and sees this certificate. */
static void expect_server(int port, const struct certificate *own, const char *wanted) {
    char name[64];
    struct client c = connect_to(port, own);
    assert_int_equal(call(&c, name), GRPC_STATUS_UNIMPLEMENTED);
    assert_string_equal(name, wanted);
    disconnect(&c);
}

static void expect_no_server(int port, const struct certificate *own) {
    char name[64];
    struct client c = connect_to(port, own);
    assert_int_equal(call(&c, name), GRPC_STATUS_UNAVAILABLE);
    disconnect(&c);
}

static const char *poll_quietly(struct tls *t, int times) {
    folder_begin_log();
    for (int i = 0; i < times; i++)
        tls_poll(t);
    return folder_end_log();
}

static void test_reload(void **state) {
    (void)state;
    struct service s;
    char name[64];
    write_pair(first);
    struct tls *t = make(false);
    serve(&s, t, 2); /* both ports get every generation */
    expect_server(s.ports[0], NULL, "first");
    expect_server(s.ports[1], NULL, "first");
    struct client old = connect_to(s.ports[0], NULL);
    assert_int_equal(call(&old, name), GRPC_STATUS_UNIMPLEMENTED);
    assert_string_equal(poll_quietly(t, 2), "");
    write_pair(second);
    assert_non_null(strstr(poll_quietly(t, 2), "certificate read anew"));
    expect_server(s.ports[0], NULL, "second");
    expect_server(s.ports[1], NULL, "second");
    expect_server(s.ports[1], NULL, "second");
    assert_int_equal(call(&old, name), GRPC_STATUS_UNIMPLEMENTED); /* the connection was not cut */
    assert_string_equal(name, "first");
    disconnect(&old);
    stop(&s);
    tls_del(t);
}

static int count(const char *text, const char *what) {
    int n = 0;
    for (const char *at = text; (at = strstr(at, what)); at++)
        n++;
    return n;
}

static void test_broken_reload_keeps_the_old(void **state) {
    (void)state;
    struct service s;
    write_pair(first);
    struct tls *t = make(false);
    serve(&s, t, 1);
    folder_write("cert", second->cert_pem); /* half of a renewal */
    const char *log = poll_quietly(t, 3);
    assert_int_equal(count(log, "does not belong to the certificate"), 1);
    assert_int_equal(count(log, "\n"), 1);
    expect_server(s.ports[0], NULL, "first");
    folder_write("cert", "nonsense");
    assert_int_equal(count(poll_quietly(t, 3), "the files read before stay in use"), 1);
    unlink(folder_path("key"));
    assert_int_equal(count(poll_quietly(t, 3), "\n"), 1);
    expect_server(s.ports[0], NULL, "first");
    write_pair(first); /* what is in use all the time */
    poll_quietly(t, 3);
    expect_server(s.ports[0], NULL, "first");
    folder_write("cert", second->cert_pem);
    assert_int_equal(count(poll_quietly(t, 1), "does not belong"), 1); /* told again */
    folder_replace("key", second->key_pem);                            /* and the other half */
    assert_int_equal(count(poll_quietly(t, 3), "certificate read anew"), 1);
    expect_server(s.ports[0], NULL, "second");
    stop(&s);
    tls_del(t);
}

static void test_client_certificates(void **state) {
    (void)state;
    struct service s;
    struct certificate *other_authority = certificate_make("other", NULL, -HOUR, HOUR);
    struct certificate *client = certificate_make("client", authority, -HOUR, HOUR);
    struct certificate *stranger = certificate_make("stranger", other_authority, -HOUR, HOUR);
    struct certificate *expired = certificate_make("expired", authority, -2L * HOUR, -HOUR);
    write_pair(first);
    folder_write("ca", authority->cert_pem);
    struct tls *t = make(true);
    serve(&s, t, 1);
    expect_server(s.ports[0], client, "first");
    expect_no_server(s.ports[0], NULL);
    expect_no_server(s.ports[0], stranger);
    expect_no_server(s.ports[0], expired);
    folder_write("ca", other_authority->cert_pem);
    poll_quietly(t, 1);
    expect_server(s.ports[0], stranger, "first");
    expect_no_server(s.ports[0], client);
    expect_no_server(s.ports[0], NULL);
    write_pair(second); /* a change that is seen while another file is not there is not forgotten */
    assert_int_equal(rename(folder_path("ca"), folder_path("away")), 0);
    assert_int_equal(count(poll_quietly(t, 2), "ca: No such file"), 1);
    expect_server(s.ports[0], stranger, "first");
    assert_int_equal(rename(folder_path("away"), folder_path("ca")), 0);
    poll_quietly(t, 1);
    expect_server(s.ports[0], stranger, "second");
    folder_write("ca", "nonsense");
    assert_int_equal(count(poll_quietly(t, 3), "ca: no certificate in PEM form"), 1);
    expect_server(s.ports[0], stranger, "second");
    expect_no_server(s.ports[0], NULL);
    stop(&s);
    tls_del(t);
    certificate_free(other_authority);
    certificate_free(client);
    certificate_free(stranger);
    certificate_free(expired);
}

/* ---- threads ---- */

static atomic_bool ended;

static void *connect_for_ever(void *arg) {
    int *port = arg;
    intptr_t calls = 0;
    while (!atomic_load(&ended)) {
        char name[64];
        struct client c = connect_to(*port, NULL);
        if (call(&c, name) != GRPC_STATUS_UNIMPLEMENTED)
            return (void *)(intptr_t)-1;
        disconnect(&c);
        calls++;
    }
    return (void *)calls;
}

static void test_reload_while_clients_connect(void **state) {
    (void)state;
    struct service s;
    pthread_t threads[2];
    write_pair(first);
    struct tls *t = make(false);
    serve(&s, t, 1);
    atomic_store(&ended, false);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, connect_for_ever, &s.ports[0]), 0);
    for (int i = 0; i < 40; i++) {
        write_pair(i % 2 ? first : second);
        poll_quietly(t, 1);
        assert_true(tls_get_expiry_s(t) > 0);
        usleep(20000);
    }
    atomic_store(&ended, true);
    for (int i = 0; i < 2; i++) {
        void *calls;
        pthread_join(threads[i], &calls);
        assert_true((intptr_t)calls > 0);
    }
    stop(&s);
    tls_del(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_wrong_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_expiry, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reload, setup, teardown),
        cmocka_unit_test_setup_teardown(test_broken_reload_keeps_the_old, setup, teardown),
        cmocka_unit_test_setup_teardown(test_client_certificates, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reload_while_clients_connect, setup, teardown),
    };
    grpc_init();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    grpc_shutdown();
    for (int i = 0; i < 100 && grpc_is_initialized(); i++)
        usleep(10000);
    return failed;
}
