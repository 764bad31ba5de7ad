// Aligned memory that is kept from call to call.

#ifndef HEADRACE_BUFFER_H
#define HEADRACE_BUFFER_H

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "rounding.h"

namespace headrace {

// Memory that only grows.
class Buffer {
 public:
  char* fit(int64_t bytes) {
    if (bytes > bytes_) {
      const int64_t larger = rounded_up(std::max(bytes, 2 * bytes_), kAlignment);
      memory_.reset();
      bytes_ = 0;
      memory_.reset(static_cast<char*>(std::aligned_alloc(kAlignment, larger)));
      if (!memory_) throw std::bad_alloc();
      bytes_ = larger;
    }
    return memory_.get();
  }

 private:
  static constexpr int64_t kAlignment = 64;

  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory_;
  int64_t bytes_ = 0;
};

}  // namespace headrace

#endif
