// Random calls of the native library, compared with plain attention in double.
//
//   fuzz_host_attention SECONDS SEED [VARIANT]
//
// Buffers are as large as the interface says and no larger, and places that must not be read hold
// NaN, so that a sanitizer or the comparison shows what is read beyond. Exits with 0 if all calls
// agreed.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "headrace_attention.h"

namespace {

using Random = std::mt19937_64;

int64_t pick(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

// ---- elements ----

// Rounds to bfloat16 by cutting, which is all that a test needs.
uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>(bits >> 16);
}

float from_bfloat16(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

float from_float16(uint16_t half) {
  const int exponent = half >> 10 & 31;
  const int fraction = half & 1023;
  const float sign = half >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
}

uint16_t to_float16(float x) {
  if (std::isnan(x)) return 0x7e00;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::min(std::fabs(x), 65504.0f);
  if (size < std::ldexp(1.0f, -14)) return sign | static_cast<uint16_t>(std::ldexp(size, 24));
  int exponent;
  const float fraction = std::frexp(size, &exponent);  // 0.5 to 1
  const int digits = static_cast<int>(std::ldexp(fraction, 11)) & 1023;
  return static_cast<uint16_t>(sign | (exponent + 14) << 10 | digits);
}

// Elements of a dtype, in memory of just their size.
class Elements {
 public:
  Elements(int dtype, int64_t count)
      : dtype_(dtype), bytes_(static_cast<size_t>(count) * (dtype == HEADRACE_FLOAT32 ? 4 : 2)) {}

  void* data() { return bytes_.data(); }

  void set(int64_t i, float x) {
    if (dtype_ == HEADRACE_FLOAT32) {
      std::memcpy(bytes_.data() + 4 * i, &x, 4);
    } else {
      const uint16_t half = dtype_ == HEADRACE_FLOAT16 ? to_float16(x) : to_bfloat16(x);
      std::memcpy(bytes_.data() + 2 * i, &half, 2);
    }
  }

  float get(int64_t i) const {
    if (dtype_ == HEADRACE_FLOAT32) {
      float x;
      std::memcpy(&x, bytes_.data() + 4 * i, 4);
      return x;
    }
    uint16_t half;
    std::memcpy(&half, bytes_.data() + 2 * i, 2);
    return dtype_ == HEADRACE_FLOAT16 ? from_float16(half) : from_bfloat16(half);
  }

 private:
  int dtype_;
  std::vector<char> bytes_;
};

// ---- a random call ----

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

void make_entries(Case& made, Random& random) {
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

void make_masks(Case& made, Random& random) {
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

// Fills what some row sees; all else is NaN.
void make_pages(Case& made, Random& random) {
  std::vector<char> read(static_cast<size_t>(made.pages * made.page_tokens), 0);
  for (size_t entry = 0; entry < made.entry_page.size(); ++entry) {
    for (int64_t place = 0; place < made.tokens(entry); ++place) {
      if (made.sees(entry, place)) read[made.entry_page[entry] * made.page_tokens + place] = 1;
    }
  }
  std::normal_distribution<float> normal;
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
      made.keys.back().set(i, is_read ? normal(random) : NAN);
      made.values.back().set(i, is_read ? normal(random) : NAN);
    }
  }
}

Case make_case(Random& random) {
  Case made;
  made.dtype = static_cast<int>(pick(random, 0, 2));
  made.rows = pick(random, 1, 4);
  made.heads = pick(random, 0, 3) ? pick(random, 1, 3) : pick(random, 4, 9);
  made.grouped = pick(random, 1, 20);
  made.width = pick(random, 0, 2) ? 16 * pick(random, 1, 8) : pick(random, 1, 70);
  made.page_tokens = pick(random, 1, 3) == 1 ? pick(random, 1, 200) : 16 << pick(random, 0, 3);
  made.pages = pick(random, 1, 6);
  made.scale = std::vector<float>{0.1f, 1.0f, 0.0f, -0.5f}[pick(random, 0, 3)];
  made.softcap = pick(random, 0, 2) ? 0.0f : 2.5f;
  make_entries(made, random);
  make_masks(made, random);
  make_pages(made, random);
  const int64_t queries = made.rows * made.heads * made.grouped;
  made.query.emplace_back(made.dtype, queries * made.width);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < queries * made.width; ++i) made.query[0].set(i, normal(random));
  made.output.assign(queries * made.width, NAN);
  made.maximum.assign(queries, NAN);
  made.total.assign(queries, NAN);
  return made;
}

int attend(Case& made, headrace_pool* pool) {
  std::vector<const void*> keys, values;
  for (auto& extent : made.keys) keys.push_back(extent.data());
  for (auto& extent : made.values) values.push_back(extent.data());
  headrace_call call = {};
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
  return headrace_attend(pool, &call);
}

// ---- the reference ----

struct Token {
  double score;
  const Elements* values;
  int64_t at;
};

std::vector<Token> seen_tokens(const Case& made, int64_t row, int64_t head, int64_t query) {
  std::vector<Token> tokens;
  for (int64_t entry = made.row_entry[row]; entry < made.row_entry[row + 1]; ++entry) {
    const int64_t page = made.entry_page[entry];
    int64_t extent = 0;
    while (page >= made.extent_first[extent + 1]) ++extent;
    const int64_t strip = (page - made.extent_first[extent]) * made.heads + head;
    for (int64_t place = 0; place < made.tokens(entry); ++place) {
      if (!made.sees(entry, place)) continue;
      const int64_t at = (strip * made.page_tokens + place) * made.width;
      double score = 0;
      for (int64_t i = 0; i < made.width; ++i) {
        score += double{made.query[0].get(query * made.width + i)} * made.keys[extent].get(at + i);
      }
      score *= made.scale;
      if (made.softcap != 0) score = made.softcap * std::tanh(score / made.softcap);
      tokens.push_back({score, &made.values[extent], at});
    }
  }
  return tokens;
}

// Compares one query's result; returns whether it agrees.
bool agrees(const Case& made, int64_t row, int64_t head, int64_t query) {
  const auto tokens = seen_tokens(made, row, head, query);
  if (tokens.empty()) {
    bool empty = made.maximum[query] == -INFINITY && made.total[query] == 0;
    for (int64_t i = 0; i < made.width; ++i) empty &= made.output[query * made.width + i] == 0;
    return empty;
  }
  double maximum = -INFINITY, total = 0;
  for (const auto& token : tokens) maximum = std::max(maximum, token.score);
  for (const auto& token : tokens) total += std::exp(token.score - maximum);
  const double weight = made.dtype == HEADRACE_BFLOAT16 ? 2e-2 : 1e-4;
  if (!(std::fabs(made.maximum[query] - maximum) <= 1e-3)) return false;
  if (!(std::fabs(made.total[query] / total - 1) <= weight + 1e-3)) return false;
  for (int64_t i = 0; i < made.width; ++i) {
    double expected = 0;
    for (const auto& token : tokens) {
      expected += std::exp(token.score - maximum) / total * token.values->get(token.at + i);
    }
    const double made_one = made.output[query * made.width + i] / made.total[query];
    if (!(std::fabs(made_one - expected) <= weight)) return false;
  }
  return true;
}

bool agrees(const Case& made) {
  for (int64_t query = 0; query < made.rows * made.heads * made.grouped; ++query) {
    const int64_t strip = query / made.grouped;
    if (!agrees(made, strip / made.heads, strip % made.heads, query)) {
      std::printf(
          "query %ld of rows %ld heads %ld grouped %ld width %ld page_tokens %ld dtype %d\n",
          static_cast<long>(query), static_cast<long>(made.rows), static_cast<long>(made.heads),
          static_cast<long>(made.grouped), static_cast<long>(made.width),
          static_cast<long>(made.page_tokens), made.dtype);
      return false;
    }
  }
  return true;
}

// Runs random calls on a pool until a time is over; returns how many, or -1 after a difference.
long fuzz(headrace_pool* pool, Random random, std::chrono::steady_clock::time_point end) {
  long calls = 0;
  do {
    Case made = make_case(random);
    if (attend(made, pool) != HEADRACE_OK || !agrees(made)) return -1;
    ++calls;
  } while (std::chrono::steady_clock::now() < end);
  return calls;
}

// Two callers share each of two pools.
bool fuzz_variant(const std::string& variant, double seconds, uint64_t seed) {
  const auto end = std::chrono::steady_clock::now() +
                   std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                       std::chrono::duration<double>(seconds));
  headrace_pool* pools[2] = {headrace_pool_create(3, variant.c_str()),
                             headrace_pool_create(1, variant.c_str())};
  long calls[4];
  std::vector<std::thread> callers;
  for (uint64_t i = 0; i < 4; ++i) {
    callers.emplace_back([&, i] { calls[i] = fuzz(pools[i % 2], Random(4 * seed + i), end); });
  }
  for (auto& caller : callers) caller.join();
  for (auto* pool : pools) headrace_pool_destroy(pool);
  const bool good = std::all_of(calls, calls + 4, [](long made) { return made >= 0; });
  std::printf("%s: %s, %ld calls\n", variant.c_str(), good ? "agrees" : "DIFFERS",
              calls[0] + calls[1] + calls[2] + calls[3]);
  return good;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::printf("usage: %s SECONDS SEED [VARIANT]\n", arguments[0]);
    return 2;
  }
  std::string left = count > 3 ? arguments[3] : headrace_variants();
  bool good = true;
  while (!left.empty()) {
    const size_t comma = std::min(left.find(','), left.size());
    good &= fuzz_variant(left.substr(0, comma), std::atof(arguments[1]),
                         std::strtoull(arguments[2], nullptr, 10));
    left = left.substr(std::min(comma + 1, left.size()));
  }
  return good ? 0 : 1;
}
