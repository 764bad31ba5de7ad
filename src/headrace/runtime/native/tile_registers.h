// The tiles of AMX, as attention to bfloat16 uses them. Needs AMX with BF16, and AVX-512.
//
// A product of tiles adds to a tile of sums, [rows, columns] of float, the products of [rows,
// pairs] and [pairs, columns], where a pair is two bfloat16 side by side. A tile has 16 rows of 64
// bytes at most. With Q queries of a group, 1 to 16, and R rows of their weights:
//
//   tile  holds                              rows  bytes of a row
//   0, 1  scores of 16 tokens                  16  4 Q
//   2     queries, by pairs of their elements  16  4 Q
//   3     keys or values of 16 tokens          16  64
//   4, 5  weights of 16 tokens                  R  64
//   6, 7  weighted sums of values               R  64

#ifndef HEADRACE_TILE_REGISTERS_H
#define HEADRACE_TILE_REGISTERS_H

#include "vectors_avx512.h"

namespace headrace {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileRowBytes = 64;

// What the processor is told of its tiles, in its own order.
struct TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t unused[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64, "as the processor reads it");

// Compilers do not all know that loading a tile reads memory. What was stored to a place before
// this is there after it.
HEADRACE_INLINE void finish_stores(const void* place) {
  asm volatile("" ::"r"(place) : "memory");
}

// Sets up this thread's tiles. They are empty then, and must be released: other code of the thread
// may have its own shapes, and a switch between threads saves what is in use.
inline void set_up_tiles(int queries, int weight_rows) {
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile) {
    shapes.row_bytes[tile] = static_cast<uint16_t>(tile < 3 ? 4 * queries : kTileRowBytes);
    shapes.rows[tile] = static_cast<uint8_t>(tile < 4 ? kTileRows : weight_rows);
  }
  finish_stores(&shapes);
  _tile_loadconfig(&shapes);
}

// Where the keys, or values, of 16 tokens of a block lie.
class TileRows {
 public:
  TileRows() = default;
  // `run` is where the block's first run begins. Unless a block is one run of whole tiles, its rows
  // must have been found.
  HEADRACE_INLINE TileRows(const TokenBlock& block, const char* run, const char* const* rows,
                           int token, int64_t row_bytes)
      : first_(run + token * row_bytes), rows_(nullptr), row_bytes_(row_bytes) {
    if (block.run_count > 1 || token + kTileRows > block.count) {
      first_ = rows[token];
      if (!are_even(rows + token)) rows_ = rows + token;
    }
  }

  // Loads 64 bytes of each row into tile 3.
  HEADRACE_INLINE void load(int64_t at) const {
    if (!rows_) {
      _tile_loadd(3, first_ + at, row_bytes_);
    } else {
      load_apart(at);
    }
  }

 private:
  bool are_even(const char* const* rows) const {
    bool even = true;
    for (int row = 0; row < kTileRows; ++row) even &= rows[row] == first_ + row * row_bytes_;
    return even;
  }

  __attribute__((noinline)) void load_apart(int64_t at) const {
    alignas(64) char copy[kTileRows * kTileRowBytes];
    for (int row = 0; row < kTileRows; ++row) {
      memcpy(copy + row * kTileRowBytes, rows_[row] + at, kTileRowBytes);
    }
    finish_stores(copy);
    _tile_loadd(3, copy, kTileRowBytes);
  }

  const char* first_;
  const char* const* rows_;  // where they are not a row's bytes apart
  int64_t row_bytes_;
};

}  // namespace
}  // namespace headrace

#endif
