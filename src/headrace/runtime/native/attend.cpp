// Has the pool attend to a call's items, and merges what belongs together.

#include "attend.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <string>

#include "rounding.h"

#ifndef HEADRACE_SOURCE_HASH
#define HEADRACE_SOURCE_HASH ""
#endif

using namespace headrace;

namespace headrace {
namespace {

constexpr int64_t kReadPiece = 1 << 20;

// One call that was divided, to its merge.
class Attention {
 public:
  Attention(headrace_pool& pool, const headrace_call& call, Division& division)
      : pool_(pool),
        call_(call),
        division_(division),
        kernel_(pool.variant.kernels[call.dtype]),
        state_(call),
        slot_floats_(call.grouped * (call.width + 2)),
        shape_(shape_of(call)) {}

  void run() {
    for (int64_t row_head = 0; row_head < call_.rows * call_.heads; ++row_head) {
      if (division_.parts(row_head).count == 0) clear(row_head);
    }
    const auto items = static_cast<int64_t>(division_.items().size());
    if (items == 0) return;
    prepare_buffers();
    pool_.pool.run([](void* self, int thread) { static_cast<Attention*>(self)->work(thread); },
                   this, items);
  }

 private:
  void prepare_buffers() {
    pool_.slots.fit(division_.slots() * slot_floats_ * 4);
    char* zeros = pool_.zeros.fit(shape_.row_bytes);
    std::memset(zeros, 0, static_cast<size_t>(shape_.row_bytes));
    shape_.zeros = zeros;
    for (Buffer& buffer : pool_.scratch) buffer.fit(scratch_bytes());
  }

  int64_t scores_bytes() const { return state_.queries_bytes * (kBlock + 1); }
  int64_t scratch_bytes() const {
    return scores_bytes() + division_.item_heads() * state_.bytes;
  }

  Scratch scratch_of(char* memory, int64_t head) const {
    char* place = memory + scores_bytes() + head * state_.bytes;
    auto take = [&place](int64_t bytes) {
      char* taken = place;
      place += bytes;
      return reinterpret_cast<float*>(taken);
    };
    Scratch scratch;
    scratch.scores = reinterpret_cast<float*>(memory);
    scratch.query = take(call_.grouped * state_.row_bytes);
    scratch.sums = take(call_.grouped * state_.row_bytes);
    scratch.maximum = take(state_.queries_bytes);
    scratch.total = take(state_.queries_bytes);
    scratch.factor = take(state_.queries_bytes);
    return scratch;
  }

  void work(int thread) {
    char* memory = pool_.scratch[static_cast<size_t>(thread)].fit(scratch_bytes());
    if (kernel_.begin) kernel_.begin(shape_);
    BlockStream stream(call_, shape_);
    Claims::Thread claims(pool_.claims, thread);
    // A block is known before the one ahead of it is done, so that its keys can be prefetched even
    // across items.
    auto next = [&](TokenBlock& block) {
      while (!stream.next(block)) {
        const int64_t item = claims.next();
        if (item < 0) return false;
        stream.open(division_.items()[static_cast<size_t>(item)]);
      }
      return true;
    };
    TokenBlock blocks[2];
    int now = 0;
    bool more = next(blocks[now]);
    while (more) {
      TokenBlock& block = blocks[now];
      now = 1 - now;
      more = next(blocks[now]);
      const Scratch scratch = scratch_of(memory, block.head);
      kernel_.attend(shape_, scratch, block, more ? &blocks[now] : nullptr);
      if (block.last) finish(scratch, block);
    }
    if (kernel_.end) kernel_.end(shape_);
  }

  // Where one row and head's result goes.
  struct Result {
    float* output;
    float* maximum;
    float* total;
  };

  Result result_at(int64_t row_head) const {
    const int64_t query = row_head * call_.grouped;
    return {call_.output + query * call_.width, call_.maximum + query, call_.total + query};
  }

  Result slot_at(int64_t slot) {
    float* place = reinterpret_cast<float*>(pool_.slots.fit(0)) + slot * slot_floats_;
    float* maximum = place + call_.grouped * call_.width;
    return {place, maximum, maximum + call_.grouped};
  }

  void clear(int64_t row_head) const {
    const Result result = result_at(row_head);
    std::fill_n(result.output, call_.grouped * call_.width, 0.0f);
    std::fill_n(result.maximum, call_.grouped, -INFINITY);
    std::fill_n(result.total, call_.grouped, 0.0f);
  }

  void finish(const Scratch& scratch, const TokenBlock& block) {
    const Item& item = *block.item;
    const int64_t row_head = item.row * call_.heads + item.head + block.head;
    const Result to = item.slot < 0 ? result_at(row_head) : slot_at(item.slot + block.head);
    kernel_.finish(shape_, scratch, to.output, to.maximum, to.total);
    Parts& parts = division_.parts(row_head);
    // Whoever finishes the last part merges them all, in their order: whatever the threads do, the
    // result is the same.
    if (item.slot >= 0 && parts.missing.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      merge(parts, result_at(row_head));
    }
  }

