/* timbre: speech emotion recognition. The subcommands, and nothing else. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
    {"predict", cli_predict, "the emotions in audio files"},
    {"stream", cli_stream, "the emotions of a call while it goes on"},
    {"serve", cli_serve, "the gRPC server"},
    {"bench", cli_bench, "load for a running server, and how it bore it"},
    {"inspect", cli_inspect, "what a model folder holds, and whether it loads"},
    {"version", cli_version, "version, and what this machine offers"},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void print_usage(FILE *to) {
    fprintf(to, "usage: timbre COMMAND [OPTION]...\n\n");
    for (int i = 0; i < COMMANDS; i++)
        fprintf(to, "  %-9s %s\n", commands[i].name, commands[i].summary);
    fprintf(
        to,
        "\n`timbre COMMAND --help` tells its options. Exit status: 0 all well, 1 some input failed, 2 wrong "
        "usage, 3 could not start.\n");
}

int main(int argc, char **argv) {
    if (argc < 2) {
        print_usage(stderr);
        return CLI_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_usage(stdout);
        return CLI_OK;
    }
    if (strcmp(argv[1], "--version") == 0)
        return cli_version(1, argv);
    for (int i = 0; i < COMMANDS; i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "timbre: no command \"%s\"; `timbre --help` lists them\n", argv[1]);
    return CLI_USAGE;
}
