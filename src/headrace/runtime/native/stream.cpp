#include "stream.h"

#include <algorithm>

namespace headrace {

bool BlockStream::next(TokenBlock& block) {
  if (!item_ && !claim()) return false;
  const headrace_call& call = *job_.call;
  const int64_t query_row = (item_->row * call.heads + item_->head) * call.grouped;
  block.query = static_cast<const char*>(call.query) + query_row * job_.shape.row_bytes;
  block.item = item_;
  block.first = first_;
  block.count = 0;
  block.run_count = 0;
  fill(block);
  std::fill_n(block.key + block.count, kBlockPadding, job_.zeros);
  std::fill_n(block.value + block.count, kBlockPadding, job_.zeros);
  first_ = false;
  block.last = left_ == 0;
  if (block.last) item_ = nullptr;
  return true;
}

bool BlockStream::claim() {
  const int64_t number = job_.next_item.fetch_add(1, std::memory_order_relaxed);
  if (number >= job_.item_count) return false;
  item_ = job_.items + number;
  first_ = true;
  left_ = item_->count;
  const headrace_call& call = *job_.call;
  const int64_t* begin = call.entry_token + call.row_entry[item_->row];
  const int64_t* end = call.entry_token + call.row_entry[item_->row + 1];
  const int64_t token = *begin + item_->token;
  const int64_t* found = std::upper_bound(begin, end + 1, token) - 1;
  entry_ = found - call.entry_token;
  open_entry();
  place_ = token - *found;
  entry_left_ -= place_;
  return true;
}

void BlockStream::open_entry() {
  const headrace_call& call = *job_.call;
  const int64_t page = call.entry_page[entry_];
  int64_t extent = 0;
  while (page >= call.extent_first[extent + 1]) ++extent;
  const int64_t strip = (page - call.extent_first[extent]) * call.heads + item_->head;
  const int64_t offset = strip * call.page_tokens * job_.shape.row_bytes;
  key_ = static_cast<const char*>(call.key_extents[extent]) + offset;
  value_ = static_cast<const char*>(call.value_extents[extent]) + offset;
  const int64_t word = call.entry_mask ? call.entry_mask[entry_] : -1;
  mask_ = word < 0 ? nullptr : call.mask_words + word;
  place_ = 0;
  entry_left_ = call.entry_token[entry_ + 1] - call.entry_token[entry_];
}

void BlockStream::fill(TokenBlock& block) {
  const int64_t row_bytes = job_.shape.row_bytes;
  while (left_ > 0 && block.count < kBlock) {
    while (entry_left_ == 0) {
      ++entry_;
      open_entry();
    }
    const int64_t run = visible_run(std::min<int64_t>(kBlock - block.count, left_));
    const char* key = key_ + place_ * row_bytes;
    const char* value = value_ + place_ * row_bytes;
    for (int64_t token = 0; token < run; ++token) {
      block.key[block.count + token] = key + token * row_bytes;
      block.value[block.count + token] = value + token * row_bytes;
    }
    if (run > 0) block.runs[block.run_count++] = {key, value, static_cast<int>(run)};
    block.count += static_cast<int>(run);
    place_ += run;
    entry_left_ -= run;
    left_ -= run;
  }
}

// Moves beyond hidden tokens; returns how many visible ones follow in the page, up to `most`.
int64_t BlockStream::visible_run(int64_t most) {
  int64_t room = std::min(most, entry_left_);
  if (!mask_) return room;
  auto skip = [&](int64_t tokens) {
    place_ += tokens;
    entry_left_ -= tokens;
    left_ -= tokens;
  };
  while (true) {
    const int64_t reach = std::min(left_, entry_left_);
    if (reach == 0) return 0;
    const int shift = static_cast<int>(place_ % 64);
    const uint64_t word = mask_[place_ / 64] >> shift;
    if (word == 0) {
      skip(std::min<int64_t>(64 - shift, reach));
      continue;
    }
    skip(std::min<int64_t>(__builtin_ctzll(word), reach));
    const uint64_t from_visible = word >> __builtin_ctzll(word);
    const int64_t ones = ~from_visible == 0 ? 64 : __builtin_ctzll(~from_visible);
    return std::min({most, left_, entry_left_, ones});
  }
}

}  // namespace headrace
