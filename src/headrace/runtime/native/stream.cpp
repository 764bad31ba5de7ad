#include "stream.h"

#include <algorithm>

namespace headrace {

bool BlockStream::next(TokenBlock& block) {
  if (!item_) return false;
  const Places& places = group_[block_];
  const int64_t query = (item_->row * call_.heads + item_->head + head_) * call_.grouped;
  block.query = static_cast<const char*>(call_.query) + query * row_bytes_;
  block.item = item_;
  block.head = head_;
  block.first = first_group_ && block_ == 0;
  block.last = left_ == 0 && block_ == group_blocks_ - 1;
  write_block(places, head_ * strip_bytes_, block);
  if (++block_ == group_blocks_) {
    block_ = 0;
    if (++head_ == item_->heads) end_group();
  }
  return true;
}

void BlockStream::end_group() {
  head_ = 0;
  first_group_ = false;
  if (left_ > 0) {
    gather_group();
  } else {
    item_ = nullptr;
  }
}

void BlockStream::write_block(const Places& places, int64_t offset, TokenBlock& block) {
  block.count = places.count;
  block.run_count = places.run_count;
  for (int run = 0; run < places.run_count; ++run) {
    const Run& from = places.runs[run];
    block.runs[run] = {from.key + offset, from.value + offset, from.count};
  }
}

void BlockStream::open(const Item& item) {
  item_ = &item;
  first_group_ = true;
  left_ = item_->count;
  const int64_t* begin = call_.entry_token + call_.row_entry[item_->row];
  const int64_t* end = call_.entry_token + call_.row_entry[item_->row + 1];
  const int64_t token = *begin + item_->token;
  const int64_t* found = std::upper_bound(begin, end + 1, token) - 1;
  entry_ = found - call_.entry_token;
  open_entry();
  place_ = token - *found;
  entry_left_ -= place_;
  gather_group();
}

void BlockStream::open_entry() {
  const int64_t page = call_.entry_page[entry_];
  int64_t extent = 0;
  while (page >= call_.extent_first[extent + 1]) ++extent;
  const int64_t strip = (page - call_.extent_first[extent]) * call_.heads + item_->head;
  const int64_t offset = strip * call_.page_tokens * row_bytes_;
  key_ = static_cast<const char*>(call_.key_extents[extent]) + offset;
  value_ = static_cast<const char*>(call_.value_extents[extent]) + offset;
  const int64_t word = call_.entry_mask ? call_.entry_mask[entry_] : -1;
  mask_ = word < 0 ? nullptr : call_.mask_words + word;
  place_ = 0;
  entry_left_ = call_.entry_token[entry_ + 1] - call_.entry_token[entry_];
}

// Finds the item's next tokens: at least one block, which may be empty if all others are hidden.
void BlockStream::gather_group() {
  group_blocks_ = 0;
  do {
    gather(group_[group_blocks_++]);
  } while (left_ > 0 && group_blocks_ < kGroupBlocks);
}

void BlockStream::gather(Places& places) {
  places.count = 0;
  places.run_count = 0;
  while (left_ > 0 && places.count < kBlock) {
    while (entry_left_ == 0) {
      ++entry_;
      open_entry();
    }
    const int64_t run = visible_run(std::min<int64_t>(kBlock - places.count, left_));
    if (run == 0) continue;
    const int64_t offset = place_ * row_bytes_;
    places.runs[places.run_count++] = {key_ + offset, value_ + offset, static_cast<int>(run)};
    places.count += static_cast<int>(run);
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
