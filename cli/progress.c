#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/cli.h"

enum { BAR_CELLS = 30, REDRAW_MS = 100 };

static bool shown;

void cli_progress_show(int done, int total, double audio_s, double elapsed_s) {
    static int64_t drawn_ns;
    if (!isatty(STDERR_FILENO) || (shown && done < total && clock_elapsed_ms(drawn_ns) < REDRAW_MS))
        return;
    drawn_ns = clock_now_ns();
    shown = true;
    int cells = total ? BAR_CELLS * done / total : 0;
    fprintf(stderr, "\r[");
    for (int i = 0; i < BAR_CELLS; i++)
        fputc(i < cells ? '#' : '.', stderr);
    fprintf(stderr, "] %d of %d files, %.0f s of audio, %.0f x real time ", done, total, audio_s,
            elapsed_s > 0 ? audio_s / elapsed_s : 0.0);
    fflush(stderr);
}

void cli_progress_clear(void) {
    if (shown)
        fprintf(stderr, "\r\033[K");
    shown = false;
}
