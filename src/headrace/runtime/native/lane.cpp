// A thread that attends, call by call, when the device says so and without the interpreter.

#include <sys/prctl.h>
#include <time.h>

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "ahead.h"
#include "attend.h"
#include "headrace_attention.h"
#include "pause.h"
#include "word.h"

using headrace::is_reached;

namespace {

// How often a lane looks for the device's number before it sleeps between looks: some milliseconds,
// longer than a layer's dense work takes.
constexpr int kLooksAwake = 40000;
constexpr long kSleepNs = 10000;
constexpr double kPatienceS = 120.0;

struct Job {
  headrace_call call;
  headrace_word signal;
  headrace_word flag;
  headrace_done* done;
};

// The clock that Python's perf_counter tells on Linux.
double now_s() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

struct headrace_lane {
  explicit headrace_lane(headrace_pool* of) : pool(of), thread([this] { serve(); }) {}

  void push(const Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      jobs.push_back(job);
    }
    pushed.notify_one();
  }

  // What was pushed is done first, or given up where the device does not ask for it any more.
  void stop() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      __atomic_store_n(&ends, true, __ATOMIC_RELEASE);
    }
    pushed.notify_one();
    thread.join();
  }

 private:
  void serve() {
#ifdef PR_SET_TIMERSLACK
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
#endif
    Job job;
    while (take(&job)) attend(job);
  }

  bool take(Job* job) {
    std::unique_lock<std::mutex> lock(mutex);
    pushed.wait(lock, [this] { return ends || !jobs.empty(); });
    if (jobs.empty()) return false;
    *job = jobs.front();
    jobs.pop_front();
    return true;
  }

  void attend(const Job& job) {
    job.done->ahead_s = 0.0;
    int status = failed ? HEADRACE_GIVEN_UP : prepare(job);
    if (status == HEADRACE_OK) status = await(job.signal);
    job.done->start_s = now_s();
    if (status == HEADRACE_OK) status = attend_now(job.call);
    failed = failed || status != HEADRACE_OK;
    job.done->finish_s = now_s();
    __atomic_store_n(&job.done->status, status, __ATOMIC_RELEASE);
    // The device goes on in any case; who launched its work learns of the status.
    __atomic_store_n(job.flag.address, job.flag.number, __ATOMIC_RELEASE);
  }

  // What can be done before the device asks: the queries are not there yet, and of keys and values
  // only the newest may be missing. What fails here fails the call, whose flag is raised at once.
  int prepare(const Job& job) {
    if (!headrace::is_allowed(job.call)) return HEADRACE_BAD_CALL;
    try {
      const int threads = pool->pool.threads();
      division.divide(job.call, threads);
      held = headrace::items_ahead(job.call, division, threads);
      if (is_reached(job.signal)) return HEADRACE_OK;
      std::unique_lock<std::mutex> turn(pool->turn, std::try_to_lock);
      if (!turn) return HEADRACE_OK;
      const double start_s = now_s();
      headrace::read_ahead(*pool, job.call, division, held, job.signal);
      job.done->ahead_s = now_s() - start_s;
      return HEADRACE_OK;
    } catch (const std::exception&) {
      return HEADRACE_NO_MEMORY;
    }
  }

  int attend_now(const headrace_call& call) {
    try {
      std::lock_guard<std::mutex> turn(pool->turn);
      headrace::attend(*pool, call, division, held);
      return HEADRACE_OK;
    } catch (const std::exception&) {
      return HEADRACE_NO_MEMORY;
    }
  }

  int await(const headrace_word& signal) {
    for (int look = 0; look < kLooksAwake; ++look) {
      if (is_reached(signal)) return HEADRACE_OK;
      headrace::pause();
    }
    const double start_s = now_s();
    while (!is_reached(signal)) {
      if (__atomic_load_n(&ends, __ATOMIC_ACQUIRE)) return HEADRACE_GIVEN_UP;
      if (now_s() - start_s > kPatienceS) return HEADRACE_NO_SIGNAL;
      const timespec nap = {0, kSleepNs};
      nanosleep(&nap, nullptr);
    }
    return HEADRACE_OK;
  }

  headrace_pool* const pool;
  std::mutex mutex;
  std::condition_variable pushed;
  std::deque<Job> jobs;
  headrace::Division division;  // of the call that comes next
  int64_t held = 0;             // of its items, by the threads
  bool ends = false;
  bool failed = false;
  std::thread thread;  // last: it uses all of the above
};

extern "C" {

headrace_lane* headrace_lane_create(headrace_pool* pool) {
  try {
    return new headrace_lane(pool);
  } catch (const std::exception&) {
    return nullptr;
  }
}

void headrace_lane_destroy(headrace_lane* lane) {
  if (!lane) return;
  lane->stop();
  delete lane;
}

int headrace_lane_push(headrace_lane* lane, const headrace_call* call, const headrace_word* signal,
                       const headrace_word* flag, headrace_done* done) {
  if (!lane || !call || !signal || !flag || !done) return HEADRACE_BAD_CALL;
  try {
    lane->push({*call, *signal, *flag, done});
    return HEADRACE_OK;
  } catch (const std::exception&) {
    return HEADRACE_NO_MEMORY;
  }
}

}  // extern "C"
