// Keys and values that cores bring into their caches while they have nothing else to do.

#ifndef HEADRACE_AHEAD_H
#define HEADRACE_AHEAD_H

#include <cstdint>

#include "attend.h"

namespace headrace {

// How many of a divided call's first items the threads hold (see Claims), for these to fit their
// caches.
int64_t items_ahead(const headrace_call& call, const Division& division, int threads);

// Has each thread read the keys and values of the items that it holds, of the first `held`. Returns
// as soon as all are read, or `word` is reached: somebody waits for the call. The caller has the
// pool's turn.
void read_ahead(headrace_pool& pool, const headrace_call& call, const Division& division,
                int64_t held, const headrace_word& word);

}  // namespace headrace

#endif
