#include "msgpack.h"

#include <string.h>

#include "check.h"

#define BYTES(text) ((const uint8_t *)(text)), (sizeof(text) - 1)

static struct mp_reader over(const uint8_t *data, size_t size)
{
    return (struct mp_reader){data, data + size};
}

static void only_one_whole_map_is_valid(void)
{
    CHECK(mp_valid_map(BYTES("\x80")));
    CHECK(mp_valid_map(BYTES("\x82\xa1" "a\x01\xa1" "b\xc0")));
    CHECK(mp_valid_map(BYTES("\xde\x00\x01\xa1" "a\xc4\x01x")));
    CHECK(mp_valid_map(BYTES("\x81\xa1" "a\xd6\x01" "1234"))); /* fixext */
    CHECK(mp_valid_map(BYTES("\x81\xa1" "a\xcb" "12345678")));

    CHECK(!mp_valid_map(BYTES("")));
    CHECK(!mp_valid_map(BYTES("\x90")));
    CHECK(!mp_valid_map(BYTES("\x80\x80")));
    CHECK(!mp_valid_map(BYTES("\x81\xa1" "a")));
    CHECK(!mp_valid_map(BYTES("\x81\xa2" "a")));
    CHECK(!mp_valid_map(BYTES("\x81\xa1" "a\xc1")));
    CHECK(!mp_valid_map(BYTES("\x81\xa1" "a\xcd\x01")));
    CHECK(!mp_valid_map(BYTES("\x81\xa1" "a\xdb\xff\xff\xff\xff")));
    CHECK(!mp_valid_map(BYTES("\xdf\xff\xff\xff\xff")));
    CHECK(!mp_valid_map(BYTES("\x81\xa1" "a\xdd\xff\xff\xff\xff\x01")));
    CHECK(!mp_valid_map(BYTES("\x81\xa1" "a\xc9\xff\xff\xff\xff\x01")));
}

static void depth_is_limited(void)
{
    uint8_t nested[64];

    for (size_t depth = 1; depth < 40; depth++) {
        size_t size = 0;

        nested[size++] = 0x81;
        nested[size++] = 0xa0;
        for (size_t i = 1; i < depth; i++)
            nested[size++] = 0x91;
        nested[size++] = 0xc0;
        CHECK(mp_valid_map(nested, size) == (depth <= MP_DEPTH_MAX));
    }
}

static void values_are_found_by_key(void)
{
    static const uint8_t map[] = "\x85\x01\x02\xa1" "n\xc0\xa3" "abc\x91\x05\xc4\x01" "b\xcc\xff\xa3" "abc\xc3";
    struct mp_reader value;
    int64_t number;
    size_t count;

    CHECK(mp_valid_map(map, sizeof(map) - 1));
    CHECK(mp_find(over(map, sizeof(map) - 1), "abc", &value));
    CHECK(mp_read_array(&value, &count) && count == 1); /* the first of two */
    CHECK(mp_read_int(&value, &number) && number == 5);
    CHECK(mp_find(over(map, sizeof(map) - 1), "b", &value));
    CHECK(mp_read_int(&value, &number) && number == 255);
    CHECK(!mp_find(over(map, sizeof(map) - 1), "n", &value));
    CHECK(!mp_find(over(map, sizeof(map) - 1), "ab", &value));
    CHECK(!mp_find(over(map, sizeof(map) - 1), "", &value));
}

static void integers_survive(void)
{
    static const int64_t numbers[] = {
        0, 1, 127, 128, 255, 256, 65535, 65536, INT32_MAX, INT64_C(1) << 32, INT64_MAX,
        -1, -32, -33, -128, -129, INT32_MIN, -(INT64_C(1) << 40), INT64_MIN,
    };
    uint8_t buffer[16];
    struct mp_writer writer;
    int64_t number;

    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
        mp_writer_init(&writer, buffer, sizeof(buffer));
        mp_write_int(&writer, numbers[i]);
        struct mp_reader reader = over(buffer, mp_written(&writer));
        CHECK(mp_read_int(&reader, &number) && number == numbers[i] && reader.at == reader.end);
    }
}

