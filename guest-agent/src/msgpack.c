#include "msgpack.h"

#include <string.h>

enum kind { INVALID, NIL, BOOL, INT, SIGNED, FLOAT, STR, BIN, EXT, ARRAY, MAP };

/* A value's first byte and the big-endian argument behind it. */
struct head {
    enum kind kind;
    uint64_t argument; /* the number itself, or a size in bytes, or a count of elements */
};

/* Formats 0xc0 to 0xdf: what they are, and the size of the argument that follows or, if `fixed` is set, the
 * argument itself. */
static const struct format {
    uint8_t kind;
    uint8_t width;
    uint8_t fixed;
} formats[32] = {
    {NIL, 0, 0},    {INVALID, 0, 0}, {BOOL, 0, 0},   {BOOL, 0, 1},   /* c0 nil, never used, false, true */
    {BIN, 1, 0},    {BIN, 2, 0},     {BIN, 4, 0},    {EXT, 1, 0},    /* c4 bin 8, 16, 32, ext 8 */
    {EXT, 2, 0},    {EXT, 4, 0},     {FLOAT, 4, 0},  {FLOAT, 8, 0},  /* c8 ext 16, 32, float 32, 64 */
    {INT, 1, 0},    {INT, 2, 0},     {INT, 4, 0},    {INT, 8, 0},    /* cc uint 8, 16, 32, 64 */
    {SIGNED, 1, 0}, {SIGNED, 2, 0},  {SIGNED, 4, 0}, {SIGNED, 8, 0}, /* d0 int 8, 16, 32, 64 */
    {EXT, 0, 1},    {EXT, 0, 2},     {EXT, 0, 4},    {EXT, 0, 8},    /* d4 fixext 1, 2, 4, 8 */
    {EXT, 0, 16},   {STR, 1, 0},     {STR, 2, 0},    {STR, 4, 0},    /* d8 fixext 16, str 8, 16, 32 */
    {ARRAY, 2, 0},  {ARRAY, 4, 0},   {MAP, 2, 0},    {MAP, 4, 0},    /* dc array 16, 32, map 16, 32 */
};

static size_t left(const struct mp_reader *reader)
{
    return (size_t)(reader->end - reader->at);
}

/* Two's complement of `width` bytes, widened to 64 bits. */
static uint64_t sign_extend(uint64_t value, size_t width)
{
    uint64_t sign = UINT64_C(1) << (8 * width - 1);

    return (value ^ sign) - sign;
}

static bool read_head(struct mp_reader *reader, struct head *head)
{
    if (left(reader) < 1)
        return false;
    uint8_t first = *reader->at;
    size_t width = 0;

    if (first < 0x80) {
        *head = (struct head){INT, first};
    } else if (first < 0x90) {
        *head = (struct head){MAP, first & 0x0f};
    } else if (first < 0xa0) {
        *head = (struct head){ARRAY, first & 0x0f};
    } else if (first < 0xc0) {
        *head = (struct head){STR, first & 0x1f};
    } else if (first >= 0xe0) {
        *head = (struct head){SIGNED, sign_extend(first, 1)};
    } else {
        const struct format *format = &formats[first - 0xc0];

        *head = (struct head){(enum kind)format->kind, format->fixed};
        width = format->width;
    }
    if (head->kind == INVALID || left(reader) < 1 + width)
        return false;
    for (size_t i = 1; i <= width; i++)
        head->argument = head->argument << 8 | reader->at[i];
    if (head->kind == SIGNED && width > 0)
        head->argument = sign_extend(head->argument, width);
    reader->at += 1 + width;
    return true;
}

/* Bytes of content behind the head, not counting elements. */
static uint64_t content_size(const struct head *head)
{
    switch (head->kind) {
    case STR:
    case BIN:
        return head->argument;
    case EXT:
        return head->argument + 1; /* the type */
    case INVALID:
    case NIL:
    case BOOL:
    case INT:
    case SIGNED:
    case FLOAT:
    case ARRAY:
    case MAP:
        break;
    }
    return 0;
}

static bool skip(struct mp_reader *reader, unsigned depth)
{
    struct head head;

    if (!read_head(reader, &head) || content_size(&head) > left(reader))
        return false;
    reader->at += content_size(&head);
    if (head.kind != ARRAY && head.kind != MAP)
        return true;

    uint64_t elements = head.kind == MAP ? 2 * head.argument : head.argument;
    if (depth == 0 || elements > left(reader)) /* an element has a byte at least */
        return false;
    while (elements-- > 0) {
        if (!skip(reader, depth - 1))
            return false;
    }
    return true;
}

bool mp_skip(struct mp_reader *reader)
{
    return skip(reader, MP_DEPTH_MAX);
}

bool mp_valid_map(const uint8_t *data, size_t size)
{
    struct mp_reader reader = {data, data + size};
    size_t count;

    if (!mp_read_map(&reader, &count))
        return false;
    reader.at = data;
    return skip(&reader, MP_DEPTH_MAX) && left(&reader) == 0;
}

/* Reads a head if it is of one of two kinds. */
static bool read_kind(struct mp_reader *reader, enum kind kind, enum kind other, uint64_t *argument)
{
    struct mp_reader ahead = *reader;
    struct head head;

    if (!read_head(&ahead, &head) || (head.kind != kind && head.kind != other))
        return false;
    *reader = ahead;
    *argument = head.argument;
    return true;
}

