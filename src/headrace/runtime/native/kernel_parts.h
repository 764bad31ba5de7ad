// The parts that kernels of every kind of vector share: see kernel.h for what V and its names are.

#ifndef HEADRACE_KERNEL_PARTS_H
#define HEADRACE_KERNEL_PARTS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "blocks.h"
#include "elements.h"

// Loops over registers must be unrolled whole, or the registers become memory.
#if defined(__clang__)
#define HEADRACE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define HEADRACE_UNROLL _Pragma("GCC unroll 16")
#endif

#define HEADRACE_INLINE inline __attribute__((always_inline))

namespace headrace {
namespace {

constexpr int kLineBytes = 64;
constexpr int kPageBytes = 4096;      // of virtual memory, the smallest
constexpr int kReadAhead = 8192;      // bytes that a plain read of memory prefetches ahead
constexpr int kTokensPerAdvance = 2;  // of values that are mixed between two prefetches

// Finds where each token's key and value are.
inline void find_rows(const Shape& shape, TokenBlock& block) {
  int token = 0;
  for (int run = 0; run < block.run_count; ++run) {
    const Run& from = block.runs[run];
    for (int i = 0; i < from.count; ++i, ++token) {
      block.key[token] = from.key + i * shape.row_bytes;
      block.value[token] = from.value + i * shape.row_bytes;
    }
  }
  if (token == kBlock) return;
  for (int i = 0; i < kBlockPadding; ++i) {
    block.key[token + i] = shape.zeros;
    block.value[token + i] = shape.zeros;
  }
}

// Has the addresses of a block's pages looked up, all at once: one by one, where they are needed,
// each would hold up the kernel.
inline void touch_pages(const TokenBlock& block, int64_t row_bytes) {
  for (int run = 0; run < block.run_count; ++run) {
    const int64_t bytes = block.runs[run].count * row_bytes;
    for (int64_t at = 0; at < bytes; at += kPageBytes) {
      __builtin_prefetch(block.runs[run].key + at, 0, 2);
      __builtin_prefetch(block.runs[run].value + at, 0, 2);
    }
  }
}

// Prefetches a block's keys, or values, some lines at a time, so that memory is busy while the
// kernel computes.
class Ahead {
 public:
  // Spreads the lines evenly over a number of calls of advance. No block: nothing to do.
  Ahead(const TokenBlock* block, const char* Run::* start, int64_t row_bytes, int64_t calls)
      : block_(block), start_(start), row_bytes_(row_bytes) {
    if (block) {
      const int64_t lines = (block->count * row_bytes + kLineBytes - 1) / kLineBytes;
      step_bytes_ = (lines + calls - 1) / calls * kLineBytes;
    }
    open_run();
  }

  HEADRACE_INLINE void advance() {
    const char* line = line_;
    const char* stop = end_ - line < step_bytes_ ? end_ : line + step_bytes_;
    // Into the second cache: the first one has few places for lines that are on their way, and the
    // kernel's own loads need them.
    for (; line < stop; line += kLineBytes) __builtin_prefetch(line, 0, 2);
    line_ = line;
    if (line >= end_) open_run();
  }

 private:
  void open_run() {
    if (block_ && run_ < block_->run_count) {
      line_ = block_->runs[run_].*start_;
      end_ = line_ + block_->runs[run_].count * row_bytes_;
      ++run_;
    } else {
      // Nothing is left: a place that advance never moves beyond.
      static const char nowhere = 0;
      line_ = &nowhere;
      end_ = line_ + 1;
      step_bytes_ = 0;
    }
  }

