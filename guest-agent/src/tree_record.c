#include "tree_record.h"

#include <stdint.h>
#include <string.h>

#include "wire.h"

enum { MODE_MAX = 07777 };

static const int64_t id_max = UINT32_MAX - 1; /* (uid_t)-1 means "unchanged" */

enum field { PATH, TYPE, MODE, UID, GID, MTIME, SIZE, TARGET, FIELDS };

static const char *const field_names[FIELDS] = {
    [PATH] = "path", [TYPE] = "type",   [MODE] = "mode", [UID] = "uid",
    [GID] = "gid",   [MTIME] = "mtime", [SIZE] = "size", [TARGET] = "target",
};

static const char *const type_names[TREE_TYPES] = {
    [TREE_FILE] = "file", [TREE_DIRECTORY] = "directory", [TREE_SYMLINK] = "symlink",
    [TREE_LINK] = "link", [TREE_FIFO] = "fifo",
};

/* The place of a text among names; `count` if it is none of them. */
static size_t lookup(const struct mp_bytes *text, const char *const *names, size_t count)
{
    size_t i = 0;

    while (i < count && (strlen(names[i]) != text->size || memcmp(names[i], text->data, text->size) != 0))
        i++;
    return i;
}

static bool is_name(const uint8_t *name, size_t size)
{
    bool dots = size <= 2 && memcmp(name, "..", size) == 0;

    return size >= 1 && size <= TREE_NAME_MAX && !dots && !memchr(name, 0, size);
}

bool tree_is_name(const char *name)
{
    return !strchr(name, '/') && is_name((const uint8_t *)name, strlen(name));
}

static bool is_path(const struct mp_bytes *path)
{
    const uint8_t *name = path->data;
    const uint8_t *end = name + path->size;

    for (;;) {
        const uint8_t *slash = memchr(name, '/', (size_t)(end - name));

        if (!is_name(name, (size_t)((slash ? slash : end) - name)))
            return false;
        if (!slash)
            return true;
        name = slash + 1;
    }
}

static bool read_number(struct mp_reader *reader, int64_t max, int64_t *value)
{
    return mp_read_int(reader, value) && *value >= 0 && *value <= max;
}

static bool read_field(struct mp_reader *map, enum field field, struct tree_record *record)
{
    struct mp_bytes text;
    int64_t number = 0;
    bool read = false;

    switch (field) {
    case PATH:
        return mp_read_bytes(map, &record->path);
    case TYPE:
        read = mp_read_bytes(map, &text);
        record->type = read ? (enum tree_type)lookup(&text, type_names, TREE_TYPES) : TREE_TYPES;
        return record->type != TREE_TYPES;
    case MODE:
        read = read_number(map, MODE_MAX, &number);
        record->mode = (uint32_t)number;
        return read;
    case UID:
        read = read_number(map, id_max, &number);
        record->uid = (uint32_t)number;
        return read;
    case GID:
        read = read_number(map, id_max, &number);
        record->gid = (uint32_t)number;
        return read;
    case MTIME:
        return mp_read_int(map, &record->mtime);
    case SIZE:
        read = read_number(map, INT64_MAX, &number);
        record->size = (uint64_t)number;
        return read;
    case TARGET:
        return mp_read_bytes(map, &record->target);
    case FIELDS:
        break;
    }
    return mp_skip(map);
}

static unsigned bit(enum field field)
{
    return 1U << field;
}

/* The fields that a record of this type must have. */
static unsigned required(enum tree_type type)
{
    unsigned metadata = bit(PATH) | bit(TYPE) | bit(MODE) | bit(UID) | bit(GID) | bit(MTIME);

    switch (type) {
    case TREE_FILE:
        return metadata | bit(SIZE);
    case TREE_SYMLINK:
        return metadata | bit(TARGET);
    case TREE_LINK:
        return bit(PATH) | bit(TYPE) | bit(TARGET);
    case TREE_DIRECTORY:
    case TREE_FIFO:
    case TREE_TYPES:
        break;
    }
    return metadata;
}

static bool target_is_valid(const struct tree_record *record)
{
    const struct mp_bytes *target = &record->target;

    if (record->type == TREE_SYMLINK)
        return target->size >= 1 && target->size <= TREE_TARGET_MAX && !memchr(target->data, 0, target->size);
    return record->type != TREE_LINK || is_path(target);
}

/* NULL, or what is wrong with the record. */
static const char *read_record(const uint8_t *bytes, size_t size, struct tree_record *record)
{
    struct mp_reader map = {bytes, bytes + size};
    struct mp_bytes key;
    unsigned seen = 0;
    size_t count;

    *record = (struct tree_record){.type = TREE_TYPES};
    if (!mp_valid_map(bytes, size) || !mp_read_map(&map, &count))
        return "no MessagePack map";
    while (count-- > 0) {
        bool named = mp_read_bytes(&map, &key);
        enum field field = named ? (enum field)lookup(&key, field_names, FIELDS) : FIELDS;

        if ((!named && !mp_skip(&map)) || !read_field(&map, field, record))
            return field == FIELDS ? "key" : field_names[field];
        seen |= bit(field);
    }
    if ((seen & required(record->type)) != required(record->type))
        return "a key is missing";
    if (record->path.size > 0 && !is_path(&record->path))
        return "path";
    return target_is_valid(record) ? NULL : "target";
}

/* The next `size` bytes in one piece, or NULL if they are not all there yet. */
static const uint8_t *gather(struct tree_parser *parser, struct mp_reader *input, size_t size)
{
    size_t left = (size_t)(input->end - input->at);
    size_t part = size - parser->held < left ? size - parser->held : left;
    const uint8_t *from = input->at;

    input->at += part;
    if (parser->held == 0 && part == size)
        return from;
    if (part > 0)
        memcpy(parser->buffer + parser->held, from, part);
    parser->held += part;
    if (parser->held < size)
        return NULL;
    parser->held = 0;
    return parser->buffer;
}

