/* timbre version: what this is, and what it would run on. */
#include <getopt.h>
#include <stdio.h>

#include "cli/cli.h"

int cli_version(int argc, char **argv) {
    static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (option == 'h')
            printf("usage: timbre version\n");
        return option == 'h' ? CLI_OK : CLI_USAGE;
    }
    printf("timbre %s\n", TIMBRE_VERSION);
    struct text machine;
    text_init_growing(&machine);
    engine_describe_machine(&machine);
    fputs(machine.data, stdout);
    text_free(&machine);
    return CLI_OK;
}
