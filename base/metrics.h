/* metrics: counters, gauges and histograms, and their text for Prometheus (exposition format 0.0.4).
 *
 * A family has a name and a help text; a series is one set of labels of it. Families and series are made once
 * and kept as long as the table; updating a series takes no lock and may be done by any thread. */
#ifndef TIMBRE_BASE_METRICS_H
#define TIMBRE_BASE_METRICS_H

#include "base/status.h"
#include "base/text.h"

struct metrics;
struct metrics_family;
struct metrics_series;

enum {
    METRICS_FAMILIES_MAX = 128,
    METRICS_SERIES_MAX = 1024, /* of one family; further sets of labels share one series, labelled "other" */
    METRICS_BOUNDS_MAX = 24,
};
enum metrics_kind { METRICS_COUNTER, METRICS_GAUGE, METRICS_HISTOGRAM };

int metrics_new(struct metrics **m, struct status *st);
void metrics_del(struct metrics *m); /* NULL is fine */

/* The family called `name` (prefix timbre_, base unit last, _total for counters); made when it is not there
 * yet. `label_names`: separated by commas, in the order in which series give their values; "" for none.
 * `bounds` [bounds_count] ascending, for histograms; copied. NULL when memory or METRICS_FAMILIES_MAX is used
 * up, a name is not one, or the family is there with another kind, labels or bounds. Also NULL when m is:
 * every function below takes NULL and does nothing then. */
struct metrics_family *metrics_add(struct metrics *m, enum metrics_kind kind, const char *name,
                                   const char *help, const char *label_names, const double *bounds,
                                   int bounds_count);
/* The series with these label values, one argument (const char *) a label name; made when it is not there
 * yet. Values may be any bytes; over 255 are cut. Takes a lock: keep the result. NULL when memory is used up.
 */
struct metrics_series *metrics_get(struct metrics_family *f, ...);

void metrics_count(struct metrics_series *s, double by);  /* counter: by >= 0; gauge: any */
void metrics_set(struct metrics_series *s, double value); /* gauge, and counters that are kept elsewhere */
void metrics_observe(struct metrics_series *s, double value); /* histogram; NaN is left out */

/* Called by metrics_write before it writes, to set gauges that are measured then. At most 8; all as
 * long as m, on the thread that writes. */
void metrics_on_write(struct metrics *m, void (*measure)(void *arg), void *arg);
void metrics_write(struct metrics *m, struct text *out);

/* Bounds for seconds: 0.5 ms to 60 s, three to a decade. */
enum { METRICS_SECONDS_BOUNDS = 16 };
extern const double metrics_seconds_bounds[METRICS_SECONDS_BOUNDS];

#endif
