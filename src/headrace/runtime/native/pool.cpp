#include "pool.h"

#include <unistd.h>

#include <algorithm>

#include "pause.h"

namespace headrace {

namespace {

// How often a thread looks for a call before it sleeps: some 20 microseconds, about what waking it
// costs.
constexpr int kLooksForCall = 600;

// How often a caller looks whether the others are done. They are at their last items.
constexpr int kLooksForEnd = 4000;

template <class Condition>
bool holds_soon(int looks, Condition condition) {
  for (int look = 0; look < looks; ++look) {
    if (condition()) return true;
    pause();
  }
  return condition();
}

// What the threads of a team are told, who do not know which of them they are.
struct Share {
  void (*work)(void*, int);
  void* context;
  std::atomic<int> next{0};
};

void work_on(void* share) {
  auto* mine = static_cast<Share*>(share);
  mine->work(mine->context, mine->next++);
}

}  // namespace

Pool::Pool(int threads) : threads_(threads), process_(getpid()) {
  try {
    for (int thread = 1; thread < threads; ++thread) {
      workers_.emplace_back([this, thread] { serve(thread); });
    }
  } catch (...) {
    stop();
    throw;
  }
}

Pool::Pool(int threads, Team team) : team_(team), threads_(threads), process_(getpid()) {}

Pool::~Pool() { stop(); }

bool Pool::is_forked() const { return getpid() != process_; }

void Pool::stop() {
  ends_ = true;
  {
    std::lock_guard<std::mutex> lock(mutex_);
  }
  called_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::run(void (*work)(void*, int), void* context, int64_t most) {
  // In a forked process nobody else works, and what the others' state was is as it was.
  const bool alone = is_forked();
  if (team_ && !alone && most > 1 && threads_ > 1) {
    Share share{work, context};
    team_(work_on, &share, static_cast<unsigned>(std::min<int64_t>(threads_, most)), 0);
    return;
  }
  work_ = work;
  context_ = context;
  open_ = true;
  if (!alone && most > 1 && threads_ > 1) wake(most - 1);
  work(context, 0);
  open_ = false;
  if (!alone) await_all_left();
}

void Pool::wake(int64_t most) {
  ++calls_;
  const int sleepers = sleepers_;
  if (sleepers == 0) return;
  {
    // Whoever has seen no call yet is asleep when the lock is had, or has not looked yet.
    std::lock_guard<std::mutex> lock(mutex_);
  }
  if (most >= sleepers) {
    called_.notify_all();
  } else {
    for (int64_t i = 0; i < most; ++i) called_.notify_one();
  }
}

void Pool::await_all_left() {
  auto all_left = [this] { return inside_ == 0; };
  if (holds_soon(kLooksForEnd, all_left)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  left_.wait(lock, all_left);
}

void Pool::await_call(uint64_t seen) {
  auto called = [this, seen] { return calls_ != seen || ends_; };
  if (holds_soon(kLooksForCall, called)) return;
  ++sleepers_;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    called_.wait(lock, called);
  }
  --sleepers_;
}

void Pool::serve(int thread) {
  uint64_t seen = 0;
  while (true) {
    await_call(seen);
    if (ends_) return;
    seen = calls_;
    ++inside_;
    if (open_) work_(context_, thread);
    if (--inside_ == 0 && !open_) {
      std::lock_guard<std::mutex> lock(mutex_);
      left_.notify_one();
    }
  }
}

}  // namespace headrace
