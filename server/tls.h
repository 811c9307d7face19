/* tls: the server's certificate, its reload, and client certificates. */
#ifndef TIMBRE_SERVER_TLS_H
#define TIMBRE_SERVER_TLS_H

#include <grpc/grpc_security.h>

#include "base/status.h"

struct tls;

/* Reads and checks certificate, key (they must belong together, and the certificate be valid now) and, when
 * `client_ca` is not NULL, the authorities of clients. Errors, INVALID_ARGUMENT: name the file. */
int tls_new(struct tls **t, const char *cert, const char *key, const char *client_ca, struct status *st);
void tls_del(struct tls *t); /* after the server that uses its credentials is destroyed; NULL is fine */

/* Credentials for one grpc_server_add_http2_port (each port needs its own); the caller releases them. Every
 * handshake gets the newest files, connections that are there stay. NULL: no memory. */
grpc_server_credentials *tls_make_credentials(struct tls *t);

/* Reads the files again if one changed. Files that are wrong or do not belong together are logged once and
 * the old ones stay. About once a second, by one thread. */
void tls_poll(struct tls *t);

/* Seconds since 1970 at which the certificate ends, for a metric. Thread-safe. */
double tls_get_expiry_s(struct tls *t);

#endif
