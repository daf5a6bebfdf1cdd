#include "device.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

#include "file.h"

bool device_find(const char *class, const char *attribute, const char *value, char name[NAME_MAX + 1])
{
    DIR *entries = opendir(class);
    const struct dirent *entry;
    char path[PATH_MAX];
    char found[128];
    bool matches = false;

    while (entries && !matches && (entry = readdir(entries))) {
        snprintf(path, sizeof(path), "%s/%s/%s", class, entry->d_name, attribute);
        matches = file_read_line(path, found, sizeof(found)) && strcmp(found, value) == 0;
        if (matches)
            strcpy(name, entry->d_name);
    }
    if (entries)
        closedir(entries);
    return matches;
}
