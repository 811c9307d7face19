/* The zip archive around a torch checkpoint (PKWARE APPNOTE 6.3: 4.3.7 local header, 4.3.12 central
 * directory, 4.3.14 to 4.3.16 its end, 4.5.3 zip64). The central directory counts; local headers must agree
 * with it. Checksums are not verified: they say nothing about intent, and the weights are looked at in any
 * case. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "models/builder.h"
#include "models/torch.h"

enum {
    END_BYTES = 22,
    END64_BYTES = 56,
    LOCATOR_BYTES = 20,
    CENTRAL_BYTES = 46,
    LOCAL_BYTES = 30,
    COMMENT_MAX = 65535,
    FLAG_ENCRYPTED = 1 << 0,
    FLAG_SIZES_FOLLOW = 1 << 3, /* the local header's sizes are zero, a descriptor behind the data has them */
};

static uint32_t u16(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t u32(const unsigned char *p) {
    return u16(p) | u16(p + 2) << 16;
}

static uint64_t u64(const unsigned char *p) {
    return u32(p) | (uint64_t)u32(p + 4) << 32;
}

static int damaged(const struct torch_zip *z, const char *what, struct status *st) {
    return status_set(st, STATUS_INVALID_ARGUMENT, "%s: damaged zip archive: %s", z->file, what);
}

/* ---- finding the central directory ---- */

struct directory {
    uint64_t offset, bytes, entries;
};

static int find_end(const struct torch_zip *z, uint64_t *at, struct status *st) {
    const struct file_map *m = z->map;
    if (m->bytes >= 2 && m->data[0] == 0x80 && m->data[1] <= 5)
        return status_set(
            st, STATUS_FAILED_PRECONDITION,
            "%s: the torch format from before version 1.6, which is not read; load it with torch once and "
            "save it again with torch.save() or as safetensors",
            z->file);
    if (m->bytes >= 4 && u32(m->data) != 0x04034b50)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: not a torch checkpoint: it is no zip archive",
                          z->file);
    if (m->bytes < END_BYTES)
        return damaged(z, "too short (truncated?)", st);
    for (uint64_t comment = 0; comment <= COMMENT_MAX && comment <= m->bytes - END_BYTES; comment++) {
        const unsigned char *p = m->data + m->bytes - END_BYTES - comment;
        if (u32(p) == 0x06054b50 && u16(p + 20) == comment) {
            *at = (uint64_t)(p - m->data);
            return 0;
        }
    }
    return damaged(z, "its end is missing (truncated?)", st);
}

static int find_directory(const struct torch_zip *z, struct directory *d, struct status *st) {
    const struct file_map *m = z->map;
    uint64_t end = 0;
    if (find_end(z, &end, st))
        return -1;
    const unsigned char *p = m->data + end;
    if (u16(p + 4) != 0 || u16(p + 6) != 0 || u16(p + 8) != u16(p + 10))
        return damaged(z, "it spans several disks", st);
    *d = (struct directory){.entries = u16(p + 10), .bytes = u32(p + 12), .offset = u32(p + 16)};
    if (d->entries == 0xffff || d->bytes == UINT32_MAX || d->offset == UINT32_MAX) {
        if (end < LOCATOR_BYTES || u32(p - LOCATOR_BYTES) != 0x07064b50)
            return damaged(z, "its zip64 locator is missing", st);
        uint64_t at = u64(p - LOCATOR_BYTES + 8);
        if (!check_range_u64(at, END64_BYTES, end - LOCATOR_BYTES) || u32(m->data + at) != 0x06064b50)
            return damaged(z, "its zip64 end is missing", st);
        const unsigned char *q = m->data + at;
        *d = (struct directory){.entries = u64(q + 32), .bytes = u64(q + 40), .offset = u64(q + 48)};
        end = at;
    }
    if (!check_range_u64(d->offset, d->bytes, end))
        return damaged(z, "its directory lies outside the file", st);
    return 0;
}

/* ---- entries ---- */

struct central {
    uint32_t flags, method, extra_bytes;
    uint64_t compressed, bytes, local;
    const unsigned char *extra;
};

static bool take_u64(const unsigned char **p, const unsigned char *end, uint64_t *value) {
    if (end - *p < 8)
        return false;
    *value = u64(*p);
    *p += 8;
    return true;
}

