#include <limits.h>

#include "cli/cli.h"

bool cli_take_server_option(struct timbre_client_options *o, int option, const char *value) {
    long n = 0;
    switch (option) {
    case CLI_O_SERVER:
        o->target = value;
        return true;
    case CLI_O_TLS:
        o->tls = true;
        return true;
    case CLI_O_TLS_CA:
        o->tls_ca = value;
        return true;
    case CLI_O_TLS_CERT:
        o->tls_cert = value;
        return true;
    case CLI_O_TLS_KEY:
        o->tls_key = value;
        return true;
    case CLI_O_TLS_SERVER_NAME:
        o->tls_server_name = value;
        return true;
    case CLI_O_TOKEN_FILE:
        o->token_file = value;
        return true;
    case CLI_O_DEADLINE_MS:
        if (!cli_parse_int("--deadline-ms", value, 1, INT_MAX, &n))
            return false;
        o->deadline_ms = (int)n;
        return true;
    }
    return false;
}
