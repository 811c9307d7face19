/* tls: reads and checks the files; the gRPC core asks for them at every handshake. What core would refuse is
 * refused here first, with a sentence: core itself would go on with the old files and say so nowhere. */
#include "server/tls.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "server/watch.h"

enum { FILES = 3, CERTIFICATES_MAX = 1000, EXPIRY_WARN_S = 7 * 24 * 3600 };
enum file { CERT, KEY, CLIENT_CA };
static const char *const options[FILES] = {"tls-cert", "tls-key", "tls-client-ca"};

/* The content of the files, whole. */
struct contents {
    char *pem[FILES]; /* zero-terminated; NULL: not used */
    size_t bytes[FILES];
    double expiry_s;
};

/* One tls_make_credentials: which contents its listener has. */
struct listener {
    struct tls *tls;
    struct listener *next;
    uint64_t generation; /* 0: none yet */
};

struct tls {
    struct watch watch[FILES]; /* of the thread that polls */
    char *paths[FILES];
    char told[STATUS_MESSAGE_BYTES_MAX]; /* what is wrong with the files, as it was logged; "" when all is
                                            well */
    pthread_mutex_t lock;                /* of all below */
    struct contents contents;
    uint64_t generation;
    struct listener *listeners;
};

/* ---- checking ---- */

static const char *ssl_reason(void) {
    const char *reason = ERR_reason_error_string(ERR_peek_last_error());
    return reason ? reason : "not PEM";
}

static int refuse(struct status *st, const struct tls *t, enum file f, const char *what) {
    status_set(st, STATUS_INVALID_ARGUMENT, "%s %s: %s", options[f], t->paths[f], what);
    ERR_clear_error();
    return -1;
}

static int refuse_reason(struct status *st, const struct tls *t, enum file f, const char *what) {
    status_set(st, STATUS_INVALID_ARGUMENT, "%s %s: %s (%s)", options[f], t->paths[f], what, ssl_reason());
    ERR_clear_error();
    return -1;
}

static bool is_valid_now(const X509 *certificate) {
    return X509_cmp_current_time(X509_get0_notBefore(certificate)) < 0 &&
           X509_cmp_current_time(X509_get0_notAfter(certificate)) > 0;
}

static double to_seconds(const ASN1_TIME *time) {
    struct tm tm = {0};
    return ASN1_TIME_to_tm(time, &tm) ? (double)timegm(&tm) : 0;
}

static bool is_end_of_pem(void) {
    unsigned long error = ERR_peek_last_error();
    return ERR_GET_LIB(error) == ERR_LIB_PEM && ERR_GET_REASON(error) == PEM_R_NO_START_LINE;
}

/* Calls `each` with every certificate of a file. Errors: no certificate in it, one that is broken. */
static int read_certificates(const struct tls *t, const struct contents *c, enum file f,
                             int (*each)(void *arg, X509 *certificate, int index, struct status *st),
                             void *arg, struct status *st) {
    BIO *bio = BIO_new_mem_buf(c->pem[f], -1); /* up to a zero, as core reads it */
    int count = 0, result = bio ? 0 : status_set_no_memory(st, c->bytes[f], options[f]);
    ERR_clear_error();
    while (result == 0) {
        X509 *certificate = PEM_read_bio_X509(bio, NULL, NULL, NULL);
        if (!certificate) {
            if (count == 0)
                result = refuse(st, t, f, "no certificate in PEM form in it");
            else if (!is_end_of_pem())
                result = refuse_reason(st, t, f, "a certificate in it is broken");
            break;
        }
        if (count == CERTIFICATES_MAX)
            result = refuse(st, t, f, "more than 1000 certificates in it");
        else
            result = each(arg, certificate, count++, st);
        X509_free(certificate);
    }
    ERR_clear_error();
    BIO_free(bio);
    return result;
}

struct chain {
    const struct tls *tls;
    SSL_CTX *context;
    double expiry_s;
};

