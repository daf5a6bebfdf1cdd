/*
 * The format of trees: records, and the content of files. Agent protocol, section 8. Pure: no I/O, no allocation.
 */
#ifndef ATOLL_TREE_RECORD_H
#define ATOLL_TREE_RECORD_H

#include "msgpack.h"

enum {
    TREE_RECORD_MAX = 16384,
    TREE_SEGMENT_MAX = 1048576,
    TREE_NAME_MAX = 255,
    TREE_TARGET_MAX = 4095, /* of a symbolic link */

    TREE_LENGTH_SIZE = 4,   /* before a record */
    TREE_SEGMENT_HEAD = 12, /* before the bytes of a segment */
};

enum tree_type { TREE_FILE, TREE_DIRECTORY, TREE_SYMLINK, TREE_LINK, TREE_FIFO, TREE_TYPES };

struct tree_record {
    struct mp_bytes path;
    enum tree_type type;
    uint32_t mode;
    uint32_t uid;
    uint32_t gid;
    int64_t mtime; /* ns since 1970 */
    uint64_t size;
    struct mp_bytes target;
};

/* What comes next in a tree. */
enum tree_event {
    TREE_MORE, /* bytes are missing */
    TREE_RECORD,
    TREE_CONTENT,  /* a part of a segment of the file that the last record told of */
    TREE_FILE_END, /* of that file */
    TREE_MALFORMED,
};

struct tree_part {
    struct tree_record record; /* points into the input or the parser: valid until the next call */
    uint64_t offset;
    struct mp_bytes content; /* inside the input */
    const char *wrong;       /* why it is malformed */
};

enum tree_state { TREE_IN_LENGTH, TREE_IN_RECORD, TREE_IN_HEAD, TREE_IN_SEGMENT };

struct tree_parser {
    enum tree_state state;
    bool started;          /* the top has been seen */
    bool top_is_directory; /* so that others may follow */
    size_t record_size;
    uint64_t file_size;
    uint64_t offset;       /* where the next segment may begin, or this one goes on */
    uint64_t segment_left;
    size_t held;
    uint8_t buffer[TREE_RECORD_MAX]; /* a part of the format that came in pieces */
};

/* Whether it can be the name of something in a directory. */
bool tree_is_name(const char *name);

void tree_parser_init(struct tree_parser *parser);

/* Takes the next event out of the input. */
enum tree_event tree_parse(struct tree_parser *parser, struct mp_reader *input, struct tree_part *part);

/* Whether the tree may end here. */
bool tree_complete(const struct tree_parser *parser);

/* The length and the record; overflows if they do not fit, or the record is too long. */
void tree_write_record(struct mp_writer *writer, const struct tree_record *record);
void tree_put_head(uint8_t out[TREE_SEGMENT_HEAD], uint64_t offset, uint32_t length);

#endif
