// A whole sequence, forward and backward, for a controller and any accessor. The rows of the batch are shared among
// threads and worked on in blocks that go through all time steps, so that their memory stays in cache.
#pragma once
#if defined(__linux__)
#include <sys/mman.h>
#endif
#include <atomic>
#include <initializer_list>
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
    int64_t steps, batch, inputs, hidden, layers, slots, word, reads, writes, interface, outputs, controller, threads;
    int64_t members;     // of a population (outputs > 0), each with its own weights and batch / members rows
    int64_t training;    // keep what the backward pass needs
    int64_t keep_every;  // steps between two stored memories; those between are computed again
    int64_t block;       // rows of the batch that go through the sequence together
    int64_t shift_range, squash, masked_content, memory_wipe, link_sharpening, usage_gradient;
    double clip;

    int64_t rows_per_member() const { return batch / members; }
    int64_t rows_per_state() const { return outputs ? rows_per_member() : 1; }
};

// The weights of one layer of the controller, as nn.Linear has them, or their gradients; mirrored in library.py.
template <class T> struct Layer {
    T* input_weight;      // [P, G, I + words read], above the first layer [P, G, hidden]
    T* input_bias;        // [P, G]
    T* recurrent_weight;  // [P, G, hidden]; null for a feed-forward controller
    T* recurrent_bias;    // [P, G]; the same
};

