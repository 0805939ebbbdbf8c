// From integer sums to outputs, in the order and with the roundings of docs/arithmetic.md, sections 5 and 6.
#pragma once

#include "cuda_intrinsics.cuh"

enum Activation { kNone = 0, kRelu = 1, kRelu6 = 2, kHardtanh = 3 };

// Null leaves a step out. Exactly one of acc, y and codes is given.
struct Output {
  u32* acc;                       // int32 [rows][outputs]
  float* y;                       // [rows][outputs]
  u8* codes;                      // [rows][outputs], stored order
  const float* activation_scale;  // one for every `rows_per_scale` rows; 0: one for all
  const float* w_scale;           // [outputs], as all below
  const float* bias;
  const float* residual;          // [rows][outputs]
  const float* post_scale;
  const float* post_bias;
  const float* r;
  const float* z;
  const float* cmax;
  const u32* position;      // where an output's code is stored
  const u32* column_terms;  // what weights add to every sum of their output
  const u32* row_terms;     // [rows][row_parts], what activations add to every sum of their row
  u32 rows, outputs, row_parts, rows_per_scale;
  float unit;               // 2^E
  float low, high;
  u32 activation;
};

// trunc(clamp(x * r + z, 0, cmax)), NaN gives 0.
SONIQ_DEVICE u32 quantize_one(float x, float r, float z, float cmax) {
  const float sum = add(mul(x, r), z);
  const float positive = if_greater(sum, 0.0f, sum, 0.0f);
  return truncate(if_greater(cmax, positive, positive, cmax));
}

SONIQ_DEVICE float activate(const Output& out, float y) {
  if (out.activation == kNone) return y;
  const float positive = if_greater(y, 0.0f, y, 0.0f);
  if (out.activation == kRelu) return positive;
  if (out.activation == kRelu6) return if_greater(6.0f, positive, positive, 6.0f);
  return if_greater(y, out.low, if_greater(out.high, y, y, out.high), out.low);
}

SONIQ_DEVICE float row_scale(const Output& out, u32 m) {
  return mul(out.activation_scale[out.rows_per_scale ? m / out.rows_per_scale : 0], out.unit);
}

SONIQ_DEVICE float finish_float(const Output& out, u32 m, u32 n, u32 acc) {
  float y = mul(mul(from_int(acc), row_scale(out, m)), out.w_scale[n]);
  if (out.bias) y = add(y, out.bias[n]);
  if (out.residual) y = add(y, out.residual[u64(m) * out.outputs + n]);
  y = activate(out, y);
  if (out.post_scale) y = mul(y, out.post_scale[n]);
  if (out.post_bias) y = add(y, out.post_bias[n]);
  return y;
}

// One element, from the sum of products of codes (times the segments' factors) to the stored result.
SONIQ_DEVICE void finish(const Output& out, u32 m, u32 n, u32 sum) {
  u32 acc = sum + out.column_terms[n];
  for (u32 part = 0; part < out.row_parts; ++part) acc += out.row_terms[u64(m) * out.row_parts + part];
  const u64 row = u64(m) * out.outputs;
  if (out.acc) {
    out.acc[row + n] = acc;
    return;
  }
  const float y = finish_float(out, m, n, acc);
  if (out.y)
    out.y[row + n] = y;
  else
    out.codes[row + out.position[n]] = u8(quantize_one(y, out.r[n], out.z[n], out.cmax[n]));
}