/* Fields that do not fit 32 bits stand in extra field 1, in this order and only those. */
static bool read_zip64(struct central *e) {
    bool wanted = e->bytes == UINT32_MAX || e->compressed == UINT32_MAX || e->local == UINT32_MAX;
    const unsigned char *p = e->extra, *end = p + e->extra_bytes;
    while (wanted && end - p >= 4) {
        uint32_t id = u16(p), bytes = u16(p + 2);
        p += 4;
        if (bytes > end - p)
            return false;
        if (id == 1) {
            const unsigned char *stop = p + bytes;
            return (e->bytes != UINT32_MAX || take_u64(&p, stop, &e->bytes)) &&
                   (e->compressed != UINT32_MAX || take_u64(&p, stop, &e->compressed)) &&
                   (e->local != UINT32_MAX || take_u64(&p, stop, &e->local));
        }
        p += bytes;
    }
    return !wanted;
}

/* Finds the data behind the local header, which must agree with the directory. */
static int check_local(const struct torch_zip *z, const struct central *e, struct torch_entry *entry,
                       uint64_t limit, struct status *st) {
    if (!check_range_u64(e->local, LOCAL_BYTES, limit))
        return damaged(z, "an entry lies outside the file", st);
    const unsigned char *p = z->map->data + e->local;
    uint32_t name_bytes = u16(p + 26), extra_bytes = u16(p + 28);
    if (u32(p) != 0x04034b50)
        return damaged(z, "an entry has no header", st);
    entry->offset = e->local + LOCAL_BYTES + name_bytes + extra_bytes;
    entry->bytes = e->bytes;
    if (!check_range_u64(entry->offset, entry->bytes, limit))
        return damaged(z, "an entry's data lies outside the file (truncated?)", st);
    if (name_bytes != entry->name_bytes || memcmp(p + LOCAL_BYTES, entry->name, name_bytes) != 0 ||
        u16(p + 8) != e->method)
        return damaged(z, "an entry's header and the directory do not agree", st);
    bool sizes_follow = u16(p + 6) & FLAG_SIZES_FOLLOW;
    uint32_t compressed = u32(p + 18), bytes = u32(p + 22);
    bool same = (compressed == UINT32_MAX || compressed == e->compressed) &&
                (bytes == UINT32_MAX || bytes == e->bytes);
    if (!same && !(sizes_follow && compressed == 0 && bytes == 0))
        return damaged(z, "an entry's size and the directory do not agree", st);
    return 0;
}

static int add_entry(struct torch_zip *z, const struct torch_entry *entry, struct status *st) {
    if (z->count == TORCH_ENTRIES_MAX)
        return status_set(st, STATUS_RESOURCE_EXHAUSTED, "%s: more zip entries than the limit of %d", z->file,
                          TORCH_ENTRIES_MAX);
    if (z->count == z->capacity) {
        int capacity = z->capacity ? z->capacity * 2 : 64;
        struct torch_entry *bigger = realloc(z->entries, (size_t)capacity * sizeof *bigger);
        if (!bigger)
            return status_set_no_memory(st, (size_t)capacity * sizeof *bigger, "the table of zip entries");
        z->entries = bigger;
        z->capacity = capacity;
    }
    z->entries[z->count++] = *entry;
    return 0;
}

/* Reads the directory's entry at *at and moves *at behind it. */
static int read_central(struct torch_zip *z, const struct directory *d, uint64_t *at, struct status *st) {
    char shown[CHECKPOINT_SHOWN_BYTES];
    uint64_t end = d->offset + d->bytes;
    if (!check_range_u64(*at, CENTRAL_BYTES, end) || u32(z->map->data + *at) != 0x02014b50)
        return damaged(z, "its directory ends early", st);
    const unsigned char *p = z->map->data + *at;
    struct central e = {.flags = u16(p + 8),
                        .method = u16(p + 10),
                        .compressed = u32(p + 20),
                        .bytes = u32(p + 24),
                        .extra_bytes = u16(p + 30),
                        .local = u32(p + 42)};
    struct torch_entry entry = {.name = (const char *)p + CENTRAL_BYTES, .name_bytes = u16(p + 28)};
    uint64_t bytes = CENTRAL_BYTES + entry.name_bytes + e.extra_bytes + u16(p + 32);
    if (!check_range_u64(*at, bytes, end))
        return damaged(z, "its directory ends early", st);
    e.extra = p + CENTRAL_BYTES + entry.name_bytes;
    if (!read_zip64(&e))
        return damaged(z, "a zip64 field is missing", st);
    checkpoint_show(shown, entry.name, entry.name_bytes);
    if (e.flags & FLAG_ENCRYPTED)
        return status_set(st, STATUS_FAILED_PRECONDITION, "%s: entry %s is encrypted", z->file, shown);
    if (e.method != 0)
        return status_set(
            st, STATUS_FAILED_PRECONDITION,
            "%s: entry %s is compressed (zip method %u, deflate is 8); torch.save() stores entries "
            "uncompressed, and only that is read",
            z->file, shown, (unsigned)e.method);
    if (e.compressed != e.bytes)
        return damaged(z, "a stored entry has two sizes", st);
    if (check_local(z, &e, &entry, d->offset, st) || add_entry(z, &entry, st))
        return -1;
    *at += bytes;
    return 0;
}

