#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "survey.h"

enum { OPEN_DIRECTORY = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC };

/*
 * Both trees at one directory. `hidden`: the one above lies over it as a whole (an opaque directory), or has removed
 * it; then all of the lower one is gone.
 */
struct place {
    int upper;
    int lower;
    bool hidden;
};

/* One name in both; large, and not to be had once for each level. */
static struct survey_file here, base;

static bool visit(struct survey *survey, struct place place);

bool survey_fail(struct survey *survey, int error)
{
    if (!survey->failed)
        survey->failure = failure_os(error, NULL, "/%s", survey->path);
    survey->failed = true;
    return false;
}

static bool is_whiteout(const struct stat *status)
{
    return S_ISCHR(status->st_mode) && status->st_rdev == makedev(0, 0);
}

static bool open_child(struct survey *survey, int directory, const char *name, bool wanted, int *fd)
{
    *fd = wanted ? openat(directory, name, OPEN_DIRECTORY) : -1;
    return !wanted || *fd >= 0 || survey_fail(survey, errno);
}

/* Appends a name to the path; its length before, or -1. */
static ssize_t enter(struct survey *survey, const char *name)
{
    size_t length = strlen(survey->path);
    size_t more = strlen(name) + (length > 0);

    if (length + more >= sizeof(survey->path)) {
        survey_fail(survey, ENAMETOOLONG);
        return -1;
    }
    snprintf(survey->path + length, sizeof(survey->path) - length, "%s%s", length > 0 ? "/" : "", name);
    return (ssize_t)length;
}

/* What one name is in both trees, and all below it. */
static bool survey_name(struct survey *survey, struct place place, const char *name)
{
    bool above = survey_look(survey, place.upper, name, true, &here);
    bool below = !survey->failed && survey_look(survey, place.lower, name, false, &base);
    struct place child = {-1, -1, place.hidden};

    if (survey->failed)
        return false;
    bool removed = above ? is_whiteout(&here.status) : place.hidden;
    bool inherited = !above && !removed; /* reached only if all that shows is asked for */
    const struct survey_file *shows = removed ? NULL : inherited ? &base : &here;
    bool upper_directory = above && !removed && S_ISDIR(here.status.st_mode);
    bool lower_directory = below && S_ISDIR(base.status.st_mode);
    child.hidden = place.hidden || removed || (above && (!upper_directory || here.opaque));

    if (!survey->all)
        survey_put(survey, shows, below ? &base : NULL);
    else if (shows)
        survey_put(survey, shows, NULL);
    lower_directory = lower_directory && !(survey->all && child.hidden);
    if (survey->failed || (!upper_directory && !lower_directory))
        return !survey->failed;
    if (!open_child(survey, place.upper, name, upper_directory, &child.upper) ||
        !open_child(survey, place.lower, name, lower_directory, &child.lower)) {
        if (child.upper >= 0)
            close(child.upper);
        return false;
    }
    return visit(survey, child);
}

/* Whether the lower tree's name is still to be told of. */
static bool is_left(struct survey *survey, const struct place *place, const char *name)
{
    struct stat status;

    if (place->upper < 0 || fstatat(place->upper, name, &status, AT_SYMLINK_NOFOLLOW) == 0)
        return place->upper < 0;
    return errno == ENOENT || survey_fail(survey, errno);
}

static bool survey_names(struct survey *survey, struct place place, bool upper)
{
    int fd = openat(upper ? place.upper : place.lower, ".", OPEN_DIRECTORY);
    DIR *names = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry = NULL;

    if (!names) {
        survey_fail(survey, errno);
        if (fd >= 0)
            close(fd);
        return false;
    }
    while (!survey->failed && (errno = 0, entry = readdir(names))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            (!upper && !is_left(survey, &place, entry->d_name)))
            continue;
        ssize_t before = survey->failed ? -1 : enter(survey, entry->d_name);
        if (before >= 0 && survey_name(survey, place, entry->d_name))
            survey->path[before] = '\0';
    }
    if (!survey->failed && errno != 0)
        survey_fail(survey, errno);
    closedir(names);
    return !survey->failed;
}

/* Takes the descriptors over. */
static bool visit(struct survey *survey, struct place place)
{
    bool done = place.upper < 0 || survey_names(survey, place, true);

    if (done && place.lower >= 0 && (place.hidden || survey->all))
        done = survey_names(survey, place, false);
    if (place.upper >= 0)
        close(place.upper);
    if (place.lower >= 0)
        close(place.lower);
    return done;
}

bool survey_walk(struct survey *survey, int upper, int lower)
{
    struct place top = {-1, -1, false};

    survey->path[0] = '\0';
    bool above = survey_look(survey, upper, ".", true, &here);
    bool below = !survey->failed && survey_look(survey, lower, ".", false, &base);
    if (survey->failed)
        return false;
    /* The root is as its upper directory says, which Atoll makes when the machine starts first. */
    survey_put(survey, above ? &here : &base, below && !survey->all ? &base : NULL);
    fflush(survey->out);
    return !survey->failed && open_child(survey, upper, ".", above, &top.upper) &&
           open_child(survey, lower, ".", below, &top.lower) && visit(survey, top);
}