// All tensors are contiguous; mirrored in library.py. T steps, B batch, I inputs, F features (hidden, then words read),
// G gates, L layers, P members, O outputs. A state's leaves are in the order of its NamedTuple. States are of each row
// of the batch, [B, …]; those that a population begins with of each member, [P, …].
template <class T> struct Tensors {
    const T* inputs;                // [T, B / P, I]
    const Layer<const T>* layers;   // [L]
    const T* interface_weight;      // [P, interface, hidden]
    const T* interface_bias;        // [P, interface]
    const T* output_weight;         // [P, O, F]
    const T* output_bias;           // [P, O]
    T* features;                    // [T + 1, B, F], the first from the state; with outputs only two in turn
    T* outputs;                     // [T, B, O], of a population; null: the features are the result
    const T* hidden;                // [B, L, hidden]; null: none is carried
    const T* cell;                  // [B, L, hidden], LSTM
    const T* reads;                 // [B, words read]
    const T* state[MOST_LEAVES];    // [B, …]
    T* last_hidden;
    T* last_cell;
    T* last_reads;                  // null: the last state is not wanted
    T* last_state[MOST_LEAVES];
    T* records;  // what every step leaves for the backward pass
    T* tape;     // memories (and links) before every keep_every-th step, and the last
    // Backward: gradients of the results (null: zero) and of the arguments.
    const T* d_features;  // [T, B, F]
    const T* d_last_hidden;
    const T* d_last_cell;
    const T* d_last_reads;
    const T* d_last_state[MOST_LEAVES];
    T* d_hidden;  // this and the rest: null if not wanted
    T* d_cell;
    T* d_reads;
    T* d_state[MOST_LEAVES];
    T* d_inputs;
    const Layer<T>* d_layers;
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

// Threads worth starting for so many products of numbers.
inline int64_t threads_for(const Problem& p, int64_t products) { return std::min(p.threads, 1 + products / (1 << 22)); }

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

// Asks for what will soon be needed, unless it would push what is needed now out of the cache.
template <bool TO_WRITE, class T> inline void prefetch(const T* start, int64_t count) {
    if (count * (int64_t)sizeof(T) > 16384) return;
    for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(start + i, TO_WRITE);
}

// What every step leaves: gates, cell state and hidden vector of each layer, activated interface vector and the
// accessor's own part, for each row of the batch. Record s holds what step s - 1 made, record 0 the first state.
// The last layer's hidden vector is among the features.
template <class T> struct Records {
    T* base;
    int64_t batch, ring, first_row = 0;
    int hidden, layers, features, gates, skipped, seen;
    bool feed_forward;
    int64_t gates_size, hidden_size, lower_size, cell_part, lower_part, interface_part, accessor_part, size;

    // ring: how many records are kept; row b lies at b - first_row.
    Records(const Problem& p, T* base, int64_t accessor_size, int64_t ring, int64_t batch)
        : base(base), batch(batch), ring(ring), hidden((int)p.hidden), layers((int)p.layers),
          features(hidden + int(p.reads * p.word)), gates(gate_blocks((int)p.controller) * hidden),
          skipped(p.controller == FEEDFORWARD ? hidden : 0),  // a feed-forward controller sees only the reads
          seen(features - skipped), feed_forward(p.controller == FEEDFORWARD), gates_size(round_up<T>(gates)),
          hidden_size(round_up<T>(hidden)), lower_size(round_up<T>(features)), cell_part(layers * gates_size),
          lower_part(cell_part + layers * hidden_size), interface_part(lower_part + (layers - 1) * lower_size),
          accessor_part(interface_part + round_up<T>((int)p.interface)), size(accessor_part + accessor_size) {}
    T* row(int64_t s, int64_t b) const { return base + (s % ring * batch + b - first_row) * size; }
    T* gate(int64_t s, int64_t b, int layer) const { return row(s, b) + layer * gates_size; }
    T* cell(int64_t s, int64_t b, int layer) const { return row(s, b) + cell_part + layer * hidden_size; }
    // Hidden vector of a layer below the last; the first layer's is followed by the words read, as in the features.
    T* lower(int64_t s, int64_t b, int layer) const { return row(s, b) + lower_part + layer * lower_size; }
    T* interface(int64_t s, int64_t b) const { return row(s, b) + interface_part; }
    T* accessor(int64_t s, int64_t b) const { return row(s, b) + accessor_part; }
    // With several recurrent layers, the first one sees its own hidden vector and the words read; else the features.
    bool seen_apart() const { return layers > 1 && !feed_forward; }
};

// Rows of a matrix: where the first one lies, and how far they are apart.
template <class T> struct Rows {
    T* first;
    int64_t stride;
};

// The features of every step, [steps, B, F], and the hidden vectors of all layers.
template <class T> struct Hidden {
    const Records<T>& records;
    T* features;
    int64_t batch, ring;

    T* feature(int64_t s, int64_t b) const { return features + (s % ring * batch + b) * records.features; }
    Rows<T> layer(int64_t s, int64_t b, int layer) const {
        if (layer == records.layers - 1) return {feature(s, b), records.features};
        return {records.lower(s, b, layer), records.size};
    }
    // What the first layer sees of step s.
    Rows<T> seen(int64_t s, int64_t b) const {
        if (records.seen_apart()) return {records.lower(s, b, 0), records.size};
        return {feature(s, b) + records.skipped, records.features};
    }
};

// Rows of a layer's weight and the gates of a record that they make.
struct GateBlock {
    int row, gate, count;
};
// Whether every weight of a layer takes part in all of its gates.
inline bool all_gates(const Problem& p) { return p.controller != GRU; }
struct LayerShape {
    int rows, below;  // of the input's weight; the recurrent one has as many rows, and columns for the hidden vector
    std::vector<GateBlock> input, recurrent;

    LayerShape(const Problem& p, int layer)
        : rows(int(p.controller == GRU ? 3 * p.hidden : gate_blocks((int)p.controller) * p.hidden)),
          below(int(layer ? p.hidden : p.inputs + p.reads * p.word)), input{{0, 0, rows}} {
        const int hidden = (int)p.hidden;
        if (p.controller == LSTM) recurrent = input;
        if (p.controller == GRU) recurrent = {{0, 0, 2 * hidden}, {2 * hidden, 3 * hidden, hidden}};
    }
};

// The weights of one member, packed for the forward products.
template <class T> struct ForwardWeights {
    struct Upper {
        Packed<T> from_own, from_below;
        std::vector<T> bias;
    };
    Packed<T> from_seen, from_inputs, to_interface, to_outputs;
    std::vector<T> bias;
    std::vector<Upper> uppers;
    const T *interface_bias, *output_bias;

    ForwardWeights(const Problem& p, const Tensors<T>& x, const Records<T>& r, int64_t member)
        : from_seen(r.seen, r.gates, all_gates(p)), from_inputs((int)p.inputs, r.gates, all_gates(p)),
          to_interface(r.hidden, (int)p.interface), to_outputs(r.features, (int)p.outputs), interface_bias(x.interface_bias + member * p.interface),
          output_bias(x.output_bias + member * p.outputs) {
        const int own = r.feed_forward ? 0 : r.hidden, inputs = (int)p.inputs;
        for (int layer = 0; layer < r.layers; layer++) {
            const LayerShape shape(p, layer);
            const Layer<const T>& given = x.layers[layer];
            std::vector<T> biases(r.gates);
            const T* weight = given.input_weight + member * shape.rows * shape.below;
            const T* recurrent = given.recurrent_weight + member * shape.rows * own;
            add_bias(shape.input, given.input_bias + member * shape.rows, biases);
            add_bias(shape.recurrent, given.recurrent_bias + member * shape.rows, biases);
            if (layer == 0) {
                pack(from_seen, 0, own, shape.recurrent, recurrent, own);
                pack(from_seen, own, shape.below - inputs, shape.input, weight + inputs, shape.below);
                pack(from_inputs, 0, inputs, shape.input, weight, shape.below);
                bias = std::move(biases);
                continue;
            }
            uppers.push_back({Packed<T>(own, r.gates, all_gates(p)), Packed<T>(r.hidden, r.gates, all_gates(p)),
                              std::move(biases)});
            pack(uppers.back().from_own, 0, own, shape.recurrent, recurrent, own);
            pack(uppers.back().from_below, 0, r.hidden, shape.input, weight, shape.below);
        }
        to_interface.put_transposed(0, r.hidden, 0, (int)p.interface, x.interface_weight + member * p.interface * r.hidden,
                                    r.hidden);
        if (x.outputs)
            to_outputs.put_transposed(0, r.features, 0, (int)p.outputs, x.output_weight + member * p.outputs * r.features,
                                      r.features);
    }

  private:
    static void pack(Packed<T>& to, int row, int count, const std::vector<GateBlock>& blocks, const T* weight,
                     int64_t stride) {
        for (const auto& block : blocks)
            to.put_transposed(row, count, block.gate, block.count, weight + block.row * stride, stride);
    }
    static void add_bias(const std::vector<GateBlock>& blocks, const T* from, std::vector<T>& to) {
        for (const auto& block : blocks)
            for (int i = 0; i < block.count; i++) to[block.gate + i] += from[block.row + i];
    }
};

// Rows b0 … of one member through all time steps.
template <class T, class Accessor>
void forward_block(const Problem& p, const Tensors<T>& x, const Records<T>& records, const ForwardWeights<T>& weights,
                   int64_t b0, int64_t rows) {
    const Accessor accessor(p, x, records);
    const Hidden<T> hiddens{records, x.features, p.batch, x.outputs ? 2 : p.steps + 1};
    const int hidden = records.hidden, features = records.features, layers = records.layers;
    const int64_t end = b0 + rows, words = features - hidden, input_rows = p.rows_per_member();
    const int64_t outputs_size = round_up<T>((int)p.outputs);
    std::vector<T> scratch(accessor.forward_scratch()), outputs(x.outputs ? rows * outputs_size : 0);
    auto keep_words = [&](int64_t s, int64_t b) {
        if (records.seen_apart())
            std::memcpy(records.lower(s, b, 0) + hidden, hiddens.feature(s, b) + hidden, words * sizeof(T));
    };
    for (int64_t b = b0; b < end; b++) {
        const int64_t given = b / p.rows_per_state();
        for (int layer = 0; x.cell && layer < layers; layer++)
            std::memcpy(records.cell(0, b, layer), x.cell + (given * layers + layer) * hidden, hidden * sizeof(T));
        for (int layer = 0; layer < layers; layer++) {
            T* to = hiddens.layer(0, b, layer).first;
            if (x.hidden)
                std::memcpy(to, x.hidden + (given * layers + layer) * hidden, hidden * sizeof(T));
            else
                std::memset(to, 0, hidden * sizeof(T));
        }
        std::memcpy(hiddens.feature(0, b) + hidden, x.reads + given * words, words * sizeof(T));
        keep_words(0, b);
        accessor.begin(b);
    }
    for (int64_t t = 0; t < p.steps; t++) {
        for (int layer = 0; layer < layers; layer++) {
            T* gates = records.gate(t + 1, b0, layer);
            const T* bias = (layer ? weights.uppers[layer - 1].bias : weights.bias).data();
            for (int64_t i = 0; i < rows; i++)
                std::memcpy(gates + i * records.size, bias, records.gates * sizeof(T));
            auto add_product = [&](const Packed<T>& weight, Rows<const T> from) {
                product<T>((int)rows, weight, from.first, from.stride, gates, records.size, true);
            };
            auto rows_of = [](Rows<T> r) { return Rows<const T>{r.first, r.stride}; };
            if (layer == 0) {
                add_product(weights.from_inputs, {x.inputs + (t * input_rows + b0 % input_rows) * p.inputs, p.inputs});
                add_product(weights.from_seen, rows_of(hiddens.seen(t, b0)));
            } else {
                const auto& upper = weights.uppers[layer - 1];
                add_product(upper.from_below, rows_of(hiddens.layer(t + 1, b0, layer - 1)));
                if (!records.feed_forward) add_product(upper.from_own, rows_of(hiddens.layer(t, b0, layer)));
            }
            for (int64_t b = b0; b < end; b++)
                controller_forward<T>((int)p.controller, hidden, T(p.clip), records.gate(t + 1, b, layer),
                                      hiddens.layer(t, b, layer).first, records.cell(t, b, layer),
                                      hiddens.layer(t + 1, b, layer).first, records.cell(t + 1, b, layer));
        }
        for (int64_t b = b0; b < end; b++)
            std::memcpy(records.interface(t + 1, b), weights.interface_bias, p.interface * sizeof(T));
        product<T>((int)rows, weights.to_interface, hiddens.feature(t + 1, b0), features, records.interface(t + 1, b0),
                   records.size, true);
        for (int64_t b = b0; b < end; b++) {
            if (p.training && b + 1 < end)
                prefetch<true>(records.accessor(t + 1, b + 1), records.size - records.accessor_part);
            accessor.forward(t, b, hiddens.feature(t + 1, b) + hidden, scratch.data());
            keep_words(t + 1, b);
        }
        if (!x.outputs) continue;
        for (int64_t i = 0; i < rows; i++)
            std::memcpy(&outputs[i * outputs_size], weights.output_bias, p.outputs * sizeof(T));
        product<T>((int)rows, weights.to_outputs, hiddens.feature(t + 1, b0), features, outputs.data(), outputs_size,
                   true);
        for (int64_t i = 0; i < rows; i++)
            std::memcpy(x.outputs + (t * p.batch + b0 + i) * p.outputs, &outputs[i * outputs_size],
                        p.outputs * sizeof(T));
    }
    if (!x.last_reads) return;
    for (int64_t b = b0; b < end; b++) {
        for (int layer = 0; x.last_cell && layer < layers; layer++)
            std::memcpy(x.last_cell + (b * layers + layer) * hidden, records.cell(p.steps, b, layer),
                        hidden * sizeof(T));
        for (int layer = 0; x.last_hidden && layer < layers; layer++)
            std::memcpy(x.last_hidden + (b * layers + layer) * hidden, hiddens.layer(p.steps, b, layer).first,
                        hidden * sizeof(T));
        std::memcpy(x.last_reads + b * words, hiddens.feature(p.steps, b) + hidden, words * sizeof(T));
        accessor.finish(b);
    }
}

// The records of a call: all of them for training; else each block has its own, of as many steps as the accessor needs.
template <class T, class Accessor> Records<T> all_records(const Problem& p, T* base) {
    return {p, base, Accessor::record_size(p), p.steps + 1, p.batch};
}
template <class T, class Accessor> int64_t records_size(const Problem& p) {
    const Records<T> records = all_records<T, Accessor>(p, nullptr);
    return p.training ? records.ring * p.batch * records.size : 0;
}

template <class T, class Accessor> void forward(const Problem& p, const Tensors<T>& x) {
    const Records<T> all = all_records<T, Accessor>(p, x.records);
    prefer_large_pages(x.records, records_size<T, Accessor>(p) * sizeof(T));
    prefer_large_pages(x.tape, Accessor::tape_size(p) * sizeof(T));
    auto run = [&](const ForwardWeights<T>& weights, int64_t begin, int64_t end) {
        const int64_t ring = std::min(Accessor::history(p), p.steps) + 1;
        Records<T> own(p, nullptr, Accessor::record_size(p), ring, std::min(p.block, end - begin));
        std::unique_ptr<T[]> space(p.training ? nullptr : new T[ring * own.batch * own.size]);
        own.base = space.get();
        for (int64_t b = begin; b < end; b += p.block) {
            own.first_row = b;
            forward_block<T, Accessor>(p, x, p.training ? all : own, weights, b, std::min(p.block, end - b));
        }
    };
    if (p.members == 1) {
        const ForwardWeights<T> weights(p, x, all, 0);
        for_ranges(p.threads, p.batch, [&](int64_t begin, int64_t end) { run(weights, begin, end); });
        return;
    }
    const int64_t rows = p.rows_per_member();
    for_ranges(p.threads, p.members, [&](int64_t first, int64_t last) {
        for (int64_t member = first; member < last; member++)
            run(ForwardWeights<T>(p, x, all, member), member * rows, (member + 1) * rows);
    });
}

// Gradients of the weights are sums over all steps, in a fixed order whatever the threads. Of one block of a weight's
// rows, whose columns meet the rows of `parts` in turn.
template <class T> struct Columns {
    Rows<const T> rows;
    int count;
};
template <class T>
void sum_gradients(const Problem& p, const T* d, int64_t stride, const GateBlock& block,
                   std::initializer_list<Columns<T>> parts, T* d_weight, T* d_bias) {
    const int64_t count = p.steps * p.batch;
    int64_t columns = 0;
    for (const auto& part : parts) columns += part.count;
    d += block.gate;
    for_ranges(threads_for(p, count * columns * block.count), block.count, [&](int64_t begin, int64_t end) {
        if (d_bias) sum_of_rows(count, d, stride, (int)begin, (int)end, d_bias + block.row);
        if (!d_weight) return;
        T* out = d_weight + block.row * columns;
        for (const auto& part : parts) {
            if (part.count)
                sum_of_products<T>(count, d, stride, (int)begin, (int)end, part.rows.first, part.rows.stride, part.count,
                                   out, columns);
            out += part.count;
        }
    });
}

template <class T, class Accessor> void backward(const Problem& p, const Tensors<T>& x) {
    const Records<T> records = all_records<T, Accessor>(p, x.records);
    const Accessor accessor(p, x, records);
    const Hidden<T> hiddens{records, x.features, p.batch, p.steps + 1};
    const int hidden = records.hidden, features = records.features, layers = records.layers, top = layers - 1;
    const int own = records.feed_forward ? 0 : hidden;
    const int words = features - hidden, inputs = (int)p.inputs;
    const int64_t count = p.steps * p.batch;
    const int64_t gate_stride = records.gates_size, interface_stride = round_up<T>((int)p.interface);
    const int64_t hidden_stride = records.hidden_size;
    const int64_t carry_stride = features + LANES<T>;  // room for whole vectors from any place
    // Gradients of the products: of the gates and of the interface vector, [L, T, B, …] and [T, B, …].
    std::unique_ptr<T[]> d_all_gates(new T[layers * count * gate_stride]);
    std::unique_ptr<T[]> d_all_interfaces(new T[count * interface_stride]);
    auto d_gates_of = [&](int layer, int64_t t, int64_t b) {
        return &d_all_gates[((layer * p.steps + t) * p.batch + b) * gate_stride];
    };
    auto pack = [](Packed<T>& to, int column, int columns, const std::vector<GateBlock>& blocks, const T* weight,
                   int64_t stride) {
        for (const auto& block : blocks)
            to.put(block.gate, block.count, column, columns, weight + block.row * stride, stride);
    };
    const LayerShape first_shape(p, 0), upper_shape(p, 1);
    const bool all = all_gates(p);
    Packed<T> to_seen(records.gates, records.seen, all), to_hidden((int)p.interface, hidden);
    pack(to_seen, 0, own, first_shape.recurrent, x.layers[0].recurrent_weight, own);
    pack(to_seen, own, words, first_shape.input, x.layers[0].input_weight + inputs, first_shape.below);
    to_hidden.put(0, (int)p.interface, 0, hidden, x.interface_weight, hidden);
    std::vector<Packed<T>> to_own, to_below;
    for (int layer = 1; layer < layers; layer++) {
        to_own.emplace_back(records.gates, own, all);
        to_below.emplace_back(records.gates, hidden, all);
        pack(to_own.back(), 0, own, upper_shape.recurrent, x.layers[layer].recurrent_weight, own);
        pack(to_below.back(), 0, hidden, upper_shape.input, x.layers[layer].input_weight, hidden);
    }
    for_blocks(p, [&](int64_t b0, int64_t rows) {
        const int64_t row_size = accessor.row_scratch();
        std::vector<T> scratch(accessor.backward_scratch());
        std::unique_ptr<T[]> row_scratch(new T[rows * row_size]);
        prefer_large_pages(row_scratch.get(), rows * row_size * sizeof(T));
        std::memset(row_scratch.get(), 0, rows * row_size * sizeof(T));
        // Gradients that step t + 1 left for the hidden vectors of step t (the last layer's with the words read).
        std::vector<T> carries(layers * rows * carry_stride), d_hiddens(rows * hidden_stride);
        std::vector<T> d_cells(layers * rows * hidden);
        auto carry_of = [&](int layer, int64_t i) { return &carries[(layer * rows + i) * carry_stride]; };
        auto d_cell_of = [&](int layer, int64_t i) { return &d_cells[(layer * rows + i) * hidden]; };
        for (int64_t i = 0; i < rows; i++) {
            const int64_t b = b0 + i;
            for (int layer = 0; x.d_last_cell && layer < layers; layer++)
                std::memcpy(d_cell_of(layer, i), x.d_last_cell + (b * layers + layer) * hidden, hidden * sizeof(T));
            for (int layer = 0; x.d_last_hidden && layer < layers; layer++)
                std::memcpy(carry_of(layer, i), x.d_last_hidden + (b * layers + layer) * hidden, hidden * sizeof(T));
            if (x.d_last_reads)
                std::memcpy(carry_of(top, i) + hidden, x.d_last_reads + b * words, words * sizeof(T));
            accessor.begin_backward(b, &row_scratch[i * row_size]);
        }
        for (int64_t t = p.steps - 1; t >= 0; t--) {
            T* d_interface = &d_all_interfaces[(t * p.batch + b0) * interface_stride];
            for (int64_t i = 0; i < rows; i++) {
                T* carry = carry_of(top, i);
                if (x.d_features) {
                    const T* d = x.d_features + (t * p.batch + b0 + i) * features;
                    for (int j = 0; j < features; j++) carry[j] += d[j];
                }
                // Records come from far away: the next row's while this one is worked on.
                if (i + 1 < rows)
                    prefetch<false>(records.row(t, b0 + i + 1), records.size);
                else if (t > 0)
                    prefetch<false>(records.row(t - 1, b0), records.size);
                accessor.backward(t, b0 + i, carry + hidden, d_interface + i * interface_stride, scratch.data(),
                                  &row_scratch[i * row_size]);
            }
            product<T>((int)rows, to_hidden, d_interface, interface_stride, d_hiddens.data(), hidden_stride, false);
            for (int layer = top; layer >= 0; layer--) {
                T* d_gates = d_gates_of(layer, t, b0);
                for (int64_t i = 0; i < rows; i++) {
                    const int64_t b = b0 + i;
                    T *carry = carry_of(layer, i), *d_hidden = &d_hiddens[i * hidden_stride];
                    for (int j = 0; j < hidden; j++) d_hidden[j] += carry[j];
                    std::memset(carry, 0, carry_stride * sizeof(T));
                    controller_backward<T>((int)p.controller, hidden, T(p.clip), records.gate(t + 1, b, layer),
                                           hiddens.layer(t, b, layer).first, records.cell(t, b, layer),
                                           records.cell(t + 1, b, layer), d_hidden, d_cell_of(layer, i),
                                           d_gates + i * gate_stride, carry);
                }
                if (layer > 0) {
                    if (own)
                        product<T>((int)rows, to_own[layer - 1], d_gates, gate_stride, carry_of(layer, 0), carry_stride,
                                   true);
                    product<T>((int)rows, to_below[layer - 1], d_gates, gate_stride, d_hiddens.data(), hidden_stride,
                               false);
                    continue;
                }
                T* to = records.seen_apart() ? carry_of(0, 0) : carry_of(top, 0) + records.skipped;
                product<T>((int)rows, to_seen, d_gates, gate_stride, to, carry_stride, true);
                if (records.seen_apart())
                    for (int64_t i = 0; i < rows; i++)
                        std::memcpy(carry_of(top, i) + hidden, carry_of(0, i) + hidden,
                                    (features - hidden) * sizeof(T));
            }
        }
        for (int64_t i = 0; i < rows; i++) {
            const int64_t b = b0 + i;
            for (int layer = 0; x.d_hidden && layer < layers; layer++)
                std::memcpy(x.d_hidden + (b * layers + layer) * hidden, carry_of(layer, i), hidden * sizeof(T));
            if (x.d_reads) std::memcpy(x.d_reads + b * words, carry_of(top, i) + hidden, words * sizeof(T));
            for (int layer = 0; x.d_cell && layer < layers; layer++)
                std::memcpy(x.d_cell + (b * layers + layer) * hidden, d_cell_of(layer, i), hidden * sizeof(T));
            accessor.finish_backward(b, &row_scratch[i * row_size]);
        }
    });

    auto rows_of = [](Rows<T> r, int64_t skip = 0) { return Rows<const T>{r.first + skip, r.stride}; };
    for (int layer = 0; layer < layers; layer++) {
        const LayerShape shape(p, layer);
        const Layer<T>& wanted = x.d_layers[layer];
        const T* d_gates = d_gates_of(layer, 0, 0);
        const Rows<const T> last = rows_of(layer ? hiddens.layer(0, 0, layer) : hiddens.seen(0, 0));
        for (const auto& block : shape.recurrent)
            sum_gradients<T>(p, d_gates, gate_stride, block, {{last, hidden}}, wanted.recurrent_weight,
                             wanted.recurrent_bias);
        for (const auto& block : shape.input) {
            if (layer)
                sum_gradients<T>(p, d_gates, gate_stride, block, {{rows_of(hiddens.layer(1, 0, layer - 1)), hidden}},
                                 wanted.input_weight, wanted.input_bias);
            else
                sum_gradients<T>(p, d_gates, gate_stride, block,
                                 {{{x.inputs, p.inputs}, inputs}, {rows_of(hiddens.seen(0, 0), own), words}},
                                 wanted.input_weight, wanted.input_bias);
        }
    }
    sum_gradients<T>(p, d_all_interfaces.get(), interface_stride, {0, 0, (int)p.interface},
                     {{rows_of(hiddens.layer(1, 0, top)), hidden}}, x.d_interface_weight, x.d_interface_bias);
    if (x.d_inputs) {
        Packed<T> to_inputs(records.gates, inputs, all);
        pack(to_inputs, 0, inputs, first_shape.input, x.layers[0].input_weight, first_shape.below);
        const T* d_gates = d_gates_of(0, 0, 0);
        for_ranges(threads_for(p, count * records.gates * p.inputs), count, [&](int64_t begin, int64_t end) {
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
