// A whole sequence, forward and backward, for a controller and any accessor. The rows of the batch are shared among
// threads and worked on in blocks that go through all time steps, so that their memory stays in cache.
#pragma once
#if defined(__linux__)
#include <sys/mman.h>
#endif
#include <atomic>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#include "controller.h"
#include "product.h"

namespace native {

constexpr int MOST_LEAVES = 6;

// Sizes and options; mirrored in library.py.
struct Problem {
    int64_t steps, batch, inputs, hidden, slots, word, reads, writes, interface, controller, threads;
    int64_t training;    // keep what the backward pass needs
    int64_t keep_every;  // steps between two stored memories; those between are computed again
    int64_t block;       // rows of the batch that go through the sequence together
    int64_t shift_range, squash, masked_content, memory_wipe, link_sharpening, usage_gradient;
    double clip;
};

// All tensors are contiguous; mirrored in library.py. T steps, B batch, I inputs, F features (hidden, then reads),
// G gates. A state's leaves are in the order of its NamedTuple.
template <class T> struct Tensors {
    const T* inputs;            // [T, B, I]
    const T* weight;            // [G, features that the controller sees + I]
    const T* bias;              // [G]
    const T* interface_weight;  // [interface, hidden]
    const T* interface_bias;    // [interface]
    T* features;                // [T + 1, B, F], the first given
    const T* cell;              // [B, hidden], LSTM
    T* last_cell;
    const T* state[MOST_LEAVES];
    T* last_state[MOST_LEAVES];
    T* records;  // what every step leaves for the backward pass
    T* tape;     // memories (and links) before every keep_every-th step, and the last
    // Backward: gradients of the results (null: zero) and of the arguments.
    const T* d_features;  // [T, B, F]
    const T* d_last_cell;
    const T* d_last_state[MOST_LEAVES];
    T* d_first;  // [B, F]
    T* d_cell;
    T* d_state[MOST_LEAVES];
    T* d_inputs;  // this and the rest: null if not wanted
    T* d_weight;
    T* d_bias;
    T* d_interface_weight;
    T* d_interface_bias;
};

// Large tensors of the state, stored before every keep_every-th step: index 0 is the first, the last index the last.
template <class T> struct Tape {
    T* base;
    int64_t size, batch, every, steps;
    bool training;

    static int64_t length(const Problem& p) { return p.training ? (p.steps + p.keep_every - 1) / p.keep_every + 1 : 1; }
    T* kept(int64_t index, int64_t b) const { return base + (index * batch + b) * size; }
    T* first(int64_t b) const { return kept(0, b); }
    T* last(int64_t b) const { return kept(training ? (steps + every - 1) / every : 0, b); }
    // Forward: where step t reads and writes.
    const T* before(int64_t t, int64_t b) const { return kept(training ? (t + every - 1) / every : 0, b); }
    T* after(int64_t t, int64_t b) const { return kept(training ? t / every + 1 : 0, b); }
    // What was stored last before step t.
    const T* base_of(int64_t t, int64_t b) const { return kept(training ? t / every : 0, b); }
    // Backward: the same as before and after, where `again` holds the every - 1 tensors inside the segment of this row.
    int64_t again_size() const { return (every - 1) * size; }
    const T* before(int64_t t, int64_t b, T* again) const {
        return t % every == 0 ? kept(t / every, b) : again + (t % every - 1) * size;
    }
    const T* after(int64_t t, int64_t b, T* again) const {
        return t % every == every - 1 || t == steps - 1 ? kept(t / every + 1, b) : again + (t % every) * size;
    }
};

// Calls body(begin, end) for one range per thread; rethrows lack of memory.
template <class F> void for_ranges(int64_t threads, int64_t count, F&& body) {
    threads = std::max<int64_t>(1, std::min(threads, count));
    std::atomic<bool> failed{false};
    auto work = [&](int64_t thread) {
        try {
            body(count * thread / threads, count * (thread + 1) / threads);
        } catch (...) {
            failed = true;
        }
    };
    std::vector<std::thread> others;
    for (int64_t i = 1; i < threads; i++) {
        try {
            others.emplace_back(work, i);
        } catch (...) {
            work(i);
        }
    }
    work(0);
    for (auto& other : others) other.join();
    if (failed) throw std::bad_alloc();
}
// Calls body(first row, rows) for blocks of the batch on several threads.
template <class F> void for_blocks(const Problem& p, F&& body) {
    for_ranges(p.threads, p.batch, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; b += p.block) body(b, std::min(p.block, end - b));
    });
}

// Large fresh memory costs less to enter in large pages.
inline void prefer_large_pages(void* start, int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t page = 1 << 21;
    const uintptr_t first = ((uintptr_t)start + page - 1) / page * page, last = ((uintptr_t)start + bytes) / page * page;
    if (last > first) madvise((void*)first, last - first, MADV_HUGEPAGE);
#endif
}

