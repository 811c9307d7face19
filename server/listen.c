/* The gRPC server: its limits, its address, its credentials. */
#include <stdio.h>
#include <string.h>

#include <grpc/grpc_security.h>

#include "server/call_internal.h"

enum { ARGS_MAX = 20 };

struct args {
    grpc_arg list[ARGS_MAX];
    size_t count;
};

static void add_int(struct args *a, const char *key, int64_t value) {
    a->list[a->count].type = GRPC_ARG_INTEGER;
    a->list[a->count].key = (char *)key;
    a->list[a->count++].value.integer = value > INT32_MAX ? INT32_MAX : (int)value;
}

static void add_limits(struct args *a, const struct server_options *o) {
    add_int(a, GRPC_ARG_ALLOW_REUSEPORT, 0); /* a second server on the port must fail, not share it */
    add_int(a, GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, o->message_bytes_max);
    add_int(a, GRPC_ARG_MAX_METADATA_SIZE, o->metadata_bytes_max);
    add_int(a, GRPC_ARG_MAX_CONCURRENT_STREAMS, o->connection_streams_max);
    add_int(a, GRPC_ARG_KEEPALIVE_TIME_MS, o->keepalive_time_ms);
    add_int(a, GRPC_ARG_KEEPALIVE_TIMEOUT_MS, o->keepalive_timeout_ms);
    add_int(a, GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, o->keepalive_without_calls);
    add_int(a, GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, o->ping_interval_min_ms);
    if (o->connection_age_ms) {
        add_int(a, GRPC_ARG_MAX_CONNECTION_AGE_MS, o->connection_age_ms);
        add_int(a, GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, o->connection_age_grace_ms);
    }
}

static void make_server(struct server *s) {
    struct args args = {0};
    grpc_resource_quota *quota = grpc_resource_quota_create("receive");
    grpc_resource_quota_resize(quota, (size_t)s->options->receive_bytes_max);
    add_limits(&args, s->options);
    args.list[args.count].type = GRPC_ARG_POINTER;
    args.list[args.count].key = (char *)GRPC_ARG_RESOURCE_QUOTA;
    args.list[args.count].value.pointer.p = quota;
    args.list[args.count++].value.pointer.vtable = grpc_resource_quota_arg_vtable();
    const grpc_channel_args channel_args = {.num_args = args.count, .args = args.list};
    s->grpc = grpc_server_create(&channel_args, NULL);
    grpc_resource_quota_unref(quota);
    s->cq = grpc_completion_queue_create_for_next(NULL);
    grpc_server_register_completion_queue(s->grpc, s->cq, NULL);
}

/* "HOST:PORT" with the port it got; "unix:" addresses as they are. */
static void tell_address(struct server *s, int port) {
    const char *address = s->options->grpc_address, *colon = strrchr(address, ':');
    if (strncmp(address, "unix:", 5) == 0)
        snprintf(s->grpc_address, sizeof s->grpc_address, "%s", address);
    else
        snprintf(s->grpc_address, sizeof s->grpc_address, "%.*s:%d", colon ? (int)(colon - address) : 0,
                 address, port);
}

int listen_start(struct server *s, struct status *st) {
    const struct server_options *o = s->options;
    if (o->tls_cert && tls_new(&s->tls, o->tls_cert, o->tls_key, o->tls_client_ca, st))
        return -1;
    make_server(s);
    grpc_server_credentials *credentials =
        s->tls ? tls_make_credentials(s->tls) : grpc_insecure_server_credentials_create();
    int port = grpc_server_add_http2_port(s->grpc, o->grpc_address, credentials);
    grpc_server_credentials_release(credentials);
    if (port == 0)
        return status_set(
            st, STATUS_UNAVAILABLE,
            "--grpc-address %s: cannot listen there; is the port taken, or the host not this one?",
            o->grpc_address);
    tell_address(s, port);
    grpc_server_start(s->grpc);
    for (int i = 0; i < SERVER_ARMED_CALLS; i++)
        call_arm(s);
    return 0;
}
