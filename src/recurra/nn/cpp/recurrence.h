// The loops over time, forward and backward.
#pragma once

#include <algorithm>
#include <vector>

#include "layer.h"
#include "products.h"
#include "threads.h"
#include "vectors.h"

namespace {

constexpr int64_t GROUP = 48;  // rows whose sums are made before their gates

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
                            if (unit >= H) continue;
                            gates(row(mine[n + r]), unit, std::min(W, H - unit), sums.data() + r * line + u);
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
                            product<real, 2>(rows, layer.grad_projected + (place->first + n) * O, O * mine.apart, panel,
                                             O, sums.data());
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
                            product<real, 2>(rows, grads.row(t, n) + 2 * H, grads.stride * mine.apart, panel, H,
                                             sums.data());
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

}  // namespace
