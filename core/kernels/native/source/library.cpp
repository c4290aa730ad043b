// The plain C interface: sizes of the work space, forward and backward, for each accessor and type.
#include "delta.h"
#include "dynamic.h"
#include "nearest.h"
#include "shift.h"
#include "static.h"

namespace native {

template <class F> int status(F&& body) {
    try {
        body();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace native

#define EXPORT extern "C" __attribute__((visibility("default")))
#define INTERFACE(NAME, TYPE, ACCESSOR)                                                                              \
    /* Values in all records and in all saved memories (and links). */                                               \
    EXPORT void NAME##_sizes(const native::Problem* p, int64_t* sizes) {                                             \
        using Accessor = native::ACCESSOR<TYPE>;                                                                     \
        sizes[0] = native::records_size<TYPE, Accessor>(*p);                                                         \
        sizes[1] = Accessor::saved_size(*p);                                                                         \
    }                                                                                                                \
    EXPORT int NAME##_forward(const native::Problem* p, const native::Tensors<TYPE>* x) {                            \
        return native::status([&] { native::forward<TYPE, native::ACCESSOR<TYPE>>(*p, *x); });                       \
    }                                                                                                                \
    EXPORT int NAME##_backward(const native::Problem* p, const native::Tensors<TYPE>* x) {                           \
        return native::status([&] { native::backward<TYPE, native::ACCESSOR<TYPE>>(*p, *x); });                      \
    }

INTERFACE(static_float32, float, StaticAccessor)
INTERFACE(static_float64, double, StaticAccessor)
INTERFACE(dynamic_float32, float, DynamicAccessor)
INTERFACE(dynamic_float64, double, DynamicAccessor)
INTERFACE(stack_float32, float, StackAccessor)
INTERFACE(stack_float64, double, StackAccessor)
INTERFACE(soft_tape_float32, float, SoftTapeAccessor)
INTERFACE(soft_tape_float64, double, SoftTapeAccessor)

#define LOOKUP(NAME, TYPE)                                                                                           \
    EXPORT int nearest_##NAME(const native::Search* p, const TYPE* memory, const TYPE* norms, const TYPE* keys,      \
                              const TYPE* key_norms, int64_t* slots) {                                               \
        return native::status([&] { native::nearest<TYPE>(*p, memory, norms, keys, key_norms, slots); });            \
    }

LOOKUP(float32, float)
LOOKUP(float64, double)

#define DELTA(NAME, TYPE)                                                                                            \
    EXPORT int delta_##NAME##_forward(const native::Delta* p, const TYPE* vectors, const TYPE* log_decay,            \
                                      const TYPE* first, TYPE* reads, TYPE* saved, TYPE* changes, TYPE* last) {      \
        return native::status(                                                                                       \
            [&] { native::delta_forward<TYPE>(*p, vectors, log_decay, first, reads, saved, changes, last); });       \
    }                                                                                                                \
    EXPORT int delta_##NAME##_backward(const native::Delta* p, const TYPE* vectors, const TYPE* log_decay,           \
                                       const TYPE* saved, const TYPE* changes, const TYPE* d_reads,                  \
                                       const TYPE* d_last, TYPE* d_vectors, TYPE* d_log_decay, TYPE* d_first) {      \
        return native::status([&] {                                                                                  \
            native::delta_backward<TYPE>(*p, vectors, log_decay, saved, changes, d_reads, d_last, d_vectors,         \
                                         d_log_decay, d_first);                                                      \
        });                                                                                                          \
    }

DELTA(float32, float)
DELTA(float64, double)

// What the library was built from, and whether this processor runs the instruction sets named in the file names.
EXPORT const char* build_identity() { return BUILD_IDENTITY; }
EXPORT int processor_level() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}
