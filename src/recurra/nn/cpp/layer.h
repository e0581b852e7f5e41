// A layer as native.py describes it, where each of its steps stands, and the equations of cells.py for a row of a step.
#pragma once

#include <algorithm>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

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
    real* next = layer.output + (place.first + n) * layer.width;
    return {layer, place.first + n, hidden, cell_before(layer, place, n), next};
}

}  // namespace
