// How many multiply-adds the processor can do: on independent sums in the widest registers, without touching memory.
// Compiled for the machine at hand by roofs.py.

#include <cstdint>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSums = 24;  // of 32 registers: more than latency times units of any processor
#else
constexpr int kSums = 12;  // of 16
#endif
constexpr int kLanes = kBytes / sizeof(float);
typedef float Vector __attribute__((vector_size(kBytes)));

// Multiplies and adds `rounds` times on each sum; returns the number of floating-point operations.
extern "C" double multiply_add(int64_t rounds, float* result) {
  const Vector factor = Vector{} + 0.5f, term = Vector{} + *result;
  Vector sum[kSums];
#pragma GCC unroll 32
  for (int i = 0; i < kSums; ++i) sum[i] = Vector{} + static_cast<float>(i);
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) sum[i] = sum[i] * factor + term;
#pragma GCC unroll 32
  for (int i = 1; i < kSums; ++i) sum[0] += sum[i];
  for (int lane = 0; lane < kLanes; ++lane) *result += sum[0][lane];  // keeps the work from being optimised away
  return 2.0 * kLanes * kSums * static_cast<double>(rounds);
}
