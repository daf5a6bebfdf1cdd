/*
 * file.list: what is in a directory, on a stream. Agent protocol, section 9.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "file_record.h"
#include "file_request.h"

struct listing {
    struct jobs *jobs;
    struct credentials as;
    DIR *entries;
    char path[PATH_MAX];
    size_t pending_start; /* of a record that did not fit */
    size_t pending_end;
    uint8_t pending[FILE_LENGTH_SIZE + FILE_RECORD_MAX];
    bool failed;
    struct failure failure;
};

static bool fail(struct listing *listing, int error)
{
    listing->failed = true;
    listing->failure = file_failure(error, listing->path);
    return false;
}

static void put_record(struct listing *listing, const char *name, const struct stat *status,
                       const char *target, ssize_t target_size)
{
    struct mp_writer writer =
        file_record_begin(listing->pending, 1 + FILE_STATUS_KEYS + (target_size >= 0));

    file_put_bytes(&writer, "name", name, strlen(name));
    file_put_status(&writer, status);
    if (target_size >= 0)
        file_put_bytes(&writer, "target", target, (size_t)target_size);
    listing->pending_start = 0;
    listing->pending_end = file_record_end(listing->pending, &writer);
}

/* One that is gone by now is left out. */
static void read_entry(struct listing *listing, const char *name)
{
    int directory = dirfd(listing->entries);
    char target[FILE_LINK_MAX];
    ssize_t target_size = -1;
    struct stat status;

    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return;
    if (fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) < 0) {
        if (errno != ENOENT)
            fail(listing, errno);
        return;
    }
    if (S_ISLNK(status.st_mode)) {
        target_size = readlinkat(directory, name, target, sizeof(target));
        if (target_size < 0)
            return;
    }
    put_record(listing, name, &status, target, target_size);
}

/* False at the end. */
static bool next_entry(struct listing *listing)
{
    errno = 0;
    const struct dirent *entry = readdir(listing->entries);

    if (entry)
        read_entry(listing, entry->d_name);
    else if (errno != 0)
        fail(listing, errno);
    return entry || listing->failed;
}

static size_t take_pending(struct listing *listing, uint8_t *out, size_t room)
{
    size_t left = listing->pending_end - listing->pending_start;
    size_t size = left < room ? left : room;

    memcpy(out, listing->pending + listing->pending_start, size);
    listing->pending_start += size;
    return size;
}

static size_t fill(struct listing *listing, uint8_t *out, size_t max, bool *end)
{
    size_t used = 0;

    while (used < max && !listing->failed && !*end) {
        if (listing->pending_start < listing->pending_end)
            used += take_pending(listing, out + used, max - used);
        else
            *end = !next_entry(listing);
        if (used > 0 && boot_ns() >= listing->jobs->deadline)
            break;
    }
    return used;
}

static size_t listing_pull(struct stream *stream, uint8_t *out, size_t max, bool *end)
{
    struct listing *listing = stream->owner;
    size_t used = 0;

    if (credentials_assume(&listing->as)) {
        used = fill(listing, out, max, end);
        credentials_restore(&listing->as);
    } else {
        fail(listing, errno);
    }
    if (listing->failed)
        stream->failure = &listing->failure;
    return used;
}

static void listing_closed(struct stream *stream)
{
    struct listing *listing = stream->owner;

    closedir(listing->entries);
    free(listing);
}

static bool open_as(struct listing *listing)
{
    if (!credentials_assume(&listing->as))
        return fail(listing, errno);
    listing->entries = opendir(listing->path);
    credentials_restore(&listing->as);
    return listing->entries || fail(listing, errno);
}

void file_list_method(struct request *request)
{
    static const struct stream_ops ops = {.pull = listing_pull, .closed = listing_closed};
    struct mp_writer writer = request_writer(request);
    struct stream *stream = request->stream;
    struct file_actor actor;
    char path[PATH_MAX];

    if (!param_actor(request, &actor) || !param_path(request, "path", &actor, path))
        return;
    struct listing *listing = calloc(1, sizeof(*listing));
    if (!listing) {
        request_fail(request, failure(FAIL_RESOURCE, "memory"));
        return;
    }
    listing->jobs = &request->agent->jobs;
    listing->as = actor.as;
    strcpy(listing->path, path);
    if (!open_as(listing)) {
        request_fail(request, listing->failure);
        free(listing);
        return;
    }
    mp_write_map(&writer, 0);
    request_reply(request, &writer, false);
    stream->ops = &ops;
    stream->owner = listing;
    mux_ready(stream);
}
