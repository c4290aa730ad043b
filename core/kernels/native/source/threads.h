// Work on several threads.
#pragma once
#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <queue>
#include <thread>

namespace native {

// Threads that wait, asleep, for something to do; they live as long as the process. A process that was forked has none
// of its parent's, and begins with a pool of its own.
class Pool {
  public:
    static Pool& here() {
        static std::atomic<Pool*> current{nullptr};
        const pid_t process = getpid();
        for (;;) {
            Pool* found = current.load();
            if (found && found->process == process) return *found;
            Pool* fresh = new Pool(process);
            if (current.compare_exchange_strong(found, fresh)) return *fresh;
            delete fresh;
        }
    }
    // Has so many threads call a function, each when it gets round to it; fewer where the system gives no more.
    void call(int64_t threads, const std::function<void()>& function) {
        const std::lock_guard<std::mutex> lock(mutex);
        // What still waits of earlier calls has most likely been done by those who called.
        for (; waiting.size() > (size_t)threads; waiting.pop()) {}
        for (int64_t i = 0; i < threads; i++) waiting.push(function);
        try {
            for (; size < threads; size++) std::thread([this] { work(); }).detach();
        } catch (...) {
        }
        for (int64_t i = 0; i < threads; i++) added.notify_one();
    }

  private:
    const pid_t process;
    int64_t size = 0;
    std::mutex mutex;
    std::condition_variable added;
    std::queue<std::function<void()>> waiting;

    explicit Pool(pid_t of) : process(of) {}
    void work() {
        for (std::unique_lock<std::mutex> lock(mutex);;) {
            added.wait(lock, [&] { return !waiting.empty(); });
            const std::function<void()> next = std::move(waiting.front());
            waiting.pop();
            lock.unlock();
            next();
            lock.lock();
        }
    }
};

// What runs a function on several threads of OpenMP, the caller's among them, and returns when all have done.
using Fork = void (*)(void (*function)(void*), void* argument, unsigned threads, unsigned flags);

// That of the OpenMP which PyTorch has loaded, or nothing: where there is none, and in a process that was forked since,
// as its threads do not survive that. After each operation PyTorch's threads look for more work for milliseconds before
// they sleep; threads of another kind would share the cores with them.
inline const pid_t LOADED_BY = getpid();
inline Fork openmp() {
    static const Fork found = reinterpret_cast<Fork>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return getpid() == LOADED_BY ? found : nullptr;
}

// Whether several threads are worth it: where the caller had to wait for them for long, as other programs have the cores,
// the next calls go without, twice as many each time.
class Patience {
  public:
    static Patience& of_caller() {
        static thread_local Patience patience;
        return patience;
    }
    bool has() { return alone == 0 || --alone == 0; }
    void learn(std::chrono::duration<double> worked, std::chrono::duration<double> waited) {
        const bool late = waited > worked / 2 && waited > std::chrono::microseconds(200);
        next = late ? std::min<int64_t>(2 * next, LONGEST) : FIRST;
        if (late) alone = next;
    }

  private:
    static constexpr int64_t FIRST = 4, LONGEST = 256;
    int64_t alone = 0, next = FIRST;
};

// Calls body(begin, end) for ranges of `piece`, the last may be smaller; rethrows lack of memory. Each thread takes the
// next range until none is left, so that one that is slow keeps the others waiting for one range at most.
template <class F> void for_ranges(int64_t threads, int64_t count, int64_t piece, F&& body) {
    using Clock = std::chrono::steady_clock;
    const int64_t pieces = (count + piece - 1) / piece;
    struct Progress {
        std::atomic<int64_t> next{0}, done{0};
        std::atomic<bool> failed{false};
        std::mutex mutex;
        std::condition_variable all_done;
    };
    const auto progress = std::make_shared<Progress>();
    auto work = [progress, pieces, piece, count, &body] {
        for (int64_t i; (i = progress->next++) < pieces;) {
            try {
                body(i * piece, std::min((i + 1) * piece, count));
            } catch (...) {
                progress->failed = true;
            }
            if (++progress->done == pieces) {
                const std::lock_guard<std::mutex> lock(progress->mutex);
                progress->all_done.notify_all();
            }
        }
    };
    threads = std::min(threads, pieces);
    if (threads < 2 || !Patience::of_caller().has()) {
        work();
    } else {
        const auto start = Clock::now();
        auto stopped = start;
        if (const Fork fork = openmp()) {
            const pthread_t caller = pthread_self();
            auto share = [&] {
                work();
                if (pthread_equal(pthread_self(), caller)) stopped = Clock::now();
            };
            fork([](void* function) { (*static_cast<decltype(share)*>(function))(); }, &share, (unsigned)threads, 0);
        } else {
            // A thread that comes late finds nothing to do and touches nothing.
            Pool::here().call(threads - 1, work);
            work();
            stopped = Clock::now();
            std::unique_lock<std::mutex> lock(progress->mutex);
            progress->all_done.wait(lock, [&] { return progress->done == pieces; });
        }
        Patience::of_caller().learn(stopped - start, Clock::now() - stopped);
    }
    if (progress->failed) throw std::bad_alloc();
}

// How long a range is of which each of several threads gets some; one thread gets all at once.
inline int64_t piece_of(int64_t threads, int64_t count) {
    return std::max<int64_t>(1, threads > 1 ? count / (4 * threads) : count);
}

}  // namespace native
