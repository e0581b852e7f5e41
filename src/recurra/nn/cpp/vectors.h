// Vectors of as many numbers as the processor takes at once, and the nonlinearities of cells on them.
#pragma once

#include <cstdint>
#include <cstring>
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

// x as n ln(2) + r with |r| <= ln(2)/2; n comes from rounding in the last bits of a large number.
template <class real>
struct Reduced {
    Vector<real> r, power;  // 2^n
    explicit Reduced(Vector<real> x) {  // of moderate size
        constexpr bool single = sizeof(real) == 4;
        constexpr int mantissa = single ? 23 : 52;
        constexpr real magic = real(1.5) * real(int64_t(1) << mantissa);
        // ln(2) in two parts, the first of few digits: its product with n is exact.
        constexpr real ln2_high = single ? real(0.693359375) : real(0.6931471803691238);
        constexpr real ln2_low = single ? real(-2.12194440e-4) : real(1.9082149292705877e-10);
        using Integers = typename Types<real>::Integers;
        Vector<real> shifted = x * real(1.4426950408889634) + magic;
        Vector<real> n = shifted - magic;
        r = x - n * ln2_high - n * ln2_low;
        Integers raised = ((Integers)shifted << mantissa) + (Integers)(Vector<real>{} + 1);  // casts keep the bits
        power = (Vector<real>)raised;
    }
    // Taylor's series of exp(r) from r^first / first! on, without that power of r.
    template <int first>
    Vector<real> series() const {
        constexpr double factorials[] = {1,     1,      2,       6,        24,        120,        720,
                                         5040., 40320., 362880., 3628800., 39916800., 479001600., 6227020800.};
        constexpr int terms = sizeof(real) == 4 ? 7 : 13;
        Vector<real> sum = Vector<real>{} + real(1 / factorials[terms]);
#pragma GCC unroll 13
        for (int k = terms - 1; k >= first; --k) sum = sum * r + real(1 / factorials[k]);
        return sum;
    }
};

template <class real>
inline Vector<real> within(Vector<real> x, real low, real high) {  // not a number stays what it is
    x = x < low ? Vector<real>{} + low : x;
    return x > high ? Vector<real>{} + high : x;
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
    constexpr real most = sizeof(real) == 4 ? 87 : 708;
    Reduced<real> minus(within<real>(-x, -most, most));
    return inverse(1 + minus.template series<0>() * minus.power);
}

// From exp(2x) - 1, made without the 1, so that it is as precise near 0 as elsewhere.
template <class real>
inline Vector<real> tanh(Vector<real> x) {
    Reduced<real> twice(within<real>(x + x, -40, 40));
    Vector<real> less_one = twice.template series<1>() * twice.r * twice.power + (twice.power - 1);
    return within<real>(less_one * inverse(less_one + 2), -1, 1);
}

}  // namespace
