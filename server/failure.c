/* google.rpc.Status for the trailer `grpc-status-details-bin`. */
#include <stdlib.h>
#include <string.h>

#include "proto/google/rpc/error_details.pb-c.h"
#include "proto/google/rpc/status.pb-c.h"
#include "server/call_internal.h"

#define TYPE_PREFIX "type.googleapis.com/"

enum { DETAILS_MAX = 4, DETAIL_BYTES_MAX = 2048 };

struct details {
    Google__Rpc__Status status;
    Google__Protobuf__Any any[DETAILS_MAX], *list[DETAILS_MAX];
    uint8_t packed[DETAILS_MAX][DETAIL_BYTES_MAX];
};

/* What does not fit is left out: code and message are what counts. */
static void add(struct details *d, const char *type, const ProtobufCMessage *m) {
    size_t bytes = protobuf_c_message_get_packed_size(m), n = d->status.n_details;
    if (n == DETAILS_MAX || bytes > DETAIL_BYTES_MAX)
        return;
    protobuf_c_message_pack(m, d->packed[n]);
    google__protobuf__any__init(&d->any[n]);
    d->any[n].type_url = (char *)type;
    d->any[n].value = (ProtobufCBinaryData){.len = bytes, .data = d->packed[n]};
    d->list[n] = &d->any[n];
    d->status.n_details++;
}

static void add_info(struct details *d, const struct status *st, const struct failure *f) {
    Google__Rpc__ErrorInfo info = GOOGLE__RPC__ERROR_INFO__INIT;
    info.reason = (char *)(f->reason ? f->reason : status_code_name(st->code));
    info.domain = "timbre";
    add(d, TYPE_PREFIX "google.rpc.ErrorInfo", &info.base);
}

static void add_field(struct details *d, const struct status *st, const struct failure *f) {
    Google__Rpc__BadRequest__FieldViolation violation = GOOGLE__RPC__BAD_REQUEST__FIELD_VIOLATION__INIT;
    Google__Rpc__BadRequest__FieldViolation *violations[] = {&violation};
    Google__Rpc__BadRequest bad = GOOGLE__RPC__BAD_REQUEST__INIT;
    violation.field = (char *)f->field;
    violation.description = (char *)st->message;
    bad.n_field_violations = 1;
    bad.field_violations = violations;
    add(d, TYPE_PREFIX "google.rpc.BadRequest", &bad.base);
}

static void add_limit(struct details *d, const struct status *st, const struct failure *f) {
    Google__Rpc__QuotaFailure__Violation violation = GOOGLE__RPC__QUOTA_FAILURE__VIOLATION__INIT;
    Google__Rpc__QuotaFailure__Violation *violations[] = {&violation};
    Google__Rpc__QuotaFailure quota = GOOGLE__RPC__QUOTA_FAILURE__INIT;
    violation.subject = (char *)f->limit;
    violation.description = (char *)st->message;
    quota.n_violations = 1;
    quota.violations = violations;
    add(d, TYPE_PREFIX "google.rpc.QuotaFailure", &quota.base);
}

static void add_retry(struct details *d, const struct failure *f) {
    Google__Protobuf__Duration delay = GOOGLE__PROTOBUF__DURATION__INIT;
    Google__Rpc__RetryInfo retry = GOOGLE__RPC__RETRY_INFO__INIT;
    delay.seconds = f->retry_after_ms / 1000;
    delay.nanos = f->retry_after_ms % 1000 * 1000000;
    retry.retry_delay = &delay;
    add(d, TYPE_PREFIX "google.rpc.RetryInfo", &retry.base);
}

grpc_slice failure_pack(const struct status *st, const struct failure *f) {
    struct details d = {0};
    google__rpc__status__init(&d.status);
    d.status.code = (int32_t)st->code;
    d.status.message = (char *)st->message;
    d.status.details = d.list;
    add_info(&d, st, f);
    if (f->field)
        add_field(&d, st, f);
    if (f->limit)
        add_limit(&d, st, f);
    if (f->retry_after_ms > 0)
        add_retry(&d, f);
    grpc_slice slice = grpc_slice_malloc(google__rpc__status__get_packed_size(&d.status));
    google__rpc__status__pack(&d.status, GRPC_SLICE_START_PTR(slice));
    return slice;
}
