// The dynamic accessor (DNC heads), one step of one row of the batch: core/accessors/dynamic.py by hand.
#pragma once
#include "allocation.h"
#include "content.h"
#include "link.h"
#include "sequence.h"

namespace native {

template <class T> class DynamicAccessor {
    enum Leaf { MEMORY, USAGE, LINK, PRECEDENCE, READ_WEIGHTS, WRITE_WEIGHTS };

    const Tensors<T>& x;
    const Records<T>& records;
    Slots<T> slots;
    int N, word, reads, writes, ways;
    bool squash, wipe, sharpening, usage_gradient;
    bool straight;  // a single step takes the links from the state and leaves them in the next one, without a copy
    int64_t memory_size, link_size, rows_per_state;
    Saved<T> saved, saved_links;
    // Parts of the interface vector.
    int read_keys, read_strengths, write_keys, write_strengths, erase, add, free_gates, allocation_gates, write_gates;
    int read_modes, link_powers;
    T usage_epsilon;
    Sharpening<T> sharpening_adds;
    Lookup<T> read_lookup, write_lookup;
    // Parts of a record: what this step made. Directions are [writes][reads][slots].
    int64_t norms, usage, precedence, write_weights, read_weights, allocation, order, write_content, write_cosine;
    int64_t read_content, read_cosine, behind, ahead;
    int64_t write_norms;                // with masks; else those of the memory after the last step serve
    int64_t behind_shares, ahead_shares;  // sharpened directions, or the directions themselves

    static int64_t order_size(int64_t N) { return round_up<T>(int(N * sizeof(int32_t) / sizeof(T))); }
    static int64_t matrix_size(const Problem& p) { return p.writes * p.slots * round_up<T>((int)p.slots); }

    // kept = Π_r (1 - f_r w_r), the retention; written = 1 - Π_h (1 - w_h), the union of the last write weights.
    Vec<T> kept_at(const T* a, const T* last, int n, int except = -1) const {
        Vec<T> kept = splat(T(1));
        for (int r = 0; r < reads; r++)
            if (r != except) kept *= 1 - a[free_gates + r] * load(last + read_weights + (int64_t)r * N + n);
        return kept;
    }
    Vec<T> unwritten_at(const T* last, int n, int except = -1) const {
        Vec<T> unwritten = splat(T(1));
        for (int h = 0; h < writes; h++)
            if (h != except) unwritten *= 1 - load(last + write_weights + (int64_t)h * N + n);
        return unwritten;
    }
    const T* kept_for_wipe(const T* a, const T* last, T* kept) const {
        if (!wipe) return nullptr;
        for (int n = 0; n < N; n += LANES<T>) store(kept + n, kept_at(a, last, n));
        return kept;
    }
    // Usage as head h sees it: scaled, and raised by what the heads before it take.
    void used_by(const T* a, const T* now, int h, T* used) const {
        if (h == 0) {
            for (int n = 0; n < N; n += LANES<T>)
                store(used + n, (1 - usage_epsilon) * load(now + usage + n) + usage_epsilon);
            return;
        }
        const T gate = a[allocation_gates + h - 1] * a[write_gates + h - 1];
        const T *before = used - N, *taken = now + allocation + (int64_t)(h - 1) * N;
        for (int n = 0; n < N; n += LANES<T>) {
            const Vec<T> u = load(before + n);
            store(used + n, u + (1 - u) * gate * load(taken + n));
        }
    }
    // What was done to the links of head h since they were stored, step t included; returns how many.
    int link_updates(int64_t t, int64_t b, int h, LinkUpdate<T>* updates) const {
        int count = 0;
        for (int64_t s = t - t % saved.every; s <= t; s++, count++)
            updates[count] = {records.accessor(s + 1, b) + write_weights + (int64_t)h * N,
                              records.accessor(s, b) + precedence + (int64_t)h * N};
        return count;
    }
    void write_again(int64_t t, int64_t b, T* again, T* kept) const {
        for (int64_t s = t - t % saved.every; s < t; s++) {
            const T *a = records.interface(s + 1, b), *now = records.accessor(s + 1, b);
            write(slots, word, saved.before(s, b, again), again + s % saved.every * memory_size,
                  kept_for_wipe(a, records.accessor(s, b), kept), writes, now + write_weights, a + erase, a + add);
        }
    }

  public:
    DynamicAccessor(const Problem& p, const Tensors<T>& tensors, const Records<T>& all_records)
        : x(tensors), records(all_records), slots((int)p.slots), N(slots.padded), word((int)p.word), reads((int)p.reads),
          writes((int)p.writes), ways(1 + 2 * writes), squash(p.squash), wipe(p.memory_wipe),
          sharpening(p.link_sharpening), usage_gradient(p.usage_gradient),
          straight(p.steps == 1 && !p.training && x.last_state[LINK] && slots.count == N), memory_size((int64_t)word * N),
          link_size((int64_t)slots.count * N), rows_per_state(p.rows_per_state()),
          saved{x.saved, memory_size, p.batch, p.keep_every, p.steps, p.training != 0,
                p.given_columns ? x.state[MEMORY] : nullptr, p.last_columns ? x.last_state[MEMORY] : nullptr},
          saved_links{x.saved + Saved<T>::length(p) * p.batch * memory_size, writes * link_size, p.batch, p.keep_every,
                    p.steps, p.training != 0},
          read_keys((int)p.places.read_keys), read_strengths((int)p.places.read_strengths),
          write_keys((int)p.places.write_keys), write_strengths((int)p.places.write_strengths),
          erase((int)p.places.erase), add((int)p.places.add), free_gates((int)p.places.free_gates),
          allocation_gates((int)p.places.allocation_gates), write_gates((int)p.places.write_gates),
          read_modes((int)p.places.read_modes), link_powers((int)p.places.link_powers),
          usage_epsilon(T(p.usage_epsilon)), sharpening_adds{T(p.sharpen_epsilon), T(p.norm_epsilon)},
          read_lookup{slots, word, reads, read_keys, read_strengths, (int)p.places.read_mask,
                      1, T(p.norm_epsilon), T(p.mask_min)},
          write_lookup{slots, word, writes, write_keys, write_strengths, (int)p.places.write_mask,
                       1, T(p.norm_epsilon), T(p.mask_min)} {
        norms = 0;
        usage = norms + read_lookup.norms_size();
        precedence = usage + N;
        write_weights = precedence + writes * N;
        read_weights = write_weights + writes * N;
        allocation = read_weights + reads * N;
        write_content = allocation + writes * N;
        write_cosine = write_content + writes * N;
        read_content = write_cosine + writes * N;
        read_cosine = read_content + reads * N;
        behind = read_cosine + reads * N;
        ahead = behind + writes * reads * N;
        write_norms = ahead + writes * reads * N;
        behind_shares = behind, ahead_shares = ahead;
        order = write_norms + (write_lookup.masked() ? write_lookup.norms_size() : 0);
        if (sharpening) {
            behind_shares = order;
            ahead_shares = behind_shares + writes * reads * N;
            order = ahead_shares + writes * reads * N;
        }
    }
    static int64_t record_size(const Problem& p) {
        const int64_t N = round_up<T>((int)p.slots);
        const int64_t norms = p.masked_content ? p.reads + p.writes : 1;
        const int64_t directions = 2 * p.reads * p.writes * (p.link_sharpening ? 2 : 1);
        return (1 + norms + 5 * p.writes + 3 * p.reads + directions) * N + p.writes * order_size(N);
    }
    static int64_t history(const Problem& p) { return p.keep_every; }  // the links are updated that rarely
    static int64_t saved_size(const Problem& p) {
        return Saved<T>::length(p) * p.batch * (p.word * round_up<T>((int)p.slots) + matrix_size(p));
    }

    void expect_forward(int64_t, int64_t) const {}  // memories and links are too large to be fetched ahead
    void expect_backward(int64_t, int64_t) const {}
    int64_t forward_scratch() const { return (1 + writes) * N; }
    void begin(int64_t b) const {
        const int64_t given = b / rows_per_state;
        const int64_t n = slots.count;
        T *first = records.accessor(0, b), *links = saved_links.first(b);
        if (!saved.given) to_columns(slots, word, x.state[MEMORY] + given * n * word, saved.first(b));
        pad(slots, 1, x.state[USAGE] + given * n, first + usage);
        if (!straight) pad(slots, writes * slots.count, x.state[LINK] + given * writes * n * n, links);
        pad(slots, writes, x.state[PRECEDENCE] + given * writes * n, first + precedence);
        pad(slots, reads, x.state[READ_WEIGHTS] + given * reads * n, first + read_weights);
        pad(slots, writes, x.state[WRITE_WEIGHTS] + given * writes * n, first + write_weights);
        // For the norms alone.
        if (!read_lookup.masked())
            dot_products<T>(slots, word, read_lookup.epsilon, saved.before(0, b), 1, saved.before(0, b), first + behind, first + norms);
    }
    void forward(int64_t t, int64_t b, T* words_read, T* scratch) const {
        T *a = records.interface(t + 1, b), *now = records.accessor(t + 1, b);
        const T *last = records.accessor(t, b), *before = saved.before(t, b);
        T *after = saved.after(t, b), *kept = scratch, *used = kept + N;
        if (squash) {
            apply_hyperbolic(a + read_keys, reads * word);
            apply_hyperbolic(a + write_keys, writes * word);
            apply_hyperbolic(a + add, writes * word);
        }
        const int exponents = sharpening ? reads * 2 * writes : 0;
        apply_to_parts<T>(apply_softplus<T>, a,
                          {{read_strengths, reads}, {write_strengths, writes}, {link_powers, exponents}});
        for (const Lookup<T>* lookup : {&read_lookup, &write_lookup})
            if (lookup->masked()) apply_mask(a + lookup->masks, lookup->heads * word, lookup->least_mask);
        apply_logistic(a + erase, writes * word);
        apply_to_parts<T>(apply_logistic<T>, a,
                          {{free_gates, reads}, {allocation_gates, writes}, {write_gates, writes}});
        small_softmax(reads, ways, a + read_modes);

        for (int n = 0; n < N; n += LANES<T>) {
            const Vec<T> u = load(last + usage + n), unwritten = unwritten_at(last, n);
            store(now + usage + n, (u + (1 - u) * (1 - unwritten)) * kept_at(a, last, n));
        }
        T* made = write_lookup.masked() ? now + write_norms : nullptr;
        write_lookup.forward(a, before, made ? made : last + norms, made, now + write_cosine, now + write_content);
        for (int h = 0; h < writes; h++) {
            const int64_t head = (int64_t)h * N;
            const T *share = now + allocation + head, *content = now + write_content + head;
            T *w = now + write_weights + head, *p = now + precedence + head;
            used_by(a, now, h, used + head);
            allocate(slots, used + head, (int32_t*)(now + order + h * order_size(N)), now + allocation + head);
            const T gate = a[write_gates + h], allocating = a[allocation_gates + h];
            Vec<T> sum{};
            for (int n = 0; n < N; n += LANES<T>) {
                const Vec<T> c = load(content + n), v = gate * (c + allocating * (load(share + n) - c));
                store(w + n, v);
                sum += v;
            }
            const T untouched = 1 - lane_sum<T>(sum);
            const T* last_p = last + precedence + head;
            for (int n = 0; n < N; n += LANES<T>) store(p + n, untouched * load(last_p + n) + load(w + n));
        }
        write(slots, word, before, after, kept_for_wipe(a, last, kept), writes, now + write_weights, a + erase, a + add);

        const bool store_links = t % saved.every == saved.every - 1 || t == saved.steps - 1;
        LinkUpdate<T> updates[MOST_UPDATES];
        const T* stored = straight ? x.state[LINK] + b / rows_per_state * writes * link_size : saved_links.base_of(t, b);
        T* out = straight ? x.last_state[LINK] + b * writes * link_size : store_links ? saved_links.after(t, b) : nullptr;
        for (int h = 0; h < writes; h++) {
            const int count = link_updates(t, b, h, updates);
            follow_links(slots, stored + h * link_size, out ? out + h * link_size : nullptr, updates, count, reads,
                         last + read_weights, now + ahead + (int64_t)h * reads * N, now + behind + (int64_t)h * reads * N);
        }
        read_lookup.forward(a, after, now + norms, now + norms, now + read_cosine, now + read_content);
        for (int r = 0; r < reads; r++) {
            const int64_t head = (int64_t)r * N;
            const T *share = a + read_modes + r * ways, *content = now + read_content + head;
            if (sharpening) {
                for (int h = 0; h < writes; h++) {
                    const int64_t way = (int64_t)(h * reads + r) * N;
                    const T* powers = a + link_powers + r * 2 * writes + h;
                    sharpen_links(slots, sharpening_adds, now + behind + way, 1 + powers[0], now + behind_shares + way);
                    sharpen_links(slots, sharpening_adds, now + ahead + way, 1 + powers[writes], now + ahead_shares + way);
                }
            }
            for (int n = 0; n < N; n += LANES<T>) {
                Vec<T> w = share[writes] * load(content + n);
                for (int h = 0; h < writes; h++) {
                    const int64_t way = (int64_t)(h * reads + r) * N + n;
                    w += share[h] * load(now + behind_shares + way) +
                         share[writes + 1 + h] * load(now + ahead_shares + way);
                }
                store(now + read_weights + head + n, w);
            }
        }
        read(slots, word, after, reads, now + read_weights, words_read);
    }
    void finish(int64_t b) const {
        const int64_t n = slots.count;
        const T* now = records.accessor(saved.steps, b);
        if (!saved.left) to_rows(slots, word, saved.last(b), x.last_state[MEMORY] + b * n * word);
        unpad(slots, 1, now + usage, x.last_state[USAGE] + b * n);
        if (!straight) unpad(slots, writes * slots.count, saved_links.last(b), x.last_state[LINK] + b * writes * n * n);
        unpad(slots, writes, now + precedence, x.last_state[PRECEDENCE] + b * writes * n);
        unpad(slots, reads, now + read_weights, x.last_state[READ_WEIGHTS] + b * reads * n);
        unpad(slots, writes, now + write_weights, x.last_state[WRITE_WEIGHTS] + b * writes * n);
    }

    // Per row of the batch: gradients of the state's leaves, and the memories of one segment.
    struct Carry {
        T *memory, *links, *usage, *precedence, *read_weights, *write_weights, *again;
    };
    Carry carry(T* row) const {
        Carry c;
        c.memory = row;
        c.links = c.memory + memory_size;
        c.usage = c.links + writes * link_size;
        c.precedence = c.usage + N;
        c.read_weights = c.precedence + writes * N;
        c.write_weights = c.read_weights + reads * N;
        c.again = c.write_weights + writes * N;
        return c;
    }
    int64_t row_scratch() const {
        return memory_size + writes * link_size + (1 + 2 * writes + reads) * N + saved.again_size();
    }
    int64_t backward_scratch() const {
        return (4 + 4 * writes + 2 * reads + 2 * writes * reads) * N +
               std::max({read_lookup.backward_scratch(), write_lookup.backward_scratch(), 2 * word * (int64_t)LANES<T>});
    }
    void begin_backward(int64_t b, T* row) const {
        const int64_t n = slots.count;
        const Carry d = carry(row);
        const T* const* given = x.d_last_state;
        if (given[MEMORY]) to_columns(slots, word, given[MEMORY] + b * n * word, d.memory);
        if (given[USAGE]) pad(slots, 1, given[USAGE] + b * n, d.usage);
        if (given[LINK]) pad(slots, writes * slots.count, given[LINK] + b * writes * n * n, d.links);
        if (given[PRECEDENCE]) pad(slots, writes, given[PRECEDENCE] + b * writes * n, d.precedence);
        if (given[READ_WEIGHTS]) pad(slots, reads, given[READ_WEIGHTS] + b * reads * n, d.read_weights);
        if (given[WRITE_WEIGHTS]) pad(slots, writes, given[WRITE_WEIGHTS] + b * writes * n, d.write_weights);
    }
    void finish_backward(int64_t b, T* row) const {
        const int64_t n = slots.count;
        const Carry d = carry(row);
        T* const* wanted = x.d_state;
        if (wanted[MEMORY]) to_rows(slots, word, d.memory, wanted[MEMORY] + b * n * word);
        if (wanted[USAGE]) unpad(slots, 1, d.usage, wanted[USAGE] + b * n);
        if (wanted[LINK]) unpad(slots, writes * slots.count, d.links, wanted[LINK] + b * writes * n * n);
        if (wanted[PRECEDENCE]) unpad(slots, writes, d.precedence, wanted[PRECEDENCE] + b * writes * n);
        if (wanted[READ_WEIGHTS]) unpad(slots, reads, d.read_weights, wanted[READ_WEIGHTS] + b * reads * n);
        if (wanted[WRITE_WEIGHTS]) unpad(slots, writes, d.write_weights, wanted[WRITE_WEIGHTS] + b * writes * n);
    }

    void backward(int64_t t, int64_t b, const T* d_words_read, T* d, T* scratch, T* row) const {
        const T *a = records.interface(t + 1, b), *now = records.accessor(t + 1, b), *last = records.accessor(t, b);
        const Carry carried = carry(row);
        T *kept_space = scratch, *d_kept = kept_space + N, *sharp = d_kept + N, *d_used = sharp + N;
        T *used = d_used + N, *d_allocation = used + writes * N, *d_content = d_allocation + writes * N;
        T *d_precedence = d_content + std::max(reads, writes) * N, *d_read = d_precedence + writes * N;
        T *d_behind = d_read + reads * N, *d_ahead = d_behind + writes * reads * N;
        T* more_scratch = d_ahead + writes * reads * N;
        if (t == saved.steps - 1 || t % saved.every == saved.every - 1) write_again(t, b, carried.again, kept_space);
        const T *before = saved.before(t, b, carried.again), *after = saved.after(t, b, carried.again);

        // Reading, and the ways to read.
        read_backward(slots, word, after, reads, now + read_weights, d_words_read, carried.memory, carried.read_weights);
        for (int r = 0; r < reads; r++) {
            const int64_t head = (int64_t)r * N;
            const T *share = a + read_modes + r * ways, *d_w = carried.read_weights + head;
            T* d_share = d + read_modes + r * ways;
            d_share[writes] = mix_backward(share[writes], d_w, now + read_content + head, d_content + head);
            for (int h = 0; h < writes; h++) {
                const int64_t way = (int64_t)(h * reads + r) * N;
                d_share[h] = mix_backward(share[h], d_w, now + behind_shares + way, d_behind + way);
                d_share[writes + 1 + h] = mix_backward(share[writes + 1 + h], d_w, now + ahead_shares + way, d_ahead + way);
                if (!sharpening) continue;
                const int power = link_powers + r * 2 * writes + h;
                d[power] = sharpen_links_backward(slots, sharpening_adds, now + behind + way, 1 + a[power],
                                                  d_behind + way, sharp);
                d[power + writes] = sharpen_links_backward(slots, sharpening_adds, now + ahead + way,
                                                           1 + a[power + writes], d_ahead + way, sharp);
            }
            small_softmax_backward(ways, share, d_share);
        }
        read_lookup.backward(a, after, now + norms, now + read_cosine, now + read_content, d_content, carried.memory, d,
                             more_scratch);

        // Links and precedence.
        std::memset(d_precedence, 0, writes * N * sizeof(T));
        std::memset(d_read, 0, reads * N * sizeof(T));
        LinkUpdate<T> updates[MOST_UPDATES];
        for (int h = 0; h < writes; h++) {
            const int64_t head = (int64_t)h * N, way = head * reads;
            const int count = link_updates(t, b, h, updates);
            follow_links_backward(slots, saved_links.base_of(t, b) + h * link_size, updates, count, reads,
                                  last + read_weights, d_ahead + way, d_behind + way, carried.links + h * link_size,
                                  carried.write_weights + head, d_precedence + head, d_read);
            const T *w = now + write_weights + head, *p = last + precedence + head;
            T *d_w = carried.write_weights + head, *d_p = carried.precedence + head;
            Vec<T> dot{}, sum{};
            for (int n = 0; n < N; n += LANES<T>) {
                dot += load(d_p + n) * load(p + n);
                sum += load(w + n);
            }
            const T for_sum = lane_sum<T>(dot), untouched = 1 - lane_sum<T>(sum);
            for (int n = 0; n < N; n += LANES<T>) {
                const Vec<T> v = load(d_p + n);
                store(d_w + n, load(d_w + n) + slots.masked(n, v - for_sum));
                store(d_p + n, load(d_precedence + head + n) + untouched * v);
            }
        }

        // Writing, and where to write.
        const T* kept = kept_for_wipe(a, last, kept_space);
        std::memset(d_kept, 0, N * sizeof(T));
        write_backward(slots, word, before, kept, writes, now + write_weights, a + erase, a + add, carried.memory,
                       carried.write_weights, d + erase, d + add, d_kept, more_scratch);
        for (int h = 0; h < writes; h++) {
            const int64_t head = (int64_t)h * N;
            const T gate = a[write_gates + h], allocating = a[allocation_gates + h];
            const T *share = now + allocation + head, *content = now + write_content + head;
            const T* d_w = carried.write_weights + head;
            Vec<T> for_gate{}, for_allocating{};
            for (int n = 0; n < N; n += LANES<T>) {
                const Vec<T> v = load(d_w + n), c = load(content + n), difference = load(share + n) - c;
                for_gate += v * (c + allocating * difference);
                for_allocating += v * difference;
                store(d_allocation + head + n, gate * allocating * v);
                store(d_content + head + n, gate * (1 - allocating) * v);
            }
            d[write_gates + h] = lane_sum<T>(for_gate);
            d[allocation_gates + h] = gate * lane_sum<T>(for_allocating);
        }
        write_lookup.backward(a, before, write_lookup.masked() ? now + write_norms : last + norms, now + write_cosine,
                              now + write_content, d_content, carried.memory, d, more_scratch);
        allocation_backward(a, now, used, d_allocation, d_used, d);
        usage_backward(a, last, d_used, d_kept, d_read, carried, d);

        if (squash) {
            hyperbolic_backward(a + read_keys, d + read_keys, reads * word);
            hyperbolic_backward(a + write_keys, d + write_keys, writes * word);
            hyperbolic_backward(a + add, d + add, writes * word);
        }
        softplus_backward(a + read_strengths, d + read_strengths, reads);
        softplus_backward(a + write_strengths, d + write_strengths, writes);
        logistic_backward(a + erase, d + erase, writes * word);
        logistic_backward(a + free_gates, d + free_gates, reads);
        logistic_backward(a + allocation_gates, d + allocation_gates, writes);
        logistic_backward(a + write_gates, d + write_gates, writes);
        if (sharpening) softplus_backward(a + link_powers, d + link_powers, reads * 2 * writes);
    }

  private:
    // One term of a mixture, share * way: d_way = …, returns the gradient of the share.
    T mix_backward(T share, const T* d_mixture, const T* way, T* d_way) const {
        Vec<T> sum{};
        for (int n = 0; n < N; n += LANES<T>) {
            const Vec<T> v = load(d_mixture + n);
            sum += v * load(way + n);
            store(d_way + n, share * v);
        }
        return lane_sum<T>(sum);
    }
    // From the gradients of all allocations to that of the usage (in d_used); adds to those of the gates.
    void allocation_backward(const T* a, const T* now, T* used, T* d_allocation, T* d_used, T* d) const {
        for (int h = 0; h < writes; h++) used_by(a, now, h, used + (int64_t)h * N);
        std::memset(d_used, 0, N * sizeof(T));
        for (int h = writes - 1; h >= 0; h--) {
            const int64_t head = (int64_t)h * N;
            const T* share = now + allocation + head;
            if (h < writes - 1) {  // the next head's usage was raised by this one's allocation
                const T gate = a[allocation_gates + h] * a[write_gates + h];
                Vec<T> for_gate{};
                for (int n = 0; n < N; n += LANES<T>) {
                    const Vec<T> v = load(d_used + n), taken = load(share + n), left = v * (1 - load(used + head + n));
                    for_gate += left * taken;
                    store(d_allocation + head + n, load(d_allocation + head + n) + left * gate);
                    store(d_used + n, v * (1 - gate * taken));
                }
                const T d_gate = lane_sum<T>(for_gate);
                d[allocation_gates + h] += d_gate * a[write_gates + h];
                d[write_gates + h] += d_gate * a[allocation_gates + h];
            }
            allocate_backward(slots, used + head, (const int32_t*)(now + order + h * order_size(N)), share,
                              d_allocation + head, d_used);
        }
    }
    // From the gradient of the scaled usage to those of the state before this step and of the free gates.
    void usage_backward(const T* a, const T* last, const T* d_used, const T* d_kept, const T* d_read, const Carry& carried,
                        T* d) const {
        for (int r = 0; r < reads; r++) {
            const T f = a[free_gates + r];
            Vec<T> for_gate{};
            for (int n = 0; n < N; n += LANES<T>) {
                const Vec<T> u = load(last + usage + n), before = u + (1 - u) * (1 - unwritten_at(last, n));
                const Vec<T> d_u = load(carried.usage + n) + (1 - usage_epsilon) * load(d_used + n);
                const Vec<T> v = -(d_u * before + load(d_kept + n)) * kept_at(a, last, n, r);
                for_gate += v * load(last + read_weights + (int64_t)r * N + n);
                store(carried.read_weights + (int64_t)r * N + n, load(d_read + (int64_t)r * N + n) + v * f);
            }
            d[free_gates + r] = lane_sum<T>(for_gate);
        }
        for (int n = 0; n < N; n += LANES<T>) {
            const Vec<T> u = load(last + usage + n);
            Vec<T> d_u = load(carried.usage + n) + (1 - usage_epsilon) * load(d_used + n);
            d_u *= kept_at(a, last, n);
            for (int h = 0; h < writes; h++) {
                Vec<T> d_w{};
                if (usage_gradient) d_w = d_u * (1 - u) * unwritten_at(last, n, h);
                store(carried.write_weights + (int64_t)h * N + n, d_w);
            }
            store(carried.usage + n, d_u * unwritten_at(last, n));
        }
    }
};

}  // namespace native
