/* From options to a channel: credentials, the token, channel arguments. */
#include <stdlib.h>
#include <string.h>

#include <grpc/grpc_security.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "base/file.h"
#include "client/internal.h"
#include "client/reply.h"

enum {
    /* gRPC's own wait for the next try to connect is long (1 s to 120 s); retries of calls would end before
       it. */
    RECONNECT_INITIAL_MS = 100,
    RECONNECT_MIN_MS = 5000, /* for one try */
    RECONNECT_MAX_MS = 5000,
    KEEPALIVE_TIMEOUT_MS = 20000,
    METADATA_BYTES_MAX = 64 << 10,
};

/* ---- the token ---- */

static bool is_printable(const char *s) {
    for (; *s; s++)
        if (*s < '!' || *s > '~')
            return false;
    return true;
}

int channel_make_authorization(grpc_slice *slice, const char *token, const char *file,
                               struct timbre_status *status) {
    static const char scheme[] = "Bearer ";
    char *text = NULL;
    size_t bytes;
    struct status st;
    *slice = grpc_empty_slice();
    if (!token && file) {
        if (file_read(&text, &bytes, file, CLIENT_TOKEN_BYTES_MAX, "the size of a token file", &st))
            return reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "token_file: %s", st.message);
        text[strcspn(text, "\r\n")] = 0;
        token = text;
    }
    int result = 0;
    const size_t length = token ? strlen(token) : 0;
    if (length > CLIENT_TOKEN_BYTES_MAX) {
        result = reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "token: longer than %d bytes",
                            CLIENT_TOKEN_BYTES_MAX);
    } else if (length && !is_printable(token)) {
        result = reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "%s: not printable ASCII without spaces",
                            text ? "token_file" : "token");
    } else if (text && length == 0) {
        result =
            reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "token_file: %s: its first line is empty", file);
    } else if (length) {
        *slice = grpc_slice_malloc(sizeof scheme - 1 + length);
        memcpy(GRPC_SLICE_START_PTR(*slice), scheme, sizeof scheme - 1);
        memcpy(GRPC_SLICE_START_PTR(*slice) + sizeof scheme - 1, token, length);
    }
    if (text)
        explicit_bzero(text, strlen(text));
    free(text);
    return result;
}

/* ---- credentials ---- */

/* A PEM file of certificates. gRPC would find out about a broken one at the first call. */
static int read_certificates(char **text, const char *option, const char *path,
                             struct timbre_status *status) {
    size_t bytes;
    struct status st;
    if (!path)
        return 0;
    if (file_read(text, &bytes, path, CLIENT_PEM_BYTES_MAX, "the size of a PEM file", &st))
        return reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "%s: %s", option, st.message);
    BIO *bio = BIO_new_mem_buf(*text, (int)bytes);
    X509 *certificate = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
    X509_free(certificate);
    BIO_free(bio);
    ERR_clear_error();
    if (!certificate)
        return reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "%s: %s: no certificate in PEM form", option,
                          path);
    return 0;
}

static int no_passphrase(char *buffer, int size, int rwflag, void *arg) {
    (void)buffer, (void)size, (void)rwflag, (void)arg;
    return 0; /* instead of asking on the terminal */
}

/* The key of the first certificate in `certificates`. */
static int read_key(char **text, const char *path, const char *certificates, struct timbre_status *status) {
    size_t bytes;
    struct status st;
    if (file_read(text, &bytes, path, CLIENT_PEM_BYTES_MAX, "the size of a PEM file", &st))
        return reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "tls_key: %s", st.message);
    BIO *bio = BIO_new_mem_buf(*text, (int)bytes);
    BIO *certificate_bio = BIO_new_mem_buf(certificates, -1);
    EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL) : NULL;
    X509 *certificate = certificate_bio ? PEM_read_bio_X509(certificate_bio, NULL, NULL, NULL) : NULL;
    int result = 0;
    if (!key)
        result = reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT,
                            "tls_key: %s: no private key in PEM form, or one with a passphrase", path);
    else if (!certificate || X509_check_private_key(certificate, key) != 1)
        result =
            reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "tls_key: %s: not the key of tls_cert", path);
    X509_free(certificate);
    EVP_PKEY_free(key);
    BIO_free(certificate_bio);
    BIO_free(bio);
    ERR_clear_error();
    return result;
}

