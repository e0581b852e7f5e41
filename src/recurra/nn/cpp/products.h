// Matrix products: of a few rows with weights laid out once, as a step has them; and of whole matrices.
#pragma once

#include <algorithm>
#include <cstring>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr int64_t PANEL_BYTES = 16384;  // of packed weights that stay in the first-level cache for a group of rows

// sums[r] (+)= in[r] @ panel for ROWS rows: the sums stay in registers, which they do if this is a function by itself.
// A panel is [depth][VECTORS][WIDTH]; sums are [rows][VECTORS][WIDTH]. Element k of a row is DEEPER * k numbers on.
// What comes after the panel, at `next`, is fetched meanwhile.
template <class real, int VECTORS, int ROWS, int DEEPER = 1>
__attribute__((noinline)) void tile(const real* in, int64_t in_stride, const real* panel, int64_t depth, real* sums,
                                    bool add, const real* next = nullptr) {
    constexpr int W = WIDTH<real>;
    Vector<real> total[ROWS][VECTORS];
#pragma GCC unroll 24
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v)
            total[r][v] = add ? load(sums + (r * VECTORS + v) * W) : Vector<real>{};
    for (int64_t k = 0; k < depth; ++k) {
        Vector<real> weights[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) weights[v] = load(panel + (k * VECTORS + v) * W);
        if constexpr (DEEPER == 1 && ROWS > 1)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS * VECTOR_BYTES; v += 64)
                __builtin_prefetch(reinterpret_cast<const char*>(next + k * VECTORS * W) + v, 0, 3);
#pragma GCC unroll 24
        for (int r = 0; r < ROWS; ++r) {
            real x = in[r * in_stride + k * DEEPER];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) total[r][v] += weights[v] * x;
        }
    }
#pragma GCC unroll 24
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) store(sums + (r * VECTORS + v) * W, total[r][v]);
}

template <class real, int VECTORS, int ROWS = ACCUMULATORS / VECTORS>
void tile_of(int64_t rows, const real* in, int64_t in_stride, const real* panel, int64_t depth, real* sums, bool add,
             const real* next) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            tile<real, VECTORS, ROWS>(in, in_stride, panel, depth, sums, add, next);
        else
            tile_of<real, VECTORS, ROWS - 1>(rows, in, in_stride, panel, depth, sums, add, next);
    }
}

// sums = in @ panel, in parts of the depth whose weights stay in the cache, in groups of rows of like size.
template <class real, int VECTORS>
void product(int64_t rows, const real* in, int64_t in_stride, const real* panel, int64_t depth, real* sums) {
    constexpr int64_t most = ACCUMULATORS / VECTORS, line = VECTORS * WIDTH<real>;
    constexpr int64_t part = PANEL_BYTES / (line * int64_t(sizeof(real)));
    int64_t tiles = (rows + most - 1) / most;
    for (int64_t k = 0; k < depth; k += part)
        for (int64_t i = 0; i < tiles; ++i) {
            int64_t first = rows * i / tiles, last = rows * (i + 1) / tiles;
            tile_of<real, VECTORS>(last - first, in + first * in_stride + k, in_stride, panel + k * line,
                                   std::min(part, depth - k), sums + first * line, k > 0, panel + (k + part) * line);
        }
}

// A panel of weights for `units` outputs, as `tile` reads it: element [k][v][lane] is that of output v * apart + lane,
// or with `apart` 0 that of the neighbour v * WIDTH + lane. `next` is the distance in memory between outputs, `deeper`
// that between the numbers that one output sums over.
template <class real, int VECTORS>
void pack(const real* weights, int64_t next, int64_t deeper, int64_t depth, int64_t apart, int64_t units, real* panel) {
    constexpr int W = WIDTH<real>;
    if (next == 1 && !apart && units == VECTORS * W) {
        for (int64_t k = 0; k < depth; ++k) std::memcpy(panel + k * units, weights + k * deeper, units * sizeof(real));
        return;
    }
    for (int64_t start = 0; start < depth; start += W) {  // by squares: both sides then stay in the cache
        int64_t end = std::min<int64_t>(depth, start + W);
        for (int v = 0; v < VECTORS; ++v)
            for (int64_t k = start; k < end; ++k)
                for (int64_t lane = 0; lane < W; ++lane) {
                    int64_t unit = apart ? lane : v * W + lane;
                    int64_t at = apart ? v * apart + lane : unit;
                    panel[(k * VECTORS + v) * W + lane] = unit < units ? weights[at * next + k * deeper] : real(0);
                }
    }
}

// ---- products of whole matrices ------------------------------------------------------------------------------------

// out (+)= a @ b, after K. Goto and R. van de Geijn, "Anatomy of high-performance matrix multiplication", 2008.
struct Product {
    int64_t rows, columns, depth;             // out is [rows, columns]
    int64_t a_row, a_deeper, b_row, out_row;  // strides, in numbers: `a` may be transposed, all may be parts of others
    int64_t add, threads;                     // add to what `out` holds
    const float *a, *b;
    float* out;
};

