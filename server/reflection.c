/* grpc.reflection.v1 and v1alpha, which are the same on the wire: the descriptor set that was linked in
 * (descriptors.S), told file by file. */
#include <string.h>

#include "proto/grpc/reflection/v1/reflection.pb-c.h"
#include "server/internal.h"
#include "server/symbols.h"

typedef Grpc__Reflection__V1__ServerReflectionRequest request;
typedef Grpc__Reflection__V1__ServerReflectionResponse response;
#define ASKS(what)  GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##what
#define TELLS(what) GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##what

enum {
    REFLECTION_REQUEST_BYTES_MAX = 4096, /* it is repeated in the answer */
    REFLECTION_UNSENT_MAX = 16,          /* answers that wait for a caller who does not read */
    REFLECTION_SERVICES_MAX = 16,
    REFLECTION_NAME_BYTES = 96, /* of a service */
};

extern const char timbre_descriptors_begin[], timbre_descriptors_end[];

/* State of a stream. */
struct reflection {
    uint64_t files_sent; /* a bit each */
};

/* Read when it is first asked for, on the completion-queue thread, and kept. */
static struct symbols *symbols;

/* The parts that a response points to, while it is packed. */
struct parts {
    Grpc__Reflection__V1__FileDescriptorResponse files;
    ProtobufCBinaryData files_list[SYMBOLS_FILES_MAX];
    Grpc__Reflection__V1__ListServiceResponse services;
    Grpc__Reflection__V1__ServiceResponse services_store[REFLECTION_SERVICES_MAX];
    Grpc__Reflection__V1__ServiceResponse *services_list[REFLECTION_SERVICES_MAX];
    char names[REFLECTION_SERVICES_MAX][REFLECTION_NAME_BYTES];
    Grpc__Reflection__V1__ExtensionNumberResponse extensions;
    Grpc__Reflection__V1__ErrorResponse error;
    struct status status; /* error.error_message */
};

static void tell_error(response *r, struct parts *p) {
    p->error = (Grpc__Reflection__V1__ErrorResponse)GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
    p->error.error_code = (int32_t)p->status.code;
    p->error.error_message = p->status.message;
    r->message_response_case = TELLS(ERROR_RESPONSE);
    r->error_response = &p->error;
}

/* The file, and of what it imports all that this stream has not had. */
static void tell_file(response *r, struct parts *p, int file, struct reflection *stream) {
    uint64_t missing = symbols_get_imports(symbols, file) & ~stream->files_sent & ~((uint64_t)1 << file);
    size_t count = 0;
    p->files_list[count].data = (uint8_t *)symbols_get_file(symbols, file, &p->files_list[count].len);
    count++;
    for (int i = 0; i < SYMBOLS_FILES_MAX; i++)
        if (missing >> i & 1) {
            p->files_list[count].data = (uint8_t *)symbols_get_file(symbols, i, &p->files_list[count].len);
            count++;
        }
    stream->files_sent |= missing | (uint64_t)1 << file;
    p->files =
        (Grpc__Reflection__V1__FileDescriptorResponse)GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
    p->files.n_file_descriptor_proto = count;
    p->files.file_descriptor_proto = p->files_list;
    r->message_response_case = TELLS(FILE_DESCRIPTOR_RESPONSE);
    r->file_descriptor_response = &p->files;
}

/* The services are those that have methods here: "/NAME/METHOD". */
static void tell_services(response *r, struct parts *p) {
    size_t count = 0;
    for (int i = 0; i < methods_count(); i++) {
        const char *name = methods_at(i)->path + 1;
        size_t length = strcspn(name, "/"), k = 0;
        while (k < count && (strncmp(p->names[k], name, length) != 0 || p->names[k][length]))
            k++;
        if (k < count || count == REFLECTION_SERVICES_MAX || length >= REFLECTION_NAME_BYTES)
            continue;
        memcpy(p->names[count], name, length);
        p->names[count][length] = '\0';
        p->services_store[count] =
            (Grpc__Reflection__V1__ServiceResponse)GRPC__REFLECTION__V1__SERVICE_RESPONSE__INIT;
        p->services_store[count].name = p->names[count];
        p->services_list[count] = &p->services_store[count];
        count++;
    }
    p->services =
        (Grpc__Reflection__V1__ListServiceResponse)GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
    p->services.n_service = count;
    p->services.service = p->services_list;
    r->message_response_case = TELLS(LIST_SERVICES_RESPONSE);
    r->list_services_response = &p->services;
}

