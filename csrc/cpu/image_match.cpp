// Binds the CPU kernels on images to torch: threads and the set of instructions.

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ops/mul.h>
#include <torch/library.h>

#include <atomic>
#include <string>
#include <vector>

#include "../image_operators.h"
#include "images.h"
#include "sparse_images.h"
#include "splat.h"

namespace sparsereco {
namespace {

constexpr int64_t kGrain = 8;  // images per task: some 20 us of work

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

struct Cpu {
  struct Guard {
    explicit Guard(at::Device) {}
  };

  template <typename scalar_t>
  static int64_t match(const Deposits<scalar_t>& deposits, const scalar_t* background, const int64_t* index,
                       const Measured<scalar_t>& measured, const Crop& crop, double softness,
                       const Likelihood& likelihood, const Match<scalar_t>& out) {
    return for_images(deposits.images, [&](int64_t begin, int64_t end) {
      return match_images(deposits, background, index, measured, crop, softness, likelihood, out, begin, end);
    });
  }

  template <typename scalar_t>
  static int64_t splat(const Deposits<scalar_t>& deposits, const Crop& crop, double softness, scalar_t* image,
                       int64_t* dropped) {
    return for_images(deposits.images, [&](int64_t begin, int64_t end) {
      return splat_images(deposits, crop, softness, image, dropped, begin, end);
    });
  }

  template <typename scalar_t>
  static int64_t pull(const Deposits<scalar_t>& deposits, const Crop& crop, double softness, const scalar_t* grad_image,
                      scalar_t* grad_position, scalar_t* grad_charge) {
    return for_images(deposits.images, [&](int64_t begin, int64_t end) {
      return pull_images(deposits, crop, softness, grad_image, grad_position, grad_charge, begin, end);
    });
  }

  template <typename scalar_t>
  static Tensors3 splat_sparse(const Deposits<scalar_t>& deposits, const Crop& grid, double softness, int64_t* dropped,
                               const DepositTensors& given) {
    std::vector<std::vector<Lit<scalar_t>>> lit(deposits.images);
    raise_fault(for_images(deposits.images,
                           [&](int64_t begin, int64_t end) {
                             return splat_sparse_images(deposits, grid, softness, lit.data(), dropped, begin, end);
                           }),
                given);
    const at::Tensor image_offsets = at::empty({deposits.images + 1}, given.offsets.options());
    int64_t* starts = image_offsets.mutable_data_ptr<int64_t>();
    starts[0] = 0;
    for (int64_t i = 0; i < deposits.images; ++i) starts[i + 1] = starts[i] + static_cast<int64_t>(lit[i].size());
    const at::Tensor coords = at::empty({starts[deposits.images], 3}, given.position.options().dtype(at::kInt));
    const at::Tensor light = at::empty({starts[deposits.images]}, given.position.options());
    int32_t* to = coords.mutable_data_ptr<int32_t>();
    scalar_t* amount = light.mutable_data_ptr<scalar_t>();
    for (const std::vector<Lit<scalar_t>>& image : lit) {
      for (const Lit<scalar_t>& one : image) {
        *to++ = static_cast<int32_t>(one.voxel / grid.size[2] / grid.size[1]);
        *to++ = static_cast<int32_t>(one.voxel / grid.size[2] % grid.size[1]);
        *to++ = static_cast<int32_t>(one.voxel % grid.size[2]);
        *amount++ = one.light;
      }
    }
    return {light, coords, image_offsets};
  }

  template <typename scalar_t>
  static int64_t pull_sparse(const Deposits<scalar_t>& deposits, const Crop& grid, double softness,
                             const at::Tensor& coords, const at::Tensor& rows, const at::Tensor& grad_light,
                             scalar_t* grad_position, scalar_t* grad_charge) {
    const int32_t* places = coords.const_data_ptr<int32_t>();
    const int64_t* starts = rows.const_data_ptr<int64_t>();
    const scalar_t* grad = grad_light.const_data_ptr<scalar_t>();
    return for_images(deposits.images, [&](int64_t begin, int64_t end) {
      return pull_sparse_images(deposits, grid, softness, places, starts, grad, grad_position, grad_charge, begin, end);
    });
  }
};

Tensors3 image_match_backward(const at::Tensor& grad_loss, const at::Tensor& offsets, const at::Tensor& grad_position,
                              const at::Tensor& grad_charge, const at::Tensor& grad_background) {
  DepositTensors given{"image_match_backward", grad_position, grad_charge, offsets};  // as many, of the same shapes
  check_deposits(given);
  make_contiguous(given);
  const int64_t images = offsets.size(0) - 1;
  check_tensor(given, "grad_loss", grad_loss, {images}, "(I,)", grad_position.scalar_type());
  check_tensor(given, "grad_background", grad_background, {images}, "(I,)", grad_position.scalar_type());
  const at::Tensor factor = grad_loss.contiguous();
  const at::Tensor to_position = at::empty_like(given.position), to_charge = at::empty_like(given.charge);
  AT_DISPATCH_FLOATING_TYPES(factor.scalar_type(), "image_match_backward", [&] {
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

// The instruction set that torch itself uses; ATEN_CPU_CAPABILITY=avx2 or =default chooses a smaller one.
template <typename scalar_t>
SplatKernels<scalar_t> choose_splat_kernels() {
  static const SplatKernels<scalar_t> chosen = [] {
    const std::string set = at::get_cpu_capability();
    if (set == "AVX512") return splat_kernels_avx512<scalar_t>();
    return set == "AVX2" ? splat_kernels_avx2<scalar_t>() : splat_kernels_portable<scalar_t>();
  }();
  return chosen;
}

}  // namespace

template <>
SplatKernels<float> splat_kernels() {
  return choose_splat_kernels<float>();
}
template <>
SplatKernels<double> splat_kernels() {
  return choose_splat_kernels<double>();
}

TORCH_LIBRARY_IMPL(sparsereco, CPU, library) {
  library.impl("image_match", &image_match<Cpu>);
  library.impl("image_match_backward", &image_match_backward);
  library.impl("soft_voxelize", &soft_voxelize<Cpu>);
  library.impl("soft_voxelize_backward", &soft_voxelize_backward<Cpu>);
  library.impl("soft_voxelize_sparse", &soft_voxelize_sparse<Cpu>);
  library.impl("soft_voxelize_sparse_backward", &soft_voxelize_sparse_backward<Cpu>);
}

}  // namespace sparsereco
