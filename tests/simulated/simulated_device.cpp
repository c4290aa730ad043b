// A device that is not the CPU, for tests where there is no accelerator: torch's PrivateUse1, called "simulated". Its memory
// is the CPU's and so is its arithmetic. What makes it a device is what it refuses: tensors of the CPU or of another
// index of its own beside its own, generators of the CPU, and operators that only the CPU has.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/NativeFunctions.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/FakeGuardImpl.h>
#include <torch/extension.h>
namespace {
constexpr auto kKind = c10::DeviceType::PrivateUse1;
using Guard = c10::impl::FakeGuardImpl<kKind>;    // eight devices
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

bool float64 = true;  // as on mps, if false
constexpr uint64_t apart = 1;  // a seed gives other numbers than on the CPU, as on a GPU

struct Allocator final : at::Allocator {
  at::DataPtr allocate(size_t size) override {
    void* data = c10::GetCPUAllocator()->raw_allocate(size);
    return {data, data, c10::GetCPUAllocator()->raw_deleter(), c10::Device(kKind, Guard::getDeviceIndex())};
  }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }
  at::DeleterFnPtr raw_deleter() const override { return c10::GetCPUAllocator()->raw_deleter(); }
};
Allocator allocator;
REGISTER_ALLOCATOR(kKind, &allocator);

// Draws what the CPU's draws, from a state that the CPU's cannot take, as that of a GPU.
struct Generator final : c10::GeneratorImpl {
  at::Generator cpu = at::detail::createCPUGenerator();
  explicit Generator(c10::DeviceIndex index) : GeneratorImpl({kKind, index}, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)) {
    set_current_seed(c10::detail::getNonDeterministicRandom());
  }
  void set_current_seed(uint64_t seed) override { cpu.set_current_seed(seed + apart); }
  uint64_t current_seed() const override { return cpu.current_seed() - apart; }
  uint64_t seed() override { return cpu.seed() - apart; }
  void set_offset(uint64_t offset) override { cpu.set_offset(offset); }
  uint64_t get_offset() const override { return cpu.get_offset(); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return at::cat({cpu.get_state(), at::zeros({8}, at::kByte)}).unsafeReleaseIntrusivePtr();
  }
  void set_state(const c10::TensorImpl& state) override {
    const auto given = at::Tensor::wrap_tensor_impl(
        c10::intrusive_ptr<c10::TensorImpl, at::UndefinedTensorImpl>::reclaim_copy(const_cast<c10::TensorImpl*>(&state)));
    TORCH_CHECK(given.numel() == cpu.get_state().numel() + 8, "RNG state is wrong size");
    cpu.set_state(given.slice(0, 0, given.numel() - 8).clone());
  }
  Generator* clone_impl() const override {
    auto* other = new Generator(device().index());
    return other->cpu = cpu.clone(), other;
  }
};

const at::Generator& default_generator(c10::DeviceIndex index) {
  static std::vector<at::Generator> all = [] {
    std::vector<at::Generator> made;
    for (int i = 0; i < c10::impl::kFakeGuardImplMaxDevices; ++i) made.push_back(at::make_generator<Generator>(i));
    return made;
  }();
  return all.at(index < 0 ? Guard::getDeviceIndex() : index);
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return c10::impl::kFakeGuardImplMaxDevices; }
  c10::DeviceIndex getCurrentDevice() const override { return Guard::getDeviceIndex(); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override { return default_generator(index); }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return at::make_generator<Generator>(index < 0 ? Guard::getDeviceIndex() : index);
  }
};

