#include "processor.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace headrace {

#if defined(__x86_64__)

// The processor itself is asked: compilers differ in which features they know by name, and clang
// outside of a whole toolchain knows none.

static bool all_set(uint64_t bits, uint64_t wanted) { return (bits & wanted) == wanted; }

static constexpr uint64_t bit(int number) { return uint64_t{1} << number; }

// Which registers the operating system saves.
static uint64_t saved_registers() {
  uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

bool has_avx2() {
  constexpr uint64_t kFma = bit(12), kOsSaves = bit(27), kAvx = bit(28), kF16c = bit(29);
  constexpr uint64_t kAvx2 = bit(5), kVectors = bit(1) | bit(2);
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !all_set(c, kFma | kOsSaves | kAvx | kF16c)) return false;
  if (!all_set(saved_registers(), kVectors)) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && all_set(b, kAvx2);
}

bool has_avx512() {
  constexpr uint64_t kF = bit(16), kDq = bit(17), kBw = bit(30), kVl = bit(31);
  constexpr uint64_t kWideVectors = bit(5) | bit(6) | bit(7);
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && all_set(saved_registers(), kWideVectors) &&
         __get_cpuid_count(7, 0, &a, &b, &c, &d) && all_set(b, kF | kDq | kBw | kVl);
}

bool has_avx512_bf16() {
  constexpr uint64_t kBf16 = bit(5);
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && all_set(a, kBf16);
}

// The system saves the registers of AMX for those processes only that have asked for them.
static bool is_granted_tiles() {
#if defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

bool has_amx_bf16() {
  constexpr uint64_t kBf16 = bit(22), kTile = bit(24), kTileRegisters = bit(17) | bit(18);
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512_bf16() && all_set(saved_registers(), kTileRegisters) &&
         __get_cpuid_count(7, 0, &a, &b, &c, &d) && all_set(d, kBf16 | kTile) && is_granted_tiles();
}

#else

bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
bool has_amx_bf16() { return false; }

#endif

}  // namespace headrace
