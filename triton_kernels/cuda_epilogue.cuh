// From integer sums to outputs, in the order and with the roundings of docs/arithmetic.md, sections 5 and 6.
#pragma once

#include "cuda_intrinsics.cuh"

enum Activation { kNone = 0, kRelu = 1, kRelu6 = 2, kHardtanh = 3 };

// Null leaves a step out. `acc` is given alone; else `y`, or `codes`, or both. The tables are those of epilogue.py.
struct Output {
  u32* acc;                       // int32 [rows][outputs]
  float* y;                       // [rows][outputs]
  u8* codes;                      // rows of `codes_stride` bytes, the tensors of codes side by side
  u32* sums;                      // [rows][sums_stride], zeros before: the bytes of each segment of each tensor; null: not wanted
  const float* activation_scale;  // one for every `rows_per_scale` rows
  const float* vectors;           // [4][outputs]: scale, bias, scale and bias behind the activation; `has` says which there are
  const float* residual;          // [rows][outputs]
  const u8* residual_codes;       // rows of `residual_stride` bytes, signed if `residual_signed`
  const float* residual_scale;    // one for every `rows_per_residual_scale` rows
  const float* residual_steps;    // [outputs]: what a level counts, without the scale
  const u32* residual_ints;       // [3][outputs]: place of the byte, alpha, beta
  const float* quantizers;        // [tensors][3][outputs]: r, z, cmax
  const u32* code_ints;           // [tensors][3][outputs]: place of the byte, zero point, segment
  const u32* column_terms;        // [outputs], what weights add to every sum of their output
  const u32* row_terms;           // [rows][row_parts], what activations add to every sum of their row
  u32 rows, outputs, row_parts, rows_per_scale;
  u32 residual_stride, rows_per_residual_scale, residual_signed;
  u32 tensors, codes_stride, sums_stride;
  u32 has;                        // bit i: vectors[i]
  u32 activation;
  float unit;                     // 2^E
  float low, high;
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

SONIQ_DEVICE float shortcut(const Output& out, u32 m, u32 n) {
  if (out.residual) return out.residual[u64(m) * out.outputs + n];
  const u8 byte = out.residual_codes[u64(m) * out.residual_stride + out.residual_ints[n]];
  const u32 value = out.residual_signed && byte >= 128 ? byte - 256u : byte;
  const u32 level = out.residual_ints[out.outputs + n] * value + out.residual_ints[2 * out.outputs + n];
  return mul(from_int(level), mul(out.residual_scale[m / out.rows_per_residual_scale], out.residual_steps[n]));
}

SONIQ_DEVICE float finish_float(const Output& out, u32 m, u32 n, u32 acc) {
  const u32 count = out.outputs;
  float y = mul(from_int(acc), mul(out.activation_scale[m / out.rows_per_scale], out.unit));
  y = mul(y, out.vectors[n]);
  if (out.has & 2) y = add(y, out.vectors[count + n]);
  if (out.residual || out.residual_codes) y = add(y, shortcut(out, m, n));
  y = activate(out, y);
  if (out.has & 4) y = mul(y, out.vectors[2 * count + n]);
  if (out.has & 8) y = add(y, out.vectors[3 * count + n]);
  return y;
}

SONIQ_DEVICE u32 whole_sum(const Output& out, u32 m, u32 n, u32 sum) {
  u32 acc = sum + out.column_terms[n];
  for (u32 part = 0; part < out.row_parts; ++part) acc += out.row_terms[u64(m) * out.row_parts + part];
  return acc;
}

// The bytes of one segment that 16 neighbouring lanes hold, all of one row, are added with one atomic operation.
SONIQ_DEVICE void add_to_sums(const Output& out, u32 m, u32 segment, u32 byte) {
  for (u32 s = 0; s < out.sums_stride; ++s) {
    u32 sum = segment == s ? byte : 0;
#pragma unroll
    for (int mask = 8; mask; mask /= 2) sum += shuffle_xor(sum, mask);
    if (sum && lane() % 16 == 0) add_atomic(out.sums + u64(m) * out.sums_stride + s, sum);
  }
}

SONIQ_DEVICE void store_codes(const Output& out, u32 m, u32 n, float y, bool ok) {
  const u32 count = out.outputs;
  for (u32 t = 0; t < out.tensors; ++t) {
    const float* q = out.quantizers + 3 * t * count;
    const u32* ints = out.code_ints + 3 * t * count;
    const u32 byte = ok ? quantize_one(y, q[n], q[count + n], q[2 * count + n]) - ints[count + n] : 0;
    if (ok) out.codes[u64(m) * out.codes_stride + ints[n]] = u8(byte);
    if (out.sums) add_to_sums(out, m, ok ? ints[2 * count + n] : ~0u, byte);
  }
}

// One element, from the sum of products of codes (times the segments' factors) to what is stored. All lanes of a warp come
// here together, those that have no element with ok = false; 16 neighbouring lanes have one m.
SONIQ_DEVICE void finish(const Output& out, u32 m, u32 n, u32 sum, bool ok) {
  const u32 acc = ok ? whole_sum(out, m, n, sum) : 0;
  if (out.acc) {
    if (ok) out.acc[u64(m) * out.outputs + n] = acc;
    return;
  }
  const float y = ok ? finish_float(out, m, n, acc) : 0.0f;
  if (out.y && ok) out.y[u64(m) * out.outputs + n] = y;
  if (out.codes) store_codes(out, m, n, y, ok);
}