  const TokenBlock* block_;
  const char* Run::* start_;
  int64_t row_bytes_;
  int64_t step_bytes_ = 0;
  int run_ = 0;
  const char* line_ = nullptr;
  const char* end_ = nullptr;
};

// exp(x) for x below about 0, within about one unit in the last place; 0 below the smallest normal
// number. Range reduction and polynomial are those of Cephes' expf.
template <class V>
HEADRACE_INLINE typename V::Vec exp_of(typename V::Vec x) {
  x = V::max(V::set(V::kLeastExponent), x);  // in this order NaN stays
  auto n = V::round(V::mul(x, V::set(1.44269504088896341f)));
  auto r = V::fma(n, V::set(-0.693359375f), x);
  r = V::fma(n, V::set(2.12194440e-4f), r);
  auto p = V::set(1.9875691500e-4f);
  p = V::fma(p, r, V::set(1.3981999507e-3f));
  p = V::fma(p, r, V::set(8.3334519073e-3f));
  p = V::fma(p, r, V::set(4.1665795894e-2f));
  p = V::fma(p, r, V::set(1.6666665459e-1f));
  p = V::fma(p, r, V::set(5.0000001201e-1f));
  p = V::fma(p, V::mul(r, r), V::add(r, V::set(1.0f)));
  return V::times_power_of_two(p, n);
}

// tanh(x) as a quotient of polynomials, within a few units in the last place (the one of Eigen).
template <class V>
HEADRACE_INLINE typename V::Vec tanh_of(typename V::Vec x) {
  const float limit = 7.90531110763549805f;
  x = V::min(V::set(limit), V::max(V::set(-limit), x));
  auto s = V::mul(x, x);
  auto p = V::set(-2.76076847742355e-16f);
  p = V::fma(p, s, V::set(2.00018790482477e-13f));
  p = V::fma(p, s, V::set(-8.60467152213735e-11f));
  p = V::fma(p, s, V::set(5.12229709037114e-08f));
  p = V::fma(p, s, V::set(1.48572235717979e-05f));
  p = V::fma(p, s, V::set(6.37261928875436e-04f));
  p = V::fma(p, s, V::set(4.89352455891786e-03f));
  p = V::mul(p, x);
  auto q = V::set(1.19825839466702e-06f);
  q = V::fma(q, s, V::set(1.18534705686654e-04f));
  q = V::fma(q, s, V::set(2.26843463243900e-03f));
  q = V::fma(q, s, V::set(4.89352518554385e-03f));
  return V::div(p, q);
}

// How queries meet keys: in float.
template <class V, class T>
struct FloatScores {
  using Element = T;
  using Query = float;
  using Part = typename V::Pair;
  static constexpr int kStep = 2 * V::kLanes;

  static HEADRACE_INLINE Part key(const T* p) { return V::load(p); }
  static HEADRACE_INLINE Part key(const T* p, int n) { return V::load(p, n); }
  static HEADRACE_INLINE Part query(const float* p) {
    return {V::load_vec(p), V::load_vec(p + V::kLanes)};
  }
  static HEADRACE_INLINE typename V::Vec add(typename V::Vec sum, Part q, Part k) {
    return V::add_products(q, k, sum);
  }

  // Writes a query in the order of the keys' Pairs, with zeros up to a whole number of steps.
  static void prepare(const T* from, int64_t width, float* to) {
    for (int64_t at = 0; at < width; at += kStep) {
      const int64_t left = width - at;
      const Part part = left < kStep ? key(from + at, static_cast<int>(left)) : key(from + at);
      V::store_vec(to + at, part.first);
      V::store_vec(to + at + V::kLanes, part.second);
    }
  }
};

// How weights meet values: in float.
template <class V, class T>
struct FloatValues {
  using Part = typename V::Pair;
  using Weight = typename V::Vec;
  static constexpr int kStep = 2 * V::kLanes;
  static constexpr int kTokens = 1;           // that one weight, and one part, stand for
  static constexpr int kWeights = V::kLanes;  // that are made at once

  // Turns products into weights exp(scale * product - maximum), in place; returns their sum.
  static HEADRACE_INLINE float weigh(float* row, int vectors, float scale, float maximum) {
    auto sum = V::zero();
    const auto by = V::set(scale), less = V::set(-maximum);
    for (int i = 0; i < vectors; ++i) {
      float* place = row + i * V::kLanes;
      const auto weight = exp_of<V>(V::fma(V::load_vec(place), by, less));
      V::store_vec(place, weight);
      sum = V::add(sum, weight);
    }
    return V::sum(sum);
  }

  static HEADRACE_INLINE Part value(const char* const* rows, int64_t at) {
    return V::load(reinterpret_cast<const T*>(rows[0]) + at);
  }
  static HEADRACE_INLINE Part value(const char* const* rows, int64_t at, int n) {
    return V::load(reinterpret_cast<const T*>(rows[0]) + at, n);
  }
  // Where the weights of query q and those after it are.
  static HEADRACE_INLINE const float* weights_of(const float* scores, int64_t q) {
    return scores + q * kBlock;
  }
  static HEADRACE_INLINE Weight weight(const float* weights, int q, int token) {
    return V::set(weights[q * kBlock + token]);
  }
  static HEADRACE_INLINE void add(typename V::Pair& sum, Weight weight, const Part& part) {
    sum.first = V::fma(weight, part.first, sum.first);
    sum.second = V::fma(weight, part.second, sum.second);
  }
  // Writes sums in the order of memory.
  static HEADRACE_INLINE void natural(const float* sum, float* out) {
    V::natural(static_cast<const T*>(nullptr), sum, out);
  }
};

}  // namespace
}  // namespace headrace

#endif
