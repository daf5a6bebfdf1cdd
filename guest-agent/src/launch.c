#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "directories.h"
#include "file.h"

enum {
    CHILD_STACK_SIZE = 65536,
    PIPE_SIZE = 1 << 20, /* beyond the default for users without privilege: a wish */
    LIMIT_NOFILE_SOFT = 1024,
    LIMIT_NOFILE_HARD = 524288,
    CLOSE_RANGE_ON_EXEC = 1 << 2, /* CLOSE_RANGE_CLOEXEC: musl has no name for it */
};

static const char oom_score[] = "/proc/self/oom_score_adj";

static struct rlimit limit_nofile;
static bool adjusted_oom;

void launch_init(bool init)
{
    umask(0); /* the agent itself makes files with the very modes it is told */
    getrlimit(RLIMIT_NOFILE, &limit_nofile);
    if (init) {
        limit_nofile.rlim_cur = LIMIT_NOFILE_SOFT;
        limit_nofile.rlim_max = LIMIT_NOFILE_HARD;
        adjusted_oom = file_write(oom_score, "-1000");
    }
    struct rlimit own = limit_nofile;
    own.rlim_cur = own.rlim_max;
    setrlimit(RLIMIT_NOFILE, &own);
}

/* The child's end and the agent's end of each standard descriptor. */
struct ends {
    int child[3];
    int agent[3];
};

static void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
}

static void close_all(const int fds[3])
{
    for (size_t i = 0; i < 3; i++)
        close_fd(fds[i]);
}

static bool set_nonblocking(int fd)
{
    return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0;
}

static bool open_pipe(struct ends *ends, int fd, uid_t uid)
{
    int pipe[2];
    int write_end = fd == STDIN_FILENO ? 0 : 1;

    if (pipe2(pipe, O_CLOEXEC) < 0)
        return false;
    ends->child[fd] = pipe[write_end];
    ends->agent[fd] = pipe[1 - write_end];
    fcntl(pipe[0], F_SETPIPE_SZ, PIPE_SIZE);
    if (uid != geteuid() && fchown(pipe[0], uid, (gid_t)-1) < 0) /* it may open /dev/stdout and the like */
        return false;
    return set_nonblocking(ends->agent[fd]);
}

static bool open_pipes(const struct launch *launch, struct ends *ends)
{
    uid_t uid = launch->user->uid;

    if (launch->input) {
        if (!open_pipe(ends, STDIN_FILENO, uid))
            return false;
    } else {
        ends->child[STDIN_FILENO] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (ends->child[STDIN_FILENO] < 0)
            return false;
    }
    return open_pipe(ends, STDOUT_FILENO, uid) && open_pipe(ends, STDERR_FILENO, uid);
}

/* Input and output get a descriptor each, so that both are handled like those of pipes. */
static bool open_tty(const struct launch *launch, struct ends *ends)
{
    struct winsize size = {.ws_row = launch->rows, .ws_col = launch->columns};
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    char name[64];

    ends->agent[STDOUT_FILENO] = master;
    if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0 || !set_nonblocking(master) ||
        ptsname_r(master, name, sizeof(name)) != 0)
        return false;
    ends->agent[STDIN_FILENO] = fcntl(master, F_DUPFD_CLOEXEC, 0);
    int slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    ends->child[STDIN_FILENO] = slave;
    return ends->agent[STDIN_FILENO] >= 0 && slave >= 0 && ioctl(slave, TIOCSWINSZ, &size) == 0 &&
           fchown(slave, launch->user->uid, (gid_t)-1) == 0;
}

static bool open_ends(const struct launch *launch, struct ends *ends)
{
    *ends = (struct ends){{-1, -1, -1}, {-1, -1, -1}};
    if (launch->tty ? open_tty(launch, ends) : open_pipes(launch, ends))
        return true;
    int error = errno;
    close_all(ends->child);
    close_all(ends->agent);
    errno = error;
    return false;
}

/*
 * What follows runs in the child, like that of vfork(): in the agent's memory, though on a stack of its own,
 * while the agent stands still until the child has executed or exited. So the child makes system calls only,
 * and tells what failed by writing to `struct child`.
 */
struct child {
    const struct launch *launch;
    const struct ends *ends;
    const char *stage;
    int error;
    bool uninterpreted; /* the program is there, and what it names to run it is not */
};

static _Alignas(16) char child_stack[CHILD_STACK_SIZE];

__attribute__((noreturn)) static void give_up(struct child *child, const char *stage)
{
    child->stage = stage;
    child->error = errno;
    _exit(127);
}

static void set_up_descriptors(struct child *child)
{
    const struct ends *ends = child->ends;

    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        int from = child->launch->tty ? ends->child[STDIN_FILENO] : ends->child[fd];

        if (dup2(from, fd) < 0)
            give_up(child, "exec");
    }
    if (child->launch->tty && ioctl(STDIN_FILENO, TIOCSCTTY, 0) < 0)
        give_up(child, "exec");
    /* The agent opens all with O_CLOEXEC; this is for those that it inherited when hosted. */
    syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, CLOSE_RANGE_ON_EXEC);
}

