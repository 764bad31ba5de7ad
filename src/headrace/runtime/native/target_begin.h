// Switches on instructions for all functions that follow in a file:
//   #define HEADRACE_TARGET "avx2,fma"
//   #include "target_begin.h"
// Standard headers must have been included before: their functions are shared with other files.

#define HEADRACE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define HEADRACE_TARGET_PRAGMA(features) \
  HEADRACE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#else
#define HEADRACE_TARGET_PRAGMA(features) HEADRACE_PRAGMA(GCC target(features))
#endif
HEADRACE_TARGET_PRAGMA(HEADRACE_TARGET)