// What every step leaves: gates, cell state, activated interface vector and the accessor's own part, for each row of
// the batch. Record s holds what step s - 1 made, record 0 the first state.
template <class T> struct Records {
    T* base;
    int64_t batch, ring;  // without training only the last `ring` records are kept
    int hidden, features, gates, skipped, seen;
    int64_t cell_part, interface_part, accessor_part, size;

    static int64_t length(const Problem& p) { return p.training ? p.steps + 1 : std::min(p.keep_every, p.steps) + 1; }
    Records(const Problem& p, T* base, int64_t accessor_size)
        : base(base), batch(p.batch), ring(length(p)), hidden((int)p.hidden),
          features(hidden + int(p.reads * p.word)), gates(gate_blocks((int)p.controller) * hidden),
          skipped(p.controller == FEEDFORWARD ? hidden : 0),  // a feed-forward controller sees only the reads
          seen(features - skipped), cell_part(round_up<T>(gates)), interface_part(cell_part + round_up<T>(hidden)),
          accessor_part(interface_part + round_up<T>((int)p.interface)), size(accessor_part + accessor_size) {}
    T* row(int64_t s, int64_t b) const { return base + (s % ring * batch + b) * size; }
    T* cell(int64_t s, int64_t b) const { return row(s, b) + cell_part; }
    T* interface(int64_t s, int64_t b) const { return row(s, b) + interface_part; }
    T* accessor(int64_t s, int64_t b) const { return row(s, b) + accessor_part; }
};

template <class T, class Accessor> void forward(const Problem& p, const Tensors<T>& x) {
    const Records<T> records(p, x.records, Accessor::record_size(p));
    const Accessor accessor(p, x, records);
    const int hidden = records.hidden, features = records.features;
    const int64_t columns = records.seen + p.inputs;
    prefer_large_pages(x.records, records.ring * p.batch * records.size * sizeof(T));
    prefer_large_pages(x.tape, Accessor::tape_size(p) * sizeof(T));
    const Packed<T> from_features(records.seen, records.gates, x.weight, 1, columns);
    const Packed<T> from_inputs((int)p.inputs, records.gates, x.weight + records.seen, 1, columns);
    const Packed<T> to_interface(hidden, (int)p.interface, x.interface_weight, 1, hidden);
    for_blocks(p, [&](int64_t b0, int64_t rows) {
        std::vector<T> scratch(accessor.forward_scratch());
        const int64_t end = b0 + rows;
        for (int64_t b = b0; b < end; b++) {
            if (x.cell) std::memcpy(records.cell(0, b), x.cell + b * hidden, hidden * sizeof(T));
            accessor.begin(b);
        }
        for (int64_t t = 0; t < p.steps; t++) {
            const T* last = x.features + t * p.batch * features;
            T* next = x.features + (t + 1) * p.batch * features;
            T* gates = records.row(t + 1, b0);
            for (int64_t i = 0; i < rows; i++)
                std::memcpy(gates + i * records.size, x.bias, records.gates * sizeof(T));
            product<T>((int)rows, from_inputs, x.inputs + (t * p.batch + b0) * p.inputs, p.inputs, gates, records.size,
                       true);
            product<T>((int)rows, from_features, last + b0 * features + records.skipped, features, gates, records.size,
                       true);
            for (int64_t b = b0; b < end; b++) {
                controller_forward<T>((int)p.controller, hidden, T(p.clip), records.row(t + 1, b), last + b * features,
                                      records.cell(t, b), next + b * features, records.cell(t + 1, b));
                std::memcpy(records.interface(t + 1, b), x.interface_bias, p.interface * sizeof(T));
            }
            product<T>((int)rows, to_interface, next + b0 * features, features, records.interface(t + 1, b0),
                       records.size, true);
            for (int64_t b = b0; b < end; b++) accessor.forward(t, b, next + b * features + hidden, scratch.data());
        }
        for (int64_t b = b0; b < end; b++) {
            if (x.cell) std::memcpy(x.last_cell + b * hidden, records.cell(p.steps, b), hidden * sizeof(T));
            accessor.finish(b);
        }
    });
}

