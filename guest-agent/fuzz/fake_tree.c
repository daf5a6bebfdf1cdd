/*
 * No trees and files in the fuzzer of sessions: it would write files wherever it thinks of. Records are fuzzed by
 * fuzz_tree.c.
 */
#include "request.h"

const struct method tree_methods[] = {{NULL, false, NULL}};
const struct method file_methods[] = {{NULL, false, NULL}};
