// Binds the CPU kernels on images to torch: checks, memory, threads.

#include "../image_match.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <torch/library.h>

#include <atomic>
#include <tuple>

#include "../image_checks.h"
#include "images.h"

namespace sparsereco {
namespace {

constexpr int64_t kGrain = 8;  // images per task: some 50 us of work

// Shares images among threads; work(begin, end) returns its lowest fault.
template <typename Work>
int64_t for_images(int64_t images, const Work& work) {
  std::atomic<int64_t> lowest = kNoFault;
  at::parallel_for(0, images, kGrain, [&](int64_t begin, int64_t end) {
    const int64_t fault = work(begin, end);
    int64_t known = lowest.load();
    while (fault < known && !lowest.compare_exchange_weak(known, fault)) {
    }
  });
  return lowest;
}

using Tensors2 = std::tuple<at::Tensor, at::Tensor>;
using Tensors3 = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Tensors5 = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Tensors5 image_match_cpu(const at::Tensor& position, const at::Tensor& charge, const at::Tensor& offsets,
                         const at::Tensor& background, const at::Tensor& index, const at::Tensor& coords,
                         const at::Tensor& signal, const std::optional<at::Tensor>& variance,
                         const at::Tensor& measured_offsets, at::IntArrayRef shape, c10::string_view loss,
                         double softness, double crosstalk, std::optional<double> threshold, double empty_variance) {
  DepositTensors given{"image_match", position, charge, offsets};
  MatchTensors match{background, index, coords, signal, variance, measured_offsets};
  check_deposits(given);
  check_match(given, match);
  check_softness(given.op, softness);
  const Crop crop = check_crop(given.op, shape);
  const Likelihood likelihood = check_likelihood(std::string_view(loss.data(), loss.size()), crosstalk, threshold,
                                                 empty_variance, variance.has_value());
  make_contiguous(given);
  make_contiguous(match);

  const int64_t images = offsets.size(0) - 1;
  const at::Tensor losses = at::empty({images}, position.options());
  const at::Tensor dropped = at::empty({images}, offsets.options());
  const at::Tensor grad_position = at::empty({position.size(0), 3}, position.options());
  const at::Tensor grad_charge = at::empty({position.size(0)}, position.options());
  const at::Tensor grad_background = at::empty({images}, position.options());
  AT_DISPATCH_FLOATING_TYPES(position.scalar_type(), "image_match_cpu", [&] {
    const Deposits<scalar_t> deposits = deposits_of<scalar_t>(given);
    const Measured<scalar_t> measured = measured_of<scalar_t>(match);
    const Match<scalar_t> out{losses.mutable_data_ptr<scalar_t>(), dropped.mutable_data_ptr<int64_t>(),
                              grad_position.mutable_data_ptr<scalar_t>(), grad_charge.mutable_data_ptr<scalar_t>(),
                              grad_background.mutable_data_ptr<scalar_t>()};
    const int64_t fault = for_images(images, [&](int64_t begin, int64_t end) {
      return match_images(deposits, match.background.const_data_ptr<scalar_t>(), match.index.const_data_ptr<int64_t>(),
                          measured, crop, softness, likelihood, out, begin, end);
    });
    raise_fault(fault, given, &match);
  });
  return {losses, dropped, grad_position, grad_charge, grad_background};
}

Tensors3 image_match_backward_cpu(const at::Tensor& grad_loss, const at::Tensor& offsets,
                                  const at::Tensor& grad_position, const at::Tensor& grad_charge,
                                  const at::Tensor& grad_background) {
  DepositTensors given{"image_match_backward", grad_position, grad_charge, offsets};  // as many, of the same shapes
  check_deposits(given);
  make_contiguous(given);
  const int64_t images = offsets.size(0) - 1;
  check_tensor(given, "grad_loss", grad_loss, {images}, "(I,)", grad_position.scalar_type());
  check_tensor(given, "grad_background", grad_background, {images}, "(I,)", grad_position.scalar_type());
  const at::Tensor factor = grad_loss.contiguous();
  const at::Tensor to_position = at::empty_like(given.position), to_charge = at::empty_like(given.charge);
  AT_DISPATCH_FLOATING_TYPES(factor.scalar_type(), "image_match_backward_cpu", [&] {
    const Deposits<scalar_t> from = deposits_of<scalar_t>(given);
    const scalar_t* g = factor.const_data_ptr<scalar_t>();
    scalar_t* p = to_position.mutable_data_ptr<scalar_t>();
    scalar_t* q = to_charge.mutable_data_ptr<scalar_t>();
    const int64_t fault = for_images(images, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (!segment_is_sound(from.offsets, i, images, from.count)) return fault_at(Fault::kOffsets, i);
        const int64_t first = from.offsets[i], last = from.offsets[i + 1];
        for (int64_t j = first; j < last; ++j) q[j] = g[i] * from.charge[j];
        for (int64_t j = 3 * first; j < 3 * last; ++j) p[j] = g[i] * from.position[j];
      }
      return kNoFault;
    });
    raise_fault(fault, given);
  });
  return {to_position, to_charge, at::mul(factor, grad_background)};
}