static void set_up_limits(void)
{
    if (adjusted_oom)
        file_write(oom_score, "0");
    setrlimit(RLIMIT_NOFILE, &limit_nofile);
    umask(022);
}

static void change_user(struct child *child)
{
    const struct user *user = child->launch->user;

    if (geteuid() != 0 && user->uid == geteuid() && user->gid == getegid())
        return; /* a hosted agent without privilege, as itself */
    /* Not through libc, whose wrappers would also change the threads of the agent. */
    if (syscall(SYS_setgroups, user->groups_count, user->groups) < 0 ||
        syscall(SYS_setresgid, user->gid, user->gid, user->gid) < 0 ||
        syscall(SYS_setresuid, user->uid, user->uid, user->uid) < 0)
        give_up(child, "user");
}

static void change_directory(struct child *child)
{
    const struct launch *launch = child->launch;

    if (launch->cwd) {
        if (chdir(launch->cwd) < 0)
            give_up(child, "cwd");
    } else if (chdir(launch->user->home) < 0 && chdir("/") < 0) {
        give_up(child, "cwd");
    }
}

/* Returns on failure only, with errno set. */
static void execute_file(struct child *child, const char *file)
{
    execve(file, child->launch->argv, child->launch->env);

    int error = errno;
    if (error == ENOENT && access(file, F_OK) == 0)
        child->uninterpreted = true;
    errno = error;
}

/* execvp(3) with the command's PATH instead of the agent's. Returns on failure only, with errno set. */
static void execute(struct child *child)
{
    const struct launch *launch = child->launch;
    const char *name = launch->argv[0];
    const char *part = launch->path;
    char file[PATH_MAX];
    int error = ENOENT;

    if (strchr(name, '/')) {
        execute_file(child, name);
        return;
    }
    for (;;) {
        size_t length = strcspn(part, ":");

        if (length + strlen(name) + 2 <= sizeof(file)) {
            memcpy(file, part, length);
            file[length] = '/';
            strcpy(file + length + (length > 0), name); /* an empty part is the current directory */
            execute_file(child, file);
            if (errno != ENOENT && errno != ENOTDIR && errno != EACCES)
                return;
            if (errno == EACCES)
                error = EACCES;
        }
        if (part[length] == '\0')
            break;
        part += length + 1;
    }
    errno = error;
}

static int run_child(void *argument)
{
    struct child *child = argument;
    static const struct sigaction by_default = {.sa_handler = SIG_DFL};
    sigset_t none;

    setsid();
    sigaction(SIGPIPE, &by_default, NULL); /* the only one that the agent does not leave at its default */
    set_up_descriptors(child);
    set_up_limits();
    change_user(child);
    change_directory(child);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (*child->launch->argv[0] == '\0')
        errno = ENOENT;
    else
        execute(child);
    give_up(child, errno == ENOENT && child->uninterpreted ? "interpreter" : "exec");
}

/* What the stage that failed was about. */
static const char *subject(const struct child *child)
{
    if (strcmp(child->stage, "cwd") == 0)
        return child->launch->cwd ? child->launch->cwd : "/";
    if (strcmp(child->stage, "user") == 0)
        return child->launch->user->name;
    return child->launch->argv[0];
}

static bool make_directory(const char *path, struct failure *failed)
{
    char copy[PATH_MAX];
    bool made = strlen(path) < sizeof(copy) && make_directories(strcpy(copy, path));

    if (!made)
        *failed = failure_os(errno, "cwd", "%s", path);
    return made;
}

bool launch(const struct launch *launch, struct launched *launched, struct failure *failed)
{
    struct ends ends;

    if (launch->make_cwd && launch->cwd && !make_directory(launch->cwd, failed))
        return false;
    if (!open_ends(launch, &ends)) {
        *failed = failure_os(errno, "exec", launch->tty ? "terminal" : "pipes");
        return false;
    }
    /* Not fork(): copying page tables would cost more than all else. */
    struct child child = {.launch = launch, .ends = &ends};
    pid_t pid = clone(run_child, child_stack + sizeof(child_stack), CLONE_VM | CLONE_VFORK | SIGCHLD, &child);
    if (pid < 0) {
        child.error = errno;
        child.stage = "exec";
    }
    close_all(ends.child);
    if (child.error) {
        close_all(ends.agent);
        *failed = failure_os(child.error, child.stage, "%s", subject(&child));
        return false;
    }
    *launched = (struct launched){pid, ends.agent[0], ends.agent[1], ends.agent[2]};
    return true;
}

int launch_signal(pid_t group, int signal)
{
    return kill(-group, signal) < 0 ? errno : 0;
}

int launch_resize(int tty, uint16_t rows, uint16_t columns)
{
    struct winsize size = {.ws_row = rows, .ws_col = columns};

    return ioctl(tty, TIOCSWINSZ, &size) < 0 ? errno : 0;
}
