/*
 * Whatever tree the host sends: what the parser lets through must be within the bounds that writing relies on, and the
 * same however the bytes are cut. The first byte of the input chooses where.
 */
#include <assert.h>
#include <string.h>

#include "tree_record.h"

static void check_path(const struct mp_bytes *path)
{
    size_t name = 0;

    assert(path->size > 0 && path->size < TREE_RECORD_MAX);
    for (size_t i = 0; i <= path->size; i++) {
        if (i < path->size && path->data[i] != '/') {
            assert(path->data[i] != 0);
            name++;
            continue;
        }
        assert(name > 0 && name <= TREE_NAME_MAX);
        assert(name > 2 || memcmp(path->data + i - name, "..", name) != 0);
        name = 0;
    }
}

static void check_record(const struct tree_record *record, bool top)
{
    assert(record->type < TREE_TYPES && record->mode <= 07777 && top == (record->path.size == 0));
    assert(record->uid != UINT32_MAX && record->gid != UINT32_MAX && record->size <= INT64_MAX);
    if (!top)
        check_path(&record->path);
    if (record->type == TREE_LINK)
        check_path(&record->target);
    if (record->type == TREE_SYMLINK)
        assert(record->target.size > 0 && record->target.size <= TREE_TARGET_MAX);
}

struct summary {
    size_t records;
    size_t ends;
    uint64_t hash;
    uint64_t file_size;
    uint64_t file_end;
    bool in_file;
    bool malformed;
};

static void mix(struct summary *summary, const void *bytes, size_t size)
{
    const uint8_t *at = bytes;

    for (size_t i = 0; i < size; i++)
        summary->hash = (summary->hash ^ at[i]) * UINT64_C(0x100000001b3);
}

static void note(struct summary *summary, enum tree_event event, const struct tree_part *part)
{
    switch (event) {
    case TREE_RECORD:
        assert(!summary->in_file);
        check_record(&part->record, summary->records == 0);
        summary->records++;
        mix(summary, part->record.path.data, part->record.path.size);
        summary->in_file = part->record.type == TREE_FILE;
        summary->file_size = part->record.size;
        summary->file_end = 0;
        break;
    case TREE_CONTENT:
        assert(summary->in_file && part->content.size > 0 && part->offset >= summary->file_end);
        summary->file_end = part->offset + part->content.size;
        assert(summary->file_end <= summary->file_size);
        mix(summary, part->content.data, part->content.size);
        break;
    case TREE_FILE_END:
        assert(summary->in_file);
        summary->in_file = false;
        summary->ends++;
        break;
    case TREE_MALFORMED:
        assert(part->wrong);
        summary->malformed = true;
        break;
    case TREE_MORE:
        break;
    }
}

static struct summary parse(const uint8_t *data, size_t size, size_t piece)
{
    static struct tree_parser parser;
    struct summary summary = {0};
    struct tree_part part;

    tree_parser_init(&parser);
    for (size_t at = 0; at < size && !summary.malformed;) {
        size_t length = piece < size - at ? piece : size - at;
        struct mp_reader input = {data + at, data + at + length};

        while (input.at < input.end && !summary.malformed)
            note(&summary, tree_parse(&parser, &input, &part), &part);
        at += length;
    }
    if (tree_complete(&parser) && !summary.malformed)
        assert(summary.records > 0 && !summary.in_file);
    return summary;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    struct summary whole = parse(data + 1, size - 1, size);
    struct summary pieces = parse(data + 1, size - 1, 1U + data[0]);

    assert(whole.records == pieces.records && whole.ends == pieces.ends && whole.hash == pieces.hash);
    assert(whole.malformed == pieces.malformed);
    return 0;
}
