#include "division.h"

#include <algorithm>

#include "rounding.h"
#include "stream.h"

namespace headrace {

namespace {

// How large items are, in tokens times heads. Few items a thread leave cores idle at the end; short
// items repeat what an item costs besides its tokens.
constexpr int64_t kItemsPerThread = 128;
constexpr int64_t kFewItemsPerThread = 4;
constexpr int64_t kUsualItem = 512;
constexpr int64_t kFewestTokens = 2 * kBlock;

// Queries and sums of an item's heads stay in a core's second cache.
constexpr int64_t kItemStateBytes = 1 << 16;

constexpr int64_t kElementBytes[] = {4, 2, 2};  // by headrace_dtype

int64_t tokens_of(const headrace_call& call, int64_t row) {
  return call.entry_token[call.row_entry[row + 1]] - call.entry_token[call.row_entry[row]];
}

}  // namespace

Shape shape_of(const headrace_call& call) {
  return {call.grouped, call.width, call.width * kElementBytes[call.dtype], call.scale,
          call.softcap, nullptr};
}

HeadState::HeadState(const headrace_call& call)
    : row_bytes(rounded_up(call.width, 32) * 4),
      queries_bytes(rounded_up(call.grouped, 16) * 4),
      bytes(2 * call.grouped * row_bytes + 3 * queries_bytes) {}

// Items of the same tokens and heads come together over all rows, so that a page that several rows
// share is likely still in a cache when the next one reads it.
void Division::divide(const headrace_call& call, int64_t threads) {
  heads_ = call.heads;
  choose_item(call, threads);
  fit_parts(call.rows * call.heads);
  slots_ = 0;
  int64_t most = 0;
  for (int64_t row = 0; row < call.rows; ++row) {
    const int64_t count = divided_up(tokens_of(call, row), item_tokens_);
    most = std::max(most, count);
    for (int64_t head = 0; head < call.heads; ++head) {
      Parts& parts = parts_[row * call.heads + head];
      parts.first_slot = slots_ + head;
      parts.count = count;
      parts.missing = count;
    }
    if (count > 1) slots_ += count * call.heads;
  }
  items_.clear();
  for (int64_t piece = 0; piece < most; ++piece) {
    for (int64_t head = 0; head < call.heads; head += item_heads_) {
      for (int64_t row = 0; row < call.rows; ++row) add_item(call, row, head, piece);
    }
  }
}

// Decides how many heads and tokens an item has: the same for all rows, so that rows which share
// pages share items' bounds.
void Division::choose_item(const headrace_call& call, int64_t threads) {
  const int64_t* token = call.entry_token;
  const int64_t tokens = token[call.row_entry[call.rows]] - token[call.row_entry[0]];
  const int64_t work = tokens * call.heads;
  const int64_t wanted = std::max(kUsualItem, work / (threads * kItemsPerThread));
  const int64_t most_heads = std::max<int64_t>(1, kItemStateBytes / HeadState(call).bytes);
  item_heads_ = std::min(call.heads, most_heads);
  item_tokens_ = std::max(kGroupTokens, rounded_up(wanted / item_heads_, kGroupTokens));
  item_heads_ = std::min(item_heads_, std::max<int64_t>(1, wanted / item_tokens_));
  const int64_t few = threads * kFewItemsPerThread;
  if (work < few * item_tokens_ * item_heads_) item_heads_ = 1;
  if (work < few * item_tokens_) item_tokens_ = kFewestTokens;
}

int64_t Division::item_bytes(const headrace_call& call) const {
  return 2 * item_heads_ * item_tokens_ * shape_of(call).row_bytes;
}

void Division::fit_parts(int64_t needed) {
  if (needed > parts_size_) {
    parts_size_ = 0;
    parts_.reset(new Parts[static_cast<size_t>(needed)]);
    parts_size_ = needed;
  }
}

void Division::add_item(const headrace_call& call, int64_t row, int64_t head, int64_t piece) {
  const Parts& parts = parts_[row * call.heads + head];
  if (piece >= parts.count) return;
  const int64_t first = piece * item_tokens_;
  items_.push_back({row, head, std::min(item_heads_, call.heads - head), first,
                    std::min(item_tokens_, tokens_of(call, row) - first),
                    parts.count > 1 ? slot_of(parts, piece) : -1});
}

}  // namespace headrace
