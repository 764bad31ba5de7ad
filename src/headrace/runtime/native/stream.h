// Which tokens a call attends to, block by block.

#ifndef HEADRACE_STREAM_H
#define HEADRACE_STREAM_H

#include <atomic>
#include <cstdint>

#include "blocks.h"
#include "headrace_attention.h"

namespace headrace {

// What the threads of a call share.
struct Job {
  const headrace_call* call;
  Shape shape;
  const Item* items;
  int64_t item_count;
  const char* zeros;  // one row of zeros, for places beyond a block's last token
  std::atomic<int64_t> next_item{0};
};

// The blocks of the items that one thread claims. A block is known before the one ahead of it is
// done, so that its keys can be prefetched even across items.
class BlockStream {
 public:
  explicit BlockStream(Job& job) : job_(job) {}

  // Fills a block; returns whether there was one.
  bool next(TokenBlock& block);

 private:
  bool claim();
  void open_entry();
  void fill(TokenBlock& block);
  int64_t visible_run(int64_t most);

  Job& job_;
  const Item* item_ = nullptr;
  bool first_ = false;
  int64_t left_ = 0;  // tokens of the item that have not been looked at
  int64_t entry_ = 0;
  int64_t place_ = 0;       // in the entry's page
  int64_t entry_left_ = 0;  // tokens of the entry from there on
  const char* key_ = nullptr;
  const char* value_ = nullptr;
  const uint64_t* mask_ = nullptr;
};

}  // namespace headrace

#endif
