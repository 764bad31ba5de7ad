// How a call's work is divided: over rows, heads and tokens.

#ifndef HEADRACE_DIVISION_H
#define HEADRACE_DIVISION_H

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "blocks.h"
#include "headrace_attention.h"

namespace headrace {

// What kernels are told of a call; the row of zeros is whoever's who calls them.
Shape shape_of(const headrace_call& call);

// Where the partial results of one row and head are; a row's slots are by part, then head.
struct Parts {
  int64_t first_slot;
  int64_t count;
  std::atomic<int64_t> missing;
};

// Queries and sums of one head, for the kernels and as partial results.
struct HeadState {
  explicit HeadState(const headrace_call& call);

  int64_t row_bytes;      // of one query, or its sums, padded
  int64_t queries_bytes;  // of one number for each query, padded
  int64_t bytes;          // of all
};

// A call's items. It holds until the call's first attention: that counts the parts down.
class Division {
 public:
  // Divides a call's work for so many threads. Looks at neither queries, keys nor values.
  void divide(const headrace_call& call, int64_t threads);

  const std::vector<Item>& items() const { return items_; }
  int64_t item_heads() const { return item_heads_; }  // at most
  int64_t item_bytes(const headrace_call& call) const;  // of its keys and values, at most
  int64_t slots() const { return slots_; }
  Parts& parts(int64_t row_head) { return parts_[row_head]; }
  int64_t slot_of(const Parts& parts, int64_t piece) const {
    return parts.first_slot + piece * heads_;
  }

 private:
  void choose_item(const headrace_call& call, int64_t threads);
  void fit_parts(int64_t needed);
  void add_item(const headrace_call& call, int64_t row, int64_t head, int64_t piece);

  std::vector<Item> items_;
  std::unique_ptr<Parts[]> parts_;  // by row and head
  int64_t parts_size_ = 0;
  int64_t heads_ = 1;
  int64_t item_heads_ = 1;
  int64_t item_tokens_ = 0;
  int64_t slots_ = 0;
};

}  // namespace headrace

#endif
