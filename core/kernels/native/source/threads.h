// Work on several threads.
#pragma once
#include <unistd.h>

#include <algorithm>
#include <atomic>
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

// Calls body(begin, end) for ranges of `piece`, the last may be smaller; rethrows lack of memory. Each thread takes the
// next range until none is left, so that one that waits for a core keeps nobody waiting: a thread that comes late finds
// nothing to do and touches nothing.
template <class F> void for_ranges(int64_t threads, int64_t count, int64_t piece, F&& body) {
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
    if (std::min(threads, pieces) > 1) Pool::here().call(std::min(threads, pieces) - 1, work);
    work();
    std::unique_lock<std::mutex> lock(progress->mutex);
    progress->all_done.wait(lock, [&] { return progress->done == pieces; });
    if (progress->failed) throw std::bad_alloc();
}

// How long a range is of which each of several threads gets some; one thread gets all at once.
inline int64_t piece_of(int64_t threads, int64_t count) {
    return std::max<int64_t>(1, threads > 1 ? count / (4 * threads) : count);
}

}  // namespace native
