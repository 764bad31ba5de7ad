// Random calls of the native library, compared with plain attention in double.
//
//   fuzz_host_attention SECONDS SEED [VARIANT]
//
// Buffers are as large as the interface says and no larger, and places that must not be read hold
// NaN, so that a sanitizer or the comparison shows what is read beyond. Exits with 0 if all calls
// agreed.

#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>

#include "fuzz_reference.h"

namespace fuzz {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kNotYet = -1;

// Runs random calls on a pool until a time is over; returns how many, or -1 after a difference.
long call(headrace_pool* pool, Random random, Clock::time_point end) {
  long calls = 0;
  do {
    Case made = make_case(random);
    const Call call(made);
    if (headrace_attend(pool, &call.call) != HEADRACE_OK || !agrees(made)) return -1;
    ++calls;
  } while (Clock::now() < end);
  return calls;
}

// A call that a lane waits for, and what tells of its end.
struct Pushed {
  explicit Pushed(Random& random) : made(make_case(random)), call(made) {}

  Case made;
  Call call;
  headrace_done done = {kNotYet, 0, 0};
};

// Pushes some calls, raises their signal one by one or all at once, and looks at the results when
// the flag is raised.
bool push_some(headrace_lane* lane, Random& random, int32_t& signal, int32_t& flag) {
  const int32_t first = signal + 1, count = static_cast<int32_t>(pick(random, 1, 4));
  std::vector<std::unique_ptr<Pushed>> all;
  for (int32_t i = 0; i < count; ++i) {
    all.push_back(std::make_unique<Pushed>(random));
    const headrace_word begin = {&signal, first + i}, end = {&flag, first + i};
    Pushed& last = *all.back();
    if (headrace_lane_push(lane, &last.call.call, &begin, &end, &last.done) != HEADRACE_OK) {
      return false;
    }
  }
  for (int32_t i = pick(random, 0, 1) ? 0 : count - 1; i < count; ++i) {
    __atomic_store_n(&signal, first + i, __ATOMIC_RELEASE);
    std::this_thread::yield();
  }
  while (__atomic_load_n(&flag, __ATOMIC_ACQUIRE) != first + count - 1) std::this_thread::yield();
  for (const auto& one : all) {
    const int status = __atomic_load_n(&one->done.status, __ATOMIC_ACQUIRE);
    if (status != HEADRACE_OK || one->done.finish_s < one->done.start_s) return false;
    if (!agrees(one->made)) return false;
  }
  return true;
}

// Lanes come and go; one is ended with a call that nobody asked for.
long push(headrace_pool* pool, Random random, Clock::time_point end) {
  long calls = 0;
  do {
    int32_t signal = 0, flag = 0;
    headrace_lane* lane = headrace_lane_create(pool);
    if (!lane) return -1;
    for (int i = 0; i < 4; ++i, ++calls) {
      if (!push_some(lane, random, signal, flag)) return -1;
    }
    Pushed left(random);
    const headrace_word never = {&signal, signal + 1}, told = {&flag, flag + 1};
    headrace_lane_push(lane, &left.call.call, &never, &told, &left.done);
    headrace_lane_destroy(lane);
    if (left.done.status != HEADRACE_GIVEN_UP || flag != told.number) return -1;
  } while (Clock::now() < end);
  return calls;
}

// Reads memory of any size, which begins anywhere.
long read(headrace_pool* pool, Random random, Clock::time_point end) {
  long calls = 0;
  do {
    std::vector<char> memory(static_cast<size_t>(pick(random, 1, 3 << 20)));
    for (char& byte : memory) byte = static_cast<char>(random());
    const int64_t from = pick(random, 0, std::min<int64_t>(70, memory.size() - 1));
    const int64_t bytes = static_cast<int64_t>(memory.size()) - from;
    const uint64_t sum = headrace_stream_read(pool, memory.data() + from, bytes);
    if (headrace_stream_read(pool, memory.data() + from, bytes) != sum) return -1;
    ++calls;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  } while (Clock::now() < end);
  return calls;
}

// Whether calls that are not allowed are refused.
bool refuses(headrace_pool* pool, Random random) {
  Case made = make_case(random);
  const Call good(made);
  std::vector<headrace_call> bad(7, good.call);
  bad[0].dtype = 3;
  bad[1].dtype = -1;
  bad[2].rows = -1;
  bad[3].heads = 0;
  bad[4].grouped = 0;
  bad[5].width = 0;
  bad[6].page_tokens = 0;
  bool all = headrace_attend(nullptr, &good.call) == HEADRACE_BAD_CALL &&
             headrace_attend(pool, nullptr) == HEADRACE_BAD_CALL;
  for (const auto& one : bad) all &= headrace_attend(pool, &one) == HEADRACE_BAD_CALL;
  return all && !headrace_pool_create(0, "portable") && !headrace_pool_create(1, "none") &&
         !headrace_pool_of_team(2, "portable", nullptr);
}

// A team as OpenMP's, of threads that are new each time.
void team(void (*work)(void*), void* context, unsigned threads, unsigned) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(work, context);
  work(context);
  for (auto& other : others) other.join();
}

// Two callers share each of three pools, with lanes and a reader beside them.
bool fuzz_variant(const std::string& variant, double seconds, uint64_t seed) {
  const auto end =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  constexpr uint64_t kPools = 3;
  headrace_pool* pools[kPools] = {headrace_pool_create(3, variant.c_str()),
                                  headrace_pool_create(1, variant.c_str()),
                                  headrace_pool_of_team(3, variant.c_str(), team)};
  using Work = long (*)(headrace_pool*, Random, Clock::time_point);
  constexpr Work kWorks[] = {call, call, call, call, call, call, push, push, read};
  constexpr uint64_t kCallers = sizeof(kWorks) / sizeof(Work);
  long calls[kCallers], all = 0;
  std::vector<std::thread> callers;
  for (uint64_t i = 0; i < kCallers; ++i) {
    callers.emplace_back(
        [&, i] { calls[i] = kWorks[i](pools[i % kPools], Random(kCallers * seed + i), end); });
  }
  for (auto& caller : callers) caller.join();
  bool good = refuses(pools[0], Random(seed));
  for (auto* pool : pools) headrace_pool_destroy(pool);
  for (const long made : calls) {
    good &= made >= 0;
    all += made;
  }
  std::printf("%s: %s, %ld calls\n", variant.c_str(), good ? "agrees" : "DIFFERS", all);
  return good;
}

}  // namespace
}  // namespace fuzz

int main(int count, char** arguments) {
  if (count < 3) {
    std::printf("usage: %s SECONDS SEED [VARIANT]\n", arguments[0]);
    return 2;
  }
  std::string left = count > 3 ? arguments[3] : headrace_variants();
  bool good = true;
  while (!left.empty()) {
    const size_t comma = std::min(left.find(','), left.size());
    good &= fuzz::fuzz_variant(left.substr(0, comma), std::atof(arguments[1]),
                         std::strtoull(arguments[2], nullptr, 10));
    left = left.substr(std::min(comma + 1, left.size()));
  }
  return good ? 0 : 1;
}
