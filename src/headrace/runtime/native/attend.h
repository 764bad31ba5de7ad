// What a call and a lane share: the threads with their memory, and the way from items to a result.

#ifndef HEADRACE_ATTEND_H
#define HEADRACE_ATTEND_H

#include <mutex>
#include <vector>

#include "buffer.h"
#include "claims.h"
#include "division.h"
#include "headrace_attention.h"
#include "pool.h"
#include "stream.h"
#include "variants.h"

struct headrace_pool {
  headrace_pool(int threads, const headrace::Variant& chosen)
      : variant(chosen), pool(threads), scratch(static_cast<size_t>(threads)) {}
  headrace_pool(int threads, const headrace::Variant& chosen, headrace_team team)
      : variant(chosen), pool(threads, team), scratch(static_cast<size_t>(threads)) {}

  const headrace::Variant& variant;
  headrace::Pool pool;
  std::mutex turn;  // whoever has it uses the threads, and what follows
  std::vector<headrace::Buffer> scratch;  // by thread
  headrace::Buffer slots;
  headrace::Buffer zeros;
  headrace::Division division;  // of a call that is divided when it is made
  headrace::Claims claims;
};

namespace headrace {

bool is_allowed(const headrace_call& call);

// Attends to a call as it was divided, of whose items the threads hold the first (see Claims). The
// caller has the pool's turn.
void attend(headrace_pool& pool, const headrace_call& call, Division& division, int64_t held);

}  // namespace headrace

#endif
