// Prefetches the memory that a kernel reads soon, each line twice.
//
// A prefetch into the second cache is dropped where too many are under way, and the load that then
// finds its line still in memory holds up all that follows it. So each line is asked for a second
// time, half a block before its use, and into the first cache, for which the processor waits.

#ifndef HEADRACE_LINES_AHEAD_H
#define HEADRACE_LINES_AHEAD_H

#include "kernel_parts.h"

namespace headrace {
namespace {

// The lines of one block's keys or values, then those of another's.
template <int kHint>
class Lines {
 public:
  // Either block may be null, and has no lines then.
  Lines(const TokenBlock* block, const char* Run::* start, const TokenBlock* later,
        const char* Run::* later_start, int64_t row_bytes)
      : block_(block),
        later_(later),
        start_(start),
        later_start_(later_start),
        row_bytes_(row_bytes) {
    open_run();
  }

  template <int kCount>
  HEADRACE_INLINE void prefetch() {
    if (end_ - line_ >= kCount * kLineBytes) {
      HEADRACE_UNROLL
      for (int i = 0; i < kCount; ++i) __builtin_prefetch(line_ + i * kLineBytes, 0, kHint);
      line_ += kCount * kLineBytes;
    } else if (line_) {
      prefetch_across_runs(kCount);
    }
  }

 private:
  __attribute__((noinline)) void prefetch_across_runs(int count) {
    while (count > 0 && line_) {
      for (; count > 0 && line_ < end_; --count, line_ += kLineBytes) {
        __builtin_prefetch(line_, 0, kHint);
      }
      if (line_ >= end_) open_run();
    }
  }

  void open_run() {
    while (block_ && run_ == block_->run_count) {
      block_ = later_;
      start_ = later_start_;
      later_ = nullptr;
      run_ = 0;
    }
    if (block_) {
      line_ = block_->runs[run_].*start_;
      end_ = line_ + block_->runs[run_].count * row_bytes_;
      ++run_;
    } else {
      line_ = end_ = nullptr;
    }
  }

  const TokenBlock* block_;
  const TokenBlock* later_;
  const char* Run::* start_;
  const char* Run::* later_start_;
  int64_t row_bytes_;
  int run_ = 0;
  const char* line_ = nullptr;
  const char* end_ = nullptr;
};

class LinesAhead {
 public:
  // The next block may be null.
  LinesAhead(const TokenBlock& now, const TokenBlock* next, int64_t row_bytes)
      : near_(&now, &Run::value, next, &Run::key, row_bytes),
        far_(next, &Run::key, next, &Run::value, row_bytes) {}

  // Some of both, between pieces of arithmetic: many at once are what leads to drops. Those that
  // are needed sooner come first.
  template <int kCount>
  HEADRACE_INLINE void prefetch() {
    near_.template prefetch<kCount>();
    far_.template prefetch<kCount>();
  }

 private:
  Lines<3> near_;
  Lines<2> far_;
};

}  // namespace
}  // namespace headrace

#endif
