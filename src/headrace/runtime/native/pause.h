// What a thread does between two looks at memory that another one will change.

#ifndef HEADRACE_PAUSE_H
#define HEADRACE_PAUSE_H

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace headrace {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

}  // namespace headrace

#endif
