/* timbre inspect: the load report of a model folder. It loads the model completely, so what it accepts will
 * serve. */
#include <getopt.h>
#include <stdio.h>

#include "base/log.h"
#include "cli/cli.h"

static const char HELP[] =
    "usage: timbre inspect [--json] [--labels FILE] [--output NAME] [--head-activation NAME]\n"
    "                      [--packed-cache DIR] [--packed-cache-verify] [DIR]\n"
    "\n"
    "Loads the model in DIR (default: the shipped one) and tells what it is: family, head, labels,\n"
    "tensors used and not used, rate, licence, digest, warnings. Exit status 3 and one sentence when\n"
    "it does not load. --packed-cache is as for timbre predict.\n";

int cli_inspect(int argc, char **argv) {
    static const struct option options[] = {{"json", no_argument, NULL, 'j'},
                                            {"labels", required_argument, NULL, 'l'},
                                            {"output", required_argument, NULL, 'o'},
                                            {"head-activation", required_argument, NULL, 'a'},
                                            {"packed-cache", required_argument, NULL, 'p'},
                                            {"packed-cache-verify", no_argument, NULL, 'v'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    struct model_options o = {0};
    bool json = false;
    log_init(LOG_WARN, false);
    for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        switch (option) {
        case 'j':
            json = true;
            break;
        case 'l':
            o.labels_path = optarg;
            break;
        case 'o':
            o.output = optarg;
            if (!cli_parse_choice("--output", optarg, "auto softmax sigmoid none"))
                return CLI_USAGE;
            break;
        case 'a':
            o.head_activation = optarg;
            if (!cli_parse_choice("--head-activation", optarg, "none tanh relu"))
                return CLI_USAGE;
            break;
        case 'p':
            o.packed_cache = optarg;
            break;
        case 'v':
            o.packed_cache_verify = true;
            break;
        case 'h':
            fputs(HELP, stdout);
            return CLI_OK;
        default:
            return CLI_USAGE;
        }
    }
    if (argc - optind > 1)
        return cli_fail("inspect", CLI_USAGE, "one folder at a time");

    struct model *m;
    struct status st = {0};
    struct text report;
    if (model_new(&m, optind < argc ? argv[optind] : cli_default_model(), &o, &st))
        return cli_fail("inspect", CLI_NOT_STARTED, "%s", st.message);
    text_init_growing(&report);
    if (json)
        model_report_json(m, &report);
    else
        model_report_text(m, &report);
    bool failed = report.failed;
    if (!failed)
        printf("%s%s", report.data, json ? "\n" : "");
    text_free(&report);
    model_del(m);
    return failed ? cli_fail("inspect", CLI_NOT_STARTED, "out of memory") : CLI_OK;
}
