// Which tokens a call attends to, block by block.

#ifndef HEADRACE_STREAM_H
#define HEADRACE_STREAM_H

#include <cstdint>

#include "blocks.h"
#include "headrace_attention.h"

namespace headrace {

// Blocks of one head that follow each other before the next head's. The keys of a page's heads lie
// one after the other, so that what a processor fetches beyond one head's is soon of use; but each
// change of the head brings other queries and sums into the nearest cache.
constexpr int kGroupBlocks = 4;
constexpr int64_t kGroupTokens = kGroupBlocks * kBlock;

// The blocks of one item after the other.
class BlockStream {
 public:
  BlockStream(const headrace_call& call, const Shape& shape)
      : call_(call), row_bytes_(shape.row_bytes), strip_bytes_(call.page_tokens * row_bytes_) {}

  // Goes to an item, once all blocks of the one before have been had.
  void open(const Item& item);

  // Fills a block; returns whether there was one: false at the end of the item, or before any.
  bool next(TokenBlock& block);

 private:
  // The tokens of a block, for the item's first head.
  struct Places {
    Run runs[kBlock];
    int run_count;
    int count;
  };

  void open_entry();
  void gather_group();
  void end_group();
  void write_block(const Places& places, int64_t offset, TokenBlock& block);
  void gather(Places& places);
  int64_t visible_run(int64_t most);

  const headrace_call& call_;
  const int64_t row_bytes_;
  const int64_t strip_bytes_;  // of one head's tokens in a page
  const Item* item_ = nullptr;

  // Where in the item's tokens the next group begins.
  int64_t left_ = 0;  // tokens of the item that have not been looked at
  int64_t entry_ = 0;
  int64_t place_ = 0;       // in the entry's page
  int64_t entry_left_ = 0;  // tokens of the entry from there on
  const char* key_ = nullptr;
  const char* value_ = nullptr;
  const uint64_t* mask_ = nullptr;

  // The group, and which block of it comes next.
  Places group_[kGroupBlocks];
  int group_blocks_ = 0;
  int block_ = 0;
  int64_t head_ = 0;
  bool first_group_ = false;
};

}  // namespace headrace

#endif
