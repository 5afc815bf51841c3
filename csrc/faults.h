// What a kernel can find wrong with the values that it is given. It goes on without touching what it must not, and
// returns the lowest fault, so that the message does not depend on threads. image_checks.h puts it into words.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "host_device.h"

namespace sparsereco {

enum class Fault : int64_t {
  kOffsets,
  kPosition,
  kCharge,
  kBackground,
  kIndex,
  kMeasuredOffsets,
  kCoords,
  kTwice,
  kSignal,
  kVariance
};

constexpr int64_t kNoFault = INT64_MAX;
constexpr int kFaultShift = 48;  // a fault is its kind and, below it, the row that has it

SPARSERECO_HD int64_t fault_at(Fault kind, int64_t row) { return (static_cast<int64_t>(kind) << kFaultShift) + row; }

SPARSERECO_HD int64_t lower_fault(int64_t a, int64_t b) { return a < b ? a : b; }

// Whether rows [offsets[i], offsets[i + 1]) lie within `count` rows, and the segments begin and end where the rows do.
SPARSERECO_HD bool segment_is_sound(const int64_t* offsets, int64_t i, int64_t segments, int64_t count) {
  const int64_t begin = offsets[i], end = offsets[i + 1];
  return 0 <= begin && begin <= end && end <= count && (i > 0 || begin == 0) && (i < segments - 1 || end == count);
}

template <typename scalar_t>
SPARSERECO_HD bool is_finite(scalar_t value) {
  return value - value == 0;
}

template <typename scalar_t>
SPARSERECO_HD bool is_finite_and_not_negative(scalar_t value) {
  return (value >= 0) & (value - value == 0);
}

// The bits of a number. Those of numbers that are not negative have the order of the numbers; those of NaN, infinity
// and negative ones are above all of them.
template <typename scalar_t>
SPARSERECO_HD auto bits_of(scalar_t value) {
  std::conditional_t<sizeof(scalar_t) == 4, uint32_t, uint64_t> bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

}  // namespace sparsereco