static bool wants_tls(const struct timbre_client_options *o) {
    return o->tls || o->tls_ca || o->tls_cert || o->tls_key || o->tls_server_name;
}

static int make_credentials(grpc_channel_credentials **credentials, const struct timbre_client_options *o,
                            struct timbre_status *status) {
    char *ca = NULL, *cert = NULL, *key = NULL;
    int result = -1;
    if (!wants_tls(o)) {
        *credentials = grpc_insecure_credentials_create();
        return 0;
    }
    if (!o->tls_cert != !o->tls_key)
        return reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT,
                          "%s is missing: tls_cert and tls_key go together",
                          o->tls_cert ? "tls_key" : "tls_cert");
    if (read_certificates(&ca, "tls_ca", o->tls_ca, status) ||
        read_certificates(&cert, "tls_cert", o->tls_cert, status) ||
        (cert && read_key(&key, o->tls_key, cert, status)))
        goto out;
    grpc_ssl_pem_key_cert_pair pair = {.private_key = key, .cert_chain = cert};
    *credentials = grpc_ssl_credentials_create(ca, cert ? &pair : NULL, NULL, NULL);
    result = 0;
out:
    if (key)
        explicit_bzero(key, strlen(key));
    free(ca);
    free(cert);
    free(key);
    return result;
}

/* ---- the channel ---- */

enum { ARGS_MAX = 16 };

struct arguments {
    grpc_arg args[ARGS_MAX];
    size_t count;
};

static void add_int(struct arguments *a, const char *key, int value) {
    a->args[a->count++] = (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)key, .value.integer = value};
}

static void add_string(struct arguments *a, const char *key, const char *value) {
    a->args[a->count++] =
        (grpc_arg){.type = GRPC_ARG_STRING, .key = (char *)key, .value.string = (char *)value};
}

static void fill(struct arguments *a, const struct timbre_client_options *o) {
    add_int(a, GRPC_ARG_ENABLE_RETRIES, 0); /* attempts are counted here alone */
    add_int(a, GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
    add_int(a, GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1); /* a client has connections of its own */
    add_int(a, GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, RECONNECT_INITIAL_MS);
    add_int(a, GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, RECONNECT_MIN_MS);
    add_int(a, GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, RECONNECT_MAX_MS);
    add_int(a, GRPC_ARG_MAX_METADATA_SIZE, METADATA_BYTES_MAX);
    add_int(a, GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, o->reply_bytes_max ? (int)o->reply_bytes_max : 16 << 20);
    add_string(a, GRPC_ARG_SECONDARY_USER_AGENT_STRING, "timbre-client/" TIMBRE_VERSION);
    if (o->user_agent)
        add_string(a, GRPC_ARG_PRIMARY_USER_AGENT_STRING, o->user_agent);
    if (o->round_robin)
        add_string(a, GRPC_ARG_LB_POLICY_NAME, "round_robin");
    if (o->tls_server_name)
        add_string(a, GRPC_SSL_TARGET_NAME_OVERRIDE_ARG, o->tls_server_name);
    if (o->keepalive_ms) {
        add_int(a, GRPC_ARG_KEEPALIVE_TIME_MS, o->keepalive_ms);
        add_int(a, GRPC_ARG_KEEPALIVE_TIMEOUT_MS, KEEPALIVE_TIMEOUT_MS);
        add_int(a, GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    }
}

int channel_new(grpc_channel **channel, const struct timbre_client_options *o, struct timbre_status *status) {
    grpc_channel_credentials *credentials = NULL;
    struct arguments a = {.count = 0};
    if (make_credentials(&credentials, o, status))
        return -1;
    fill(&a, o);
    const grpc_channel_args args = {.num_args = a.count, .args = a.args};
    *channel = credentials ? grpc_channel_create(o->target, credentials, &args) : NULL;
    grpc_channel_credentials_release(credentials);
    /* What gRPC cannot make a channel of becomes one that is shut down from the beginning. */
    if (*channel && grpc_channel_check_connectivity_state(*channel, 0) == GRPC_CHANNEL_SHUTDOWN) {
        grpc_channel_destroy(*channel);
        *channel = NULL;
    }
    if (!*channel)
        return reply_fail(status, TIMBRE_CODE_INVALID_ARGUMENT, "target %s: not an address", o->target);
    return 0;
}
