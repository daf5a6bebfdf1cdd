#include "emulation.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>

#include "file.h"
#include "modules.h"
#include "mounts.h"

#define PLACE "/emulator" /* what the interpreter is called in the line */
#define LINE PLACE "/register"
#define BINFMT "/proc/sys/fs/binfmt_misc"

static bool enter_line(struct failure *failed)
{
    char *line = file_read(LINE);

    if (!line) {
        *failed = failure_os(errno, NULL, LINE);
        return false;
    }
    bool entered = file_write(BINFMT "/register", line);
    if (!entered)
        *failed = failure_os(errno, NULL, BINFMT "/register");
    free(line);
    return entered;
}

bool emulation_begin(const char *device, struct failure *failed)
{
    char path[NAME_MAX + 16];

    snprintf(path, sizeof(path), "/dev/%s", device);
    if (!modules_load("/modules/emulation", failed) ||
        !mount_on("binfmt_misc", BINFMT, "binfmt_misc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, failed) ||
        !mount_on(path, PLACE, "erofs", MS_RDONLY, NULL, failed))
        return false;
    bool entered = enter_line(failed);
    /* The kernel holds the interpreter open (flag F), and so its file system; nobody else needs a way there. */
    umount2(PLACE, MNT_DETACH);
    return entered;
}
