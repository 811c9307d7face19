/* The table of metrics. One lock guards its shape (lists of families and series); values are atomics beside
 * it. */
#include "base/metrics.h"

#include <ctype.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LABELS_MAX = 8,
    LABEL_NAMES_BYTES_MAX = 512, /* of all names of a family */
    LABEL_VALUE_BYTES_MAX = 256, /* longer ones are cut */
    MEASURES_MAX = 8,
    /* A byte of a value takes three at most (U+FFFD), a label four more beside its name. */
    RENDERED_BYTES_MAX = LABELS_MAX * (3 * LABEL_VALUE_BYTES_MAX + 4) + LABEL_NAMES_BYTES_MAX,
};

struct metrics_series {
    struct metrics_series *next; /* in the order in which they were made */
    const struct metrics_family *family;
    char *labels;            /* `a="1",b="2"` */
    _Atomic double value;    /* counter, gauge; the sum of a histogram */
    _Atomic uint64_t hits[]; /* histogram: [bounds_count + 1], not cumulative */
};

struct metrics_family {
    struct metrics_family *next;
    struct metrics *table;
    enum metrics_kind kind;
    char *name, *help, *label_names;
    double bounds[METRICS_BOUNDS_MAX];
    int labels_count, bounds_count, series_count;
    struct metrics_series *series, **series_end;
};

struct metrics {
    pthread_mutex_t lock; /* guards lists and counts; held while the text is written, never while measuring */
    struct metrics_family *families, **families_end;
    int families_count, measures_count;
    struct {
        void (*run)(void *arg);
        void *arg;
    } measures[MEASURES_MAX];
};

const double metrics_seconds_bounds[METRICS_SECONDS_BOUNDS] = {
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60,
};

int metrics_new(struct metrics **out, struct status *st) {
    struct metrics *m = *out = calloc(1, sizeof *m);
    if (!m)
        return status_set_no_memory(st, sizeof *m, "metrics");
    pthread_mutex_init(&m->lock, NULL);
    m->families_end = &m->families;
    return 0;
}

static void free_family(struct metrics_family *f) {
    for (struct metrics_series *s = f->series, *next; s; s = next) {
        next = s->next;
        free(s->labels);
        free(s);
    }
    free(f->name);
    free(f->help);
    free(f->label_names);
    free(f);
}

void metrics_del(struct metrics *m) {
    if (!m)
        return;
    for (struct metrics_family *f = m->families, *next; f; f = next) {
        next = f->next;
        free_family(f);
    }
    pthread_mutex_destroy(&m->lock);
    free(m);
}

/* ---- families ---- */

/* [a-zA-Z_][a-zA-Z0-9_]*, as the format asks of names; `bytes` of `s`. */
static bool is_name(const char *s, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (!(isalpha((unsigned char)s[i]) || s[i] == '_' || (i && isdigit((unsigned char)s[i]))))
            return false;
    return bytes > 0;
}

/* How many names, or -1 when one is not a name. */
static int count_labels(const char *names) {
    int count = 0;
    if (strlen(names) >= LABEL_NAMES_BYTES_MAX)
        return -1;
    for (const char *s = names; *s; count++) {
        size_t n = strcspn(s, ",");
        bool reserved = n == 2 && memcmp(s, "le", 2) == 0;
        if (count == LABELS_MAX || !is_name(s, n) || reserved || (s[n] && !s[n + 1]))
            return -1;
        s += n + (s[n] == ',');
    }
    return count;
}

static bool is_ascending(const double *bounds, int count) {
    for (int i = 0; i < count; i++)
        if (!isfinite(bounds[i]) || (i && bounds[i] <= bounds[i - 1]))
            return false;
    return true;
}

static bool is_same(const struct metrics_family *f, enum metrics_kind kind, const char *label_names,
                    const double *bounds, int bounds_count) {
    if (f->kind != kind || strcmp(f->label_names, label_names) != 0 || f->bounds_count != bounds_count)
        return false;
    for (int i = 0; i < bounds_count; i++)
        if (f->bounds[i] != bounds[i])
            return false;
    return true;
}

