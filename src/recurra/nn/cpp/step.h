// One step of a few sequences: every weight is read once, from where it is, as a float or as int8.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "layer.h"
#include "threads.h"
#include "vectors.h"

namespace {

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
