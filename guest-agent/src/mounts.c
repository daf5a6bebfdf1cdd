#include "mounts.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <mntent.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

enum { UNMOUNT_PASSES = 16 };

static const char *const kernel_filesystems[] = {"/dev", "/proc", "/sys"};

/* Images may have anything, or nothing, in the place of a directory that each system has. */
static bool make_mount_point(const char *target)
{
    struct stat status;

    if (mkdir(target, 0755) == 0)
        return true;
    if (errno != EEXIST)
        return false;
    if (stat(target, &status) == 0 && S_ISDIR(status.st_mode))
        return true;
    return unlink(target) == 0 && mkdir(target, 0755) == 0;
}

bool mount_on(const char *source, const char *target, const char *type, unsigned long flags,
              const char *options, struct failure *failed)
{
    if (!make_mount_point(target)) {
        *failed = failure_os(errno, NULL, "mkdir %s", target);
        return false;
    }
    if (mount(source, target, type, flags, options) == 0)
        return true;
    *failed = failure_os(errno, NULL, "mount %s on %s", source, target);
    return false;
}

bool mount_kernel_filesystems(struct failure *failed)
{
    return mount_on("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755", failed) &&
           mount_on("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, failed) &&
           mount_on("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, failed);
}

/* What programs know by these names; udev would make them. */
static void link_descriptors(void)
{
    static const char *const links[][2] = {
        {"/proc/self/fd", "/dev/fd"},
        {"/proc/self/fd/0", "/dev/stdin"},
        {"/proc/self/fd/1", "/dev/stdout"},
        {"/proc/self/fd/2", "/dev/stderr"},
    };

    for (size_t i = 0; i < sizeof(links) / sizeof(*links); i++) {
        if (symlink(links[i][0], links[i][1]) < 0)
            continue; /* it is there */
    }
}

static bool is_writable_directory(const char *path)
{
    struct stat status;

    return stat(path, &status) == 0 && S_ISDIR(status.st_mode) && access(path, W_OK) == 0;
}

bool mount_runtime_filesystems(struct failure *failed)
{
    const unsigned long flags = MS_NOSUID | MS_NODEV;
    struct failure ignored; /* a kernel may be without message queues */

    if (!mount_on("tmpfs", "/run", "tmpfs", flags, "mode=0755", failed) ||
        !mount_on("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
                  "gid=5,mode=0620,ptmxmode=0666", failed) ||
        !mount_on("tmpfs", "/dev/shm", "tmpfs", flags, "mode=1777", failed))
        return false;
    link_descriptors();
    mount_on("mqueue", "/dev/mqueue", "mqueue", flags | MS_NOEXEC, NULL, &ignored);
    if (mkdir("/tmp", 0777) == 0)
        chmod("/tmp", 01777);
    return is_writable_directory("/tmp") || mount_on("tmpfs", "/tmp", "tmpfs", flags, "mode=1777", failed);
}

void mount_cgroups(void)
{
    struct failure ignored; /* a kernel may be without */

    mount_on("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, &ignored);
}

/* Deletes what a directory holds, staying on its file system. Takes the descriptor over. */
static void delete_contents(int directory)
{
    DIR *entries = fdopendir(directory);
    const struct dirent *entry;
    struct stat here;
    struct stat there;

    if (!entries) {
        close(directory);
        return;
    }
    fstat(directory, &here);
    while ((entry = readdir(entries))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (fstatat(directory, entry->d_name, &there, AT_SYMLINK_NOFOLLOW) < 0 || there.st_dev != here.st_dev)
            continue;
        if (S_ISDIR(there.st_mode)) {
            int inner = openat(directory, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (inner >= 0)
                delete_contents(inner);
        }
        unlinkat(directory, entry->d_name, S_ISDIR(there.st_mode) ? AT_REMOVEDIR : 0);
    }
    closedir(entries);
}

static bool move_kernel_filesystems(const char *directory, struct failure *failed)
{
    char target[PATH_MAX];

    for (size_t i = 0; i < sizeof(kernel_filesystems) / sizeof(*kernel_filesystems); i++) {
        snprintf(target, sizeof(target), "%s%s", directory, kernel_filesystems[i]);
        if (!mount_on(kernel_filesystems[i], target, NULL, MS_MOVE, NULL, failed))
            return false;
    }
    return true;
}

bool mount_switch_root(const char *directory, struct failure *failed)
{
    int initramfs = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (!move_kernel_filesystems(directory, failed))
        return false;
    if (chdir(directory) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 ||
        chdir("/") < 0) {
        *failed = failure_os(errno, NULL, "switch to %s", directory);
        return false;
    }
    if (initramfs >= 0)
        delete_contents(initramfs);
    return true;
}

/* Unmounts what is on a device, inner ones first; returns whether anything was. */
static bool unmount_pass(void)
{
    FILE *mounts = setmntent("/proc/self/mounts", "re");
    const struct mntent *mount;
    bool any = false;

    while (mounts && (mount = getmntent(mounts))) {
        if (mount->mnt_fsname[0] == '/' && strcmp(mount->mnt_dir, "/") != 0)
            any = umount2(mount->mnt_dir, UMOUNT_NOFOLLOW) == 0 || any;
    }
    if (mounts)
        endmntent(mounts);
    return any;
}

void mount_quiesce(int data_mount)
{
    sync();
    for (int pass = 0; pass < UNMOUNT_PASSES && unmount_pass(); pass++)
        continue;
    mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    if (data_mount >= 0 && fchdir(data_mount) == 0)
        mount(NULL, ".", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    sync();
}