static struct metrics_family *make_family(struct metrics *m, enum metrics_kind kind, const char *name,
                                          const char *help, const char *label_names) {
    struct metrics_family *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->table = m;
    f->kind = kind;
    f->labels_count = count_labels(label_names);
    f->series_end = &f->series;
    f->name = strdup(name);
    f->help = strdup(help);
    f->label_names = strdup(label_names);
    if (f->name && f->help && f->label_names)
        return f;
    free_family(f);
    return NULL;
}

struct metrics_family *metrics_add(struct metrics *m, enum metrics_kind kind, const char *name,
                                   const char *help, const char *label_names, const double *bounds,
                                   int bounds_count) {
    if (!m || !is_name(name, strlen(name)) || count_labels(label_names) < 0 || bounds_count < 0 ||
        bounds_count > METRICS_BOUNDS_MAX || (kind != METRICS_HISTOGRAM && bounds_count) ||
        !is_ascending(bounds, bounds_count))
        return NULL;
    pthread_mutex_lock(&m->lock);
    struct metrics_family *f = m->families;
    while (f && strcmp(f->name, name) != 0)
        f = f->next;
    if (f) {
        f = is_same(f, kind, label_names, bounds, bounds_count) ? f : NULL;
    } else if (m->families_count < METRICS_FAMILIES_MAX &&
               (f = make_family(m, kind, name, help, label_names))) {
        for (int i = 0; i < bounds_count; i++)
            f->bounds[f->bounds_count++] = bounds[i];
        *m->families_end = f;
        m->families_end = &f->next;
        m->families_count++;
    }
    pthread_mutex_unlock(&m->lock);
    return f;
}

/* ---- series ---- */

/* A label's value in quotes. The escapes of JSON are nearly those of the format, which has only \\, \" and
 * \n; other control characters become spaces. What is not UTF-8, and would cost the whole page, is replaced.
 */
static void put_value(struct text *t, const char *value) {
    char cut[LABEL_VALUE_BYTES_MAX], json[6 * LABEL_VALUE_BYTES_MAX + 3];
    struct text quoted;
    snprintf(cut, sizeof cut, "%s", value);
    text_init(&quoted, json, sizeof json);
    text_put_json_string(&quoted, cut);
    for (const char *s = json; *s;) {
        char piece[3] = {s[0], s[0] == '\\' ? s[1] : 0, 0};
        bool is_code = piece[1] == 'u';
        s += is_code ? 6 : piece[1] ? 2 : 1;
        text_put(t, !is_code ? piece : s[-1] == 'a' && s[-2] == '0' ? "\\n" : " ");
    }
}

/* The label values become `a="1",b="2"`; all "other" when `values` is NULL. */
static void put_labels(struct text *t, const struct metrics_family *f, const char *const *values) {
    const char *name = f->label_names;
    for (int i = 0; i < f->labels_count; i++) {
        size_t n = strcspn(name, ",");
        text_printf(t, "%s%.*s=", i ? "," : "", (int)n, name);
        put_value(t, !values ? "other" : values[i] ? values[i] : "");
        name += n + (name[n] == ',');
    }
}

static struct metrics_series *find_series(const struct metrics_family *f, const char *labels) {
    struct metrics_series *s = f->series;
    while (s && strcmp(s->labels, labels) != 0)
        s = s->next;
    return s;
}

static struct metrics_series *make_series(struct metrics_family *f, const char *labels) {
    size_t hits = f->kind == METRICS_HISTOGRAM ? (size_t)f->bounds_count + 1 : 0;
    struct metrics_series *s = calloc(1, sizeof *s + hits * sizeof *s->hits);
    if (!s)
        return NULL;
    s->labels = strdup(labels);
    if (!s->labels) {
        free(s);
        return NULL;
    }
    s->family = f;
    *f->series_end = s;
    f->series_end = &s->next;
    f->series_count++;
    return s;
}

struct metrics_series *metrics_get(struct metrics_family *f, ...) {
    if (!f)
        return NULL;
    const char *values[LABELS_MAX];
    va_list args;
    va_start(args, f);
    for (int i = 0; i < f->labels_count; i++)
        values[i] = va_arg(args, const char *);
    va_end(args);

    char labels[RENDERED_BYTES_MAX];
    struct text t;
    text_init(&t, labels, sizeof labels);
    put_labels(&t, f, values);
    pthread_mutex_lock(&f->table->lock);
    struct metrics_series *s = find_series(f, labels);
    if (!s && f->series_count >= METRICS_SERIES_MAX - 1) {
        text_init(&t, labels, sizeof labels);
        put_labels(&t, f, NULL);
        s = find_series(f, labels);
    }
    if (!s)
        s = make_series(f, labels);
    pthread_mutex_unlock(&f->table->lock);
    return s;
}

