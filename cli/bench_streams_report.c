/* The figures of live streams, for people and for programs. */
#include <stdio.h>

#include "cli/bench.h"

static const char *name_encoding(enum timbre_encoding encoding) {
    switch (encoding) {
    case TIMBRE_ENCODING_PCM16:
        return "pcm16";
    case TIMBRE_ENCODING_FLOAT32:
        return "float32";
    case TIMBRE_ENCODING_MULAW:
        return "mulaw";
    case TIMBRE_ENCODING_ALAW:
        return "alaw";
    default:
        return "file";
    }
}

void bench_report_streams_text(const struct bench_streams_result *r, const struct bench_options *o) {
    const struct bench_streams_stats *s = &r->stats;
    printf("streams       %d of %d channels, %s at %d Hz, %d ms a message; %llu failed, %llu times resumed\n",
           o->streams, o->channels, name_encoding(o->encoding), o->rate_hz, o->chunk_ms,
           (unsigned long long)s->failed, (unsigned long long)s->resumed);
    bench_print_times("first, ms", &s->first_ns);
    bench_print_times("lag, ms", &s->lag_ns);
    printf("results       %llu in %.2f s, %.1f /s; %llu of them final\n", (unsigned long long)s->results,
           r->elapsed_s, (double)s->results / r->elapsed_s, (unsigned long long)s->final);
    bench_print_answers(s->answers);
    printf("audio         %.1f s, %.2f s/s\n", r->audio_s, r->audio_s / r->elapsed_s);
    printf("server        batches of %.2f clips, %.3f ms waiting, %.3f ms computing (means over results)\n",
           bench_mean(s->batch_size, s->batches), bench_mean(s->queue_ms, s->batches),
           bench_mean(s->compute_ms, s->batches));
    printf("every stream  %llu final results, %llu missing, %llu doubled, %llu misplaced\n",
           (unsigned long long)s->got, (unsigned long long)s->missing, (unsigned long long)s->doubled,
           (unsigned long long)s->misplaced);
    bench_print_errors(&s->errors);
    printf("generator     %.2f processors, at most %.3f ms late, %llu times no room to send\n",
           r->cpu_s / r->elapsed_s, r->late_ms_max, (unsigned long long)r->no_room);
}

void bench_report_streams_json(const struct bench_streams_result *r, const struct bench_options *o) {
    const struct bench_streams_stats *s = &r->stats;
    struct text t;
    text_init_growing(&t);
    text_put(&t, "{\"server\":");
    text_put_json_string(&t, o->server.target);
    bench_put_count(&t, "streams", (uint64_t)o->streams);
    bench_put_count(&t, "channels", (uint64_t)o->channels);
    text_printf(&t, ",\"encoding\":\"%s\"", name_encoding(o->encoding));
    bench_put_count(&t, "sample_rate_hz", (uint64_t)o->rate_hz);
    bench_put_count(&t, "chunk_ms", (uint64_t)o->chunk_ms);
    bench_put_count(&t, "connections", (uint64_t)o->connections);
    cli_put_number(&t, "duration_s", r->elapsed_s);
    bench_put_count(&t, "failed", s->failed);
    bench_put_count(&t, "resumed", s->resumed);
    bench_put_times(&t, "first_result_ms", &s->first_ns);
    bench_put_times(&t, "lag_ms", &s->lag_ns);
    bench_put_count(&t, "results", s->results);
    bench_put_count(&t, "results_final", s->final);
    cli_put_number(&t, "results_per_s", (double)s->results / r->elapsed_s);
    cli_put_number(&t, "audio_s", r->audio_s);
    cli_put_number(&t, "audio_s_per_s", r->audio_s / r->elapsed_s);
    bench_put_counts(&t, s->answers, &s->errors);
    cli_put_number(&t, "batch_size_mean", bench_mean(s->batch_size, s->batches));
    cli_put_number(&t, "queue_ms_mean", bench_mean(s->queue_ms, s->batches));
    cli_put_number(&t, "compute_ms_mean", bench_mean(s->compute_ms, s->batches));
    text_put(&t, ",\"every_stream\":{\"final\":");
    text_printf(&t, "%llu", (unsigned long long)s->got);
    bench_put_count(&t, "missing", s->missing);
    bench_put_count(&t, "doubled", s->doubled);
    bench_put_count(&t, "misplaced", s->misplaced);
    text_put(&t, "}");
    cli_put_number(&t, "generator_processors", r->cpu_s / r->elapsed_s);
    cli_put_number(&t, "late_ms_max", r->late_ms_max);
    bench_put_count(&t, "no_room", r->no_room);
    text_put(&t, "}\n");
    fputs(t.failed ? "" : t.data, stdout);
    text_free(&t);
}