/* No file here extends anything, so a message has no extensions and what is no message is not found. */
static void tell_extensions(response *r, struct parts *p, char *type) {
    if (!symbols_has_message(symbols, type)) {
        status_set(&p->status, STATUS_NOT_FOUND, "all_extension_numbers_of_type: no message \"%.200s\" here",
                   type);
        tell_error(r, p);
        return;
    }
    p->extensions =
        (Grpc__Reflection__V1__ExtensionNumberResponse)GRPC__REFLECTION__V1__EXTENSION_NUMBER_RESPONSE__INIT;
    p->extensions.base_type_name = type;
    r->message_response_case = TELLS(ALL_EXTENSION_NUMBERS_RESPONSE);
    r->all_extension_numbers_response = &p->extensions;
}

static void tell(response *r, struct parts *p, request *q, struct reflection *stream) {
    int file = -1;
    if (!symbols && symbols_new(&symbols, timbre_descriptors_begin,
                                (size_t)(timbre_descriptors_end - timbre_descriptors_begin), &p->status)) {
        tell_error(r, p);
        return;
    }
    switch (q->message_request_case) {
    case ASKS(FILE_BY_FILENAME):
        file = symbols_find_file(symbols, q->file_by_filename);
        status_set(&p->status, STATUS_NOT_FOUND, "file_by_filename: no such file here");
        break;
    case ASKS(FILE_CONTAINING_SYMBOL):
        file = symbols_find(symbols, q->file_containing_symbol);
        status_set(&p->status, STATUS_NOT_FOUND, "file_containing_symbol: no such symbol here");
        break;
    case ASKS(FILE_CONTAINING_EXTENSION):
        status_set(&p->status, STATUS_NOT_FOUND,
                   "file_containing_extension: no extension %d of \"%.200s\" here",
                   (int)q->file_containing_extension->extension_number,
                   q->file_containing_extension->containing_type);
        break;
    case ASKS(ALL_EXTENSION_NUMBERS_OF_TYPE):
        tell_extensions(r, p, q->all_extension_numbers_of_type);
        return;
    case ASKS(LIST_SERVICES):
        tell_services(r, p);
        return;
    default:
        status_set(&p->status, STATUS_INVALID_ARGUMENT, "message_request: nothing is asked");
        break;
    }
    if (file < 0)
        tell_error(r, p);
    else
        tell_file(r, p, file, stream);
}

static void answer(struct call *c, struct wire_message *in) {
    struct status st;
    request *q = NULL;
    size_t bytes = in->bytes;
    if (bytes <= REFLECTION_REQUEST_BYTES_MAX)
        q = (request *)wire_unpack(in, &grpc__reflection__v1__server_reflection_request__descriptor, &st);
    else
        status_set(&st, STATUS_INVALID_ARGUMENT, "a request of %zu bytes; a question has at most %d", bytes,
                   REFLECTION_REQUEST_BYTES_MAX);
    wire_message_free(in);
    if (!q) {
        call_fail(c, &st, NULL);
        return;
    }
    struct parts parts;
    response r = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    r.valid_host = q->host;
    r.original_request = q;
    tell(&r, &parts, q, call_get_state(c));
    call_send(c, &r.base);
    grpc__reflection__v1__server_reflection_request__free_unpacked(q, NULL);
    if (call_count_unsent(c) > REFLECTION_UNSENT_MAX) {
        status_set(&st, STATUS_RESOURCE_EXHAUSTED, "%d answers wait to be read, the limit",
                   REFLECTION_UNSENT_MAX);
        call_fail(c, &st, &(struct failure){.reason = "ANSWERS_NOT_READ"});
        return;
    }
    call_read_next(c);
}

static void receive(struct call *c, struct wire_message *in) {
    if (call_get_server(c)->options->reflection) {
        answer(c, in);
        return;
    }
    struct status st;
    wire_message_free(in);
    status_set(&st, STATUS_UNIMPLEMENTED, "reflection is off here (--no-reflection)");
    call_fail(c, &st, NULL);
}

const struct method reflection_methods[] = {
    {.path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
     .streams = true,
     .state_bytes = sizeof(struct reflection),
     .on_message = receive,
     .on_half_close = call_end},
    {.path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
     .streams = true,
     .state_bytes = sizeof(struct reflection),
     .on_message = receive,
     .on_half_close = call_end},
    {.path = NULL},
};