Tensors2 soft_voxelize_cpu(const at::Tensor& position, const at::Tensor& charge, const at::Tensor& offsets,
                           at::IntArrayRef shape, double softness) {
  DepositTensors given{"soft_voxelize", position, charge, offsets};
  check_deposits(given);
  check_softness(given.op, softness);
  const Crop crop = check_crop(given.op, shape);
  make_contiguous(given);
  const int64_t images = offsets.size(0) - 1;
  const at::Tensor image = at::empty({images, shape[0], shape[1], shape[2]}, position.options());
  const at::Tensor dropped = at::empty({images}, offsets.options());
  AT_DISPATCH_FLOATING_TYPES(position.scalar_type(), "soft_voxelize_cpu", [&] {
    const Deposits<scalar_t> deposits = deposits_of<scalar_t>(given);
    const int64_t fault = for_images(images, [&](int64_t begin, int64_t end) {
      return splat_images(deposits, crop, softness, image.mutable_data_ptr<scalar_t>(),
                          dropped.mutable_data_ptr<int64_t>(), begin, end);
    });
    raise_fault(fault, given);
  });
  return {image, dropped};
}

Tensors2 soft_voxelize_backward_cpu(const at::Tensor& grad_image, const at::Tensor& position, const at::Tensor& charge,
                                    const at::Tensor& offsets, double softness) {
  DepositTensors given{"soft_voxelize", position, charge, offsets};
  check_deposits(given);
  check_softness(given.op, softness);
  check_tensor(given, "grad_image", grad_image, {offsets.size(0) - 1, -1, -1, -1}, "(I, X, Y, Z)",
               position.scalar_type());
  make_contiguous(given);
  const at::Tensor grad = grad_image.contiguous();
  const Crop crop = check_crop(given.op, grad.sizes().slice(1));
  const at::Tensor grad_position = at::empty_like(given.position), grad_charge = at::empty_like(given.charge);
  AT_DISPATCH_FLOATING_TYPES(position.scalar_type(), "soft_voxelize_backward_cpu", [&] {
    const Deposits<scalar_t> deposits = deposits_of<scalar_t>(given);
    const int64_t fault = for_images(grad.size(0), [&](int64_t begin, int64_t end) {
      return pull_images(deposits, crop, softness, grad.const_data_ptr<scalar_t>(),
                         grad_position.mutable_data_ptr<scalar_t>(), grad_charge.mutable_data_ptr<scalar_t>(), begin,
                         end);
    });
    raise_fault(fault, given);
  });
  return {grad_position, grad_charge};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsereco, CPU, library) {
  library.impl("image_match", &image_match_cpu);
  library.impl("image_match_backward", &image_match_backward_cpu);
  library.impl("soft_voxelize", &soft_voxelize_cpu);
  library.impl("soft_voxelize_backward", &soft_voxelize_backward_cpu);
}

}  // namespace sparsereco
