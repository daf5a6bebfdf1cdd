// Counts in memory and on a disk in lockstep, and sees at each step that both hold the same.
//
// lockstep FILE REPORT: FILE lies on the disk and is read and written past the guest's page cache, a ring of
// blocks; block n % RING holds the number n in all of its words. Memory has a ring of the same numbers, and a
// heap of pages of which each step writes one. REPORT is in memory: it says how far this has come, and what did
// not agree. After SIGUSR1 all of the heap is looked at once; REPORT.seen says when.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 4096, RING = 32, WORDS = BLOCK / 8, PAGES = 4096 };

static uint64_t disk[RING][WORDS] __attribute__((aligned(BLOCK)));
static uint64_t ring[RING];
static uint64_t heap[PAGES][WORDS];
static const char *report;
static char seen[4096];
static volatile sig_atomic_t look;

static void say(const char *path, const char *what, uint64_t n, uint64_t wanted, uint64_t found)
{
    char line[200];
    int size = snprintf(line, sizeof line, "%s %llu %llu %llu\n", what, (unsigned long long)n,
                        (unsigned long long)wanted, (unsigned long long)found);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, line, (size_t)size) != size)
        exit(3);
    close(fd);
}

static void bad(const char *what, uint64_t n, uint64_t wanted, uint64_t found)
{
    say(report, what, n, wanted, found);
    exit(1);
}

static void fill(uint64_t *words, uint64_t n)
{
    for (int word = 0; word < WORDS; word++)
        words[word] = n;
}

static void compare(const char *what, const uint64_t *words, uint64_t n, uint64_t wanted)
{
    for (int word = 0; word < WORDS; word++)
        if (words[word] != wanted)
            bad(what, n, wanted, words[word]);
}

static void asked(int number)
{
    (void)number;
    look = 1;
}

// The newest number up to n that was written to a place of a ring.
static uint64_t newest(uint64_t n, uint64_t place, uint64_t size)
{
    uint64_t back = (n + size - place) % size;
    return back > n ? 0 : n - back;
}

int main(int count, char **words)
{
    if (count != 3)
        return 2;
    report = words[2];
    snprintf(seen, sizeof seen, "%s.seen", report);
    signal(SIGUSR1, asked);
    int fd = open(words[1], O_RDWR | O_CREAT | O_DIRECT | O_DSYNC, 0600);
    if (fd < 0 || pwrite(fd, disk, sizeof disk, 0) != (ssize_t)sizeof disk || fsync(fd))
        return 3;
    for (uint64_t n = 0;; n++) {
        int all = look;
        if (pread(fd, disk, sizeof disk, 0) != (ssize_t)sizeof disk)
            bad("unreadable", n, 0, (uint64_t)errno);
        for (uint64_t place = 0; place < RING; place++) {
            if (ring[place] != newest(n, place, RING))
                bad("ring", n, newest(n, place, RING), ring[place]);
            compare("disk", disk[place], n, ring[place]);
        }
        for (uint64_t page = 0; page < PAGES; page += all ? 1 : PAGES / 16)
            compare("heap", heap[(page + n) % PAGES], n, newest(n, (page + n) % PAGES, PAGES));
        if (all) {
            look = 0;
            say(seen, "good", n, 0, 0);
        }
        say(report, "good", n, 0, 0);
        fill(heap[(n + 1) % PAGES], n + 1);
        fill(disk[(n + 1) % RING], n + 1);
        ring[(n + 1) % RING] = n + 1;
        if (pwrite(fd, disk[(n + 1) % RING], BLOCK, (off_t)((n + 1) % RING) * BLOCK) != BLOCK)
            bad("unwritable", n, 0, (uint64_t)errno);
    }
}