static int compare_names(const char *a, size_t a_bytes, const char *b, size_t b_bytes) {
    int order = memcmp(a, b, a_bytes < b_bytes ? a_bytes : b_bytes);
    return order ? order : a_bytes < b_bytes ? -1 : a_bytes > b_bytes;
}

static int compare_entries(const void *a, const void *b) {
    const struct torch_entry *x = a, *y = b;
    return compare_names(x->name, x->name_bytes, y->name, y->name_bytes);
}

static int read_entries(struct torch_zip *z, struct status *st) {
    struct directory d = {0};
    if (find_directory(z, &d, st))
        return -1;
    uint64_t at = d.offset;
    for (uint64_t i = 0; i < d.entries; i++)
        if (read_central(z, &d, &at, st))
            return -1;
    if (at != d.offset + d.bytes || z->count == 0)
        return damaged(z, "its directory and its end do not agree", st);
    qsort(z->entries, (size_t)z->count, sizeof *z->entries, compare_entries);
    for (int i = 1; i < z->count; i++)
        if (compare_entries(&z->entries[i - 1], &z->entries[i]) == 0) {
            char shown[CHECKPOINT_SHOWN_BYTES];
            return status_set(st, STATUS_INVALID_ARGUMENT, "%s: zip entry %s is there twice (duplicate)",
                              z->file, checkpoint_show(shown, z->entries[i].name, z->entries[i].name_bytes));
        }
    return 0;
}

/* ---- the layout that torch.save makes ---- */

const struct torch_entry *torch_zip_find(const struct torch_zip *z, const char *folder, const char *name,
                                         size_t name_bytes) {
    char full[TORCH_GLOBAL_BYTES_MAX];
    size_t folder_bytes = strlen(folder), bytes = z->prefix_bytes + folder_bytes;
    if (bytes > sizeof full || name_bytes > sizeof full - bytes)
        return NULL;
    memcpy(full, z->prefix, z->prefix_bytes);
    memcpy(full + z->prefix_bytes, folder, folder_bytes);
    memcpy(full + bytes, name, name_bytes);
    struct torch_entry key = {.name = full, .name_bytes = bytes + name_bytes};
    return bsearch(&key, z->entries, (size_t)z->count, sizeof key, compare_entries);
}

static int find_prefix(struct torch_zip *z, struct status *st) {
    static const char pickle[] = "data.pkl";
    const size_t n = sizeof pickle - 1;
    bool found = false;
    for (int i = 0; i < z->count; i++) {
        const struct torch_entry *e = &z->entries[i];
        if (e->name_bytes < n || memcmp(e->name + e->name_bytes - n, pickle, n) != 0)
            continue;
        size_t prefix = e->name_bytes - n;
        if (prefix > 0 && e->name[prefix - 1] != '/')
            continue;
        if (found)
            return damaged(z, "two entries are named data.pkl", st);
        found = true;
        z->prefix = e->name;
        z->prefix_bytes = prefix;
    }
    if (!found)
        return status_set(st, STATUS_INVALID_ARGUMENT, "%s: not a torch checkpoint: it holds no data.pkl",
                          z->file);
    return 0;
}

static int check_layout(const struct torch_zip *z, struct status *st) {
    if (torch_zip_find(z, "", "constants.pkl", strlen("constants.pkl")))
        return status_set(st, STATUS_FAILED_PRECONDITION, "%s: a TorchScript program, not a state dict",
                          z->file);
    const struct torch_entry *order = torch_zip_find(z, "", "byteorder", strlen("byteorder"));
    if (order && (order->bytes != 6 || memcmp(z->map->data + order->offset, "little", 6) != 0))
        return status_set(st, STATUS_FAILED_PRECONDITION, "%s: its byteorder is not little", z->file);
    return 0;
}

int torch_zip_init(struct torch_zip *z, const struct file_map *m, const char *file, struct status *st) {
    *z = (struct torch_zip){.map = m, .file = file};
    if (read_entries(z, st) || find_prefix(z, st) || check_layout(z, st)) {
        torch_zip_free(z);
        return -1;
    }
    return 0;
}

void torch_zip_free(struct torch_zip *z) {
    free(z->entries);
    *z = (struct torch_zip){0};
}

int torch_read(struct checkpoint_builder *b, const struct file_map *m, const char *file, struct status *st) {
    struct torch_zip z;
    if (torch_zip_init(&z, m, file, st))
        return -1;
    int rc = torch_pickle_read(b, &z, st);
    torch_zip_free(&z);
    return rc;
}
