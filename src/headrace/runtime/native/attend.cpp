// Divides a call into items, has the pool attend to them, and merges what belongs together.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "headrace_attention.h"
#include "pool.h"
#include "stream.h"
#include "variants.h"

#ifndef HEADRACE_SOURCE_HASH
#define HEADRACE_SOURCE_HASH ""
#endif

namespace headrace {
namespace {

// How large items are, in tokens times heads. Few items a thread leave cores idle at the end; short
// items repeat what an item costs besides its tokens.
constexpr int64_t kItemsPerThread = 32;
constexpr int64_t kFewItemsPerThread = 4;
constexpr int64_t kUsualItem = 512;
constexpr int64_t kFewestTokens = 2 * kBlock;

// Queries and sums of an item's heads stay in a core's second cache.
constexpr int64_t kItemStateBytes = 1 << 16;

constexpr int64_t kReadPiece = 1 << 20;
constexpr int64_t kAlignment = 64;

constexpr int64_t kElementBytes[] = {4, 2, 2};  // by headrace_dtype

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t rounded_up(int64_t a, int64_t b) { return divided_up(a, b) * b; }

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
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory_;
  int64_t bytes_ = 0;
};

}  // namespace

// Where the partial results of one row and head are; a row's slots are by part, then head.
struct Parts {
  int64_t first_slot;
  int64_t count;
  std::atomic<int64_t> missing;
};

}  // namespace headrace

using namespace headrace;

struct headrace_pool {
  headrace_pool(int threads, const Variant& chosen)
      : variant(chosen), pool(threads), scratch(static_cast<size_t>(threads)) {}
  headrace_pool(int threads, const Variant& chosen, headrace_team team)
      : variant(chosen), pool(threads, team), scratch(static_cast<size_t>(threads)) {}

  const Variant& variant;
  Pool pool;
  std::mutex turn;
  std::vector<Buffer> scratch;  // by thread
  Buffer slots;
  Buffer zeros;
  std::vector<Item> items;
  std::unique_ptr<Parts[]> parts;  // by row and head
  int64_t parts_size = 0;
};

namespace headrace {
namespace {

// One call, from its division to its merge.
class Attention {
 public:
  Attention(headrace_pool& pool, const headrace_call& call)
      : pool_(pool),
        call_(call),
        kernel_(pool.variant.kernels[call.dtype]),
        slot_floats_(call.grouped * (call.width + 2)) {
    job_.call = &call;
    job_.shape = {call.grouped, call.width, call.width * kElementBytes[call.dtype], call.scale,
                  call.softcap, nullptr};
  }

  void run() {
    divide();
    prepare_buffers();
    if (pool_.items.empty()) return;
    pool_.pool.run([](void* self, int thread) { static_cast<Attention*>(self)->work(thread); },
                   this, job_.item_count);
  }

 private:
  int64_t tokens_of(int64_t row) const {
    return call_.entry_token[call_.row_entry[row + 1]] - call_.entry_token[call_.row_entry[row]];
  }

  // Decides how many heads and tokens an item has: the same for all rows, so that rows which share
  // pages share items' bounds.
  void choose_item() {
    const int64_t* token = call_.entry_token;
    const int64_t tokens = token[call_.row_entry[call_.rows]] - token[call_.row_entry[0]];
    const int64_t threads = pool_.pool.threads();
    const int64_t work = tokens * call_.heads;
    const int64_t wanted = std::max(kUsualItem, work / (threads * kItemsPerThread));
    const int64_t most_heads = std::max<int64_t>(1, kItemStateBytes / head_state_bytes());
    item_heads_ = std::min(call_.heads, most_heads);
    item_tokens_ = std::max(kGroupTokens, rounded_up(wanted / item_heads_, kGroupTokens));
    item_heads_ = std::min(item_heads_, std::max<int64_t>(1, wanted / item_tokens_));
    const int64_t few = threads * kFewItemsPerThread;
    if (work < few * item_tokens_ * item_heads_) item_heads_ = 1;
    if (work < few * item_tokens_) item_tokens_ = kFewestTokens;
  }

  // Lists the items. Those of the same tokens and heads come together over all rows, so that a page
  // that several rows share is likely still in a cache when the next one reads it.
  void divide() {
    choose_item();
    fit_parts();
    slots_ = 0;
    int64_t most = 0;
    for (int64_t row = 0; row < call_.rows; ++row) {
      const int64_t count = divided_up(tokens_of(row), item_tokens_);
      most = std::max(most, count);
      for (int64_t head = 0; head < call_.heads; ++head) {
        Parts& parts = pool_.parts[row * call_.heads + head];
        parts.first_slot = slots_ + head;
        parts.count = count;
        parts.missing = count;
        if (count == 0) clear(row * call_.heads + head);
      }
      if (count > 1) slots_ += count * call_.heads;
    }
    pool_.items.clear();
    for (int64_t piece = 0; piece < most; ++piece) {
      for (int64_t head = 0; head < call_.heads; head += item_heads_) {
        for (int64_t row = 0; row < call_.rows; ++row) add_item(row, head, piece);
      }
    }
    job_.items = pool_.items.data();
    job_.item_count = static_cast<int64_t>(pool_.items.size());
  }

