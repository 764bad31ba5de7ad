// A number in memory that the device reaches too.

#ifndef HEADRACE_WORD_H
#define HEADRACE_WORD_H

#include "headrace_attention.h"

namespace headrace {

inline bool is_reached(const headrace_word& word) {
  return __atomic_load_n(word.address, __ATOMIC_ACQUIRE) >= word.number;
}

}  // namespace headrace

#endif
