#include "tests/unit/server/certificates.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509v3.h>

static char *take_text(BIO *bio) {
    char *data;
    long n = BIO_get_mem_data(bio, &data);
    char *text = calloc(1, (size_t)n + 1);
    assert_non_null(text);
    memcpy(text, data, (size_t)n);
    BIO_free(bio);
    return text;
}

static void add_extension(X509 *x, int nid, const char *value) {
    X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, NULL, nid, value);
    assert_non_null(e);
    assert_int_equal(X509_add_ext(x, e, -1), 1);
    X509_EXTENSION_free(e);
}

static struct certificate *make(EVP_PKEY *key, const char *common_name, const struct certificate *issuer,
                                long from_s, long to_s) {
    static long serial = 1;
    struct certificate *c = calloc(1, sizeof *c);
    assert_true(c && key);
    c->key = key;
    c->x509 = X509_new();
    X509_set_version(c->x509, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(c->x509), serial++);
    X509_gmtime_adj(X509_getm_notBefore(c->x509), from_s);
    X509_gmtime_adj(X509_getm_notAfter(c->x509), to_s);
    X509_set_pubkey(c->x509, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(c->x509), "CN", MBSTRING_ASC,
                               (const unsigned char *)common_name, -1, -1, 0);
    X509_set_issuer_name(c->x509, X509_get_subject_name(issuer ? issuer->x509 : c->x509));
    add_extension(c->x509, NID_basic_constraints, issuer ? "CA:FALSE" : "critical,CA:TRUE");
    add_extension(c->x509, NID_subject_alt_name, "DNS:localhost");
    assert_true(X509_sign(c->x509, issuer ? issuer->key : key, EVP_sha256()) > 0);
    BIO *cert = BIO_new(BIO_s_mem()), *secret = BIO_new(BIO_s_mem());
    PEM_write_bio_X509(cert, c->x509);
    PEM_write_bio_PrivateKey(secret, key, NULL, NULL, 0, NULL, NULL);
    c->cert_pem = take_text(cert);
    c->key_pem = take_text(secret);
    return c;
}

struct certificate *certificate_make(const char *common_name, const struct certificate *issuer, long from_s,
                                     long to_s) {
    return make(EVP_EC_gen("P-256"), common_name, issuer, from_s, to_s);
}

struct certificate *certificate_make_rsa(const char *common_name, unsigned bits) {
    return make(EVP_RSA_gen(bits), common_name, NULL, -3600, 3600);
}

void certificate_free(struct certificate *c) {
    if (!c)
        return;
    EVP_PKEY_free(c->key);
    X509_free(c->x509);
    free(c->cert_pem);
    free(c->key_pem);
    free(c);
}

char *certificate_encrypt_key(const struct certificate *c, const char *passphrase) {
    BIO *bio = BIO_new(BIO_s_mem());
    PEM_write_bio_PrivateKey(bio, c->key, EVP_aes_128_cbc(), (const unsigned char *)passphrase,
                             (int)strlen(passphrase), NULL, NULL);
    return take_text(bio);
}
