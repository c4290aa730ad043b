// One step of a controller for one row of the batch: gate activations and their derivatives (core/controllers).
#pragma once
#include <cstring>

#include "simd.h"

namespace native {

// GIVEN: the inputs are the hidden vectors, of a controller that ran before.
enum ControllerKind { LSTM = 0, GRU = 1, FEEDFORWARD = 2, RNN = 3, RELU_RNN = 4, GIVEN = 5, AUTOMATON = 6 };
constexpr int MOST_STATES = 128;  // of an automaton

// states: of an automaton, with which its hidden vector ends.
struct ControllerSizes {
    int kind, size, states;
    int units() const { return size - states; }
    // Rows of the combined weight matrix. GRU: reset, update, the input's and the recurrent share of the candidate.
    // Automaton: the units, and the transitions to each state from all states.
    int gates() const {
        if (kind == AUTOMATON) return units() + states * states;
        return kind == LSTM || kind == GRU ? 4 * size : size;
    }
    // Elements of its last hidden vector that it sees, the last ones.
    int own() const { return kind == FEEDFORWARD || kind == GIVEN ? 0 : kind == AUTOMATON ? states : size; }
};

// With the limit of hidden vectors and cells, and what makes the transitions of an automaton.
template <class T> struct Controller : ControllerSizes {
    T clip, temperature, sharpening, sharpen_epsilon;
};

template <class T> inline Vec<T> clipped(Vec<T> x, T clip) { return at_most(at_least(x, splat(-clip)), splat(clip)); }
// Gradient of clipping: passes up to and including the limits, as torch.clamp; without a limit whatever was clipped.
template <class T> inline Vec<T> clip_gradient(Vec<T> gradient, Vec<T> raw, T clip) {
    if (clip == std::numeric_limits<T>::infinity()) return gradient;
    return ((raw >= splat(-clip)) & (raw <= splat(clip))) ? gradient : Vec<T>{};
}

// How likely each state of an automaton follows on those of the step before: transitions, times how likely those are.
template <class T> void follow(const Controller<T>& c, const T* transitions, const T* last, T* states) {
    for (int i = 0; i < c.states; i++) {
        Vec<T> sum{};
        sweep<T>(c.states, [&](int j, auto io) { sum += io.load(transitions + i * c.states + j) * io.load(last + j); });
        states[i] = lane_sum<T>(sum);
    }
}

// transitions: in, the products with the weights; out, their softmax over the states that follow, each column's.
template <class T> void states_forward(const Controller<T>& c, T* transitions, const T* last, T* states) {
    const int count = c.states;
    const Vec<T> cold = splat(1 / c.temperature);
    sweep<T>(count, [&](int j, auto io) {
        Vec<T> top = io.load(transitions + j), sum{};
        for (int i = 1; i < count; i++) {
            const Vec<T> x = io.load(transitions + i * count + j);
            top = x > top ? x : top;
        }
        for (int i = 0; i < count; i++) {
            const Vec<T> e = exponential((io.load(transitions + i * count + j) - top) * cold);
            io.store(transitions + i * count + j, e), sum += e;
        }
        for (int i = 0; i < count; i++)
            io.store(transitions + i * count + j, io.load(transitions + i * count + j) / sum);
    });
    follow(c, transitions, last, states);
    if (c.sharpening == std::numeric_limits<T>::infinity()) {
        int likeliest = 0;
        for (int i = 1; i < count; i++)
            if (states[i] > states[likeliest]) likeliest = i;
        for (int i = 0; i < count; i++) states[i] = i == likeliest;
    } else if (c.sharpening > 1) {
        T top = -std::numeric_limits<T>::infinity(), sum = 0;
        for (int i = 0; i < count; i++) {
            states[i] = c.sharpening * std::log(states[i] + c.sharpen_epsilon);
            top = std::max(top, states[i]);
        }
        for (int i = 0; i < count; i++) sum += states[i] = std::exp(states[i] - top);
        for (int i = 0; i < count; i++) states[i] /= sum;
    }
}

// d_states: of the states after this step. d_transitions: of the products with the weights. d_last: of the states before.
template <class T>
void states_backward(const Controller<T>& c, const T* transitions, const T* last, const T* states, const T* d_states,
                     T* d_transitions, T* d_last) {
    const int count = c.states;
    T d[MOST_STATES];
    std::copy_n(d_states, count, d);
    if (c.sharpening > 1 && c.sharpening != std::numeric_limits<T>::infinity()) {
        T followed[MOST_STATES], mean = 0;
        follow(c, transitions, last, followed);
        for (int i = 0; i < count; i++) mean += states[i] * d[i];
        for (int i = 0; i < count; i++)
            d[i] = c.sharpening * states[i] * (d[i] - mean) / (followed[i] + c.sharpen_epsilon);
    }
    const Vec<T> cold = splat(1 / c.temperature);
    sweep<T>(count, [&](int j, auto io) {
        Vec<T> for_last{};
        for (int i = 0; i < count; i++) for_last += io.load(transitions + i * count + j) * splat(d[i]);
        io.store(d_last + j, for_last);
        const Vec<T> share = io.load(last + j) * cold;
        for (int i = 0; i < count; i++)
            io.store(d_transitions + i * count + j,
                     io.load(transitions + i * count + j) * share * (splat(d[i]) - for_last));
    });
}

// gates: in, the products with the weights; out, the activations (for the GRU: reset, update, candidate and the
// recurrent share of the candidate). cell and last_cell are used by the LSTM only.
template <class T>
void controller_forward(const Controller<T>& c, T* gates, const T* last_hidden, const T* last_cell, T* hidden, T* cell) {
    const int kind = c.kind, size = c.size;
    const T clip = c.clip;
    T *g0 = gates, *g1 = gates + size, *g2 = gates + 2 * size, *g3 = gates + 3 * size;
    if (kind == LSTM) {
        // Out of place, gate by gate within one vector: a gate's last part may share a vector with the next gate.
        sweep<T>(size, [&](int i, auto io) {
            const Vec<T> in = logistic(io.load(g0 + i)), forget = logistic(io.load(g1 + i));
            const Vec<T> candidate = hyperbolic(io.load(g2 + i)), out = logistic(io.load(g3 + i));
            const Vec<T> held = clipped<T>(forget * io.load(last_cell + i) + in * candidate, clip);
            io.store(g0 + i, in), io.store(g1 + i, forget), io.store(g2 + i, candidate), io.store(g3 + i, out);
            io.store(cell + i, held), io.store(hidden + i, clipped<T>(out * hyperbolic(held), clip));
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
        sweep<T>(c.units(), [&](int i, auto io) {
            const Vec<T> x = hyperbolic(io.load(g0 + i));
            io.store(g0 + i, x), io.store(hidden + i, clipped<T>(x, clip));
        });
        if (kind == AUTOMATON) states_forward<T>(c, g0 + c.units(), last_hidden + c.units(), hidden + c.units());
    }
}

// d_hidden: gradient of this step's hidden vector. d_cell: of the cell state, in: after, out: before this step.
// d_gates: of the products with the weights. d_last_hidden: what reaches the last hidden vector past the weights.
template <class T>
void controller_backward(const Controller<T>& c, const T* gates, const T* last_hidden, const T* last_cell, const T* hidden,
                         const T* cell, const T* d_hidden, T* d_cell, T* d_gates, T* d_last_hidden) {
    const int kind = c.kind, size = c.size;
    const T clip = c.clip;
    const T *g0 = gates, *g1 = gates + size, *g2 = gates + 2 * size, *g3 = gates + 3 * size;
    T *d0 = d_gates, *d1 = d_gates + size, *d2 = d_gates + 2 * size, *d3 = d_gates + 3 * size;
    if (kind == LSTM) {
        sweep<T>(size, [&](int i, auto io) {
            const Vec<T> in = io.load(g0 + i), forget = io.load(g1 + i), candidate = io.load(g2 + i);
            const Vec<T> out = io.load(g3 + i), c0 = io.load(last_cell + i), squashed = hyperbolic(io.load(cell + i));
            const Vec<T> h = clip_gradient<T>(io.load(d_hidden + i), out * squashed, clip);
            Vec<T> held = io.load(d_cell + i) + h * out * (1 - squashed * squashed);
            held = clip_gradient<T>(held, forget * c0 + in * candidate, clip);
            io.store(d0 + i, held * candidate * in * (1 - in));
            io.store(d1 + i, held * c0 * forget * (1 - forget));
            io.store(d2 + i, held * in * (1 - candidate * candidate));
            io.store(d3 + i, h * squashed * out * (1 - out));
            io.store(d_cell + i, held * forget);
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
        const int units = c.units();
        sweep<T>(units, [&](int i, auto io) {
            const Vec<T> x = io.load(g0 + i);
            io.store(d0 + i, clip_gradient<T>(io.load(d_hidden + i), x, clip) * (1 - x * x));
        });
        if (kind == AUTOMATON)
            states_backward<T>(c, g0 + units, last_hidden + units, hidden + units, d_hidden + units, d0 + units,
                               d_last_hidden + units);
    }
}

}  // namespace native
