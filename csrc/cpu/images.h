// The CPU kernels, free of torch. Each works on images [begin, end): an image is one thread's, so that the result does
// not depend on threads. Each returns the lowest fault that it found (faults.h). Defined for float and double.

#pragma once

#include "../image_match.h"

namespace sparsereco {

// background: (images,), index: (images,) the measured image that each is compared with.
template <typename scalar_t>
int64_t match_images(const Deposits<scalar_t>& deposits, const scalar_t* background, const int64_t* index,
                     const Measured<scalar_t>& measured, const Crop& crop, double softness,
                     const Likelihood& likelihood, const Match<scalar_t>& match, int64_t begin, int64_t end);

// image: (images, X, Y, Z), dropped: (images,).
template <typename scalar_t>
int64_t splat_images(const Deposits<scalar_t>& deposits, const Crop& crop, double softness, scalar_t* image,
                     int64_t* dropped, int64_t begin, int64_t end);

// grad_image: (images, X, Y, Z), derivative of a loss with respect to the image.
template <typename scalar_t>
int64_t pull_images(const Deposits<scalar_t>& deposits, const Crop& crop, double softness, const scalar_t* grad_image,
                    scalar_t* grad_position, scalar_t* grad_charge, int64_t begin, int64_t end);

}  // namespace sparsereco
