// Runs the CUDA kernels on images on the host: `main PROBLEM RESULT`, two binary files that tests/test_cuda_emulator.py
// writes and reads. Every array has a heap block of its own, so that a sanitizer sees an access beside it.

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../cuda/image_match.cu"
#include "../cuda/soft_voxelize.cu"
#include "../cuda/sparse_images.cu"

namespace sparsereco {
double shared_memory[emulator::kSharedBytes / sizeof(double)];
}

namespace {

using namespace sparsereco;

struct Header {
  int64_t operation, is_double, deterministic, images, deposits, measured_images, measured, has_variance, loss, size[3];
  double softness, crosstalk, threshold, empty_variance;
};

template <typename T>
std::vector<T> read(FILE* file, int64_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), count, file) != static_cast<size_t>(count)) std::abort();
  return values;
}

template <typename T>
void write(FILE* file, const std::vector<T>& values) {
  if (std::fwrite(values.data(), sizeof(T), values.size(), file) != values.size()) std::abort();
}

template <typename scalar_t>
void run(const Header& header, FILE* in, FILE* out) {
  const Crop crop{{static_cast<int32_t>(header.size[0]), static_cast<int32_t>(header.size[1]),
                   static_cast<int32_t>(header.size[2])}};
  const auto position = read<scalar_t>(in, 3 * header.deposits), charge = read<scalar_t>(in, header.deposits);
  const auto offsets = read<int64_t>(in, header.images + 1);
  const Deposits<scalar_t> deposits{position.data(), charge.data(), offsets.data(), header.deposits, header.images};
  std::vector<int64_t> fault{kNoFault}, dropped(header.images);
  std::vector<scalar_t> grad_position(3 * header.deposits), grad_charge(header.deposits);

  if (header.operation == 0) {
    const auto background = read<scalar_t>(in, header.images);
    const auto index = read<int64_t>(in, header.images);
    const auto coords = read<int32_t>(in, 3 * header.measured);
    const auto signal = read<scalar_t>(in, header.measured);
    const auto variance = read<scalar_t>(in, header.has_variance ? header.measured : 0);
    const auto measured_offsets = read<int64_t>(in, header.measured_images + 1);
    const Measured<scalar_t> measured{
        coords.data(),           signal.data(),   header.has_variance ? variance.data() : nullptr,
        measured_offsets.data(), header.measured, header.measured_images};
    const Likelihood likelihood{static_cast<Loss>(header.loss), header.crosstalk, header.threshold,
                                header.empty_variance, 1 / header.empty_variance};
    std::vector<scalar_t> loss(header.images), grad_background(header.images);
    launch_match(
        deposits, background.data(), index.data(), measured, crop, header.softness, likelihood,
        header.deterministic != 0,
        Match<scalar_t>{loss.data(), dropped.data(), grad_position.data(), grad_charge.data(), grad_background.data()},
        fault.data(), nullptr);
    write(out, fault);
    write(out, dropped);
    write(out, loss);
    write(out, grad_position);
    write(out, grad_charge);
    write(out, grad_background);
    return;
  }
  if (header.operation == 2) {
    const auto grad = read<scalar_t>(in, 8 * header.deposits);
    std::vector<int64_t> voxel(8 * header.deposits);
    std::vector<scalar_t> light(8 * header.deposits);
    launch_place(deposits, crop, header.softness, voxel.data(), light.data(), dropped.data(), fault.data(), nullptr);
    launch_pull_places(deposits, crop, header.softness, grad.data(), grad_position.data(), grad_charge.data(), nullptr);
    write(out, fault);
    write(out, dropped);
    write(out, voxel);
    write(out, light);
    write(out, grad_position);
    write(out, grad_charge);
    return;
  }
  const auto grad_image = read<scalar_t>(in, header.images * crop.voxels());
  std::vector<scalar_t> image(header.images * crop.voxels());
  launch_splat(deposits, crop, header.softness, header.deterministic != 0, image.data(), dropped.data(), fault.data(),
               nullptr);
  launch_pull(deposits, crop, header.softness, grad_image.data(), grad_position.data(), grad_charge.data(),
              fault.data(), nullptr);
  write(out, fault);
  write(out, dropped);
  write(out, image);
  write(out, grad_position);
  write(out, grad_charge);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  FILE* in = std::fopen(arguments[1], "rb");
  FILE* out = std::fopen(arguments[2], "wb");
  if (!in || !out) return 2;
  const Header header = read<Header>(in, 1)[0];
  header.is_double ? run<double>(header, in, out) : run<float>(header, in, out);
  return std::fclose(in) | std::fclose(out);
}