  void add_item(int64_t row, int64_t head, int64_t piece) {
    const Parts& parts = pool_.parts[row * call_.heads + head];
    if (piece >= parts.count) return;
    const int64_t first = piece * item_tokens_;
    pool_.items.push_back({row, head, std::min(item_heads_, call_.heads - head), first,
                           std::min(item_tokens_, tokens_of(row) - first),
                           parts.count > 1 ? slot_of(parts, piece) : -1});
  }

  int64_t slot_of(const Parts& parts, int64_t piece) const {
    return parts.first_slot + piece * call_.heads;
  }

  void fit_parts() {
    const int64_t needed = call_.rows * call_.heads;
    if (needed > pool_.parts_size) {
      pool_.parts_size = 0;
      pool_.parts.reset(new Parts[static_cast<size_t>(needed)]);
      pool_.parts_size = needed;
    }
  }

  void prepare_buffers() {
    pool_.slots.fit(slots_ * slot_floats_ * 4);
    char* zeros = pool_.zeros.fit(job_.shape.row_bytes);
    std::memset(zeros, 0, static_cast<size_t>(job_.shape.row_bytes));
    job_.shape.zeros = zeros;
    for (Buffer& buffer : pool_.scratch) buffer.fit(scratch_bytes());
  }

  int64_t padded_row_bytes() const { return rounded_up(call_.width, 32) * 4; }
  int64_t padded_queries_bytes() const { return rounded_up(call_.grouped, 16) * 4; }
  int64_t head_state_bytes() const {
    return 2 * call_.grouped * padded_row_bytes() + 3 * padded_queries_bytes();
  }
  int64_t scores_bytes() const { return padded_queries_bytes() * (kBlock + 1); }
  int64_t scratch_bytes() const { return scores_bytes() + item_heads_ * head_state_bytes(); }

  Scratch scratch_of(char* memory, int64_t head) const {
    char* place = memory + scores_bytes() + head * head_state_bytes();
    auto take = [&place](int64_t bytes) {
      char* taken = place;
      place += bytes;
      return reinterpret_cast<float*>(taken);
    };
    Scratch scratch;
    scratch.scores = reinterpret_cast<float*>(memory);
    scratch.query = take(call_.grouped * padded_row_bytes());
    scratch.sums = take(call_.grouped * padded_row_bytes());
    scratch.maximum = take(padded_queries_bytes());
    scratch.total = take(padded_queries_bytes());
    scratch.factor = take(padded_queries_bytes());
    return scratch;
  }

  void work(int thread) {
    char* memory = pool_.scratch[static_cast<size_t>(thread)].fit(scratch_bytes());
    if (kernel_.begin) kernel_.begin(job_.shape);
    BlockStream stream(job_);
    TokenBlock blocks[2];
    int now = 0;
    bool more = stream.next(blocks[now]);
    while (more) {
      TokenBlock& block = blocks[now];
      now = 1 - now;
      more = stream.next(blocks[now]);
      const Scratch scratch = scratch_of(memory, block.head);
      kernel_.attend(job_.shape, scratch, block, more ? &blocks[now] : nullptr);
      if (block.last) finish(scratch, block);
    }
    if (kernel_.end) kernel_.end(job_.shape);
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
    kernel_.finish(job_.shape, scratch, to.output, to.maximum, to.total);
    Parts& parts = pool_.parts[row_head];
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
        maximum = std::max(maximum, slot_at(slot_of(parts, part)).maximum[query]);
      }
      const float finite = maximum == -INFINITY ? 0.0f : maximum;
      float* output = to.output + query * call_.width;
      std::fill_n(output, call_.width, 0.0f);
      float total = 0.0f;
      for (int64_t part = 0; part < parts.count; ++part) {
        const Result from = slot_at(slot_of(parts, part));
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
  const Kernel& kernel_;
  const int64_t slot_floats_;
  int64_t item_heads_ = 1;
  int64_t item_tokens_ = 0;
  int64_t slots_ = 0;
  Job job_;
};

bool is_allowed(const headrace_call& call) {
  return call.dtype >= HEADRACE_FLOAT32 && call.dtype <= HEADRACE_BFLOAT16 && call.rows >= 0 &&
         call.heads >= 1 && call.grouped >= 1 && call.width >= 1 && call.page_tokens >= 1 &&
         call.extents >= 0;
}

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
    Attention(*pool, *call).run();
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
