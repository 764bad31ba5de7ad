// Random calls of the native library.

#ifndef HEADRACE_FUZZ_CASE_H
#define HEADRACE_FUZZ_CASE_H

#include <random>

#include "fuzz_elements.h"

namespace fuzz {

using Random = std::mt19937_64;

inline int64_t pick(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

// Normal numbers from a table, in an order of their own: a case needs millions.
class Normals {
 public:
  explicit Normals(Random& random) : at_(random()), step_(random() | 1) {}

  float operator()() { return table()[(at_ += step_) % kSize]; }

 private:
  static constexpr uint64_t kSize = 1 << 16;

  static const std::vector<float>& table() {
    static const std::vector<float> numbers = [] {
      std::vector<float> made(kSize);
      Random random(0);
      std::normal_distribution<float> normal;
      for (float& one : made) one = normal(random);
      return made;
    }();
    return numbers;
  }

  uint64_t at_, step_;
};

struct Case {
  int dtype;
  int64_t rows, heads, grouped, width, page_tokens, pages;
  float scale, softcap;
  std::vector<int64_t> extent_first, row_entry, entry_page, entry_token, entry_mask;
  std::vector<uint64_t> words;
  std::vector<Elements> keys, values;
  std::vector<Elements> query;  // one
  std::vector<float> output, maximum, total;

  bool sees(int64_t entry, int64_t place) const {
    if (entry_mask.empty() || entry_mask[entry] < 0) return true;
    return words[entry_mask[entry] + place / 64] >> (place % 64) & 1;
  }
  int64_t tokens(int64_t entry) const { return entry_token[entry + 1] - entry_token[entry]; }
};

inline void make_entries(Case& made, Random& random) {
  made.row_entry = {0};
  made.entry_token = {0};
  for (int64_t row = 0; row < made.rows; ++row) {
    const int64_t entries = pick(random, 0, 3) == 0 ? 0 : pick(random, 1, made.pages);
    for (int64_t i = 0; i < entries; ++i) {
      made.entry_page.push_back(pick(random, 0, made.pages - 1));
      const bool full = pick(random, 0, 1);
      const int64_t tokens = full ? made.page_tokens : pick(random, 0, made.page_tokens);
      made.entry_token.push_back(made.entry_token.back() + tokens);
    }
    made.row_entry.push_back(static_cast<int64_t>(made.entry_page.size()));
  }
}

inline void make_masks(Case& made, Random& random) {
  if (pick(random, 0, 1)) return;
  const int64_t words = (made.page_tokens + 63) / 64;
  const int density = static_cast<int>(pick(random, 0, 4));
  for (size_t entry = 0; entry < made.entry_page.size(); ++entry) {
    if (pick(random, 0, 3) == 0) {
      made.entry_mask.push_back(-1);
      continue;
    }
    made.entry_mask.push_back(static_cast<int64_t>(made.words.size()));
    for (int64_t i = 0; i < words; ++i) {
      uint64_t word = random();
      if (density == 0) word = 0;
      if (density == 1) word &= random() & random();
      if (density == 2) word |= random() | random();
      if (density == 3) word = ~uint64_t{0};
      made.words.push_back(word);
    }
  }
}

// What may be hard to attend to.
struct Values {
  float query_size;    // of queries' random part
  float common;        // of all elements of queries and keys: gives all scores a common part
  bool equal_keys;     // a key's elements are those of the other tokens' keys
  float value_size;
};

inline Values make_values(Random& random) {
  Values made = {1.0f, 0.0f, false, 1.0f};
  switch (pick(random, 0, 7)) {
    case 0: made.query_size = 30.0f; break;
    case 1: made.query_size = 1000.0f; break;
    case 2: made.common = 3.0f; break;
    case 3: made.equal_keys = true; break;
    case 4: made.value_size = pick(random, 0, 1) ? 1e4f : 1e-6f; break;
    default: break;
  }
  return made;
}

// Fills what some row sees; all else is NaN.
inline void make_pages(Case& made, const Values& values, Random& random) {
  std::vector<char> read(static_cast<size_t>(made.pages * made.page_tokens), 0);
  for (size_t entry = 0; entry < made.entry_page.size(); ++entry) {
    for (int64_t place = 0; place < made.tokens(entry); ++place) {
      if (made.sees(entry, place)) read[made.entry_page[entry] * made.page_tokens + place] = 1;
    }
  }
  Normals normal(random);
  std::vector<float> equal(static_cast<size_t>(made.width));
  for (float& one : equal) one = normal();
  made.extent_first = {0};
  while (made.extent_first.back() < made.pages) {
    const int64_t first = made.extent_first.back();
    const int64_t count = pick(random, 1, made.pages - first);
    const int64_t elements = count * made.heads * made.page_tokens * made.width;
    made.extent_first.push_back(first + count);
    made.keys.emplace_back(made.dtype, elements);
    made.values.emplace_back(made.dtype, elements);
    for (int64_t i = 0; i < elements; ++i) {
      const int64_t place = i / made.width % made.page_tokens;
      const int64_t page = first + i / (made.width * made.page_tokens * made.heads);
      const bool is_read = read[page * made.page_tokens + place];
      const float key = values.equal_keys ? equal[i % made.width] : normal();
      made.keys.back().set(i, is_read ? key + values.common : NAN);
      made.values.back().set(i, is_read ? values.value_size * normal() : NAN);
    }
  }
}

// Widths of heads that models have, and any other.
inline int64_t make_width(Random& random) {
  const int64_t usual[] = {64, 80, 96, 128, 192, 256};
  return pick(random, 0, 2) ? usual[pick(random, 0, 5)] : pick(random, 1, 140);
}

inline Case make_case(Random& random) {
  Case made;
  made.dtype = static_cast<int>(pick(random, 0, 2));
  made.rows = pick(random, 1, 4);
  made.heads = pick(random, 0, 3) ? pick(random, 1, 3) : pick(random, 4, 9);
  made.grouped = pick(random, 1, 20);
  made.width = make_width(random);
  made.page_tokens = pick(random, 1, 3) == 1 ? pick(random, 1, 200) : 16 << pick(random, 0, 3);
  made.pages = pick(random, 1, 6);
  made.scale = std::vector<float>{0.1f, 1.0f, 0.0f, -0.5f}[pick(random, 0, 3)];
  made.softcap = pick(random, 0, 2) ? 0.0f : 2.5f;
  make_entries(made, random);
  make_masks(made, random);
  const Values values = make_values(random);
  make_pages(made, values, random);
  const int64_t queries = made.rows * made.heads * made.grouped;
  made.query.emplace_back(made.dtype, queries * made.width);
  Normals normal(random);
  for (int64_t i = 0; i < queries * made.width; ++i) {
    made.query[0].set(i, values.query_size * normal() + values.common);
  }
  made.output.assign(queries * made.width, NAN);
  made.maximum.assign(queries, NAN);
  made.total.assign(queries, NAN);
  return made;
}

// A call of the library, with the addresses that it needs; the case must stay where it is.
struct Call {
  explicit Call(Case& made) {
    for (auto& extent : made.keys) keys.push_back(extent.data());
    for (auto& extent : made.values) values.push_back(extent.data());
    call.query = made.query[0].data();
    call.output = made.output.data();
    call.maximum = made.maximum.data();
    call.total = made.total.data();
    call.key_extents = keys.data();
    call.value_extents = values.data();
    call.extent_first = made.extent_first.data();
    call.row_entry = made.row_entry.data();
    call.entry_page = made.entry_page.data();
    call.entry_token = made.entry_token.data();
    call.entry_mask = made.entry_mask.empty() ? nullptr : made.entry_mask.data();
    call.mask_words = made.words.data();
    call.extents = static_cast<int64_t>(keys.size());
    call.rows = made.rows;
    call.heads = made.heads;
    call.grouped = made.grouped;
    call.width = made.width;
    call.page_tokens = made.page_tokens;
    call.scale = made.scale;
    call.softcap = made.softcap;
    call.dtype = made.dtype;
  }

  std::vector<const void*> keys, values;
  headrace_call call = {};
};

}  // namespace fuzz

#endif