/* ---- values ---- */

static void add(_Atomic double *to, double by) {
    double old = atomic_load_explicit(to, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(to, &old, old + by, memory_order_relaxed,
                                                  memory_order_relaxed))
        ;
}

void metrics_count(struct metrics_series *s, double by) {
    if (s && s->family->kind != METRICS_HISTOGRAM && (by >= 0 || s->family->kind == METRICS_GAUGE))
        add(&s->value, by);
}

void metrics_set(struct metrics_series *s, double value) {
    if (s && s->family->kind != METRICS_HISTOGRAM)
        atomic_store_explicit(&s->value, value, memory_order_relaxed);
}

void metrics_observe(struct metrics_series *s, double value) {
    if (!s || s->family->kind != METRICS_HISTOGRAM || isnan(value))
        return;
    int i = 0;
    while (i < s->family->bounds_count && value > s->family->bounds[i])
        i++;
    atomic_fetch_add_explicit(&s->hits[i], 1, memory_order_relaxed);
    add(&s->value, value);
}

/* ---- text ---- */

static void put_number(struct text *t, double value) {
    if (isnan(value))
        text_put(t, "NaN");
    else if (isinf(value))
        text_put(t, value > 0 ? "+Inf" : "-Inf");
    else
        text_put_json_double(t, value);
}

static void put_sample(struct text *t, const struct metrics_series *s, const char *suffix, double value) {
    text_printf(t, "%s%s", s->family->name, suffix);
    if (*s->labels)
        text_printf(t, "{%s}", s->labels);
    text_put(t, " ");
    put_number(t, value);
    text_put(t, "\n");
}

/* The count is that of the buckets, so that the two agree while others observe. */
static void put_histogram(struct text *t, const struct metrics_series *s) {
    const struct metrics_family *f = s->family;
    uint64_t count = 0;
    for (int i = 0; i <= f->bounds_count; i++) {
        count += atomic_load_explicit(&s->hits[i], memory_order_relaxed);
        text_printf(t, "%s_bucket{%s%sle=\"", f->name, s->labels, *s->labels ? "," : "");
        put_number(t, i < f->bounds_count ? f->bounds[i] : INFINITY);
        text_printf(t, "\"} %llu\n", (unsigned long long)count);
    }
    put_sample(t, s, "_sum", atomic_load_explicit(&s->value, memory_order_relaxed));
    put_sample(t, s, "_count", (double)count);
}

static void put_family(struct text *t, const struct metrics_family *f) {
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    if (!f->series)
        return;
    text_printf(t, "# HELP %s ", f->name);
    for (const char *c = f->help; *c; c++) {
        char one[2] = {*c, 0};
        text_put(t, *c == '\\' ? "\\\\" : *c == '\n' ? "\\n" : one);
    }
    text_printf(t, "\n# TYPE %s %s\n", f->name, kinds[f->kind]);
    for (const struct metrics_series *s = f->series; s; s = s->next) {
        if (f->kind == METRICS_HISTOGRAM)
            put_histogram(t, s);
        else
            put_sample(t, s, "", atomic_load_explicit(&s->value, memory_order_relaxed));
    }
}

void metrics_on_write(struct metrics *m, void (*measure)(void *arg), void *arg) {
    if (!m)
        return;
    pthread_mutex_lock(&m->lock);
    if (m->measures_count < MEASURES_MAX) {
        m->measures[m->measures_count].run = measure;
        m->measures[m->measures_count++].arg = arg;
    }
    pthread_mutex_unlock(&m->lock);
}

void metrics_write(struct metrics *m, struct text *out) {
    if (!m)
        return;
    pthread_mutex_lock(&m->lock);
    int count = m->measures_count;
    pthread_mutex_unlock(&m->lock);
    for (int i = 0; i < count; i++) /* entries are never changed once counted */
        m->measures[i].run(m->measures[i].arg);
    pthread_mutex_lock(&m->lock);
    for (const struct metrics_family *f = m->families; f; f = f->next)
        put_family(out, f);
    pthread_mutex_unlock(&m->lock);
}
