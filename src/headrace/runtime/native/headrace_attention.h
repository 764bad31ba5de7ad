// Exact attention by the CPU over keys and values that lie in host memory: the C interface.
//
// A call attends grouped queries to tokens that are scattered over pages. It writes partial
// attention (output not normalised, maximum, total), which is merged exactly with attention to
// other tokens by log-sum-exp.

#ifndef HEADRACE_ATTENTION_H
#define HEADRACE_ATTENTION_H

#include <stdint.h>

#define HEADRACE_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// Rises when anything below changes its meaning.
#define HEADRACE_NATIVE_ABI 2

enum headrace_dtype { HEADRACE_FLOAT32 = 0, HEADRACE_FLOAT16 = 1, HEADRACE_BFLOAT16 = 2 };

enum headrace_status {
  HEADRACE_OK = 0,
  HEADRACE_BAD_CALL = 1,  // a size or the dtype is not allowed
  HEADRACE_NO_MEMORY = 2,
  HEADRACE_NO_SIGNAL = 3,  // the device did not say that the queries are there
  HEADRACE_GIVEN_UP = 4    // the lane was ending, or an earlier call of it had failed
};

// Threads that live as long as the pool, and their buffers.
typedef struct headrace_pool headrace_pool;

// All memory is the caller's. It is read, and written, during the call only.
typedef struct headrace_call {
  const void* query;  // [rows, heads, grouped, width], of the dtype
  float* output;      // [rows, heads, grouped, width]: sum of exp(score - maximum) * value
  float* maximum;     // [rows, heads, grouped]: largest score, -inf where no token is seen
  float* total;       // [rows, heads, grouped]: sum of exp(score - maximum)

  // Pages lie in extents, each [pages, heads, page_tokens, width]; page p is in the extent x with
  // extent_first[x] <= p < extent_first[x + 1].
  const void* const* key_extents;    // [extents]
  const void* const* value_extents;  // [extents]
  const int64_t* extent_first;       // [extents + 1]

  // An entry is a page as one row sees it. Entries are sorted by row.
  const int64_t* row_entry;    // [rows + 1]: first entry of each row
  const int64_t* entry_page;   // [entries]
  const int64_t* entry_token;  // [entries + 1]: tokens in all entries before this one
  const int64_t* entry_mask;   // [entries]: word of mask_words where its mask begins, or -1 for
                               // none; NULL where no entry has a mask
  const uint64_t* mask_words;  // bit t % 64 of word t / 64 is set where the row sees token t

  int64_t extents;
  int64_t rows;
  int64_t heads;    // key/value heads
  int64_t grouped;  // queries per key/value head: query heads of its group times query tokens
  int64_t width;    // of a head
  int64_t page_tokens;
  float scale;
  float softcap;  // 0 for none
  int32_t dtype;  // of queries, keys and values
} headrace_call;

HEADRACE_API int headrace_abi(void);

// The hash that the library was compiled with, by which a loader knows whether it is up to date.
HEADRACE_API const char* headrace_source_hash(void);

// The variants that this machine runs, best first, separated by commas.
HEADRACE_API const char* headrace_variants(void);

// Returns NULL where the variant does not run here or the threads cannot be had. The caller of
// headrace_attend works too, so that the pool itself starts threads - 1.
HEADRACE_API headrace_pool* headrace_pool_create(int threads, const char* variant);

// Runs work(context) on so many threads at once, the caller's among them, or on fewer, and returns
// when all have returned. OpenMP's GOMP_parallel is one, with flags 0.
typedef void (*headrace_team)(void (*work)(void* context), void* context, unsigned threads,
                              unsigned flags);

// As headrace_pool_create, with a team's threads: those that the caller has at hand, and that are
// awake where it has just used them, instead of others that contend with them for the cores.
HEADRACE_API headrace_pool* headrace_pool_of_team(int threads, const char* variant,
                                                  headrace_team team);

// Ends the threads, after a call that is under way. No other may come.
HEADRACE_API void headrace_pool_destroy(headrace_pool* pool);

// Attends, and returns when everything is written. Safe from any thread; calls to one pool take
// turns. Returns a headrace_status.
HEADRACE_API int headrace_attend(headrace_pool* pool, const headrace_call* call);

// Reads memory from end to end with all threads, as fast as they can; returns a sum of it. This is
// the rate that attention is measured against.
HEADRACE_API uint64_t headrace_stream_read(headrace_pool* pool, const void* data, int64_t bytes);

// A thread of its own, which takes part in a pool's calls when the device says so.
typedef struct headrace_lane headrace_lane;

// A number in memory that the device reaches too. It never falls.
typedef struct headrace_word {
  int32_t* address;
  int32_t number;
} headrace_word;

// How a call of a lane ended; seconds of the monotonic clock.
typedef struct headrace_done {
  int32_t status;  // a headrace_status, written last; the caller sets it to another number before
  double start_s;
  double finish_s;
  double ahead_s;  // for how long keys and values were read before the start
} headrace_done;

// Returns NULL where the thread cannot be had.
HEADRACE_API headrace_lane* headrace_lane_create(headrace_pool* pool);

// Ends the thread once it has done what was pushed and the device has asked for. None may be pushed
// any more. The pool must still be there.
HEADRACE_API void headrace_lane_destroy(headrace_lane* lane);

// Attends, after all calls that were pushed before, as soon as `signal` is reached; then sets
// `done` and raises `flag`. The call's memory, and `done`, are the lane's until then. It looks at
// queries from the signal on; at entries and masks from the push on, and it may read keys and
// values, of which those count that are there at the signal. Returns a
// headrace_status: whether it was pushed.
HEADRACE_API int headrace_lane_push(headrace_lane* lane, const headrace_call* call,
                                    const headrace_word* signal, const headrace_word* flag,
                                    headrace_done* done);

#ifdef __cplusplus
}
#endif

#endif
