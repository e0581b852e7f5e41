// The loops over time of RNN, LSTM and GRU, forward and backward; products of matrices; one step of a stack; for CPUs.
//
// What can be done for all steps at once is done outside, as matrix products: see kernels.py. What is left in a loop is
// the product with the hidden-to-hidden weights and the gates. Here the weights are laid out once for a whole sequence
// (pack), and the threads share a step by sequences or by units (Sharing). No sum is split between threads, so no
// result depends on how many there are.
//
// Rows are packed sequences: the rows of step t are the batch_sizes[t] sequences still running, long ones first.
// Letters as in recurrent.py: H is hidden (H_cell), O the width of h (H, or the projection's), G the number of gates.
//
// Compiled for the machine at hand by native.py. GCC's vector types, which Clang has too, make it one source for all.

#include "layer.h"
#include "products.h"
#include "recurrence.h"
#include "step.h"

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