/* The first certificate is the server's, the others lead to an authority. */
static int add_to_chain(void *arg, X509 *certificate, int index, struct status *st) {
    struct chain *chain = arg;
    if (index > 0) {
        if (SSL_CTX_add1_chain_cert(chain->context, certificate) == 1)
            return 0;
        return refuse_reason(st, chain->tls, CERT, "a certificate of the chain cannot be used");
    }
    if (X509_cmp_current_time(X509_get0_notBefore(certificate)) >= 0)
        return refuse(st, chain->tls, CERT,
                      "the certificate is not valid yet; is this machine's clock right?");
    if (!is_valid_now(certificate))
        return refuse(st, chain->tls, CERT, "the certificate has expired");
    chain->expiry_s = to_seconds(X509_get0_notAfter(certificate));
    if (SSL_CTX_use_certificate(chain->context, certificate) != 1)
        return refuse_reason(st, chain->tls, CERT, "the certificate cannot be used");
    return 0;
}

struct authorities {
    int valid;
};

static int count_authority(void *arg, X509 *certificate, int index, struct status *st) {
    (void)index;
    (void)st;
    struct authorities *a = arg;
    a->valid += is_valid_now(certificate);
    return 0;
}

/* Instead of asking on the terminal. */
static int refuse_passphrase(char *buffer, int bytes, int writing, void *asked) {
    (void)buffer;
    (void)bytes;
    (void)writing;
    *(bool *)asked = true;
    return -1;
}

static int check_key(const struct tls *t, const struct contents *c, const struct chain *chain,
                     struct status *st) {
    bool asked = false;
    BIO *bio = BIO_new_mem_buf(c->pem[KEY], -1);
    if (!bio)
        return status_set_no_memory(st, c->bytes[KEY], options[KEY]);
    EVP_PKEY *key = PEM_read_bio_PrivateKey(bio, NULL, refuse_passphrase, &asked);
    int result = 0;
    if (asked)
        result = refuse(st, t, KEY, "the key has a passphrase, which nobody is there to type");
    else if (!key)
        result = refuse(st, t, KEY, "no private key in PEM form in it");
    else if (X509_check_private_key(SSL_CTX_get0_certificate(chain->context), key) != 1)
        result = refuse(st, t, KEY, "the key does not belong to the certificate of tls-cert");
    else if (SSL_CTX_use_PrivateKey(chain->context, key) != 1)
        result = refuse_reason(st, t, KEY, "the key cannot be used");
    EVP_PKEY_free(key);
    BIO_free(bio);
    return result;
}

/* Everything that core does with the files, and their dates. */
static int check_contents(const struct tls *t, struct contents *c, struct status *st) {
    struct chain chain = {.tls = t, .context = SSL_CTX_new(TLS_server_method())};
    struct authorities authorities = {0};
    int result = chain.context ? 0 : status_set_no_memory(st, sizeof chain, "TLS");
    if (result == 0)
        result = read_certificates(t, c, CERT, add_to_chain, &chain, st);
    if (result == 0)
        result = check_key(t, c, &chain, st);
    if (result == 0 && c->pem[CLIENT_CA])
        result = read_certificates(t, c, CLIENT_CA, count_authority, &authorities, st);
    if (result == 0 && c->pem[CLIENT_CA] && authorities.valid == 0)
        result = refuse(st, t, CLIENT_CA, "no certificate in it is valid now, so no client could be let in");
    c->expiry_s = chain.expiry_s;
    SSL_CTX_free(chain.context);
    ERR_clear_error();
    return result;
}

/* ---- reading ---- */

static void contents_free(struct contents *c) {
    for (int f = 0; f < FILES; f++)
        watch_free_secret(c->pem[f], c->bytes[f]);
    *c = (struct contents){0};
}

/* Reads and checks all files. `fresh`: one holds something else than the last time. */
static int contents_read(struct tls *t, struct contents *c, bool *fresh, struct status *st) {
    *c = (struct contents){0};
    *fresh = false;
    for (int f = 0; f < FILES; f++) {
        bool changed = false;
        if (!t->paths[f])
            continue;
        if (watch_read(&t->watch[f], &c->pem[f], &c->bytes[f], &changed, st)) {
            contents_free(c);
            st->code = STATUS_INVALID_ARGUMENT;
            return status_prefix(st, "%s", options[f]);
        }
        *fresh |= changed;
    }
    if (check_contents(t, c, st)) {
        contents_free(c);
        return -1;
    }
    return 0;
}

