// What kernels work on: blocks of tokens, wherever in memory each token lies.

#ifndef HEADRACE_BLOCKS_H
#define HEADRACE_BLOCKS_H

#include <stdint.h>

namespace headrace {

// Tokens that are attended at once. Keys and values of a block (16 KiB each for 128 elements of
// 16 bits) stay in the nearest caches while all queries of their head use them.
constexpr int kBlock = 64;

// Kernels may read this many places beyond a block's last token, up to a whole block; they lead to
// zeros.
constexpr int kBlockPadding = 16;

// What is the same for all blocks of a call.
struct Shape {
  int64_t grouped;
  int64_t width;
  int64_t row_bytes;  // of one token's key, or value
  float scale;
  float softcap;
  const char* zeros;  // a row of them, for places beyond a block's last token
};

// Part of the work of a call: some tokens of one row, for some key/value heads.
struct Item {
  int64_t row;
  int64_t head;  // the first
  int64_t heads;
  int64_t token;  // the first, counted within the row
  int64_t count;
  int64_t slot;  // where the first head's partial result goes; -1 for straight into the output
};

// Tokens of a block whose keys lie one after the other, as do their values.
struct Run {
  const char* key;
  const char* value;
  int count;
};

// Some of the tokens of an item, for one of its heads.
struct TokenBlock {
  int count;
  Run runs[kBlock];
  int run_count;
  // Each token's: a kernel that reads tokens one by one finds them first.
  const char* key[kBlock + kBlockPadding];
  const char* value[kBlock + kBlockPadding];
  bool first;  // of its item and head
  bool last;
  int64_t head;  // counted from the item's first
  const void* query;
  const Item* item;
};

// Buffers of one thread and head.
struct Scratch {
  void* query;     // [grouped, padded width], prepared by the kernel
  float* scores;   // [grouped, kBlock] and a little more, then the weights; for all heads
  float* sums;     // [grouped, padded width], in the kernel's own order
  float* maximum;  // [grouped], padded, like the next two
  float* total;
  float* factor;
};

}  // namespace headrace

#endif
