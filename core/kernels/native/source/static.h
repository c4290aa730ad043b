// The static accessor (NTM heads), one step of one row of the batch: core/accessors/static.py by hand.
#pragma once
#include "content.h"
#include "sequence.h"

namespace native {

template <class T> class StaticAccessor {
    enum Leaf { MEMORY, READ_WEIGHTS, WRITE_WEIGHTS };

    const Tensors<T>& x;
    const Records<T>& records;
    Slots<T> slots;
    int N, word, reads, writes, heads, shift_range, shifts;
    int64_t memory_size, weights_size, rows_per_state;
    Saved<T> saved;
    // Parts of the interface vector.
    int keys, strengths, gate, shift, sharpness, erase, add;
    T sharpen_epsilon;
    Lookup<T> read_lookup, write_lookup;
    // Parts of a record: what this step made.
    int64_t weights, content, cosine, norms;
    int64_t write_norms;  // with masks; else those of the memory after the last step serve

    // A weighting with the slots of the other end appended on both sides.
    T* ring(T* scratch) const { return scratch + round_up<T>(shift_range); }
    int64_t ring_size() const { return 2 * round_up<T>(shift_range) + N + LANES<T>; }
    void close_ring(T* w) const {
        const int n = slots.count;
        for (int i = 0; i < shift_range; i++) {
            w[n + i] = w[i % n];
            w[-1 - i] = w[n - 1 - i % n];
        }
    }
    // Interpolated weighting on a ring (NTM eq. 7).
    void interpolate(T g, const T* now, const T* last, T* out) const {
        for (int n = 0; n < N; n += LANES<T>) {
            const Vec<T> previous = load(last + n);
            store(out + n, previous + g * (load(now + n) - previous));
        }
        close_ring(out);
    }
    // Σ_i s[i] * w[i * step], where w are vectors of slots.
    Vec<T> weighted(const T* s, const T* w, int step) const {
        if (shifts == 3) return s[0] * load(w) + s[1] * load(w + step) + s[2] * load(w + 2 * step);
        Vec<T> sum{};
        for (int i = 0; i < shifts; i++) sum += s[i] * load(w + i * step);
        return sum;
    }
    // Shifted weighting at slots n … (NTM eq. 8).
    Vec<T> shifted(const T* s, const T* on_ring, int n) const {
        return weighted(s, on_ring + n + shift_range, -1);
    }

    // Weighting of head h from what content found and from its last one (NTM eqs. 7 to 9).
    void locate(int h, const T* a, const T* last, T* now, T* on_ring) const {
        T* w = now + weights + (int64_t)h * N;
        interpolate(a[gate + h], now + content + (int64_t)h * N, last + weights + (int64_t)h * N, on_ring);
        const T power = 1 + a[sharpness + h];  // in log space
        const T* s = a + shift + h * shifts;
        softmax(slots, w, [&](int n) { return power * logarithm(shifted(s, on_ring, n) + sharpen_epsilon); });
    }
    // d_weights: in, gradient of the weighting; out, of the last one. Sets d_content and what d has of the head.
    void locate_backward(int h, const T* a, const T* last, const T* now, T* on_ring, T* d_ring, T* d_weights,
                         T* d_content, T* d) const {
        const T *w = now + weights + (int64_t)h * N, *c = now + content + (int64_t)h * N;
        const T *previous = last + weights + (int64_t)h * N, *s = a + shift + h * shifts;
        const T g = a[gate + h], power = 1 + a[sharpness + h];
        T *d_w = d_weights + (int64_t)h * N, *d_c = d_content + (int64_t)h * N, *d_s = d + shift + h * shifts;
        interpolate(g, c, previous, on_ring);
        Vec<T> sum{}, for_power{}, for_gate{};
        for (int n = 0; n < N; n += LANES<T>) sum += load(d_w + n) * load(w + n);
        const T mean = lane_sum<T>(sum);
        for (int n = 0; n < N; n += LANES<T>) {
            const Vec<T> v = shifted(s, on_ring, n) + sharpen_epsilon;
            const Vec<T> d_z = slots.masked(n, (load(d_w + n) - mean) * load(w + n));
            for_power += slots.masked(n, d_z * logarithm(v));
            store(d_ring + n, slots.masked(n, power * d_z / v));
        }
        d[sharpness + h] = lane_sum<T>(for_power);
        for (int i = 0; i < shifts; i++) {
            Vec<T> total{};
            for (int n = 0; n < N; n += LANES<T>) total += load(d_ring + n) * load(on_ring + n + shift_range - i);
            d_s[i] = lane_sum<T>(total);
        }
        small_softmax_backward(shifts, s, d_s);
        close_ring(d_ring);
        for (int n = 0; n < N; n += LANES<T>) {
            const Vec<T> d_gated = slots.masked(n, weighted(s, d_ring + n - shift_range, 1));
            for_gate += d_gated * (load(c + n) - load(previous + n));
            store(d_c + n, g * d_gated);
            store(d_w + n, (1 - g) * d_gated);
        }
        d[gate + h] = lane_sum<T>(for_gate);
    }

    // The most common access, of which some parts take one pass together.
    bool simple() const { return reads <= 4 && writes == 1 && !read_lookup.masked(); }
    bool ends_segment(int64_t t) const { return t == saved.steps - 1 || t % saved.every == saved.every - 1; }
    // The memories inside the segment that ends with step t.
    void write_again(int64_t t, int64_t b, T* again) const {
        for (int64_t s = t - t % saved.every; s < t; s++) {
            const T *a = records.interface(s + 1, b), *now = records.accessor(s + 1, b);
            write<T>(slots, word, saved.before(s, b, again), again + s % saved.every * memory_size, nullptr, writes,
                     now + weights + (int64_t)reads * N, a + erase, a + add);
        }
    }

  public:
    StaticAccessor(const Problem& p, const Tensors<T>& tensors, const Records<T>& all_records)
        : x(tensors), records(all_records), slots((int)p.slots), N(slots.padded), word((int)p.word), reads((int)p.reads),
          writes((int)p.writes), heads(reads + writes), shift_range((int)p.shift_range), shifts(2 * shift_range + 1),
          memory_size((int64_t)word * N), weights_size((int64_t)heads * N), rows_per_state(p.rows_per_state()),
          saved{x.saved, memory_size, p.batch, p.keep_every, p.steps, p.training != 0,
                p.given_columns ? x.state[MEMORY] : nullptr, p.last_columns ? x.last_state[MEMORY] : nullptr}, keys((int)p.places.keys),
          strengths((int)p.places.strengths), gate((int)p.places.gate), shift((int)p.places.shift),
          sharpness((int)p.places.sharpness), erase((int)p.places.erase), add((int)p.places.add),
          sharpen_epsilon(T(p.sharpen_epsilon)),
          read_lookup{slots, word, reads, keys, strengths, (int)p.places.mask, 0, T(p.norm_epsilon), T(p.mask_min)},
          write_lookup(read_lookup.after(reads, writes)) {
        weights = 0;
        content = weights + weights_size;
        cosine = content + weights_size;
        norms = cosine + weights_size;
        write_norms = norms + read_lookup.norms_size();
    }
    static int64_t record_size(const Problem& p) {
        const int64_t heads = p.reads + p.writes;
        return (3 * heads + (p.masked_content ? heads : 1)) * round_up<T>((int)p.slots);
    }
    // Steps that a step looks back on, besides the last one that was saved.
    static int64_t history(const Problem&) { return 1; }
    static int64_t saved_size(const Problem& p) {
        return Saved<T>::length(p) * p.batch * p.word * round_up<T>((int)p.slots);
    }

    int64_t forward_scratch() const { return ring_size(); }
    void begin(int64_t b) const {
        const int64_t given = b / rows_per_state;
        T* first = records.accessor(0, b);
        if (!saved.given) to_columns(slots, word, x.state[MEMORY] + given * slots.count * word, saved.first(b));
        pad(slots, reads, x.state[READ_WEIGHTS] + given * reads * slots.count, first + weights);
        pad(slots, writes, x.state[WRITE_WEIGHTS] + given * writes * slots.count, first + weights + reads * N);
        // For the norms alone.
        if (!read_lookup.masked())
            dot_products<T>(slots, word, read_lookup.epsilon, saved.before(0, b), 1, saved.before(0, b), first + content,
                            first + norms);
    }
    // Asks for what writing will need.
    void expect_forward(int64_t t, int64_t b) const {
        if (saved.after(t, b) != saved.before(t, b)) prefetch<true>(saved.after(t, b), memory_size);
    }
    void forward(int64_t t, int64_t b, T* words_read, T* scratch) const {
        T *a = records.interface(t + 1, b), *now = records.accessor(t + 1, b);
        const T* last = records.accessor(t, b);
        const T* before = saved.before(t, b);
        T *after = saved.after(t, b), *on_ring = ring(scratch);
        apply_hyperbolic(a + keys, heads * word);
        apply_to_parts<T>(apply_softplus<T>, a, {{strengths, heads}, {sharpness, heads}});
        apply_logistic(a + gate, heads);
        small_softmax(heads, shifts, a + shift);
        apply_logistic(a + erase, writes * word);
        apply_hyperbolic(a + add, writes * word);
        if (read_lookup.masked()) apply_mask(a + read_lookup.masks, heads * word, read_lookup.least_mask);

        const T *read_weights = now + weights, *write_weights = read_weights + reads * N;
        const int64_t written = (int64_t)reads * N;
        T* made = write_lookup.masked() ? now + write_norms : nullptr;
        write_lookup.forward(a, before, made ? made : last + norms, made, now + cosine + written, now + content + written);
        for (int h = reads; h < heads; h++) locate(h, a, last, now, on_ring);
        if (simple()) {
            write_and_dot_products(slots, word, read_lookup.epsilon, before, after, write_weights, a + erase, a + add, reads,
                                   a + keys, now + cosine, now + norms);
            read_lookup.weigh(a, now + norms, now + cosine, now + content);
        } else {
            write<T>(slots, word, before, after, nullptr, writes, write_weights, a + erase, a + add);
            read_lookup.forward(a, after, now + norms, now + norms, now + cosine, now + content);
        }
        for (int h = 0; h < reads; h++) locate(h, a, last, now, on_ring);
        read(slots, word, after, reads, read_weights, words_read);
    }
    void finish(int64_t b) const {
        const T* now = records.accessor(saved.steps, b);
        if (!saved.left) to_rows(slots, word, saved.last(b), x.last_state[MEMORY] + b * slots.count * word);
        unpad(slots, reads, now + weights, x.last_state[READ_WEIGHTS] + b * reads * slots.count);
        unpad(slots, writes, now + weights + reads * N, x.last_state[WRITE_WEIGHTS] + b * writes * slots.count);
    }

    // Per row of the batch: gradients of the memory and the weightings, and the memories of one segment.
    int64_t row_scratch() const { return memory_size + weights_size + saved.again_size(); }
    int64_t backward_scratch() const {
        return 2 * ring_size() + weights_size +
               std::max(read_lookup.backward_scratch(), write_lookup.backward_scratch()) + 2 * word * LANES<T>;
    }
    void begin_backward(int64_t b, T* row) const {
        const int64_t n = slots.count;
        T *d_memory = row, *d_weights = row + memory_size;
        if (const T* d = x.d_last_state[MEMORY]) to_columns(slots, word, d + b * n * word, d_memory);
        if (const T* d = x.d_last_state[READ_WEIGHTS]) pad(slots, reads, d + b * reads * n, d_weights);
        if (const T* d = x.d_last_state[WRITE_WEIGHTS]) pad(slots, writes, d + b * writes * n, d_weights + reads * N);
    }
    void finish_backward(int64_t b, const T* row) const {
        const int64_t n = slots.count;
        const T *d_memory = row, *d_weights = row + memory_size;
        if (T* d = x.d_state[MEMORY]) to_rows(slots, word, d_memory, d + b * n * word);
        if (T* d = x.d_state[READ_WEIGHTS]) unpad(slots, reads, d_weights, d + b * reads * n);
        if (T* d = x.d_state[WRITE_WEIGHTS]) unpad(slots, writes, d_weights + reads * N, d + b * writes * n);
    }
    // Asks for what writing again needs.
    void expect_backward(int64_t t, int64_t b) const {
        if (!ends_segment(t)) return;
        prefetch<false>(saved.base_of(t, b), memory_size);
        for (int64_t s = t - t % saved.every; s < t; s++) {
            prefetch<false>(records.interface(s + 1, b) + erase, writes * word);
            prefetch<false>(records.interface(s + 1, b) + add, writes * word);
            prefetch<false>(records.accessor(s + 1, b) + weights + (int64_t)reads * N, (int64_t)writes * N);
        }
    }
    void backward(int64_t t, int64_t b, const T* d_words_read, T* d, T* scratch, T* row) const {
        const T *a = records.interface(t + 1, b), *now = records.accessor(t + 1, b), *last = records.accessor(t, b);
        T *d_memory = row, *d_weights = row + memory_size, *again = d_weights + weights_size;
        T *on_ring = ring(scratch), *d_ring = ring(scratch + ring_size()), *d_content = scratch + 2 * ring_size();
        T* more_scratch = d_content + weights_size;
        if (ends_segment(t)) write_again(t, b, again);
        const T *before = saved.before(t, b, again), *after = saved.after(t, b, again);
        const T *read_weights = now + weights, *write_weights = read_weights + (int64_t)reads * N;

        const int64_t written = (int64_t)reads * N;
        if (simple()) {
            T *d_norms = more_scratch, *key_scales = d_norms + N, *sums = key_scales + round_up<T>(reads);
            dot_products<T>(slots, word, read_lookup.epsilon, after, reads, d_words_read, d_content, nullptr);
            for (int64_t n = 0; n < written; n += LANES<T>) store(d_weights + n, load(d_weights + n) + load(d_content + n));
            for (int h = 0; h < reads; h++) locate_backward(h, a, last, now, on_ring, d_ring, d_weights, d_content, d);
            read_lookup.weigh_backward(a, now + norms, now + cosine, now + content, d_content, d, d_norms, key_scales);
            write_and_dot_products_backward(slots, word, before, write_weights, a + erase, a + add, reads, now + norms,
                                            d_norms, a + keys, d_content, read_weights, d_words_read, d_memory,
                                            d_weights + written, d + erase, d + add, d + keys, sums);
            read_lookup.key_norms_backward(a, key_scales, d);
        } else {
            read_backward(slots, word, after, reads, read_weights, d_words_read, d_memory, d_weights);
            for (int h = 0; h < reads; h++) locate_backward(h, a, last, now, on_ring, d_ring, d_weights, d_content, d);
            read_lookup.backward(a, after, now + norms, now + cosine, now + content, d_content, d_memory, d, more_scratch);
            write_backward<T>(slots, word, before, nullptr, writes, write_weights, a + erase, a + add, d_memory,
                              d_weights + written, d + erase, d + add, nullptr, more_scratch);
        }
        for (int h = reads; h < heads; h++) locate_backward(h, a, last, now, on_ring, d_ring, d_weights, d_content, d);
        write_lookup.backward(a, before, write_lookup.masked() ? now + write_norms : last + norms, now + cosine + written,
                              now + content + written, d_content + written, d_memory, d, more_scratch);
        hyperbolic_backward(a + keys, d + keys, heads * word);
        softplus_backward(a + strengths, d + strengths, heads);
        logistic_backward(a + gate, d + gate, heads);
        softplus_backward(a + sharpness, d + sharpness, heads);
        logistic_backward(a + erase, d + erase, writes * word);
        hyperbolic_backward(a + add, d + add, writes * word);
    }
};

}  // namespace native
