/* Keys and certificates made for a test. */
#ifndef TIMBRE_TESTS_UNIT_SERVER_CERTIFICATES_H
#define TIMBRE_TESTS_UNIT_SERVER_CERTIFICATES_H

#include <openssl/evp.h>
#include <openssl/x509.h>

/* A certificate for the common name and the host "localhost", and its key, signed by `issuer`; NULL: by
 * itself. `from_s` and `to_s` are seconds from now. Freed by certificate_free. */
struct certificate {
    EVP_PKEY *key;
    X509 *x509;
    char *cert_pem, *key_pem;
};
struct certificate *certificate_make(const char *common_name, const struct certificate *issuer, long from_s,
                                     long to_s);
/* With an RSA key of so many bits instead of P-256. */
struct certificate *certificate_make_rsa(const char *common_name, unsigned bits);
void certificate_free(struct certificate *c); /* NULL is fine */
/* The key with a passphrase; free it. */
char *certificate_encrypt_key(const struct certificate *c, const char *passphrase);

#endif
