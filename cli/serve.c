/* timbre serve: the server, with the shipped model when none is named. */
#include "server/server.h"

#include "cli/cli.h"

int cli_serve(int argc, char **argv) {
    return server_main(argc, argv, cli_default_model());
}