template <class T, class Accessor> void backward(const Problem& p, const Tensors<T>& x) {
    const Records<T> records(p, x.records, Accessor::record_size(p));
    const Accessor accessor(p, x, records);
    const int hidden = records.hidden, features = records.features;
    const int64_t columns = records.seen + p.inputs;
    const int64_t gate_stride = round_up<T>(records.gates), interface_stride = round_up<T>((int)p.interface);
    const int64_t carry_stride = features + LANES<T>, hidden_stride = round_up<T>(hidden);
    // Gradients of the products: of the gates and of the interface vector, [T, B, …].
    std::unique_ptr<T[]> d_all_gates(new T[p.steps * p.batch * gate_stride]);
    std::unique_ptr<T[]> d_all_interfaces(new T[p.steps * p.batch * interface_stride]);
    const Packed<T> to_features(records.gates, records.seen, x.weight, columns, 1);
    const Packed<T> to_hidden((int)p.interface, hidden, x.interface_weight, hidden, 1);
    for_blocks(p, [&](int64_t b0, int64_t rows) {
        const int64_t row_size = accessor.row_scratch();
        std::vector<T> scratch(accessor.backward_scratch());
        std::unique_ptr<T[]> row_scratch(new T[rows * row_size]);
        prefer_large_pages(row_scratch.get(), rows * row_size * sizeof(T));
        std::memset(row_scratch.get(), 0, rows * row_size * sizeof(T));
        std::vector<T> carries(rows * carry_stride), for_hidden(rows * hidden_stride), d_cells(rows * hidden);
        for (int64_t i = 0; i < rows; i++) {
            if (x.d_last_cell) std::memcpy(&d_cells[i * hidden], x.d_last_cell + (b0 + i) * hidden, hidden * sizeof(T));
            accessor.begin_backward(b0 + i, &row_scratch[i * row_size]);
        }
        for (int64_t t = p.steps - 1; t >= 0; t--) {
            T* d_interface = &d_all_interfaces[(t * p.batch + b0) * interface_stride];
            T* d_gates = &d_all_gates[(t * p.batch + b0) * gate_stride];
            for (int64_t i = 0; i < rows; i++) {
                T* carry = &carries[i * carry_stride];  // gradient of this step's features
                if (x.d_features) {
                    const T* d = x.d_features + (t * p.batch + b0 + i) * features;
                    for (int j = 0; j < features; j++) carry[j] += d[j];
                }
                accessor.backward(t, b0 + i, carry + hidden, d_interface + i * interface_stride, scratch.data(),
                                  &row_scratch[i * row_size]);
            }
            product<T>((int)rows, to_hidden, d_interface, interface_stride, for_hidden.data(), hidden_stride, false);
            for (int64_t i = 0; i < rows; i++) {
                const int64_t b = b0 + i;
                T *carry = &carries[i * carry_stride], *d_hidden = &for_hidden[i * hidden_stride];
                for (int j = 0; j < hidden; j++) d_hidden[j] += carry[j];
                std::memset(carry, 0, carry_stride * sizeof(T));
                controller_backward<T>((int)p.controller, hidden, T(p.clip), records.row(t + 1, b),
                                       x.features + (t * p.batch + b) * features, records.cell(t, b),
                                       records.cell(t + 1, b), d_hidden, &d_cells[i * hidden],
                                       d_gates + i * gate_stride, carry);
            }
            product<T>((int)rows, to_features, d_gates, gate_stride, &carries[records.skipped], carry_stride, true);
        }
        for (int64_t i = 0; i < rows; i++) {
            if (x.d_first)
                std::memcpy(x.d_first + (b0 + i) * features, &carries[i * carry_stride], features * sizeof(T));
            if (x.d_cell) std::memcpy(x.d_cell + (b0 + i) * hidden, &d_cells[i * hidden], hidden * sizeof(T));
            accessor.finish_backward(b0 + i, &row_scratch[i * row_size]);
        }
    });

    // The gradients of the weights are sums over all steps, in a fixed order whatever the threads.
    const int64_t count = p.steps * p.batch;
    const T *d_gates = d_all_gates.get(), *d_interfaces = d_all_interfaces.get();
    for_ranges(p.threads, records.gates, [&](int64_t begin, int64_t end) {
        const int first = (int)begin, last = (int)end;
        if (x.d_bias) sum_of_rows(count, d_gates, gate_stride, first, last, x.d_bias);
        if (!x.d_weight) return;
        sum_of_products<T>(count, d_gates, gate_stride, first, last, x.features + records.skipped, features,
                           records.seen, x.d_weight, columns);
        sum_of_products<T>(count, d_gates, gate_stride, first, last, x.inputs, p.inputs, (int)p.inputs,
                           x.d_weight + records.seen, columns);
    });
    for_ranges(p.threads, p.interface, [&](int64_t begin, int64_t end) {
        const int first = (int)begin, last = (int)end;
        if (x.d_interface_bias) sum_of_rows(count, d_interfaces, interface_stride, first, last, x.d_interface_bias);
        if (x.d_interface_weight)
            sum_of_products<T>(count, d_interfaces, interface_stride, first, last, x.features + p.batch * features,
                               features, hidden, x.d_interface_weight, hidden);
    });
    if (x.d_inputs) {
        const Packed<T> to_inputs(records.gates, (int)p.inputs, x.weight + records.seen, columns, 1);
        for_ranges(p.threads, count, [&](int64_t begin, int64_t end) {
            const int64_t width = round_up<T>((int)p.inputs);
            std::vector<T> rows(8 * width);
            for (int64_t i = begin; i < end; i += 8) {
                const int64_t some = std::min<int64_t>(8, end - i);
                product<T>((int)some, to_inputs, d_gates + i * gate_stride, gate_stride, rows.data(), width, false);
                for (int64_t j = 0; j < some; j++)
                    std::memcpy(x.d_inputs + (i + j) * p.inputs, &rows[j * width], p.inputs * sizeof(T));
            }
        });
    }
}

}  // namespace native
