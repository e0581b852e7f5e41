// The loops over time of RNN, LSTM and GRU, forward and backward; products of matrices; one step of a stack; for CPUs.
//
// What can be done for all steps at once is done outside, as matrix products: see kernels.py. What is left in a loop is
// the product with the hidden-to-hidden weights and the gates. Here the weights are laid out once for a whole sequence
// (pack), and the threads share a step by sequences or by units (Sharing). No sum is split between threads, so no result
// depends on how many there are.
//
// Rows are packed sequences: the rows of step t are the batch_sizes[t] sequences still running, long ones first.
// Letters as in recurrent.py: H is hidden (H_cell), O the width of h (H, or the projection's), G the number of gates.
//
// Compiled for the machine at hand by native.py. GCC's vector types, which Clang has too, make it one source for all.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif
#ifdef __AVX__
#include <immintrin.h>
#endif

namespace {

using std::int64_t;

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, ACCUMULATORS = 24;  // of 32 registers
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, ACCUMULATORS = 12;  // of 16
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, ACCUMULATORS = 24;  // of 32
#else
constexpr int VECTOR_BYTES = 16, ACCUMULATORS = 12;  // of 16
#endif
constexpr int64_t PANEL_BYTES = 16384;  // of packed weights that stay in the first-level cache for a group of rows
constexpr int64_t GROUP = 48;           // rows whose sums are made before their gates

// ---- vectors -------------------------------------------------------------------------------------------------------

template <class real>
struct Types;
template <>
struct Types<float> {
    typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef std::int32_t Integers __attribute__((vector_size(VECTOR_BYTES)));
};
template <>
struct Types<double> {
    typedef double Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef std::int64_t Integers __attribute__((vector_size(VECTOR_BYTES)));
};
template <class real>
using Vector = typename Types<real>::Vector;
template <class real>
constexpr int WIDTH = VECTOR_BYTES / sizeof(real);

// The first `width` numbers of a vector, as the instructions below want it said.
template <class real>
inline auto mask(int width) {
#ifdef __AVX512F__
    return (1u << width) - 1;
#else
    typename Types<real>::Integers lanes;
    for (int i = 0; i < WIDTH<real>; ++i) lanes[i] = i;
    return lanes < width;
#endif
}

// The first `width` numbers at an address; 0 beyond them.
template <class real>
inline Vector<real> load(const real* from, int64_t width = WIDTH<real>) {
    Vector<real> value;
    if (width == WIDTH<real>) {
        std::memcpy(&value, from, sizeof value);
        return value;
    }
#if defined(__AVX512F__)
    if constexpr (sizeof(real) == 4) return (Vector<real>)_mm512_maskz_loadu_ps(mask<real>(width), from);
    if constexpr (sizeof(real) == 8) return (Vector<real>)_mm512_maskz_loadu_pd(mask<real>(width), from);
#elif defined(__AVX__)
    if constexpr (sizeof(real) == 4) return (Vector<real>)_mm256_maskload_ps(from, (__m256i)mask<real>(width));
    if constexpr (sizeof(real) == 8) return (Vector<real>)_mm256_maskload_pd(from, (__m256i)mask<real>(width));
#endif
    real lanes[WIDTH<real>] = {};
    for (int64_t i = 0; i < width; ++i) lanes[i] = from[i];
    std::memcpy(&value, lanes, sizeof value);
    return value;
}

template <class real>
inline void store(real* to, Vector<real> value, int64_t width = WIDTH<real>) {
    if (width == WIDTH<real>) {
        std::memcpy(to, &value, sizeof value);
        return;
    }
#if defined(__AVX512F__)
    if constexpr (sizeof(real) == 4) return _mm512_mask_storeu_ps(to, mask<real>(width), (__m512)value);
    if constexpr (sizeof(real) == 8) return _mm512_mask_storeu_pd(to, mask<real>(width), (__m512d)value);
#elif defined(__AVX__)
    if constexpr (sizeof(real) == 4) return _mm256_maskstore_ps(to, (__m256i)mask<real>(width), (__m256)value);
    if constexpr (sizeof(real) == 8) return _mm256_maskstore_pd(to, (__m256i)mask<real>(width), (__m256d)value);
#endif
    real lanes[WIDTH<real>];
    std::memcpy(lanes, &value, sizeof value);
    for (int64_t i = 0; i < width; ++i) to[i] = lanes[i];
}

template <class real>
inline real sum(Vector<real> value) {
#ifdef __AVX512F__
    if constexpr (sizeof(real) == 4) return _mm512_reduce_add_ps((__m512)value);
#endif
    real lanes[WIDTH<real>];
    std::memcpy(lanes, &value, sizeof value);
    for (int half = WIDTH<real> / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

// exp(x) = 2^n exp(r), |r| <= ln(2)/2, by Taylor's series; n comes from rounding in the last bits of a large number.
template <class real>
inline Vector<real> exp(Vector<real> x) {
    constexpr bool single = sizeof(real) == 4;
    constexpr int mantissa = single ? 23 : 52, terms = single ? 7 : 13;
    constexpr real low = single ? -87 : -708, high = single ? 88 : 709;
    constexpr real magic = real(1.5) * real(int64_t(1) << mantissa);
    // ln(2) in two parts, the first of few digits: its product with n is exact.
    constexpr real ln2_high = single ? real(0.693359375) : real(0.6931471803691238);
    constexpr real ln2_low = single ? real(-2.12194440e-4) : real(1.9082149292705877e-10);
    using Integers = typename Types<real>::Integers;
    Vector<real> within = x < low ? Vector<real>{} + low : x;  // not a number stays what it is
    within = within > high ? Vector<real>{} + high : within;
    Vector<real> shifted = within * real(1.4426950408889634) + magic;
    Vector<real> n = shifted - magic;
    Vector<real> r = within - n * ln2_high - n * ln2_low;
    constexpr double factorials[] = {1,     1,      2,       6,        24,        120,        720,
                                     5040., 40320., 362880., 3628800., 39916800., 479001600., 6227020800.};
    Vector<real> series = Vector<real>{} + real(1 / factorials[terms]);
#pragma GCC unroll 13
    for (int k = terms - 1; k >= 0; --k) series = series * r + real(1 / factorials[k]);
    Integers power = ((Integers)shifted << mantissa) + (Integers)(Vector<real>{} + 1);  // casts keep the bits
    return series * (Vector<real>)power;
}

// 1 / x, to the last bit or two: an estimate and a step of Newton's method take less time than a division.
inline Vector<float> inverse(Vector<float> x) {
#if defined(__AVX512F__)
    auto near = (Vector<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
    return near * (2 - x * near);
#elif defined(__AVX2__)
    auto near = (Vector<float>)_mm256_rcp_ps((__m256)x);
    return near * (2 - x * near);
#else
    return 1 / x;
#endif
}
inline Vector<double> inverse(Vector<double> x) { return 1 / x; }

template <class real>
inline Vector<real> sigmoid(Vector<real> x) {
    return inverse(1 + exp<real>(-x));
}

template <class real>
inline Vector<real> tanh(Vector<real> x) {
    return 1 - 2 * inverse(1 + exp<real>(x + x));
}

// ---- products ------------------------------------------------------------------------------------------------------

// sums[r] (+)= in[r] @ panel for ROWS rows: the sums stay in registers, which they do if this is a function by itself.
// A panel is [depth][VECTORS][WIDTH]; sums are [rows][VECTORS][WIDTH]. Element k of a row is DEEPER * k numbers on.
template <class real, int VECTORS, int ROWS, int DEEPER = 1>
__attribute__((noinline)) void tile(const real* in, int64_t in_stride, const real* panel, int64_t depth, real* sums, bool add,
                                 const real* next = nullptr) {
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
void tile_of(int64_t rows, const real* in, int64_t in_stride, const real* panel, int64_t depth, real* sums, bool add, const real* next) {
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

// ---- a layer -------------------------------------------------------------------------------------------------------

enum Mode : int64_t { RNN_TANH, RNN_RELU, RNN_SIGMOID, LSTM, GRU, GRU_RESET_BEFORE };

// One direction of one layer over a batch, as native.py fills it in. R is the sum of batch_sizes, N the batch size.
template <class real>
struct Layer {
    int64_t mode, steps, batch, hidden, width, backwards, threads;
    const int64_t* batch_sizes;  // [steps]
    const real* weight_hh;       // [G * H, O]
    const real* bias_hh;         // [G * H] or null; only a GRU's candidate reads it, all else is in `gates`
    const real* weight_hr;       // [O, H] or null
    const real* first_hidden;    // [N, O]
    const real* first_cell;      // [N, H] or null
    real* gates;                 // [R, G * H]: what the inputs contribute; then the gates, after their nonlinearity
    real* cells;                 // [R, H], of an LSTM
    real* inner;                 // [R, H], in the middle of a step: see kernels.py
    real* output;                // [R, O]
    const real* grad_output;     // [R, O]
    real* grad_gates;            // [R, G * H]
    real* grad_inner;            // [R, H], of a GRU's `inner`
    real* grad_projected;        // [R, O], of h where it is projected
    real* grad_hidden;           // [N, O]: of the states at the end; then of those to begin with
    real* grad_cell;             // [N, H], likewise
};

// Memory for the weights as they are laid out, kept from call to call, in large pages where the system has them: in
// small ones, which lie anywhere, weights that would fit the second-level cache push each other out of it.
class Workspace {
    static constexpr std::size_t PAGE = std::size_t(1) << 21;
    char* memory = nullptr;
    std::size_t size = 0, used = 0;

public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    ~Workspace() { std::free(memory); }

    // Forget what was taken before, and have at least so many bytes.
    void begin(std::size_t bytes) {
        used = 0;
        if (bytes <= size) return;
        std::free(memory);
        size = (bytes + PAGE - 1) / PAGE * PAGE;
        memory = static_cast<char*>(std::aligned_alloc(PAGE, size));
#ifdef MADV_HUGEPAGE
        madvise(memory, size, MADV_HUGEPAGE);
#endif
    }
    template <class real>
    real* take(int64_t count) {
        real* taken = reinterpret_cast<real*>(memory + used);
        used += bytes_of<real>(count);
        return taken;
    }
    template <class real>
    static std::size_t bytes_of(int64_t count) {
        return (count * sizeof(real) + 63) / 64 * 64;
    }
};

thread_local Workspace workspace;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The numbers of a step that all threads read, twice: one half is read while the other is written. Rows are a little
// apart, since at distances of a power of two they would push each other out of the cache.
template <class real>
struct Shared {
    int64_t rows, stride;
    real* memory = nullptr;
    Shared(int64_t rows, int64_t width) : rows(rows), stride(divide_up(width, 16) * 16 + 16) {}
    int64_t size() const { return 2 * rows * stride; }
    real* row(int64_t step, int64_t n) const { return memory + (step % 2 * rows + n) * stride; }
};

// Where each step stands: its rows, and the step that came before it in the order of reading.
struct Place {
    int64_t rows, first, rows_before, first_before;
};

template <class real>
std::vector<Place> places(const Layer<real>& layer) {
    std::vector<Place> found(layer.steps);
    int64_t first = 0;
    for (int64_t t = 0; t < layer.steps; ++t) {
        found[t] = {layer.batch_sizes[t], first, 0, 0};
        first += layer.batch_sizes[t];
    }
    if (layer.backwards) std::reverse(found.begin(), found.end());
    for (int64_t t = 1; t < layer.steps; ++t) {
        found[t].rows_before = std::min(found[t].rows, found[t - 1].rows);
        found[t].first_before = found[t - 1].first;
    }
    return found;
}

// The share of `count` that a thread has.
struct Share {
    int64_t begin, end;
    Share(int64_t count, int64_t thread, int64_t threads)
        : begin(count * thread / threads), end(count * (thread + 1) / threads) {}
};

int64_t cache_size() {  // bytes of a core's own, second-level cache
#ifdef _SC_LEVEL2_CACHE_SIZE
    static const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (size > 0) return size;
#endif
    return 1 << 19;
}

// How the threads share a step. Either each has some sequences, from the first step to the last, and need not know what
// the others do; or, where sequences are few or the weights many, each has some units, reads only their weights, and
// must wait for the others' units in every step.
class Sharing {
    const int64_t thread, threads, fewest;

public:
    Sharing(int64_t thread, int64_t threads, int64_t weight_bytes)
        : thread(thread),
          threads(threads),
          fewest(weight_bytes < cache_size() ? 4 * threads : weight_bytes <= 8 * cache_size() ? 10 * threads : INT64_MAX) {}
    bool by_sequence(int64_t rows) const { return threads == 1 || rows >= fewest; }
    Share units(int64_t rows, int64_t blocks) const {
        return by_sequence(rows) ? Share(blocks, 0, 1) : Share(blocks, thread, threads);
    }
    // The sequences are every other one, since long ones come first.
    int64_t first(int64_t rows) const { return by_sequence(rows) ? thread : 0; }
    int64_t apart(int64_t rows) const { return by_sequence(rows) ? threads : 1; }
};

// Some rows of a step.
struct Rows {
    int64_t first, apart, count;
    Rows(const Sharing& sharing, int64_t rows)
        : first(sharing.first(rows)),
          apart(sharing.apart(rows)),
          count(divide_up(std::max<int64_t>(rows - first, 0), apart)) {}
    int64_t operator[](int64_t i) const { return first + i * apart; }
};

template <class Work>
void in_parallel(int64_t threads, Work work) {
#ifdef _OPENMP
#pragma omp parallel num_threads(static_cast<int>(threads))
    work(omp_get_thread_num(), omp_get_num_threads());
#else
    (void)threads;
    work(0, 1);
#endif
}

inline void meet() {
#ifdef _OPENMP
#pragma omp barrier
#endif
}

// The equations of cells.py, for the units from `unit` on of one row. `sums` is what the hidden state contributes, a
// vector for each gate of the product.
template <class real>
struct Row {
    const Layer<real>& layer;
    int64_t at;           // row of the packed data
    const real* hidden;   // h(t-1) [O]
    const real* cell;     // c(t-1) [H]
    real* next;           // where the step after reads h(t) [O]
    using V = Vector<real>;
    static constexpr int W = WIDTH<real>;

    real* gate(int64_t number, int64_t unit) const {
        return layer.gates + at * gates_of(layer.mode) * layer.hidden + number * layer.hidden + unit;
    }
    real* output(int64_t unit) const { return layer.output + at * layer.width + unit; }
    void give(int64_t unit, int64_t width, V value) const {
        store(output(unit), value, width);
        store(next + unit, value, width);
    }
    real* inner(int64_t unit) const { return layer.inner + at * layer.hidden + unit; }

    static int64_t gates_of(int64_t mode) { return mode == LSTM ? 4 : mode >= GRU ? 3 : 1; }

    void rnn(int64_t unit, int64_t width, const real* sums) const {
        V value = load(gate(0, unit), width) + load(sums);
        value = layer.mode == RNN_TANH    ? tanh<real>(value)
                : layer.mode == RNN_RELU ? V(value < 0 ? V{} : value)
                                         : sigmoid<real>(value);
        give(unit, width, value);
    }

    void lstm(int64_t unit, int64_t width, const real* sums) const {
        V input = sigmoid<real>(load(gate(0, unit), width) + load(sums));
        V forget = sigmoid<real>(load(gate(1, unit), width) + load(sums + W));
        V candidate = tanh<real>(load(gate(2, unit), width) + load(sums + 2 * W));
        V output_gate = sigmoid<real>(load(gate(3, unit), width) + load(sums + 3 * W));
        V now = forget * load(cell + unit, width) + input * candidate;
        store(gate(0, unit), input, width);
        store(gate(1, unit), forget, width);
        store(gate(2, unit), candidate, width);
        store(gate(3, unit), output_gate, width);
        store(layer.cells + at * layer.hidden + unit, now, width);
        V hidden_now = output_gate * tanh<real>(now);
        if (layer.weight_hr)
            store(inner(unit), hidden_now, width);
        else
            give(unit, width, hidden_now);
    }

    void gru(int64_t unit, int64_t width, const real* sums) const {
        V reset = sigmoid<real>(load(gate(0, unit), width) + load(sums));
        V update = sigmoid<real>(load(gate(1, unit), width) + load(sums + W));
        V recalled = load(sums + 2 * W);
        if (layer.bias_hh) recalled += load(layer.bias_hh + 2 * layer.hidden + unit, width);
        V candidate = tanh<real>(load(gate(2, unit), width) + reset * recalled);
        store(gate(0, unit), reset, width);
        store(gate(1, unit), update, width);
        store(inner(unit), recalled, width);
        finish_gru(unit, width, update, candidate);
    }

    void gru_before(int64_t unit, int64_t width, const real* sums) const {
        V reset = sigmoid<real>(load(gate(0, unit), width) + load(sums));
        store(gate(0, unit), reset, width);
        store(gate(1, unit), sigmoid<real>(load(gate(1, unit), width) + load(sums + W)), width);
        store(inner(unit), V(reset * load(hidden + unit, width)), width);
    }

    void gru_after_reset(int64_t unit, int64_t width, const real* sums) const {
        finish_gru(unit, width, load(gate(1, unit), width), tanh<real>(load(gate(2, unit), width) + load(sums)));
    }

    void finish_gru(int64_t unit, int64_t width, V update, V candidate) const {
        store(gate(2, unit), candidate, width);
        give(unit, width, V(candidate + update * (load(hidden + unit, width) - candidate)));
    }
};

template <class real>
const real* cell_before(const Layer<real>& layer, const Place& place, int64_t n) {
    if (layer.mode != LSTM) return nullptr;
    return n < place.rows_before ? layer.cells + (place.first_before + n) * layer.hidden
                                 : layer.first_cell + n * layer.hidden;
}

template <class real>
Row<real> row_of(const Layer<real>& layer, const Place& place, int64_t n) {
    const real* hidden = n < place.rows_before
                             ? layer.output + (place.first_before + n) * layer.width
                             : layer.first_hidden + n * layer.width;
    return {layer, place.first + n, hidden, cell_before(layer, place, n), layer.output + (place.first + n) * layer.width};
}

// A layer's main product: GATES vectors of sums for every WIDTH units, or two neighbours where there is one gate.
template <class real, int VECTORS, int UNITS, class Gates>
void forward_loop(const Layer<real>& layer, Gates gates) {
    constexpr int64_t W = WIDTH<real>;
    constexpr int64_t line = VECTORS * W;
    const int64_t H = layer.hidden, O = layer.width;
    const int64_t blocks = divide_up(H, UNITS), second_blocks = divide_up(O, 2 * W);
    const bool projected = layer.weight_hr, before = layer.mode == GRU_RESET_BEFORE;
    const int64_t second_size = projected || before ? second_blocks * H * 2 * W : 0;
    auto steps = places(layer);
    Shared<real> states(layer.batch, O);
    const int64_t size = blocks * O * line;
    workspace.begin(Workspace::bytes_of<real>(size) + Workspace::bytes_of<real>(second_size) +
                    Workspace::bytes_of<real>(states.size()));
    real* panels = workspace.take<real>(size);
    real* second_panels = workspace.take<real>(second_size);
    states.memory = workspace.take<real>(states.size());
    for (int64_t half = 0; half < 2; ++half)
        for (int64_t n = 0; n < layer.batch; ++n)
            std::copy_n(layer.first_hidden + n * O, O, states.row(half, n));
    in_parallel(std::min(layer.threads, blocks), [&](int64_t thread, int64_t threads) {
        const Share packed(blocks, thread, threads), packed_second(second_blocks, thread, threads);
        const Sharing sharing(thread, threads, (size + second_size) * sizeof(real));
        std::vector<real> sums(GROUP * line);
        for (int64_t b = packed.begin; b < packed.end; ++b)
            pack<real, VECTORS>(layer.weight_hh + b * UNITS * O, O, 1, O, UNITS == W ? H : 0,
                                std::min<int64_t>(UNITS, H - b * UNITS), panels + b * O * line);
        for (int64_t b = packed_second.begin; second_size && b < packed_second.end; ++b) {
            const real* weights = projected ? layer.weight_hr : layer.weight_hh + 2 * H * O;
            pack<real, 2>(weights + b * 2 * W * H, H, 1, H, 0, std::min<int64_t>(2 * W, O - b * 2 * W),
                          second_panels + b * H * 2 * W);
        }
        meet();
        for (std::size_t t = 0; t < steps.size(); ++t) {
            const Place& place = steps[t];
            auto row = [&](int64_t n) {
                return Row<real>{layer, place.first + n, states.row(t, n), cell_before(layer, place, n),
                                 states.row(t + 1, n)};
            };
            const Rows mine(sharing, place.rows);
            const Share own = sharing.units(place.rows, blocks);
            for (int64_t b = own.begin; b < own.end; ++b)
                for (int64_t n = 0; n < mine.count; n += GROUP) {
                    int64_t rows = std::min(GROUP, mine.count - n);
                    product<real, VECTORS>(rows, states.row(t, mine[n]), states.stride * mine.apart,
                                           panels + b * O * line, O, sums.data());
                    for (int64_t r = 0; r < rows; ++r)
                        for (int64_t u = 0; u < UNITS; u += W) {
                            int64_t unit = b * UNITS + u;
                            if (unit < H) gates(row(mine[n + r]), unit, std::min(W, H - unit), sums.data() + r * line + u);
                        }
                }
            const bool alone = sharing.by_sequence(place.rows);
            const bool alone_next = t + 1 == steps.size() || sharing.by_sequence(steps[t + 1].rows);
            if (!alone || (!second_size && !alone_next)) meet();
            if (!second_size) continue;
            const Share own_second = sharing.units(place.rows, second_blocks);
            for (int64_t b = own_second.begin; b < own_second.end; ++b)
                for (int64_t n = 0; n < mine.count; n += GROUP) {
                    int64_t rows = std::min(GROUP, mine.count - n);
                    product<real, 2>(rows, layer.inner + (place.first + mine[n]) * H, H * mine.apart,
                                     second_panels + b * H * 2 * W, H, sums.data());
                    for (int64_t r = 0; r < rows; ++r)
                        for (int64_t v = 0; v < 2 && b * 2 * W + v * W < O; ++v) {
                            int64_t unit = b * 2 * W + v * W, width = std::min(W, O - unit);
                            const real* own_sums = sums.data() + (r * 2 + v) * W;
                            if (projected)
                                row(mine[n + r]).give(unit, width, load(own_sums));
                            else
                                row(mine[n + r]).gru_after_reset(unit, width, own_sums);
                        }
                }
            if (!alone || !alone_next) meet();
        }
    });
}

template <class real>
void forward(const Layer<real>& layer) {
    constexpr int W = WIDTH<real>;
    using R = const Row<real>&;
    switch (layer.mode) {
        case LSTM:
            return forward_loop<real, 4, W>(layer, [](R row, auto... rest) { row.lstm(rest...); });
        case GRU:
            return forward_loop<real, 3, W>(layer, [](R row, auto... rest) { row.gru(rest...); });
        case GRU_RESET_BEFORE:
            return forward_loop<real, 2, W>(layer, [](R row, auto... rest) { row.gru_before(rest...); });
        default:
            return forward_loop<real, 2, 2 * W>(layer, [](R row, auto... rest) { row.rnn(rest...); });
    }
}

// ---- backward ------------------------------------------------------------------------------------------------------

// The derivatives of the equations above, likewise. `grad` is that of h(t), or of what is projected to it.
template <class real>
struct Back {
    const Row<real>& row;
    int64_t n;     // row of the batch
    real* shared;  // the gradients of all that h(t-1) adds to, where the products of this step read them
    using V = Vector<real>;

    void keep(int64_t number, int64_t unit, int64_t width, V grad) const {
        const int64_t H = row.layer.hidden, G = Row<real>::gates_of(row.layer.mode);
        store(row.layer.grad_gates + (row.at * G + number) * H + unit, grad, width);
    }
    void share(int64_t number, int64_t unit, int64_t width, V grad) const {
        store(shared + number * row.layer.hidden + unit, grad, width);
    }
    void set(int64_t number, int64_t unit, int64_t width, V grad) const {
        keep(number, unit, width, grad);
        share(number, unit, width, grad);
    }
    V gate(int64_t number, int64_t unit, int64_t width) const { return load(row.gate(number, unit), width); }

    void rnn(int64_t unit, int64_t width, V grad) const {
        V h = load(row.output(unit), width);
        V slope = row.layer.mode == RNN_TANH   ? V(1 - h * h)
                  : row.layer.mode == RNN_RELU ? V(h > 0 ? V{} + 1 : V{})
                                               : V(h * (1 - h));
        set(0, unit, width, V(grad * slope));
    }

    void lstm(int64_t unit, int64_t width, V grad) const {
        const Layer<real>& layer = row.layer;
        V input = gate(0, unit, width), forget = gate(1, unit, width);
        V candidate = gate(2, unit, width), output = gate(3, unit, width);
        V squashed = tanh<real>(load(layer.cells + row.at * layer.hidden + unit, width));
        real* carried = layer.grad_cell + n * layer.hidden + unit;
        V grad_cell = load(carried, width) + grad * output * (1 - squashed * squashed);
        set(0, unit, width, V(grad_cell * candidate * input * (1 - input)));
        set(1, unit, width, V(grad_cell * load(row.cell + unit, width) * forget * (1 - forget)));
        set(2, unit, width, V(grad_cell * input * (1 - candidate * candidate)));
        set(3, unit, width, V(grad * squashed * output * (1 - output)));
        store(carried, V(grad_cell * forget), width);
    }

    // Of update and candidate; what h(t-1) gets at once is carried on.
    V gru_output(int64_t unit, int64_t width, V grad) const {
        V update = gate(1, unit, width), candidate = gate(2, unit, width);
        V grad_candidate = grad * (1 - update) * (1 - candidate * candidate);
        V grad_update = grad * (load(row.hidden + unit, width) - candidate) * update * (1 - update);
        set(1, unit, width, grad_update);
        keep(2, unit, width, grad_candidate);
        if (row.layer.mode != GRU) share(2, unit, width, grad_candidate);
        store(row.layer.grad_hidden + n * row.layer.width + unit, V(grad * update), width);
        return grad_candidate;
    }

    void gru(int64_t unit, int64_t width, V grad) const {
        V reset = gate(0, unit, width), grad_candidate = gru_output(unit, width, grad);
        V grad_reset = grad_candidate * load(row.inner(unit), width) * reset * (1 - reset);
        set(0, unit, width, grad_reset);
        V grad_recalled = grad_candidate * reset;
        store(row.layer.grad_inner + row.at * row.layer.hidden + unit, grad_recalled, width);
        share(2, unit, width, grad_recalled);
    }

    // `grad` is that of reset(t) * h(t-1).
    void gru_reset(int64_t unit, int64_t width, V grad) const {
        V reset = gate(0, unit, width);
        set(0, unit, width, V(grad * load(row.hidden + unit, width) * reset * (1 - reset)));
        real* carried = row.layer.grad_hidden + n * row.layer.width + unit;
        store(carried, V(load(carried, width) + grad * reset), width);
    }
};

template <class real>
void backward(const Layer<real>& layer) {
    constexpr int64_t W = WIDTH<real>, UNITS = 2 * W;
    const int64_t H = layer.hidden, O = layer.width, GH = Row<real>::gates_of(layer.mode) * H;
    const int64_t blocks = divide_up(O, UNITS), cell_blocks = divide_up(H, UNITS);
    const bool projected = layer.weight_hr, before = layer.mode == GRU_RESET_BEFORE, gru = layer.mode == GRU;
    auto steps = places(layer);
    Shared<real> grads(layer.batch, GH);
    const int64_t size = blocks * GH * UNITS, cell_size = projected ? cell_blocks * O * UNITS : 0;
    workspace.begin(Workspace::bytes_of<real>(size) + Workspace::bytes_of<real>(cell_size) +
                    Workspace::bytes_of<real>(grads.size()));
    real* panels = workspace.take<real>(size);
    real* cell_panels = workspace.take<real>(cell_size);
    grads.memory = workspace.take<real>(grads.size());
    in_parallel(std::min(layer.threads, blocks), [&](int64_t thread, int64_t threads) {
        const Share packed(blocks, thread, threads), packed_cells(cell_blocks, thread, threads);
        const Sharing sharing(thread, threads, (size + cell_size) * sizeof(real));
        std::vector<real> sums(GROUP * UNITS);
        for (int64_t b = packed.begin; b < packed.end; ++b)
            pack<real, 2>(layer.weight_hh + b * UNITS, 1, O, GH, 0, std::min(UNITS, O - b * UNITS),
                          panels + b * GH * UNITS);
        for (int64_t b = packed_cells.begin; projected && b < packed_cells.end; ++b)
            pack<real, 2>(layer.weight_hr + b * UNITS, 1, H, O, 0, std::min(UNITS, H - b * UNITS),
                          cell_panels + b * O * UNITS);
        meet();
        for (int64_t t = layer.steps - 1; t >= 0; --t) {
            const Place* place = &steps[t];
            const bool alone = sharing.by_sequence(place->rows);
            const Rows mine(sharing, place->rows);
            const Share own = sharing.units(place->rows, blocks), own_cells = sharing.units(place->rows, cell_blocks);
            // Sums of a panel with rows of `in` from column `from` to `to`, the panel's depth; `body` for each vector.
            auto each_sum = [&](int64_t b, int64_t end, const real* panel, auto multiply, auto body) {
                for (int64_t n = 0; n < mine.count; n += GROUP) {
                    int64_t rows = std::min(GROUP, mine.count - n);
                    multiply(mine[n], rows, panel);
                    for (int64_t r = 0; r < rows; ++r)
                        for (int64_t v = 0; v < 2 && b * UNITS + v * W < end; ++v) {
                            int64_t unit = b * UNITS + v * W;
                            body(mine[n + r], unit, std::min(W, end - unit), load(sums.data() + (r * 2 + v) * W));
                        }
                }
            };
            auto grad_of_output = [&](int64_t n, int64_t unit, int64_t width) -> Vector<real> {
                return load(layer.grad_output + (place->first + n) * O + unit, width) +
                       load(layer.grad_hidden + n * O + unit, width);
            };
            auto add_to_hidden = [&](int64_t n, int64_t unit, int64_t width, Vector<real> value) {
                real* carried = layer.grad_hidden + n * O + unit;
                if (gru || before) value += load(carried, width);
                store(carried, value, width);
            };
            for (int64_t i = 0; i < mine.count; ++i) {
                const int64_t n = mine[i];
                Row<real> row = row_of(layer, *place, n);
                Back<real> back{row, n, grads.row(t, n)};
                for (int64_t unit = own.begin * UNITS; unit < std::min(O, own.end * UNITS); unit += W) {
                    int64_t width = std::min(W, O - unit);
                    Vector<real> grad = grad_of_output(n, unit, width);
                    if (projected)
                        store(layer.grad_projected + row.at * O + unit, grad, width);
                    else if (layer.mode == LSTM)
                        back.lstm(unit, width, grad);
                    else if (gru)
                        back.gru(unit, width, grad);
                    else if (before)
                        back.gru_output(unit, width, grad);
                    else
                        back.rnn(unit, width, grad);
                }
            }
            if (!alone) meet();
            if (projected) {
                for (int64_t b = own_cells.begin; b < own_cells.end; ++b)
                    each_sum(
                        b, H, cell_panels + b * O * UNITS,
                        [&](int64_t n, int64_t rows, const real* panel) {
                            product<real, 2>(rows, layer.grad_projected + (place->first + n) * O, O * mine.apart, panel, O, sums.data());
                        },
                        [&](int64_t n, int64_t unit, int64_t width, Vector<real> grad) {
                            Row<real> row = row_of(layer, *place, n);
                            Back<real>{row, n, grads.row(t, n)}.lstm(unit, width, grad);
                        });
                if (!alone) meet();
            }
            if (before) {
                for (int64_t b = own.begin; b < own.end; ++b)
                    each_sum(
                        b, O, panels + (b * GH + 2 * H) * UNITS,
                        [&](int64_t n, int64_t rows, const real* panel) {
                            product<real, 2>(rows, grads.row(t, n) + 2 * H, grads.stride * mine.apart, panel, H, sums.data());
                        },
                        [&](int64_t n, int64_t unit, int64_t width, Vector<real> grad) {
                            Row<real> row = row_of(layer, *place, n);
                            Back<real>{row, n, grads.row(t, n)}.gru_reset(unit, width, grad);
                        });
                if (!alone) meet();
            }
            const int64_t direct = before ? 2 * H : GH;  // gates that read h(t-1) itself
            for (int64_t b = own.begin; b < own.end; ++b)
                each_sum(
                    b, O, panels + b * GH * UNITS,
                    [&](int64_t n, int64_t rows, const real* panel) {
                        product<real, 2>(rows, grads.row(t, n), grads.stride * mine.apart, panel, direct, sums.data());
                    },
                    add_to_hidden);
            if (t > 0 && sharing.by_sequence(steps[t - 1].rows) != alone) meet();
        }
    });
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

// ---- one step ------------------------------------------------------------------------------------------------------

// x widened to float, from weights of either kind.
inline Vector<float> widen(const float* from) { return load(from); }

inline Vector<float> widen(const std::int8_t* from) {
#if defined(__AVX512F__)
    return (Vector<float>)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__)
    return (Vector<float>)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
    Vector<float> value;
    for (int i = 0; i < WIDTH<float>; ++i) value[i] = from[i];
    return value;
#endif
}

// weights . x; `tail` is the end of x, without what whole vectors have taken. Rows of weights are read one after the
// other, as they lie in memory: several at a time would be as many places for the processor to fetch ahead from.
template <class weight>
inline float dot(const weight* weights, int64_t depth, const float* x, Vector<float> tail) {
    constexpr int64_t W = WIDTH<float>, CHAINS = 4;  // of sums: one alone would wait for itself
    constexpr int64_t AHEAD = 2048;                  // bytes to fetch ahead
    if (depth < W) {
        float total = 0;
        for (int64_t k = 0; k < depth; ++k) total += float(weights[k]) * x[k];
        return total;
    }
    Vector<float> total[CHAINS] = {};
    int64_t k = 0;
    for (; k + CHAINS * W <= depth; k += CHAINS * W) {
#pragma GCC unroll 4
        for (int64_t i = 0; i < CHAINS * W; i += 64 / int64_t(sizeof(weight)))
            __builtin_prefetch(reinterpret_cast<const char*>(weights + k + i) + AHEAD);
#pragma GCC unroll 4
        for (int i = 0; i < CHAINS; ++i) total[i] += widen(weights + k + i * W) * load(x + k + i * W);
    }
    for (; k + W <= depth; k += W) total[0] += widen(weights + k) * load(x + k);
    if (k < depth) total[1] += widen(weights + depth - W) * tail;
    return sum<float>((total[0] + total[1]) + (total[2] + total[3]));
}

// out[b][row - begin] = scale[row] * (weights[row] . x[b]) (+ bias[row]) for rows of weights from `begin` to `end`.
template <class weight>
void linear_part(const weight* weights, const float* scales, const float* bias, int64_t depth, const float* x,
                 int64_t batch, float* out, int64_t out_stride, int64_t begin, int64_t end) {
    constexpr int64_t W = WIDTH<float>;
    for (int64_t first = begin; first < end; first += 64)  // rows of weights that stay in the cache for the whole batch
        for (int64_t b = 0; b < batch; ++b) {
            const float* own = x + b * depth;
            Vector<float> tail{};
            if (depth >= W)
                for (int64_t k = depth / W * W; k < depth; ++k) tail[k - (depth - W)] = own[k];
            for (int64_t row = first; row < std::min(end, first + 64); ++row) {
                float value = dot(weights + row * depth, depth, own, tail);
                if (scales) value *= scales[row];
                out[b * out_stride + row - begin] = bias ? value + bias[row] : value;
            }
        }
}

template <class weight>
void linear(const weight* weights, const float* scales, const float* bias, int64_t rows, int64_t depth, const float* x,
            int64_t batch, float* out, int64_t threads) {
    in_parallel(threads, [&](int64_t thread, int64_t of) {
        Share own(divide_up(rows, 16), thread, of);
        linear_part(weights, scales, bias, depth, x, batch, out + own.begin * 16, rows, own.begin * 16,
                    std::min(rows, own.end * 16));
    });
}

// One step of a layer: every weight is read once, from where it is.
struct Step {
    Layer<float> layer;  // its matrices and biases are not read: they are below
    int64_t inputs, is_int8;
    const float* x;  // [N, inputs]
    const void *weight_ih, *weight_hh, *weight_hr;
    const float *scale_ih, *scale_hh, *scale_hr;  // of the rows of int8 matrices; null for those of floats
    const float *bias_ih, *bias_hh;               // [G * H] or null
};

template <class weight>
void step(const Step& s) {
    constexpr int64_t W = WIDTH<float>;
    const Layer<float>& layer = s.layer;
    const auto ih = static_cast<const weight*>(s.weight_ih), hh = static_cast<const weight*>(s.weight_hh);
    const int64_t H = layer.hidden, O = layer.width, N = layer.batch, G = Row<float>::gates_of(layer.mode);
    const bool before = layer.mode == GRU_RESET_BEFORE;
    const int64_t recalled = before ? 2 : G, blocks = divide_up(H, W);
    const Place place{N, 0, 0, 0};
    std::vector<float> memory(N * recalled * H);
    float* recall = memory.data();  // [N, recalled * H]: what h(t-1) adds
    in_parallel(std::min(layer.threads, blocks), [&](int64_t thread, int64_t threads) {
        // All products first: each thread reads its rows of a matrix from the first to the last, as memory likes it.
        auto multiply = [&](const weight* weights, const float* scales, const float* bias, int64_t depth,
                            const float* x, float* out, int64_t rows, int64_t first = 0) {
            Share own(divide_up(rows, W), thread, threads);
            int64_t begin = std::min(rows, own.begin * W), end = std::min(rows, own.end * W);
            linear_part(weights, scales, bias, depth, x, N, out + begin, rows, first + begin, first + end);
        };
        multiply(ih, s.scale_ih, s.bias_ih, s.inputs, s.x, layer.gates, G * H);
        multiply(hh, s.scale_hh, s.bias_hh, O, layer.first_hidden, recall, recalled * H);
        meet();
        Share own(blocks, thread, threads);
        auto each_unit = [&](int64_t gates, auto body) {  // with the sums of its gates, [gates][W]
            float sums[4 * W];
            for (int64_t n = 0; n < N; ++n)
                for (int64_t unit = own.begin * W; unit < std::min(H, own.end * W); unit += W) {
                    const int64_t width = std::min(W, H - unit);
                    for (int64_t g = 0; g < gates; ++g)
                        store(sums + g * W, load(recall + (n * gates + g) * H + unit, width));
                    body(row_of(layer, place, n), unit, width, sums);
                }
        };
        each_unit(recalled, [&](Row<float> row, int64_t unit, int64_t width, const float* sums) {
            switch (layer.mode) {
                case LSTM: row.lstm(unit, width, sums); break;
                case GRU: row.gru(unit, width, sums); break;
                case GRU_RESET_BEFORE: row.gru_before(unit, width, sums); break;
                default: row.rnn(unit, width, sums);
            }
        });
        if (layer.weight_hr) {
            meet();
            multiply(static_cast<const weight*>(s.weight_hr), s.scale_hr, nullptr, H, layer.inner, layer.output, O);
        }
        if (before) {
            meet();
            multiply(hh, s.scale_hh, s.bias_hh, H, layer.inner, recall, H, 2 * H);
            meet();
            each_unit(1, [&](Row<float> row, int64_t unit, int64_t width, const float* sums) {
                row.gru_after_reset(unit, width, sums);
            });
        }
    });
}

}  // namespace

extern "C" {

void recurra_forward_float(const Layer<float>* layer) { forward(*layer); }
void recurra_forward_double(const Layer<double>* layer) { forward(*layer); }
void recurra_backward_float(const Layer<float>* layer) { backward(*layer); }
void recurra_backward_double(const Layer<double>* layer) { backward(*layer); }
void recurra_linear_float(const float* weights, const float* bias, int64_t rows, int64_t depth, const float* x,
                          int64_t batch, float* out, int64_t threads) {
    linear(weights, nullptr, bias, rows, depth, x, batch, out, threads);
}
void recurra_linear_int8(const std::int8_t* weights, const float* scales, const float* bias, int64_t rows,
                         int64_t depth, const float* x, int64_t batch, float* out, int64_t threads) {
    linear(weights, scales, bias, rows, depth, x, batch, out, threads);
}
void recurra_product(const Product* p) { product(*p); }
// The layers of a stack, each of which reads what the one before wrote.
void recurra_steps(const Step* steps, int64_t count) {
    for (const Step* s = steps; s < steps + count; ++s) s->is_int8 ? step<std::int8_t>(*s) : step<float>(*s);
}
}
