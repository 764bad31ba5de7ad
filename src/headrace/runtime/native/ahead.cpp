#include "ahead.h"

#include <unistd.h>

#include <algorithm>

#include "word.h"

namespace headrace {

namespace {

constexpr int64_t kLine = 64;

// Where the system does not say how large a core's second cache is.
constexpr int64_t kUsualCache = 1 << 20;

// What a thread holds: as much as its core's second cache, and as much again of what cores share.
// They have one to four times as much of the third. (Of two threads on one core, each has half.)
constexpr int64_t kCachesHeld = 2;

int64_t bytes_held() {
  int64_t cache = kUsualCache;
#ifdef _SC_LEVEL2_CACHE_SIZE
  const long said = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (said > 0) cache = said;
#endif
  return kCachesHeld * cache;
}

// A prefetch may be dropped where many are under way; a load is not.
void read(const char* data, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kLine) {
    static_cast<void>(*static_cast<const volatile char*>(data + at));
  }
}

struct Reading {
  const headrace_call* call;
  const Division* division;
  int64_t held;
  int threads;
  const headrace_word* word;

  void work(int thread) const {
    const Shape shape = shape_of(*call);
    BlockStream stream(*call, shape);
    TokenBlock block;
    for (int64_t item = thread; item < held; item += threads) {
      stream.open(division->items()[static_cast<size_t>(item)]);
      while (stream.next(block)) {
        if (is_reached(*word)) return;
        for (int run = 0; run < block.run_count; ++run) {
          read(block.runs[run].key, block.runs[run].count * shape.row_bytes);
          read(block.runs[run].value, block.runs[run].count * shape.row_bytes);
        }
      }
    }
  }
};

}  // namespace

int64_t items_ahead(const headrace_call& call, const Division& division, int threads) {
  static const int64_t of_thread = bytes_held();
  const auto items = static_cast<int64_t>(division.items().size());
  return std::min(items, of_thread / division.item_bytes(call) * threads);
}

void read_ahead(headrace_pool& pool, const headrace_call& call, const Division& division,
                int64_t held, const headrace_word& word) {
  Reading reading{&call, &division, held, pool.pool.threads(), &word};
  pool.pool.run([](void* self, int thread) { static_cast<Reading*>(self)->work(thread); }, &reading,
                held);
}

}  // namespace headrace
