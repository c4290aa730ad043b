// A whole sequence, forward and backward, for a controller and any accessor. The rows of the batch are shared among
// threads and worked on in blocks that go through all time steps, so that their memory stays in cache.
#pragma once
#if defined(__linux__)
#include <sys/mman.h>
#endif
#include <type_traits>
#include <vector>

#include "controller.h"
#include "product.h"
#include "threads.h"

namespace native {

constexpr int MOST_LEAVES = 6;

// Where the parts of the interface vector begin; -1: there is no such part. NTM and DNC have some names in common.
struct Places {
    int64_t keys, strengths, gate, shift, sharpness, mask;
    int64_t erase, add;
    int64_t read_keys, read_strengths, write_keys, write_strengths, free_gates, allocation_gates, write_gates, read_modes;
    int64_t read_mask, write_mask, link_powers;
    int64_t words, moves;  // of stacks and soft tapes
};

// Sizes, options and constants of the equations; mirrored in library.py.
struct Problem {
    int64_t steps, batch, inputs, hidden, layers, slots, word, reads, writes, interface, outputs, controller, threads;
    int64_t members;     // of a population, each with its own weights and batch / members rows; else 0
    int64_t training;    // keep what the backward pass needs
    int64_t keep_every;  // steps between two stored memories; those between are computed again
    int64_t block;       // rows of the batch that go through the sequence together
    int64_t shift_range, squash, masked_content, memory_wipe, link_sharpening, usage_gradient;
    int64_t states;  // of an automaton
    int64_t given_columns, last_columns;  // a single step reads, leaves the memory in the state: [B, word, slots]
    Places places;
    double clip, norm_epsilon, usage_epsilon, sharpen_epsilon, mask_min, temperature, sharpening, output_clip;

