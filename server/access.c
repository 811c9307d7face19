/* The log line and the counters of a finished call. No audio and no token gets here. */
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/call_internal.h"

/* The identifiers in a W3C traceparent, "00-TRACE-SPAN-FLAGS"; empty when there is none. */
struct trace {
    char trace_id[33], span_id[17];
};

static bool is_hex(const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!strchr("0123456789abcdef", s[i]) || !s[i])
            return false;
    return true;
}

static struct trace find_trace(const struct call *c) {
    struct trace t = {0};
    size_t bytes = 0;
    const char *parent = call_get_metadata(c, "traceparent", &bytes);
    if (parent && bytes >= 55 && parent[2] == '-' && is_hex(parent + 3, 32) && parent[35] == '-' &&
        is_hex(parent + 36, 16) && parent[52] == '-') {
        memcpy(t.trace_id, parent + 3, 32);
        memcpy(t.span_id, parent + 36, 16);
    }
    return t;
}

static void write_line(struct call *c, double ms) {
    const enum server_access_log wanted = c->server->options->access_log;
    if (wanted == SERVER_ACCESS_OFF || (wanted == SERVER_ACCESS_ERRORS && c->code == GRPC_STATUS_OK))
        return;
    const struct trace trace = find_trace(c);
    struct log_field fields[10] = {
        {.key = "method", .text = c->method->path},
        {.key = "code",
         .text = c->cancelled && c->code == GRPC_STATUS_OK ? "CANCELLED"
                                                           : status_code_name((enum status_code)c->code)},
        {.key = "ms", .number = ms, .is_number = true},
        {.key = "bytes", .number = (double)c->received_bytes, .is_number = true},
        {.key = "request_id", .text = call_get_request_id(c)},
        {.key = "peer", .text = c->peer},
    };
    int count = 6;
    if (c->model[0])
        fields[count++] = log_text("model", c->model);
    if (c->token_name[0])
        fields[count++] = log_text("token", c->token_name);
    if (trace.trace_id[0]) {
        fields[count++] = log_text("trace_id", trace.trace_id);
        fields[count++] = log_text("span_id", trace.span_id);
    }
    log_write_fields(c->code == GRPC_STATUS_OK || c->code == GRPC_STATUS_CANCELLED ? LOG_INFO : LOG_WARN,
                     "access", fields, count, "%s", "call");
}

void access_record(struct call *c) {
    const int64_t now_ns = clock_now_ns();
    /* A message over max-message-bytes is refused by gRPC itself, which leaves only this trace of it. */
    if (c->no_message && c->cancelled) {
        c->code = GRPC_STATUS_RESOURCE_EXHAUSTED;
        telemetry_count_refused(c->server->telemetry, "MESSAGE_TOO_LARGE");
    }
    const double seconds = (double)(now_ns - c->begin_ns) * 1e-9;
    telemetry_count_call(c->server->telemetry, methods_index(c->method), (int)c->code, seconds);
    telemetry_count_received(c->server->telemetry, c->received_bytes);
    write_line(c, seconds * 1e3);
}