constexpr int64_t DEPTH = 256;           // numbers summed before the sums go back to memory
constexpr int OUTER = ACCUMULATORS / 2;  // rows of a tile: it has two vectors of sums a row
constexpr int64_t TILES = 20;            // whose rows stay in the second-level cache
constexpr int64_t PANELS = 32;           // of two vectors of columns, which all threads share

// OUTER rows of `a` as `tile` reads them: [depth][OUTER].
void pack_rows(const Product& p, int64_t row, int64_t k, int64_t depth, float* to) {
    const float* from = p.a + row * p.a_row + k * p.a_deeper;
    const int64_t rows = std::min<int64_t>(OUTER, p.rows - row);
    if (rows < OUTER) {
        for (int64_t i = 0; i < depth; ++i)
            for (int64_t r = 0; r < OUTER; ++r) to[i * OUTER + r] = r < rows ? from[r * p.a_row + i * p.a_deeper] : 0;
    } else if (p.a_row == 1) {
        for (int64_t i = 0; i < depth; ++i) std::memcpy(to + i * OUTER, from + i * p.a_deeper, OUTER * sizeof(float));
    } else {
        for (int64_t i = 0; i < depth; ++i)
#pragma GCC unroll 12
            for (int64_t r = 0; r < OUTER; ++r) to[i * OUTER + r] = from[r * p.a_row + i * p.a_deeper];
    }
}

// Two vectors of columns of `b`: [depth][2][WIDTH].
void pack_columns(const Product& p, int64_t column, int64_t k, int64_t depth, float* to) {
    constexpr int64_t W = WIDTH<float>;
    for (int64_t i = 0; i < depth; ++i)
        for (int64_t v = 0; v < 2; ++v) {
            const int64_t from = column + v * W, width = std::clamp<int64_t>(p.columns - from, 0, W);
            store(to + (i * 2 + v) * W, load(p.b + (k + i) * p.b_row + from, width));
        }
}

void product_of_tile(const Product& p, int64_t row, int64_t column, int64_t k, int64_t depth, const float* rows,
                     const float* columns) {
    constexpr int64_t W = WIDTH<float>;
    alignas(64) float sums[OUTER * 2 * W];
    tile<float, 2, OUTER, OUTER>(rows, 1, columns, depth, sums, false);
    for (int64_t r = 0; r < std::min<int64_t>(OUTER, p.rows - row); ++r)
        for (int64_t v = 0; v < 2 && column + v * W < p.columns; ++v) {
            const int64_t width = std::min(W, p.columns - column - v * W);
            float* to = p.out + (row + r) * p.out_row + column + v * W;
            Vector<float> value = load(sums + (r * 2 + v) * W);
            store(to, k || p.add ? load(to, width) + value : value, width);
        }
}

void product(const Product& p) {
    constexpr int64_t line = 2 * WIDTH<float>;
    const int64_t tiles = divide_up(p.rows, OUTER), threads = std::min(p.threads, tiles);
    const std::size_t own_bytes = Workspace::bytes_of<float>(TILES * OUTER * DEPTH);
    workspace.begin(Workspace::bytes_of<float>(PANELS * DEPTH * line) + threads * own_bytes);
    float* panels = workspace.take<float>(PANELS * DEPTH * line);
    float* all_rows = workspace.take<float>(threads * TILES * OUTER * DEPTH);
    in_parallel(threads, [&](int64_t thread, int64_t of) {
        const Share own(tiles, thread, of);
        float* rows = all_rows + thread * TILES * OUTER * DEPTH;
        for (int64_t start = 0; start < p.columns; start += PANELS * line)
            for (int64_t k = 0; k < p.depth; k += DEPTH) {
                const int64_t depth = std::min(DEPTH, p.depth - k);
                const int64_t count = std::min(PANELS, divide_up(p.columns - start, line));
                const Share packed(count, thread, of);
                for (int64_t b = packed.begin; b < packed.end; ++b)
                    pack_columns(p, start + b * line, k, depth, panels + b * DEPTH * line);
                meet();
                for (int64_t first = own.begin; first < own.end; first += TILES) {
                    const int64_t last = std::min(own.end, first + TILES);
                    for (int64_t i = first; i < last; ++i)
                        pack_rows(p, i * OUTER, k, depth, rows + (i - first) * OUTER * DEPTH);
                    for (int64_t b = 0; b < count; ++b)
                        for (int64_t i = first; i < last; ++i)
                            product_of_tile(p, i * OUTER, start + b * line, k, depth,
                                            rows + (i - first) * OUTER * DEPTH, panels + b * DEPTH * line);
                }
                meet();
            }
    });
}

}  // namespace