static enum tree_event malformed(struct tree_part *part, const char *wrong)
{
    part->wrong = wrong;
    return TREE_MALFORMED;
}

static enum tree_event parse_record(struct tree_parser *parser, const uint8_t *bytes, struct tree_part *part)
{
    const struct tree_record *record = &part->record;
    const char *wrong = read_record(bytes, parser->record_size, &part->record);

    if (wrong)
        return malformed(part, wrong);
    bool top = !parser->started;
    if (top != (record->path.size == 0) || (!top && !parser->top_is_directory))
        return malformed(part, "not below the top");
    if (top && record->type == TREE_LINK)
        return malformed(part, "a link to nothing");
    if (top)
        parser->top_is_directory = record->type == TREE_DIRECTORY;
    parser->started = true;
    parser->state = record->type == TREE_FILE ? TREE_IN_HEAD : TREE_IN_LENGTH;
    parser->file_size = record->size;
    parser->offset = 0;
    return TREE_RECORD;
}

static uint64_t get_u64(const uint8_t *in)
{
    return wire_get_u32(in) | (uint64_t)wire_get_u32(in + 4) << 32;
}

static enum tree_event parse_head(struct tree_parser *parser, const uint8_t *head, struct tree_part *part)
{
    uint64_t offset = get_u64(head);
    uint32_t length = wire_get_u32(head + 8);

    if (length > TREE_SEGMENT_MAX || offset < parser->offset || offset > parser->file_size ||
        length > parser->file_size - offset || (length == 0 && offset != parser->file_size))
        return malformed(part, "segment");
    parser->offset = offset;
    parser->segment_left = length;
    parser->state = length > 0 ? TREE_IN_SEGMENT : TREE_IN_LENGTH;
    return length > 0 ? TREE_MORE : TREE_FILE_END;
}

static enum tree_event parse_content(struct tree_parser *parser, struct mp_reader *input, struct tree_part *part)
{
    size_t left = (size_t)(input->end - input->at);
    size_t size = parser->segment_left < left ? (size_t)parser->segment_left : left;

    if (size == 0)
        return TREE_MORE;
    part->offset = parser->offset;
    part->content = (struct mp_bytes){input->at, size};
    input->at += size;
    parser->offset += size;
    parser->segment_left -= size;
    if (parser->segment_left == 0)
        parser->state = TREE_IN_HEAD;
    return TREE_CONTENT;
}

void tree_parser_init(struct tree_parser *parser)
{
    parser->state = TREE_IN_LENGTH;
    parser->started = false;
    parser->held = 0;
}

enum tree_event tree_parse(struct tree_parser *parser, struct mp_reader *input, struct tree_part *part)
{
    const uint8_t *bytes;

    if (parser->state == TREE_IN_LENGTH) {
        bytes = gather(parser, input, TREE_LENGTH_SIZE);
        if (!bytes)
            return TREE_MORE;
        parser->record_size = wire_get_u32(bytes);
        if (parser->record_size == 0 || parser->record_size > TREE_RECORD_MAX)
            return malformed(part, "length");
        parser->state = TREE_IN_RECORD;
    }
    if (parser->state == TREE_IN_RECORD) {
        bytes = gather(parser, input, parser->record_size);
        return bytes ? parse_record(parser, bytes, part) : TREE_MORE;
    }
    if (parser->state == TREE_IN_HEAD) {
        bytes = gather(parser, input, TREE_SEGMENT_HEAD);
        enum tree_event event = bytes ? parse_head(parser, bytes, part) : TREE_MORE;
        if (event != TREE_MORE || !bytes)
            return event;
    }
    return parse_content(parser, input, part);
}

bool tree_complete(const struct tree_parser *parser)
{
    return parser->started && parser->state == TREE_IN_LENGTH && parser->held == 0;
}

static void put_bytes(struct mp_writer *writer, enum field field, const struct mp_bytes *bytes)
{
    mp_write_str(writer, field_names[field]);
    mp_write_bin(writer, bytes->data, bytes->size);
}

void tree_write_record(struct mp_writer *writer, const struct tree_record *record)
{
    bool has_target = record->type == TREE_SYMLINK || record->type == TREE_LINK;
    bool has_size = record->type == TREE_FILE;
    uint8_t *at = mp_claim(writer, TREE_LENGTH_SIZE);
    size_t before = mp_written(writer);

    mp_write_map(writer, 6U + has_target + has_size);
    put_bytes(writer, PATH, &record->path);
    mp_put_str(writer, field_names[TYPE], type_names[record->type]);
    mp_put_int(writer, field_names[MODE], record->mode);
    mp_put_int(writer, field_names[UID], record->uid);
    mp_put_int(writer, field_names[GID], record->gid);
    mp_put_int(writer, field_names[MTIME], record->mtime);
    if (has_size)
        mp_put_int(writer, field_names[SIZE], (int64_t)record->size);
    if (has_target)
        put_bytes(writer, TARGET, &record->target);
    size_t size = mp_written(writer) - before;
    writer->overflow = writer->overflow || size > TREE_RECORD_MAX;
    if (!writer->overflow)
        wire_put_u32(at, (uint32_t)size);
}

void tree_put_head(uint8_t out[TREE_SEGMENT_HEAD], uint64_t offset, uint32_t length)
{
    wire_put_u32(out, (uint32_t)offset);
    wire_put_u32(out + 4, (uint32_t)(offset >> 32));
    wire_put_u32(out + 8, length);
}