void check_type(std::optional<at::ScalarType> type) {
  TORCH_CHECK_TYPE(float64 || c10::dtype_or_default(type) != at::kDouble, "the simulated device has no float64");
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  check_type(type);
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_generic(
      size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> type,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  check_type(type);
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_strided_generic(
      size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(type));
}

// The same memory, as a tensor of the CPU.
at::Tensor seen_by_cpu(const at::Tensor& tensor) {
  if (tensor.device().type() != kKind) return tensor;
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  seen_by_cpu(to).copy_(seen_by_cpu(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) const_cast<at::Tensor&>(to).resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const at::Tensor& self) { return at::native::_local_scalar_dense_cpu(seen_by_cpu(self)); }

std::tuple<at::Tensor, at::Tensor> dropout(const at::Tensor& input, double share, std::optional<bool> train) {
  auto mask = at::ones_like(input, input.options().dtype(at::kBool));
  if (!train.value_or(true)) return {input.clone(), mask};
  mask.bernoulli_(1 - share);
  return {input * mask * (1 / (1 - share)), mask};
}

// Everything else is done by the CPU, once it has been seen that a device could have done it.
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& name = op.operator_name().name;
  TORCH_CHECK(name.rfind("aten::", 0) == 0, "Could not run '", name, "' with arguments from the 'simulated' backend");
  const size_t first = stack->size() - schema.arguments().size();
  std::optional<c10::Device> device;
  std::vector<std::pair<at::Tensor, bool>> tensors;    // and whether it is written to
  for (size_t i = first; i < stack->size(); ++i) {
    const auto& value = (*stack)[i];
    const auto* alias = schema.arguments()[i - first].alias_info();
    const bool written = alias && alias->isWrite();
    // An index may be on the CPU where what is indexed is not, and only so.
    if (schema.arguments()[i - first].name() == "indices" && value.isList()) {
      for (const c10::IValue& each : value.toListRef())
        TORCH_CHECK(!each.isTensor() || !each.toTensor().defined() || each.toTensor().is_cpu() || (device && each.toTensor().device() == *device),
                    "indices should be either on cpu or on the same device as the indexed tensor");
      continue;
    }
    if (value.isTensor()) tensors.emplace_back(value.toTensor(), written);
    if (value.isList())
      for (const c10::IValue& each : value.toListRef())
        if (each.isTensor()) tensors.emplace_back(each.toTensor(), written);
    if (!device && !tensors.empty() && tensors.back().first.defined() && !tensors.back().first.is_cpu())
      device = tensors.back().first.device();
  }
  for (const auto& [tensor, written] : tensors)
    TORCH_CHECK(!tensor.defined() || !device || tensor.device() == *device || (tensor.is_cpu() && !tensor.dim() && !written),
                name, ": Expected all tensors to be on the same device, but found at least two devices, ", *device, " and ",
                tensor.device(), "!");
  for (size_t i = first; i < stack->size(); ++i) {
    const auto& type = *schema.arguments()[i - first].real_type();
    if (type.str().find("Generator") == std::string::npos) continue;
    auto& value = (*stack)[i];
    const at::Generator chosen = value.isNone() ? default_generator(device ? device->index() : -1) : value.toGenerator();
    TORCH_CHECK(chosen.device().type() == kKind && (!device || chosen.device() == *device), name,
                ": Expected a 'simulated' device type for generator but found '", chosen.device(), "'");
    value = static_cast<Generator*>(chosen.unsafeGetGeneratorImpl())->cpu;
  }
  const c10::OptionalDeviceGuard guard(device);  // or what an index gives is on the device that is the current one
  at::native::cpu_fallback(op, stack, true);
}

}  // namespace
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("native_dropout", dropout);
  m.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  m.impl("set_.source_Tensor", at::native::set_tensor_);
  m.impl("set_.source_Storage", at::native::set_);
  m.impl("resize_", at::native::resize_);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("view", at::native::view);
  m.impl("unfold", at::native::unfold);
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define SINGLE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(SINGLE)
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  m.def("default_generator", [](int index) { return default_generator(static_cast<c10::DeviceIndex>(index)); });
  m.def("current_device", [] { return static_cast<int>(Guard::getDeviceIndex()); });
  m.def("set_device", [](int index) { Guard::setDeviceIndex(static_cast<c10::DeviceIndex>(index)); });
  m.def("float64", [](bool there) { float64 = there; }, "Whether the device has float64.");
}
