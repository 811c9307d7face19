/* What became of the requests of each model, for ModelStatistics. */
#include <time.h>

#include "server/repository_internal.h"

static struct slot *find_counted(struct repository *r, const struct engine_model *m) {
    for (int i = 0; i < r->slots_count; i++)
        if (r->slots[i]->counted == m)
            return r->slots[i];
    return NULL;
}

void repository_count_failure(struct repository *r, const struct engine_model *m, enum status_code code,
                              int64_t took_ns) {
    struct slot *s = find_counted(r, m);
    if (!s)
        return;
    struct repository_statistics *n = &s->entry.statistics;
    if (code == STATUS_CANCELLED || code == STATUS_DEADLINE_EXCEEDED) {
        n->cancel_count++;
        n->cancel_ns += (uint64_t)took_ns;
    } else {
        n->fail_count++;
        n->fail_ns += (uint64_t)took_ns;
    }
}

void repository_count_answer(struct repository *r, const struct engine_model *m,
                             const struct engine_result *result, int64_t took_ns) {
    struct slot *s = find_counted(r, m);
    struct timespec now;
    if (result->outcome == ENGINE_ERROR) {
        repository_count_failure(r, m, result->status.code, took_ns);
        return;
    }
    if (!s)
        return;
    struct repository_statistics *n = &s->entry.statistics;
    clock_gettime(CLOCK_REALTIME, &now);
    n->success_count++;
    n->success_ns += (uint64_t)took_ns;
    n->queue_ns += (uint64_t)(result->queue_ms * 1e6);
    n->compute_ns += (uint64_t)(result->compute_ms * 1e6);
    n->last_inference_ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    if (result->batch_size > 0) {
        n->inference_count++;
        s->executions += 1.0 / result->batch_size;
        n->execution_count =
            (uint64_t)(s->executions + 0.999); /* a batch that has begun to be counted is one */
    }
}
