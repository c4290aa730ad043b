// A whole sequence, forward and backward, for a controller and any accessor. The rows of the batch are shared among
// threads and worked on in blocks that go through all time steps, so that their memory stays in cache.
#pragma once
#include <atomic>
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
    T* d_gates;      // [T, B, G rounded up to vectors]
    T* d_interface;  // [T, B, interface rounded up to vectors]
    T* d_first;      // [B, F]
    T* d_cell;
    T* d_state[MOST_LEAVES];
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
    // Backward: the same, where `again` holds the every - 1 tensors inside the segment of this row.
    int64_t again_size() const { return (every - 1) * size; }
    const T* before(int64_t t, int64_t b, T* again) const {
        return t % every == 0 ? kept(t / every, b) : again + (t % every - 1) * size;
    }
    const T* after(int64_t t, int64_t b, T* again) const {
        return t % every == every - 1 || t == steps - 1 ? kept(t / every + 1, b) : again + (t % every) * size;
    }
};

// Calls body(first row, rows) for blocks of the batch on several threads; rethrows lack of memory.
template <class F> void for_blocks(const Problem& p, F&& body) {
    const int64_t threads = std::max<int64_t>(1, std::min(p.threads, p.batch));
    std::atomic<bool> failed{false};
    auto work = [&](int64_t thread) {
        const int64_t begin = p.batch * thread / threads, end = p.batch * (thread + 1) / threads;
        try {
            for (int64_t b = begin; b < end; b += p.block) body(b, std::min(p.block, end - b));
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

// What is the same at every step; Accessor::record_size adds its own part to a record.
template <class T> struct Layout {
    int hidden, features, gates, skipped, seen, gate_part, cell_part, interface_part, accessor_part;
    explicit Layout(const Problem& p) {
        hidden = (int)p.hidden;
        features = hidden + int(p.reads * p.word);
        gates = gate_blocks((int)p.controller) * hidden;
        skipped = p.controller == FEEDFORWARD ? hidden : 0;  // a feed-forward controller sees only the reads
        seen = features - skipped;
        gate_part = 0;
        cell_part = gate_part + round_up<T>(gates);
        interface_part = cell_part + round_up<T>(hidden);
        accessor_part = interface_part + round_up<T>((int)p.interface);
    }
};

template <class T, class Accessor> int64_t record_size(const Problem& p) {
    return Layout<T>(p).accessor_part + Accessor::record_size(p);
}

template <class T, class Accessor> void forward(const Problem& p, const Tensors<T>& x) {
    const Layout<T> at(p);
    const int64_t stride = record_size<T, Accessor>(p), columns = at.seen + p.inputs;
    const Accessor accessor(p, x, p.batch * stride);
    const Packed<T> from_features(at.seen, at.gates, x.weight, 1, columns);
    const Packed<T> from_inputs((int)p.inputs, at.gates, x.weight + at.seen, 1, columns);
    const Packed<T> to_interface(at.hidden, (int)p.interface, x.interface_weight, 1, at.hidden);
    for_blocks(p, [&](int64_t b0, int64_t rows) {
        std::vector<T> scratch(accessor.forward_scratch());
        // Record s holds what step s - 1 made, record 0 the first state.
        auto record = [&](int64_t s) { return x.records + ((p.training ? s : s & 1) * p.batch + b0) * stride; };
        for (int64_t i = 0; i < rows; i++) {
            T* first = record(0) + i * stride;
            if (x.cell) std::memcpy(first + at.cell_part, x.cell + (b0 + i) * at.hidden, at.hidden * sizeof(T));
            accessor.begin(b0 + i, first + at.accessor_part);
        }
        for (int64_t t = 0; t < p.steps; t++) {
            T *last = record(t), *now = record(t + 1);
            const T* features = x.features + (t * p.batch + b0) * at.features;
            T* next = x.features + ((t + 1) * p.batch + b0) * at.features;
            for (int64_t i = 0; i < rows; i++)
                std::memcpy(now + i * stride + at.gate_part, x.bias, at.gates * sizeof(T));
            product<T>((int)rows, from_inputs, x.inputs + (t * p.batch + b0) * p.inputs, p.inputs,
                       now + at.gate_part, stride, true);
            product<T>((int)rows, from_features, features + at.skipped, at.features, now + at.gate_part, stride, true);
            for (int64_t i = 0; i < rows; i++) {
                T* r = now + i * stride;
                controller_forward<T>((int)p.controller, at.hidden, T(p.clip), r + at.gate_part,
                                      features + i * at.features, last + i * stride + at.cell_part,
                                      next + i * at.features, r + at.cell_part);
                std::memcpy(r + at.interface_part, x.interface_bias, p.interface * sizeof(T));
            }
            product<T>((int)rows, to_interface, next, at.features, now + at.interface_part, stride, true);
            for (int64_t i = 0; i < rows; i++)
                accessor.forward(t, b0 + i, now + i * stride + at.interface_part,
                                 last + i * stride + at.accessor_part, now + i * stride + at.accessor_part,
                                 next + i * at.features + at.hidden, scratch.data());
        }
        for (int64_t i = 0; i < rows; i++) {
            const T* r = record(p.steps) + i * stride;
            if (x.cell) std::memcpy(x.last_cell + (b0 + i) * at.hidden, r + at.cell_part, at.hidden * sizeof(T));
            accessor.finish(b0 + i, r + at.accessor_part);
        }
    });
}

template <class T, class Accessor> void backward(const Problem& p, const Tensors<T>& x) {
    const Layout<T> at(p);
    const int64_t stride = record_size<T, Accessor>(p), columns = at.seen + p.inputs;
    const Accessor accessor(p, x, p.batch * stride);
    const int64_t gate_stride = round_up<T>(at.gates), interface_stride = round_up<T>((int)p.interface);
    const int64_t carry_stride = at.features + LANES<T>, hidden_stride = round_up<T>(at.hidden);
    const Packed<T> to_features(at.gates, at.seen, x.weight, columns, 1);
    const Packed<T> to_hidden((int)p.interface, at.hidden, x.interface_weight, at.hidden, 1);
    for_blocks(p, [&](int64_t b0, int64_t rows) {
        std::vector<T> scratch(accessor.backward_scratch() + rows * accessor.row_scratch());
        T* row_scratch = scratch.data() + accessor.backward_scratch();
        std::vector<T> carries(rows * carry_stride), for_hidden(rows * hidden_stride), d_cells(rows * at.hidden);
        for (int64_t i = 0; i < rows; i++) {
            if (x.d_last_cell)
                std::memcpy(&d_cells[i * at.hidden], x.d_last_cell + (b0 + i) * at.hidden, at.hidden * sizeof(T));
            accessor.begin_backward(b0 + i, row_scratch + i * accessor.row_scratch());
        }
        for (int64_t t = p.steps - 1; t >= 0; t--) {
            const T* last = x.records + (t * p.batch + b0) * stride;
            const T* now = last + p.batch * stride;
            const T* features = x.features + (t * p.batch + b0) * at.features;
            T* d_interface = x.d_interface + (t * p.batch + b0) * interface_stride;
            T* d_gates = x.d_gates + (t * p.batch + b0) * gate_stride;
            for (int64_t i = 0; i < rows; i++) {
                T* carry = &carries[i * carry_stride];  // gradient of this step's features
                if (x.d_features) {
                    const T* d = x.d_features + (t * p.batch + b0 + i) * at.features;
                    for (int j = 0; j < at.features; j++) carry[j] += d[j];
                }
                accessor.backward(t, b0 + i, now + i * stride + at.interface_part,
                                  last + i * stride + at.accessor_part, now + i * stride + at.accessor_part,
                                  carry + at.hidden, d_interface + i * interface_stride, scratch.data(),
                                  row_scratch + i * accessor.row_scratch());
            }
            product<T>((int)rows, to_hidden, d_interface, interface_stride, for_hidden.data(), hidden_stride, false);
            for (int64_t i = 0; i < rows; i++) {
                T *carry = &carries[i * carry_stride], *d_hidden = &for_hidden[i * hidden_stride];
                for (int j = 0; j < at.hidden; j++) d_hidden[j] += carry[j];
                std::memset(carry, 0, carry_stride * sizeof(T));
                controller_backward<T>((int)p.controller, at.hidden, T(p.clip), now + i * stride + at.gate_part,
                                       features + i * at.features, last + i * stride + at.cell_part,
                                       now + i * stride + at.cell_part, d_hidden, &d_cells[i * at.hidden],
                                       d_gates + i * gate_stride, carry);
            }
            product<T>((int)rows, to_features, d_gates, gate_stride, &carries[at.skipped], carry_stride, true);
        }
        for (int64_t i = 0; i < rows; i++) {
            std::memcpy(x.d_first + (b0 + i) * at.features, &carries[i * carry_stride], at.features * sizeof(T));
            if (x.d_cell) std::memcpy(x.d_cell + (b0 + i) * at.hidden, &d_cells[i * at.hidden], at.hidden * sizeof(T));
            accessor.finish_backward(b0 + i, row_scratch + i * accessor.row_scratch());
        }
    });
}

}  // namespace native