static void integers_of_other_widths_are_read(void)
{
    static const struct {
        const char *bytes;
        size_t size;
        int64_t value;
    } cases[] = {
        {"\xcc\x80", 2, 128},      {"\xcd\x01\x00", 3, 256}, {"\xce\xff\xff\xff\xff", 5, UINT32_MAX},
        {"\xd0\x80", 2, -128},     {"\xd1\x80\x00", 3, -32768}, {"\xd2\x80\x00\x00\x00", 5, INT32_MIN},
        {"\xd0\x01", 2, 1},        {"\xe0", 1, -32},         {"\xff", 1, -1},
    };
    int64_t number;

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct mp_reader reader = over((const uint8_t *)cases[i].bytes, cases[i].size);
        CHECK(mp_read_int(&reader, &number) && number == cases[i].value);
    }
    struct mp_reader large = over(BYTES("\xcf\x80\x00\x00\x00\x00\x00\x00\x00"));
    CHECK(!mp_read_int(&large, &number));
}

static void a_read_of_another_type_does_not_step(void)
{
    struct mp_reader reader = over(BYTES("\xa1x"));
    struct mp_bytes bytes;
    int64_t number;
    size_t count;
    bool flag;

    CHECK(!mp_read_int(&reader, &number) && !mp_read_bool(&reader, &flag));
    CHECK(!mp_read_map(&reader, &count) && !mp_read_array(&reader, &count));
    CHECK(mp_read_bytes(&reader, &bytes) && bytes.size == 1 && *bytes.data == 'x');
}

static void text_of_any_length_survives(void)
{
    static uint8_t buffer[140000];
    static char text[70000];
    static const size_t lengths[] = {0, 1, 31, 32, 255, 256, 65535, 65536};
    struct mp_writer writer;
    struct mp_bytes bytes;

    for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
        memset(text, 'x', lengths[i]);
        text[lengths[i]] = '\0';
        mp_writer_init(&writer, buffer, sizeof(buffer));
        mp_write_str(&writer, text);
        mp_write_bin(&writer, (const uint8_t *)text, lengths[i]);
        struct mp_reader reader = over(buffer, mp_written(&writer));
        CHECK(mp_read_bytes(&reader, &bytes) && bytes.size == lengths[i]);
        CHECK(mp_read_bytes(&reader, &bytes) && bytes.size == lengths[i]);
        CHECK(reader.at == reader.end);
    }
}

static void a_writer_that_is_full_keeps_what_it_has(void)
{
    uint8_t buffer[4];
    struct mp_writer writer;

    mp_writer_init(&writer, buffer, sizeof(buffer));
    mp_write_str(&writer, "ab");
    CHECK(mp_written(&writer) == 3 && !writer.overflow);
    mp_write_str(&writer, "c");
    CHECK(mp_written(&writer) == 3 && writer.overflow);
    mp_write_bool(&writer, true); /* would fit, but would not belong here */
    CHECK(mp_written(&writer) == 3);
}

static void large_maps_and_arrays_are_counted(void)
{
    uint8_t buffer[64];
    struct mp_writer writer;
    size_t count;

    mp_writer_init(&writer, buffer, sizeof(buffer));
    mp_write_map(&writer, 16);
    for (int i = 0; i < 32; i++)
        mp_write_int(&writer, i % 2);
    struct mp_reader reader = over(buffer, mp_written(&writer));
    CHECK(mp_valid_map(buffer, mp_written(&writer)));
    CHECK(mp_read_map(&reader, &count) && count == 16);
    mp_writer_init(&writer, buffer, sizeof(buffer));
    mp_write_array(&writer, 16);
    for (int i = 0; i < 16; i++)
        mp_write_int(&writer, i);
    reader = over(buffer, mp_written(&writer));
    CHECK(mp_read_array(&reader, &count) && count == 16);
}

const struct test msgpack_tests[] = {
    {"only one whole map is valid", only_one_whole_map_is_valid},
    {"depth is limited", depth_is_limited},
    {"values are found by key", values_are_found_by_key},
    {"integers survive", integers_survive},
    {"integers of other widths are read", integers_of_other_widths_are_read},
    {"a read of another type does not step", a_read_of_another_type_does_not_step},
    {"text of any length survives", text_of_any_length_survives},
    {"a writer that is full keeps what it has", a_writer_that_is_full_keeps_what_it_has},
    {"large maps and arrays are counted", large_maps_and_arrays_are_counted},
    {0},
};