    ControllerSizes controller_sizes() const { return {int(controller), int(hidden), int(states)}; }
    template <class T> Controller<T> controller_of() const {
        return {controller_sizes(), T(clip), T(temperature), T(sharpening), T(sharpen_epsilon)};
    }
    int64_t rows_per_member() const { return members ? batch / members : batch; }
    int64_t rows_per_state() const { return members ? rows_per_member() : 1; }
};

// The weights of one layer of the controller, as nn.Linear has them, or their gradients; mirrored in library.py.
template <class T> struct Layer {
    T* input_weight;      // [P, G, I + words read], above the first layer [P, G, hidden]
    T* input_bias;        // [P, G]
    T* recurrent_weight;  // [P, G, hidden], of an automaton [P, units, states]; null for a feed-forward controller
    T* recurrent_bias;    // [P, G], of an automaton [P, units]; the same
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
    T* outputs;                     // [T, B, O], clipped; null: the features alone are wanted
    const T* hidden;                // [B, L, hidden]; null: none is carried
    const T* cell;                  // [B, L, hidden], LSTM
    const T* reads;                 // [B, words read]
    const T* state[MOST_LEAVES];    // [B, …]
    T* last_hidden;
    T* last_cell;
    T* last_reads;                  // null: the last state is not wanted
    T* last_state[MOST_LEAVES];
    T* records;  // what every step leaves for the backward pass
    T* saved;    // memories (and links) before every keep_every-th step, and the last
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
template <class T> struct Saved {
    T* base;
    int64_t size, batch, every, steps;
    bool training;
    // Of a single step: where a tensor of the first state is read as it is, and one of the last state written; or null.
    const T* given = nullptr;
    T* left = nullptr;

    static int64_t length(const Problem& p) { return p.training ? (p.steps + p.keep_every - 1) / p.keep_every + 1 : 1; }
    T* kept(int64_t index, int64_t b) const { return base + (index * batch + b) * size; }
    T* first(int64_t b) const { return kept(0, b); }
    T* last(int64_t b) const { return kept(training ? (steps + every - 1) / every : 0, b); }
    // Forward: where step t reads and writes.
    const T* before(int64_t t, int64_t b) const {
        return given ? given + b * size : kept(training ? (t + every - 1) / every : 0, b);
    }
    T* after(int64_t t, int64_t b) const { return left ? left + b * size : kept(training ? t / every + 1 : 0, b); }
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

// Threads worth starting for so many products of numbers.
inline int64_t threads_for(const Problem& p, int64_t products) { return std::min(p.threads, 1 + products / (1 << 22)); }

// Calls body(first row, row after the last) for blocks of the batch; of smaller ones where threads would go without.
template <class F> void for_blocks(const Problem& p, F&& body) {
    const int64_t shared = (p.batch + 2 * p.threads - 1) / (2 * p.threads);
    for_ranges(p.threads, p.batch, p.threads > 1 ? std::min(p.block, shared) : p.block, body);
}

// Large fresh memory costs less to enter in large pages.
inline void prefer_large_pages(void* start, int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t page = 1 << 21;
    const uintptr_t first = ((uintptr_t)start + page - 1) / page * page, last = ((uintptr_t)start + bytes) / page * page;
    if (last > first) madvise((void*)first, last - first, MADV_HUGEPAGE);
#endif
}

// What every step leaves: gates, cell state and hidden vector of each layer, activated interface vector and the
// accessor's own part, for each row of the batch. Record s holds what step s - 1 made, record 0 the first state.
// The last layer's hidden vector is among the features.
template <class T> struct Records {
    T* base;
    int64_t batch, ring, first_row = 0;
    int hidden, layers, features, gates, own, skipped, seen;
    int64_t gates_size, hidden_size, lower_size, cell_part, lower_part, interface_part, accessor_part, size;

    // kept: how many records are; row b lies at b - first_row.
    Records(const Problem& p, T* where, int64_t accessor_size, int64_t kept, int64_t rows)
        : base(where), batch(rows), ring(kept), hidden((int)p.hidden), layers((int)p.layers),
          features(hidden + int(p.reads * p.word)), gates(p.controller_sizes().gates()), own(p.controller_sizes().own()),
          skipped(hidden - own),  // a feed-forward controller sees only the reads
          seen(features - skipped), gates_size(round_up<T>(gates)),
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
    bool seen_apart() const { return layers > 1 && own; }
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
inline bool all_gates(const Problem& p) { return p.controller != GRU && p.controller != AUTOMATON; }
// Whether the recurrent weights meet the gates that the input's meet: one product for both.
inline bool is_joined(const Problem& p) { return all_gates(p) && p.controller_sizes().own(); }
struct LayerShape {
    int rows, below;     // of the input's weight
    int recurrent_rows;  // of the other, which has columns for what the layer sees of its own hidden vector
    std::vector<GateBlock> input, recurrent;

    LayerShape(const Problem& p, int layer)
        : rows(p.controller == GRU ? int(3 * p.hidden) : p.controller_sizes().gates()),
          below(int(layer ? p.hidden : p.inputs + p.reads * p.word)), recurrent_rows(rows), input{{0, 0, rows}} {
        const int hidden = (int)p.hidden;
        if (is_joined(p)) recurrent = input;
        if (p.controller == GRU) recurrent = {{0, 0, 2 * hidden}, {2 * hidden, 3 * hidden, hidden}};
        if (p.controller == AUTOMATON) recurrent = {{0, 0, recurrent_rows = p.controller_sizes().units()}};
    }
};

// Rows of a product for which its matrix is not worth packing.
constexpr int64_t FEW_ROWS = 4;

// The weights of one member, as the forward products take them.
template <class T> struct ForwardWeights {
    struct Upper {
        Matrix<T> from_own, from_below;
        Space<T> bias;
    };
    bool packs;
    Matrix<T> from_seen, from_inputs, to_interface, to_outputs;
    Space<T> bias, interface_bias, output_bias;
    std::vector<Upper> uppers;

    ForwardWeights(const Problem& p, const Tensors<T>& x, const Records<T>& r, int64_t member)
        : packs(p.steps > 1 || p.batch > FEW_ROWS), from_seen(r.seen, r.gates, all_gates(p), packs),
          from_inputs((int)p.inputs, r.gates, all_gates(p), packs), to_interface(r.hidden, (int)p.interface, true, packs),
          to_outputs(r.features, x.outputs ? (int)p.outputs : 0, true, packs),
          interface_bias(whole_vectors(x.interface_bias, member, (int)p.interface)),
          output_bias(whole_vectors(x.output_bias, member, x.outputs ? (int)p.outputs : 0)) {
        const int own = r.own, inputs = (int)p.inputs;
        for (int layer = 0; layer < r.layers; layer++) {
            const LayerShape shape(p, layer);
            const Layer<const T>& given = x.layers[layer];
            Space<T> biases = zeros<T>(r.gates_size);
            const T* weight = given.input_weight + member * shape.rows * shape.below;
            const T* recurrent = given.recurrent_weight + member * shape.recurrent_rows * own;
            add_bias(shape.input, given.input_bias + member * shape.rows, biases);
            add_bias(shape.recurrent, given.recurrent_bias + member * shape.recurrent_rows, biases);
            if (layer == 0) {
                pack(from_seen, 0, own, shape.recurrent, recurrent, own);
                pack(from_seen, own, shape.below - inputs, shape.input, weight + inputs, shape.below);
                pack(from_inputs, 0, inputs, shape.input, weight, shape.below);
                bias = std::move(biases);
                continue;
            }
            uppers.push_back({Matrix<T>(own, r.gates, all_gates(p), packs),
                              Matrix<T>(r.hidden, r.gates, all_gates(p), packs), std::move(biases)});
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
    static Space<T> whole_vectors(const T* biases, int64_t member, int count) {
        Space<T> padded = zeros<T>(round_up<T>(count));
        std::copy_n(biases + member * count, count, padded.get());
        return padded;
    }
    static void pack(Matrix<T>& to, int row, int count, const std::vector<GateBlock>& blocks, const T* weight,
                     int64_t stride) {
        for (const auto& block : blocks)
            to.put_transposed(row, count, block.gate, block.count, weight + block.row * stride, stride);
    }
    static void add_bias(const std::vector<GateBlock>& blocks, const T* from, const Space<T>& to) {
        for (const auto& block : blocks)
            for (int i = 0; i < block.count; i++) to[block.gate + i] += from[block.row + i];
    }
};

// Rows b0 … of one member through all time steps.
template <class T, class Accessor>
void forward_block(const Problem& p, const Tensors<T>& x, const Records<T>& records, const ForwardWeights<T>& weights,
                   int64_t b0, int64_t rows) {
    const Accessor accessor(p, x, records);
    const Controller<T> controller = p.controller_of<T>();
    const Hidden<T> hiddens{records, x.features, p.batch, x.outputs ? 2 : p.steps + 1};
    const int hidden = records.hidden, features = records.features, layers = records.layers;
    const int64_t end = b0 + rows, words = features - hidden, input_rows = p.rows_per_member();
    const int64_t outputs_size = round_up<T>((int)p.outputs);
    const Space<T> scratch = zeros<T>(accessor.forward_scratch()), outputs(rows * outputs_size);
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
            const Rows<T> gates{records.gate(t + 1, b0, layer), records.size};
            const Space<T>& bias = layer ? weights.uppers[layer - 1].bias : weights.bias;
            auto add = [&](const Matrix<T>& weight, Rows<const T> from, Rows<const T> to) {
                product<T>((int)rows, weight, from, gates, to);
            };
            const Rows<const T> none{bias.get(), 0}, some = const_rows(gates);
            if (layer == 0) {
                add(weights.from_inputs, {x.inputs + (t * input_rows + b0 % input_rows) * p.inputs, p.inputs}, none);
                add(weights.from_seen, const_rows(hiddens.seen(t, b0)), some);
            } else {
                const auto& upper = weights.uppers[layer - 1];
                add(upper.from_below, const_rows(hiddens.layer(t + 1, b0, layer - 1)), none);
                if (records.own) add(upper.from_own, const_rows(hiddens.layer(t, b0, layer)), some);
            }
            for (int64_t b = b0; b < end; b++)
                controller_forward<T>(controller, records.gate(t + 1, b, layer),
                                      hiddens.layer(t, b, layer).first, records.cell(t, b, layer),
                                      hiddens.layer(t + 1, b, layer).first, records.cell(t + 1, b, layer));
        }
        product<T>((int)rows, weights.to_interface, {hiddens.feature(t + 1, b0), features},
                   {records.interface(t + 1, b0), records.size}, {weights.interface_bias.get(), 0});
        for (int64_t b = b0; b < end; b++) {
            if (p.training && b + 1 < end) {
                prefetch<true>(records.accessor(t + 1, b + 1), records.size - records.accessor_part);
                accessor.expect_forward(t, b + 1);
            }
            accessor.forward(t, b, hiddens.feature(t + 1, b) + hidden, scratch.get());
            keep_words(t + 1, b);
        }
        if (!x.outputs) continue;
        product<T>((int)rows, weights.to_outputs, {hiddens.feature(t + 1, b0), features},
                   {outputs.get(), outputs_size}, {weights.output_bias.get(), 0});
        for (int64_t i = 0; i < rows; i++) {
            T* out = x.outputs + (t * p.batch + b0 + i) * p.outputs;
            const T bound = T(p.output_clip), *made = &outputs[i * outputs_size];
            for (int64_t o = 0; o < p.outputs; o++) out[o] = made[o] < -bound ? -bound : made[o] > bound ? bound : made[o];
        }
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
    prefer_large_pages(x.saved, Accessor::saved_size(p) * sizeof(T));
    auto run = [&](const ForwardWeights<T>& weights, int64_t begin, int64_t end) {
        const int64_t ring = std::min(Accessor::history(p), p.steps) + 1;
        Records<T> own(p, nullptr, Accessor::record_size(p), ring, std::min(p.block, end - begin));
        const Space<T> records(p.training ? 0 : ring * own.batch * own.size);
        own.base = records.get();
        for (int64_t b = begin; b < end; b += p.block) {
            own.first_row = b;
            forward_block<T, Accessor>(p, x, p.training ? all : own, weights, b, std::min(p.block, end - b));
        }
    };
    if (p.members <= 1) {
        const ForwardWeights<T> weights(p, x, all, 0);
        for_blocks(p, [&](int64_t begin, int64_t end) { run(weights, begin, end); });
        return;
    }
    const int64_t rows = p.rows_per_member();
    for_ranges(p.threads, p.members, 1, [&](int64_t first, int64_t last) {
        for (int64_t member = first; member < last; member++)
            run(ForwardWeights<T>(p, x, all, member), member * rows, (member + 1) * rows);
    });
}

// Gradients of the weights are sums over all steps, in a fixed order whatever the threads. Of one block of a layer's
// gates, whose gradients are d; the shares' outputs begin with the first row of the weight.
template <class T>
void sum_gradients(const Problem& p, Rows<const T> d, const GateBlock& block, std::vector<Share<T>> shares) {
    const int64_t count = p.steps * p.batch;
    shares.erase(std::remove_if(shares.begin(), shares.end(), [](const Share<T>& s) { return !s.out.first; }),
                 shares.end());
    int64_t columns = 0;
    for (auto& share : shares) {
        share.out.first += block.row * share.out.stride;
        columns += share.count;
    }
    d.first += block.gate;
    if (columns == 0) return;
    sum_of_products<T>(threads_for(p, count * columns * block.count), count, d, block.count, shares);
}

template <class T, class Accessor> void backward(const Problem& p, const Tensors<T>& x) {
    const Records<T> records = all_records<T, Accessor>(p, x.records);
    const Accessor accessor(p, x, records);
    const Controller<T> controller = p.controller_of<T>();
    const Hidden<T> hiddens{records, x.features, p.batch, p.steps + 1};
    const int hidden = records.hidden, features = records.features, layers = records.layers, top = layers - 1;
    const int own = records.own;
    const int words = features - hidden, inputs = (int)p.inputs;
    const int64_t count = p.steps * p.batch;
    const int64_t gate_stride = records.gates_size, interface_stride = round_up<T>((int)p.interface);
    const int64_t hidden_stride = records.hidden_size;
    const int64_t carry_stride = round_up<T>(features) + LANES<T>;  // room for whole vectors from any place
    // Gradients of the products: of the gates and of the interface vector, [L, T, B, …] and [T, B, …].
    const Space<T> d_all_gates(layers * count * gate_stride), d_all_interfaces(count * interface_stride);
    auto d_gates_of = [&](int layer, int64_t t, int64_t b) {
        return &d_all_gates[((layer * p.steps + t) * p.batch + b) * gate_stride];
    };
    auto pack = [](Packed<T>& to, int column, int columns, const std::vector<GateBlock>& blocks, const T* weight,
                   int64_t stride) {
        for (const auto& block : blocks)
            to.put(block.gate, block.count, column, columns, weight + block.row * stride, stride);
    };
    const Rows<const T> nothing{nullptr, 0};
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
    for_blocks(p, [&](int64_t b0, int64_t end) {
        const int64_t rows = end - b0;
        const int64_t row_size = accessor.row_scratch();
        const Space<T> scratch = zeros<T>(accessor.backward_scratch()), row_scratch(rows * row_size);
        prefer_large_pages(row_scratch.get(), rows * row_size * sizeof(T));
        std::memset(row_scratch.get(), 0, rows * row_size * sizeof(T));
        // Gradients that step t + 1 left for the hidden vectors of step t (the last layer's with the words read).
        const Space<T> carries = zeros<T>(layers * rows * carry_stride), d_hiddens(rows * hidden_stride);
        const Space<T> d_cells = zeros<T>(layers * rows * hidden_stride);
        auto carry_of = [&](int layer, int64_t i) { return &carries[(layer * rows + i) * carry_stride]; };
        auto d_cell_of = [&](int layer, int64_t i) { return &d_cells[(layer * rows + i) * hidden_stride]; };
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
        auto expect = [&](int64_t t, int64_t b) {
            prefetch<false>(records.row(t, b), records.size);
            if (x.d_features) prefetch<false>(x.d_features + (t * p.batch + b) * features, features);
            accessor.expect_backward(t, b);
        };
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
                    expect(t, b0 + i + 1);
                else if (t > 0)
                    expect(t - 1, b0);
                accessor.backward(t, b0 + i, carry + hidden, d_interface + i * interface_stride, scratch.get(),
                                  &row_scratch[i * row_size]);
            }
            const Rows<T> to_hiddens{d_hiddens.get(), hidden_stride};
            product<T>((int)rows, to_hidden, {d_interface, interface_stride}, to_hiddens, nothing);
            for (int layer = top; layer >= 0; layer--) {
                T* d_gates = d_gates_of(layer, t, b0);
                for (int64_t i = 0; i < rows; i++) {
                    const int64_t b = b0 + i;
                    T *carry = carry_of(layer, i), *d_hidden = &d_hiddens[i * hidden_stride];
                    for (int j = 0; j < hidden; j++) d_hidden[j] += carry[j];
                    std::memset(carry, 0, carry_stride * sizeof(T));
                    controller_backward<T>(controller, records.gate(t + 1, b, layer), hiddens.layer(t, b, layer).first,
                                           records.cell(t, b, layer), hiddens.layer(t + 1, b, layer).first,
                                           records.cell(t + 1, b, layer), d_hidden, d_cell_of(layer, i),
                                           d_gates + i * gate_stride, carry);
                }
                if (layer > 0) {
                    const Rows<T> carry{carry_of(layer, 0), carry_stride};
                    if (own) product<T>((int)rows, to_own[layer - 1], {d_gates, gate_stride}, carry, const_rows(carry));
                    product<T>((int)rows, to_below[layer - 1], {d_gates, gate_stride}, to_hiddens, nothing);
                    continue;
                }
                T* to = records.seen_apart() ? carry_of(0, 0) : carry_of(top, 0) + records.skipped;
                const Rows<T> seen{to, carry_stride};
                product<T>((int)rows, to_seen, {d_gates, gate_stride}, seen, const_rows(seen));
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

    to_seen.release(), to_hidden.release();  // the sums find room where these were, and need no fresh memory
    const T one = 1;
    const Rows<const T> ones{&one, 0};
    for (int layer = 0; layer < layers; layer++) {
        const LayerShape shape(p, layer);
        const Layer<T>& wanted = x.d_layers[layer];
        const Rows<const T> d_gates{d_gates_of(layer, 0, 0), gate_stride};
        const Rows<const T> last = const_rows(layer ? hiddens.layer(0, 0, layer) : hiddens.seen(0, 0));
        std::vector<Share<T>> for_recurrent{{last, own, {wanted.recurrent_weight, own}},
                                            {ones, 1, {wanted.recurrent_bias, 1}}};
        std::vector<Share<T>> for_input{{ones, 1, {wanted.input_bias, 1}}};
        auto add = [&](Rows<const T> b, int columns, int first) {
            T* out = wanted.input_weight;
            for_input.push_back({b, columns, {out ? out + first : out, shape.below}});
        };
        if (layer) {
            add(const_rows(hiddens.layer(1, 0, layer - 1)), hidden, 0);
        } else {
            const Rows<T> seen = hiddens.seen(0, 0);
            add({x.inputs, p.inputs}, inputs, 0);
            add({seen.first + own, seen.stride}, words, inputs);
        }
        if (is_joined(p)) {
            for_input.insert(for_input.end(), for_recurrent.begin(), for_recurrent.end());
            for_recurrent.clear();
        }
        for (const auto& block : shape.input) sum_gradients<T>(p, d_gates, block, for_input);
        for (const auto& block : shape.recurrent) sum_gradients<T>(p, d_gates, block, for_recurrent);
    }
    sum_gradients<T>(p, {d_all_interfaces.get(), interface_stride}, {0, 0, (int)p.interface},
                     {{const_rows(hiddens.layer(1, 0, top)), hidden, {x.d_interface_weight, hidden}},
                      {ones, 1, {x.d_interface_bias, 1}}});
    if (x.d_inputs) {
        Packed<T> to_inputs(records.gates, inputs, all);
        pack(to_inputs, 0, inputs, first_shape.input, x.layers[0].input_weight, first_shape.below);
        const T* d_gates = d_gates_of(0, 0, 0);
        const int64_t threads = threads_for(p, count * records.gates * p.inputs);
        for_ranges(threads, count, piece_of(threads, count), [&](int64_t begin, int64_t end) {
            const int64_t width = round_up<T>((int)p.inputs);
            const Space<T> rows(8 * width);
            for (int64_t i = begin; i < end; i += 8) {
                const int64_t some = std::min<int64_t>(8, end - i);
                product<T>((int)some, to_inputs, {d_gates + i * gate_stride, gate_stride}, {rows.get(), width},
                           nothing);
                for (int64_t j = 0; j < some; j++)
                    std::memcpy(x.d_inputs + (i + j) * p.inputs, &rows[j * width], p.inputs * sizeof(T));
            }
        });
    }
}

}  // namespace native
