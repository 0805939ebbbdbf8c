// Layers behind which only the largest output of every window is wanted.
//
// From the integer to the code every step keeps the order, or, a negative scale of an output, turns it: the largest or the smallest
// integer of a window becomes the largest code, and the others need not become codes at all.
//
//   outputs   112 x 112 sums --------> 112 x 112 codes, written, read by windows    run_and_pool
//                        `--> 56 x 56 largest sums --> 56 x 56 codes                image_run.cpp
#include "layer.h"
#include "ops.h"

namespace soniq {

bool finishes_pooled(const Layer& layer, const Geometry& geometry, const Output& output) {
  const bool one_scale_an_image = output.rows_per_scale % (int64_t(geometry.out_h) * geometry.out_w) == 0;
  return layer.shares_pixels() && one_scale_an_image && !output.residual_codes.codes && !output.residual &&
         !output.post_scale && !output.post_bias;
}

bool run_and_pool(const Layer& layer, const Input& input, const Geometry& geometry, const Output& output) {
  static thread_local AlignedBytes room;
  Output all = output;
  all.pools = false;
  const int64_t size = geometry.rows() * layer.shape().outputs;
  uint8_t* const codes = scratch(room, size * all.results.sinks);
  for (int i = 0; i < all.results.sinks; ++i) all.results.sink[i].codes = codes + i * size;
  const bool finite = layer.run(input, geometry, all);
  for (int i = 0; i < all.results.sinks; ++i)
    max_pool(layer.tier(), output.pooling, all.results.sink[i].codes, output.results.sink[i].codes);
  return finite;
}

}  // namespace soniq
