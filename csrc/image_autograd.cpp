// The gradient of image_match. Of all operators this one is called most, thousands of times in a fit and often for few
// images, where autograd through Python (as in sparsereco/ops.py) would take longer than the kernel.

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/library.h>

#include <memory>
#include <optional>
#include <tuple>
#include <utility>

namespace sparsereco {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Matched = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Match = Matched(const Tensor& position, const Tensor& charge, const Tensor& offsets, const Tensor& background,
                      const Tensor& index, const Tensor& coords, const Tensor& signal,
                      const std::optional<Tensor>& variance, const Tensor& measured_offsets, at::IntArrayRef shape,
                      c10::string_view loss, double softness, double crosstalk, std::optional<double> threshold,
                      double empty_variance, bool derivatives);
using Scale = std::tuple<Tensor, Tensor, Tensor>(const Tensor& grad_loss, const Tensor& offsets,
                                                 const Tensor& grad_position, const Tensor& grad_charge,
                                                 const Tensor& grad_background);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Whether the losses were just added up: all share one number then, which costs nothing to look at on a CPU.
bool is_one(const Tensor& grad_loss) {
  return grad_loss.is_cpu() && !grad_loss.unsafeGetTensorImpl()->is_python_dispatch() && grad_loss.numel() > 0 &&
         grad_loss.stride(0) == 0 && grad_loss[0].item<double>() == 1;
}

struct ImageMatch : torch::autograd::Function<ImageMatch> {
  static constexpr size_t kArguments = 16, kPosition = 0, kCharge = 1, kBackground = 3;

  template <typename... Arguments>
  static variable_list forward(AutogradContext* context, const Tensor& position, const Tensor& charge,
                               const Tensor& offsets, Arguments... rest) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    static const auto match = find<Match>("sparsereco::image_match");
    const auto [loss, dropped, grad_position, grad_charge, grad_background] =
        match.call(position, charge, offsets, rest...);
    context->save_for_backward({offsets, grad_position, grad_charge, grad_background});
    context->mark_non_differentiable({dropped, grad_position, grad_charge, grad_background});
    context->set_materialize_grads(false);
    return {loss, dropped, grad_position, grad_charge, grad_background};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    variable_list result(kArguments);
    const Tensor& grad_loss = grads[0];
    if (!grad_loss.defined()) return result;
    variable_list derivatives = scaled(grad_loss, context->get_saved_variables());
    if (at::GradMode::is_enabled()) {  // somebody keeps a graph of the backward pass: it ends here, with an error
      for (Tensor& derivative : derivatives) derivative = derivative.detach().requires_grad_();
      torch::autograd::DelayedError end("image_match has derivatives of first order only", derivatives.size());
      derivatives = end(std::move(derivatives));
    }
    result[kPosition] = derivatives[0];
    result[kCharge] = derivatives[1];
    result[kBackground] = derivatives[2];
    return result;
  }

  static variable_list scaled(const Tensor& grad_loss, const variable_list& saved) {
    if (is_one(grad_loss)) return {saved[1], saved[2], saved[3]};
    const at::AutoDispatchBelowAutograd guard;
    static const auto scale = find<Scale>("sparsereco::image_match_backward");
    const auto [position, charge, background] = scale.call(grad_loss, saved[0], saved[1], saved[2], saved[3]);
    return {position, charge, background};
  }
};

Matched image_match(const Tensor& position, const Tensor& charge, const Tensor& offsets, const Tensor& background,
                    const Tensor& index, const Tensor& coords, const Tensor& signal,
                    const std::optional<Tensor>& variance, const Tensor& measured_offsets, at::IntArrayRef shape,
                    c10::string_view loss, double softness, double crosstalk, std::optional<double> threshold,
                    double empty_variance, bool derivatives) {
  const variable_list out =
      ImageMatch::apply(position, charge, offsets, background, index, coords, signal, variance, measured_offsets, shape,
                        loss, softness, crosstalk, threshold, empty_variance, derivatives);
  return {out[0], out[1], out[2], out[3], out[4]};
}

TORCH_LIBRARY_IMPL(sparsereco, Autograd, library) { library.impl("image_match", &image_match); }

}  // namespace
}  // namespace sparsereco
