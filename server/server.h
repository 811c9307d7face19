/* server: `timbre serve`. */
#ifndef TIMBRE_SERVER_SERVER_H
#define TIMBRE_SERVER_SERVER_H

/* Reads the options (server/options.h), loads the models, serves until SIGTERM or SIGINT and has drained.
 * Returns the exit status: 0, or 3 after a sentence on standard error that says what to do. `shipped_model`
 * is the folder to serve when no model is named. */
int server_main(int argc, char **argv, const char *shipped_model);

#endif
