// One step of a controller for one row of the batch: gate activations and their derivatives (core/controllers).
#pragma once
#include <cstring>

#include "simd.h"

namespace native {

// GIVEN: the inputs are the hidden vectors, of a controller that ran before.
enum ControllerKind { LSTM = 0, GRU = 1, FEEDFORWARD = 2, RNN = 3, RELU_RNN = 4, GIVEN = 5 };
inline bool feeds_forward(int64_t kind) { return kind == FEEDFORWARD || kind == GIVEN; }

// Rows of the combined weight matrix. GRU: reset, update, the input's and the recurrent share of the candidate.
inline int gate_blocks(int kind) { return kind == LSTM || kind == GRU ? 4 : 1; }

template <class T> inline Vec<T> clipped(Vec<T> x, T clip) { return at_most(at_least(x, splat(-clip)), splat(clip)); }
// Gradient of clipping: passes up to and including the limits, as torch.clamp; without a limit whatever was clipped.
template <class T> inline Vec<T> clip_gradient(Vec<T> gradient, Vec<T> raw, T clip) {
    if (clip == std::numeric_limits<T>::infinity()) return gradient;
    return ((raw >= splat(-clip)) & (raw <= splat(clip))) ? gradient : Vec<T>{};
}

// gates: in, the products with the weights; out, the activations (for the GRU: reset, update, candidate and the
// recurrent share of the candidate). cell and last_cell are used by the LSTM only.
template <class T>
void controller_forward(int kind, int size, T clip, T* gates, const T* last_hidden, const T* last_cell, T* hidden,
                        T* cell) {
    T *g0 = gates, *g1 = gates + size, *g2 = gates + 2 * size, *g3 = gates + 3 * size;
    if (kind == LSTM) {
        // Out of place, gate by gate within one vector: a gate's last part may share a vector with the next gate.
        sweep<T>(size, [&](int i, auto io) {
            const Vec<T> in = logistic(io.load(g0 + i)), forget = logistic(io.load(g1 + i));
            const Vec<T> candidate = hyperbolic(io.load(g2 + i)), out = logistic(io.load(g3 + i));
            const Vec<T> c = clipped<T>(forget * io.load(last_cell + i) + in * candidate, clip);
            io.store(g0 + i, in), io.store(g1 + i, forget), io.store(g2 + i, candidate), io.store(g3 + i, out);
            io.store(cell + i, c), io.store(hidden + i, clipped<T>(out * hyperbolic(c), clip));
        });
    } else if (kind == GRU) {
        sweep<T>(size, [&](int i, auto io) {
            const Vec<T> reset = logistic(io.load(g0 + i)), update = logistic(io.load(g1 + i));
            const Vec<T> candidate = hyperbolic(io.load(g2 + i) + reset * io.load(g3 + i));
            io.store(g0 + i, reset), io.store(g1 + i, update), io.store(g2 + i, candidate);
            io.store(hidden + i, clipped<T>(candidate + update * (io.load(last_hidden + i) - candidate), clip));
        });
    } else if (kind == GIVEN) {
        std::memcpy(hidden, g0, size * sizeof(T));
    } else if (kind == RELU_RNN) {
        sweep<T>(size, [&](int i, auto io) {
            const Vec<T> x = at_least(io.load(g0 + i), Vec<T>{});
            io.store(g0 + i, x), io.store(hidden + i, clipped<T>(x, clip));
        });
    } else {
        sweep<T>(size, [&](int i, auto io) {
            const Vec<T> x = hyperbolic(io.load(g0 + i));
            io.store(g0 + i, x), io.store(hidden + i, clipped<T>(x, clip));
        });
    }
}

// d_hidden: gradient of this step's hidden vector. d_cell: of the cell state, in: after, out: before this step.
// d_gates: of the products with the weights. d_last_hidden: what reaches the last hidden vector past the weights.
template <class T>
void controller_backward(int kind, int size, T clip, const T* gates, const T* last_hidden, const T* last_cell,
                         const T* cell, const T* d_hidden, T* d_cell, T* d_gates, T* d_last_hidden) {
    const T *g0 = gates, *g1 = gates + size, *g2 = gates + 2 * size, *g3 = gates + 3 * size;
    T *d0 = d_gates, *d1 = d_gates + size, *d2 = d_gates + 2 * size, *d3 = d_gates + 3 * size;
    if (kind == LSTM) {
        sweep<T>(size, [&](int i, auto io) {
            const Vec<T> in = io.load(g0 + i), forget = io.load(g1 + i), candidate = io.load(g2 + i);
            const Vec<T> out = io.load(g3 + i), c0 = io.load(last_cell + i), squashed = hyperbolic(io.load(cell + i));
            const Vec<T> h = clip_gradient<T>(io.load(d_hidden + i), out * squashed, clip);
            Vec<T> c = io.load(d_cell + i) + h * out * (1 - squashed * squashed);
            c = clip_gradient<T>(c, forget * c0 + in * candidate, clip);
            io.store(d0 + i, c * candidate * in * (1 - in));
            io.store(d1 + i, c * c0 * forget * (1 - forget));
            io.store(d2 + i, c * in * (1 - candidate * candidate));
            io.store(d3 + i, h * squashed * out * (1 - out));
            io.store(d_cell + i, c * forget);
        });
    } else if (kind == GRU) {
        sweep<T>(size, [&](int i, auto io) {
            const Vec<T> reset = io.load(g0 + i), update = io.load(g1 + i), candidate = io.load(g2 + i);
            const Vec<T> recurrent = io.load(g3 + i), difference = io.load(last_hidden + i) - candidate;
            const Vec<T> h = clip_gradient<T>(io.load(d_hidden + i), candidate + update * difference, clip);
            const Vec<T> d_candidate = h * (1 - update) * (1 - candidate * candidate);
            io.store(d0 + i, d_candidate * recurrent * reset * (1 - reset));
            io.store(d1 + i, h * difference * update * (1 - update));
            io.store(d2 + i, d_candidate);
            io.store(d3 + i, d_candidate * reset);
            io.store(d_last_hidden + i, h * update);
        });
    } else if (kind == GIVEN) {
        std::memcpy(d0, d_hidden, size * sizeof(T));
    } else if (kind == RELU_RNN) {
        sweep<T>(size, [&](int i, auto io) {
            const Vec<T> x = io.load(g0 + i), d = clip_gradient<T>(io.load(d_hidden + i), x, clip);
            io.store(d0 + i, x <= Vec<T>{} ? Vec<T>{} : d);
        });
    } else {
        sweep<T>(size, [&](int i, auto io) {
            const Vec<T> x = io.load(g0 + i);
            io.store(d0 + i, clip_gradient<T>(io.load(d_hidden + i), x, clip) * (1 - x * x));
        });
    }
}

}  // namespace native
