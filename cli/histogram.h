/* histogram: times in little memory, within 0.8 % of each. */
#ifndef TIMBRE_CLI_HISTOGRAM_H
#define TIMBRE_CLI_HISTOGRAM_H

#include <stdint.h>

/* Every power of two is cut into HISTOGRAM_PARTS; smaller values have a place each. */
enum { HISTOGRAM_PARTS = 128, HISTOGRAM_PLACES = HISTOGRAM_PARTS * 57 };

struct histogram {
    uint64_t counts[HISTOGRAM_PLACES];
    uint64_t count;
    int64_t min, max; /* exact; of an empty one 0 */
    double sum;
};

void histogram_add(struct histogram *h, int64_t value); /* negative values count as 0 */
void histogram_merge(struct histogram *to, const struct histogram *from);
/* The value that `share` (0 to 1) of the values do not exceed; 0 of an empty histogram. */
int64_t histogram_quantile(const struct histogram *h, double share);

#endif