  void merge(const Parts& parts, const Result& to) {
    for (int64_t query = 0; query < call_.grouped; ++query) {
      float maximum = -INFINITY;
      for (int64_t part = 0; part < parts.count; ++part) {
        maximum = std::max(maximum, slot_at(division_.slot_of(parts, part)).maximum[query]);
      }
      const float finite = maximum == -INFINITY ? 0.0f : maximum;
      float* output = to.output + query * call_.width;
      std::fill_n(output, call_.width, 0.0f);
      float total = 0.0f;
      for (int64_t part = 0; part < parts.count; ++part) {
        const Result from = slot_at(division_.slot_of(parts, part));
        const float factor = std::exp(from.maximum[query] - finite);
        const float* sums = from.output + query * call_.width;
        for (int64_t i = 0; i < call_.width; ++i) output[i] += factor * sums[i];
        total += factor * from.total[query];
      }
      to.maximum[query] = maximum;
      to.total[query] = total;
    }
  }

  headrace_pool& pool_;
  const headrace_call& call_;
  Division& division_;
  const Kernel& kernel_;
  const HeadState state_;
  const int64_t slot_floats_;
  Shape shape_;
};

}  // namespace

bool is_allowed(const headrace_call& call) {
  return call.dtype >= HEADRACE_FLOAT32 && call.dtype <= HEADRACE_BFLOAT16 && call.rows >= 0 &&
         call.heads >= 1 && call.grouped >= 1 && call.width >= 1 && call.page_tokens >= 1 &&
         call.extents >= 0;
}

void attend(headrace_pool& pool, const headrace_call& call, Division& division, int64_t held) {
  const auto items = static_cast<int64_t>(division.items().size());
  pool.claims.open(items, held, pool.pool.threads());
  Attention(pool, call, division).run();
}

namespace {

// A read of memory from end to end, in pieces that the threads claim.
struct Read {
  uint64_t (*sum)(const char* data, size_t bytes);
  const char* data;
  int64_t bytes;
  std::atomic<int64_t> next{0};
  std::atomic<uint64_t> total{0};

  void work() {
    uint64_t mine = 0;
    while (true) {
      const int64_t at = next.fetch_add(kReadPiece, std::memory_order_relaxed);
      if (at >= bytes) break;
      mine += sum(data + at, static_cast<size_t>(std::min(kReadPiece, bytes - at)));
    }
    total += mine;
  }
};

std::string names_of_variants() {
  std::string names;
  for (auto variant = all_variants(); *variant; ++variant) {
    if (!(*variant)->runs()) continue;
    if (!names.empty()) names += ",";
    names += (*variant)->name;
  }
  return names;
}

}  // namespace
}  // namespace headrace

extern "C" {

int headrace_abi(void) { return HEADRACE_NATIVE_ABI; }

const char* headrace_source_hash(void) { return HEADRACE_SOURCE_HASH; }

const char* headrace_variants(void) {
  static const std::string names = names_of_variants();
  return names.c_str();
}

headrace_pool* headrace_pool_create(int threads, const char* variant) {
  const Variant* chosen = find_variant(variant);
  if (!chosen || threads < 1) return nullptr;
  try {
    return new headrace_pool(threads, *chosen);
  } catch (const std::exception&) {
    return nullptr;
  }
}

headrace_pool* headrace_pool_of_team(int threads, const char* variant, headrace_team team) {
  const Variant* chosen = find_variant(variant);
  if (!chosen || threads < 1 || !team) return nullptr;
  try {
    return new headrace_pool(threads, *chosen, team);
  } catch (const std::exception&) {
    return nullptr;
  }
}

void headrace_pool_destroy(headrace_pool* pool) {
  // Another process's threads cannot be ended here; the memory goes with this process.
  if (!pool || pool->pool.is_forked()) return;
  {
    std::lock_guard<std::mutex> turn(pool->turn);  // after a call that is under way
  }
  delete pool;
}

int headrace_attend(headrace_pool* pool, const headrace_call* call) {
  if (!pool || !call || !is_allowed(*call)) return HEADRACE_BAD_CALL;
  try {
    std::lock_guard<std::mutex> turn(pool->turn);
    pool->division.divide(*call, pool->pool.threads());
    attend(*pool, *call, pool->division, 0);
    return HEADRACE_OK;
  } catch (const std::exception&) {
    return HEADRACE_NO_MEMORY;
  }
}

uint64_t headrace_stream_read(headrace_pool* pool, const void* data, int64_t bytes) {
  std::lock_guard<std::mutex> turn(pool->turn);
  Read read;
  read.sum = pool->variant.sum;
  read.data = static_cast<const char*>(data);
  read.bytes = bytes;
  pool->pool.run([](void* self, int) { static_cast<Read*>(self)->work(); }, &read,
                 divided_up(bytes, kReadPiece));
  return read.total;
}

}  // extern "C"
