// Writes memory in a loop, and keeps the longest time between two steps.
//
// gap MEGABYTES REPORT: on SIGUSR1 it writes to REPORT what that was, in us of the guest's clock, and begins anew.
// That clock stands still while the guest does: the report is of what slows the guest down while it runs.
// Each millisecond it writes a byte to its output: who reads that sees all of it.

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WRITES = 4 };

static volatile sig_atomic_t asked;

static void on_signal(int number)
{
    (void)number;
    asked = 1;
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_nsec / 1000;
}

int main(int count, char **words)
{
    if (count != 3)
        return 2;
    uint64_t pages = strtoull(words[1], NULL, 10) * 256, place = 88172645463325252, longest = 0;
    unsigned char *memory = calloc(pages, PAGE);
    if (!memory || !pages)
        return 2;
    signal(SIGUSR1, on_signal);
    for (uint64_t last = now(), said = last;;) {
        for (int write = 0; write < WRITES; write++) {
            place = place * 6364136223846793005 + 1442695040888963407;
            memory[(place >> 24) % pages * PAGE]++;
        }
        uint64_t here = now();
        if (here - last > longest)
            longest = here - last;
        last = here;
        if (here - said >= 1000) {
            said = here;
            if (write(1, ".", 1) != 1)
                return 1;
        }
        if (asked) {
            asked = 0;
            FILE *report = fopen(words[2], "w");
            if (!report || fprintf(report, "%llu\n", (unsigned long long)longest) < 0 || fclose(report))
                return 3;
            longest = 0;
            last = now();
        }
    }
}
