// Plain attention in double, and whether a call's result agrees with it.

#ifndef HEADRACE_FUZZ_REFERENCE_H
#define HEADRACE_FUZZ_REFERENCE_H

#include <cstdio>

#include "fuzz_case.h"

namespace fuzz {

struct Token {
  double score;
  const Elements* values;
  int64_t at;
};

// What one query sees.
struct Seen {
  std::vector<Token> tokens;
  double size = 0;  // largest sum of the sizes of a score's products, which it is rounded by
};

inline void add_token(const Case& made, int64_t query, int64_t extent, int64_t at, Seen& seen) {
  double score = 0, size = 0;
  for (int64_t i = 0; i < made.width; ++i) {
    const double product =
        double{made.query[0].get(query * made.width + i)} * made.keys[extent].get(at + i);
    score += product;
    size += std::fabs(product);
  }
  score *= made.scale;
  seen.size = std::max(seen.size, size * std::fabs(made.scale));
  if (made.softcap != 0) score = made.softcap * std::tanh(score / made.softcap);
  seen.tokens.push_back({score, &made.values[extent], at});
}

inline Seen seen_by(const Case& made, int64_t row, int64_t head, int64_t query) {
  Seen seen;
  for (int64_t entry = made.row_entry[row]; entry < made.row_entry[row + 1]; ++entry) {
    const int64_t page = made.entry_page[entry];
    int64_t extent = 0;
    while (page >= made.extent_first[extent + 1]) ++extent;
    const int64_t strip = (page - made.extent_first[extent]) * made.heads + head;
    for (int64_t place = 0; place < made.tokens(entry); ++place) {
      if (!made.sees(entry, place)) continue;
      add_token(made, query, extent, (strip * made.page_tokens + place) * made.width, seen);
    }
  }
  return seen;
}

inline bool is_empty(const Case& made, int64_t query) {
  bool empty = made.maximum[query] == -INFINITY && made.total[query] == 0;
  for (int64_t i = 0; i < made.width; ++i) empty &= made.output[query * made.width + i] == 0;
  return empty;
}

// Compares one query's result; returns whether it agrees.
inline bool agrees(const Case& made, int64_t row, int64_t head, int64_t query) {
  const Seen seen = seen_by(made, row, head, query);
  if (seen.tokens.empty()) return is_empty(made, query);
  double maximum = -INFINITY, total = 0;
  for (const auto& token : seen.tokens) maximum = std::max(maximum, token.score);
  std::vector<double> weights;
  for (const auto& token : seen.tokens) weights.push_back(std::exp(token.score - maximum));
  for (const double weight : weights) total += weight;
  const double score_error = 2e-6 * (1 + seen.size);
  const double weight_error =
      (made.dtype == HEADRACE_BFLOAT16 ? 1e-2 : 1e-5) + std::expm1(2 * score_error);
  if (!(std::fabs(made.maximum[query] - maximum) <= score_error)) return false;
  const double scaled = total * std::exp(maximum - made.maximum[query]);
  if (!(std::fabs(made.total[query] / scaled - 1) <= weight_error)) return false;
  for (int64_t i = 0; i < made.width; ++i) {
    double expected = 0, size = 0;
    for (size_t token = 0; token < weights.size(); ++token) {
      const double value = seen.tokens[token].values->get(seen.tokens[token].at + i);
      expected += weights[token] / total * value;
      size += weights[token] / total * std::fabs(value);
    }
    const double made_one = made.output[query * made.width + i] / made.total[query];
    if (!(std::fabs(made_one - expected) <= weight_error * size)) return false;
  }
  return true;
}

inline bool agrees(const Case& made) {
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

}  // namespace fuzz

#endif