static void tell_expiry(const struct tls *t, const char *what) {
    time_t end = (time_t)t->contents.expiry_s;
    struct tm tm;
    char date[32];
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&end, &tm));
    log_write(t->contents.expiry_s - (double)time(NULL) < EXPIRY_WARN_S ? LOG_WARN : LOG_INFO, "tls",
              "%s: %s, valid until %s", t->paths[CERT], what, date);
}

int tls_new(struct tls **out, const char *cert, const char *key, const char *client_ca, struct status *st) {
    const char *const paths[FILES] = {cert, key, client_ca};
    bool fresh;
    *out = NULL;
    struct tls *t = calloc(1, sizeof *t);
    if (!t)
        return status_set_no_memory(st, sizeof *t, "TLS");
    pthread_mutex_init(&t->lock, NULL);
    for (int f = 0; f < FILES; f++) {
        t->paths[f] = paths[f] ? strdup(paths[f]) : NULL;
        t->watch[f].path = t->paths[f];
        if (paths[f] && !t->paths[f]) {
            tls_del(t);
            return status_set_no_memory(st, strlen(paths[f]), "TLS");
        }
    }
    if (contents_read(t, &t->contents, &fresh, st)) {
        tls_del(t);
        return -1;
    }
    t->generation = 1;
    tell_expiry(t, "certificate read");
    *out = t;
    return 0;
}

void tls_del(struct tls *t) {
    if (!t)
        return;
    for (struct listener *l = t->listeners, *next; l; l = next) {
        next = l->next;
        free(l);
    }
    contents_free(&t->contents);
    for (int f = 0; f < FILES; f++)
        free(t->paths[f]);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

/* ---- reloading ---- */

void tls_poll(struct tls *t) {
    struct status st = {0};
    struct contents fresh_contents;
    bool changed = false, fresh;
    for (int f = 0; f < FILES; f++)
        changed |= t->paths[f] && watch_changed(&t->watch[f]);
    if (!changed)
        return;
    if (contents_read(t, &fresh_contents, &fresh, &st)) {
        if (strcmp(st.message, t->told) != 0)
            log_write(LOG_WARN, "tls", "%s; the files read before stay in use", st.message);
        memcpy(t->told, st.message, sizeof t->told);
        return;
    }
    /* After an error the files may hold again what is in use. */
    const bool news = fresh || t->told[0];
    t->told[0] = 0;
    if (!news) {
        contents_free(&fresh_contents);
        return;
    }
    pthread_mutex_lock(&t->lock);
    struct contents old = t->contents;
    t->contents = fresh_contents;
    t->generation++;
    pthread_mutex_unlock(&t->lock);
    contents_free(&old);
    tell_expiry(t, "certificate read anew");
}

double tls_get_expiry_s(struct tls *t) {
    pthread_mutex_lock(&t->lock);
    double expiry_s = t->contents.expiry_s;
    pthread_mutex_unlock(&t->lock);
    return expiry_s;
}

/* ---- for core ---- */

/* Core calls it when the port is added and at every handshake, on any thread but one at a time for a
 * listener. It keeps what it got until NEW comes; it copies, so the contents may change right after. */
static grpc_ssl_certificate_config_reload_status fetch(void *user_data,
                                                       grpc_ssl_server_certificate_config **config) {
    struct listener *l = user_data;
    struct tls *t = l->tls;
    pthread_mutex_lock(&t->lock);
    const bool changed = l->generation != t->generation;
    if (changed) {
        grpc_ssl_pem_key_cert_pair pair = {.private_key = t->contents.pem[KEY],
                                           .cert_chain = t->contents.pem[CERT]};
        /* Core aborts without authorities, also where it is told to ask no client for a certificate; which
         * ones they are is of no consequence then. */
        const char *authorities = t->contents.pem[CLIENT_CA] ? t->contents.pem[CLIENT_CA] : pair.cert_chain;
        *config = grpc_ssl_server_certificate_config_create(authorities, &pair, 1);
        l->generation = t->generation;
    }
    pthread_mutex_unlock(&t->lock);
    return changed ? GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW : GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
}

grpc_server_credentials *tls_make_credentials(struct tls *t) {
    struct listener *l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    l->tls = t;
    pthread_mutex_lock(&t->lock);
    l->next = t->listeners;
    t->listeners = l;
    pthread_mutex_unlock(&t->lock);
    return grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(
            t->paths[CLIENT_CA] ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
            fetch, l));
}