bool mp_find(struct mp_reader map, const char *key, struct mp_reader *value)
{
    struct mp_bytes name;
    uint64_t ignored;
    size_t count;

    if (!mp_read_map(&map, &count))
        return false;
    for (; count > 0; count--) {
        bool found = false;

        if (mp_read_bytes(&map, &name))
            found = name.size == strlen(key) && memcmp(name.data, key, name.size) == 0;
        else if (!skip(&map, MP_DEPTH_MAX))
            return false;
        if (found) {
            *value = map;
            return !read_kind(&map, NIL, NIL, &ignored);
        }
        if (!skip(&map, MP_DEPTH_MAX))
            return false;
    }
    return false;
}

bool mp_read_int(struct mp_reader *reader, int64_t *value)
{
    struct mp_reader ahead = *reader;
    struct head head;

    if (!read_head(&ahead, &head))
        return false;
    if (head.kind != SIGNED && (head.kind != INT || head.argument > INT64_MAX))
        return false;
    *reader = ahead;
    *value = (int64_t)head.argument;
    return true;
}

bool mp_read_bool(struct mp_reader *reader, bool *value)
{
    uint64_t argument;

    if (!read_kind(reader, BOOL, BOOL, &argument))
        return false;
    *value = argument != 0;
    return true;
}

bool mp_read_bytes(struct mp_reader *reader, struct mp_bytes *bytes)
{
    struct mp_reader ahead = *reader;
    uint64_t size;

    if (!read_kind(&ahead, STR, BIN, &size) || size > left(&ahead))
        return false;
    *bytes = (struct mp_bytes){ahead.at, (size_t)size};
    ahead.at += size;
    *reader = ahead;
    return true;
}

static bool read_count(struct mp_reader *reader, enum kind kind, size_t *count)
{
    struct mp_reader ahead = *reader;
    uint64_t argument;

    if (!read_kind(&ahead, kind, kind, &argument) || argument > left(&ahead))
        return false;
    *reader = ahead;
    *count = (size_t)argument;
    return true;
}

bool mp_read_array(struct mp_reader *reader, size_t *count)
{
    return read_count(reader, ARRAY, count);
}

bool mp_read_map(struct mp_reader *reader, size_t *count)
{
    return read_count(reader, MAP, count);
}

void mp_writer_init(struct mp_writer *writer, uint8_t *buffer, size_t size)
{
    *writer = (struct mp_writer){.start = buffer, .at = buffer, .end = buffer + size};
}

size_t mp_written(const struct mp_writer *writer)
{
    return (size_t)(writer->at - writer->start);
}

/* What does not fit makes every later write fail, too. */
uint8_t *mp_claim(struct mp_writer *writer, size_t size)
{
    if (writer->overflow || (size_t)(writer->end - writer->at) < size) {
        writer->overflow = true;
        return NULL;
    }
    uint8_t *out = writer->at;
    writer->at += size;
    return out;
}

/* A format byte, a big-endian argument of `width` bytes, and room for `content` bytes, which is returned. */
static uint8_t *write_head(struct mp_writer *writer, uint8_t format, uint64_t argument, size_t width,
                           size_t content)
{
    uint8_t *out = mp_claim(writer, 1 + width + content);

    if (!out)
        return NULL;
    *out++ = format;
    for (size_t i = width; i > 0; i--)
        *out++ = (uint8_t)(argument >> (8 * (i - 1)));
    return out;
}

void mp_write_int(struct mp_writer *writer, int64_t value)
{
    if (value >= -32 && value < 128)
        write_head(writer, (uint8_t)value, 0, 0, 0);
    else if (value >= INT32_MIN && value <= INT32_MAX)
        write_head(writer, 0xd2, (uint64_t)value, 4, 0);
    else
        write_head(writer, 0xd3, (uint64_t)value, 8, 0);
}

void mp_write_bool(struct mp_writer *writer, bool value)
{
    write_head(writer, value ? 0xc3 : 0xc2, 0, 0, 0);
}

void mp_write_str(struct mp_writer *writer, const char *text)
{
    size_t size = strlen(text);
    uint8_t *out;

    if (size < 32)
        out = write_head(writer, (uint8_t)(0xa0 | size), 0, 0, size);
    else if (size <= UINT16_MAX)
        out = write_head(writer, 0xda, size, 2, size);
    else
        out = write_head(writer, 0xdb, size, 4, size);
    if (out)
        memcpy(out, text, size);
}

void mp_write_bin(struct mp_writer *writer, const uint8_t *data, size_t size)
{
    uint8_t *out = write_head(writer, 0xc6, size, 4, size);

    if (out && size > 0)
        memcpy(out, data, size);
}

void mp_write_array(struct mp_writer *writer, size_t count)
{
    if (count < 16)
        write_head(writer, (uint8_t)(0x90 | count), 0, 0, 0);
    else
        write_head(writer, 0xdd, count, 4, 0);
}

void mp_write_map(struct mp_writer *writer, size_t count)
{
    if (count < 16)
        write_head(writer, (uint8_t)(0x80 | count), 0, 0, 0);
    else
        write_head(writer, 0xdf, count, 4, 0);
}

void mp_put_int(struct mp_writer *writer, const char *key, int64_t value)
{
    mp_write_str(writer, key);
    mp_write_int(writer, value);
}

void mp_put_bool(struct mp_writer *writer, const char *key, bool value)
{
    mp_write_str(writer, key);
    mp_write_bool(writer, value);
}

void mp_put_str(struct mp_writer *writer, const char *key, const char *text)
{
    mp_write_str(writer, key);
    mp_write_str(writer, text);
}
