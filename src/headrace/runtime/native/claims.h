// Which thread works on which of a call's items.

#ifndef HEADRACE_CLAIMS_H
#define HEADRACE_CLAIMS_H

#include <atomic>
#include <cstdint>
#include <memory>

namespace headrace {

// Items by their numbers. The first of them may be held by threads, which have brought them into
// their caches: thread t holds t, t + threads, and so on. A thread works on those that it holds,
// then on those that nobody holds, and at last on those that others hold and have not come to.
class Claims {
 public:
  // Lets all items be taken, of which so many threads hold the first. Throws std::bad_alloc.
  void open(int64_t items, int64_t held, int threads) {
    if (held > room_) {
      room_ = 0;
      taken_.reset(new std::atomic<bool>[static_cast<size_t>(held)]);
      room_ = held;
    }
    for (int64_t item = 0; item < held; ++item) taken_[item] = false;
    items_ = items;
    held_ = held;
    threads_ = threads;
    next_ = held;
  }

  // One thread's way through the items.
  class Thread {
   public:
    Thread(Claims& claims, int thread) : claims_(claims), own_(thread) {}

    // Returns the next item, or -1 where none is left.
    int64_t next() {
      for (; own_ < claims_.held_; own_ += claims_.threads_) {
        if (claims_.take(own_)) return own_;
      }
      if (is_open_) {
        const int64_t item = claims_.next_.fetch_add(1, std::memory_order_relaxed);
        if (item < claims_.items_) return item;
        is_open_ = false;
      }
      for (; others_ < claims_.held_; ++others_) {
        if (claims_.take(others_)) return others_;
      }
      return -1;
    }

   private:
    Claims& claims_;
    int64_t own_;
    int64_t others_ = 0;
    bool is_open_ = true;
  };

 private:
  bool take(int64_t item) {
    std::atomic<bool>& taken = taken_[item];
    return !taken.load(std::memory_order_relaxed) &&
           !taken.exchange(true, std::memory_order_relaxed);
  }

  std::unique_ptr<std::atomic<bool>[]> taken_;  // of held items
  int64_t room_ = 0;
  int64_t items_ = 0;
  int64_t held_ = 0;
  int64_t threads_ = 1;
  std::atomic<int64_t> next_{0};
};

}  // namespace headrace

#endif
