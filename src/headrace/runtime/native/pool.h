// Threads that work on a call: started once and asleep between calls, or a team of the caller's.

#ifndef HEADRACE_POOL_H
#define HEADRACE_POOL_H

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace headrace {

// Runs work(context) on so many threads, the caller's among them, as OpenMP's GOMP_parallel does.
using Team = void (*)(void (*work)(void* context), void* context, unsigned threads, unsigned flags);

// Runs work on several threads, the caller's among them.
//
// The work is to divide itself, by claiming parts until none is left: a thread that wakes late
// finds nothing to do, and the caller waits only for threads that have begun. So a call ends even
// where the other threads get no core, or do not exist (in a process that was forked).
class Pool {
 public:
  // Throws std::system_error where a thread cannot be had.
  explicit Pool(int threads);
  // Starts no threads: a team works.
  Pool(int threads, Team team);
  ~Pool();

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // Whether this process is not the one that made the pool, so that its threads are not here.
  bool is_forked() const;

  // Calls work(context, thread) on up to `most` threads; returns when it has returned on all that
  // began. One call at a time.
  void run(void (*work)(void* context, int thread), void* context, int64_t most);

 private:
  void serve(int thread);
  void await_call(uint64_t seen);
  void wake(int64_t most);
  void await_all_left();
  void stop();

  const Team team_ = nullptr;
  const int threads_;
  const int64_t process_;
  std::vector<std::thread> workers_;

  // A call is open while parts may be left. Whoever works is counted inside first and then looks
  // whether the call is open; the caller closes it first and then looks whether anybody is inside.
  void (*work_)(void*, int) = nullptr;
  void* context_ = nullptr;
  std::atomic<bool> open_{false};
  std::atomic<int> inside_{0};

  std::atomic<uint64_t> calls_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> ends_{false};
  std::mutex mutex_;
  std::condition_variable called_;
  std::condition_variable left_;
};

}  // namespace headrace

#endif
