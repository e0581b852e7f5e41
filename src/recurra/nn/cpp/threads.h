// Threads, what each of them has to do, and memory for all.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

using std::int64_t;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The share of `count` that a thread has.
struct Share {
    int64_t begin, end;
    Share(int64_t count, int64_t thread, int64_t threads)
        : begin(count * thread / threads), end(count * (thread + 1) / threads) {}
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
          fewest(weight_bytes < cache_size()        ? 4 * threads
                 : weight_bytes <= 8 * cache_size() ? 10 * threads
                                                    : INT64_MAX) {}
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
        if (!memory) {
            std::fputs("recurra: no memory for the weights of a layer\n", stderr);
            std::abort();
        }
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

}  // namespace
