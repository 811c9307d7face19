/* The options of a model that runs on this machine, for the subcommands that have one. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cli/cli.h"

void cli_init_model_options(struct engine_options *e, struct model_options *m) {
    log_init(LOG_WARN, false); /* what goes well is in the answers */
    engine_options_init(e);
    e->audio.ffmpeg = getenv("FFMPEG_BIN");
    *m = (struct model_options){.pin = true};
    m->cuda_eager = true; /* the bits are the same, and the graphs would not pay for themselves */
}

bool cli_take_model_option(struct engine_options *e, struct model_options *m, int option, const char *value) {
    long n = 0;
    switch (option) {
    case CLI_O_DEVICE:
        m->device = value;
        return cli_parse_choice("--device", value, "auto cpu cuda ref");
    case CLI_O_PRECISION:
        m->precision = value;
        return cli_parse_choice("--precision", value, "auto fp32 bf16 int8");
    case CLI_O_THREADS:
        if (!cli_parse_int("--threads", value, 0, 256, &n))
            return false;
        m->threads = (int)n;
        return true;
    case CLI_O_NO_PIN:
        m->pin = false;
        return true;
    case CLI_O_BATCH_S:
        return cli_parse_double("--max-batch-seconds", value, ENGINE_WHOLE_S_MAX, 100000, &e->batch_s_max);
    case CLI_O_DEVICES:
        m->devices = value;
        return true;
    case CLI_O_CUDA_CONV:
        m->cuda_conv = value;
        return cli_parse_choice("--cuda-conv", value, "auto cudnn gemm");
    case CLI_O_CUDA_ATTENTION:
        m->cuda_attention = value;
        return cli_parse_choice("--cuda-attention", value, "auto fused cublas");
    case CLI_O_PACKED_CACHE:
        m->packed_cache = value;
        return true;
    case CLI_O_PACKED_CACHE_VERIFY:
        m->packed_cache_verify = true;
        return true;
    case CLI_O_SILENCE:
        e->silence_dbfs = -INFINITY;
        return strcmp(value, "off") == 0 ||
               cli_parse_double("--silence-dbfs", value, -200, 0, &e->silence_dbfs);
    case CLI_O_LABELS:
        m->labels_path = value;
        return true;
    case CLI_O_OUTPUT:
        m->output = value;
        return cli_parse_choice("--output", value, "auto softmax sigmoid none");
    default: /* CLI_O_HEAD_ACTIVATION */
        m->head_activation = value;
        return cli_parse_choice("--head-activation", value, "none tanh relu");
    }
}
