// What a kernel is: the signature of each family, and the table that an ISA tier exports.
//
// Kernels own no threads and no memory, see only pointers and sizes, and include nothing but integer headers and
// intrinsics. A slot that a tier leaves empty is served by the next tier below it (dispatch.h); `gemm.explain` tells.
#pragma once

#include <cstdint>

namespace soniq {

// ---- geometry shared by drivers and kernels ------------------------------------------------------------------------
constexpr int kUnit = 32;                // codes of one output per packed unit; a segment's K is padded to it
constexpr int kBlock = 512;              // codes of K per cache block: 32 columns x 512 bytes of weights stay in L1
constexpr int kRowStride = kBlock + 64;  // bytes between two gathered rows; off a power of two, so rows do not alias
constexpr int kMaxTileRows = 16;
constexpr int kMaxFewRows = 4;

// ---- quantize ------------------------------------------------------------------------------------------------------
// codes[i] = int(clamp(x[i] * r + z, 0, cmax)), product and sum rounded to float32, NaN gives 0. False if some x[i] is not
// finite: the check rides along, since reading a large x twice would cost as much as quantizing it.
using QuantizeFn = bool (*)(const float* x, int64_t count, float r, float z, float cmax, uint8_t* codes);
// One row of a tensor with two segments: the codes of channels whose bit in `second` is 0 to `low`, of the others to `high`, in
// the order of the channels. Both have room for 64 bytes more than they get.
struct CodeRange {
  float r, z, cmax;
};
using QuantizeSplitFn = bool (*)(const float* x, int64_t count, const uint64_t* second, const CodeRange* ranges,
                                 uint8_t* low, uint8_t* high);
// The largest |x[i]|; NaN is passed over.
using AbsMaxFn = float (*)(const float* x, int64_t count);
using AllFiniteFn = bool (*)(const float* x, int64_t count);
// sums[i] = the sum of up to 1024 bytes at bytes + i * stride.
using SumBytesFn = void (*)(const uint8_t* bytes, int64_t stride, int count, int runs, uint32_t* sums);

// ---- tensors of codes ------------------------------------------------------------------------------------------------
// A row has one code a channel, [low | high]. Columns of a tile are channels from `first` on, in the original order.
struct CodeRows {
  int channels;             // bytes from one row to the next
  int first;                // the channel of column 0
  int low_channels;         // of the first segment
  const int32_t* position;  // [channels]: where each one is stored
  const uint64_t* second;   // bit c of word c / 64 is set if channel c is in the second segment; null: all are in order
};
// value = (alpha * code + beta) * (scale * step): the integer is exact in float32, and so is the product in brackets
struct CodeSource : CodeRows {
  const uint8_t* codes;              // row 0; null: there is none
  const float *alpha, *beta, *step;  // [cols]
  const float* scale;                // [rows]
};
struct CodeSink : CodeRows {
  uint8_t* codes;              // row 0
  const float *r, *z, *cmax;   // [cols], the quantizer, whose code is written as
  const int32_t *shift, *add;  // [cols], (code << shift) + add, or as it is where they are null
  bool positive;               // every r is above 0 and z not below it
};
constexpr int kMaxSinks = 4;

enum class Activation : int { none = 0, relu = 1, relu6 = 2, hardtanh = 3 };

// What becomes of the values of a tile: float32, or codes, or both.
struct TileResults {
  float* y;  // [rows][ld] or null
  int64_t ld;
  int sinks;
  CodeSink sink[kMaxSinks];
};

// ---- epilogue ------------------------------------------------------------------------------------------------------
// What happens to a tile of sums, in the contract's order. Pointers that may be null say so.
struct EpilogueTile {
  int panel_cols;
  int shift;
  int first_column;  // of the tile
  // acc = (sums << shift) + row_terms[m] + column_terms[m][first_column + n], modulo 2^32
  const uint32_t* row_terms;            // [rows]
  bool plain_sums;                      // nothing is to be shifted, and these are 0
  const uint32_t* const* column_terms;  // [rows] -> [outputs of the layer], by border class
  bool same_terms;                      // of all rows
  // Null, or a row that is written is the largest of `taps` of these, [row][tap] (the smallest where w_scale is negative); only
  // what is above and the sums are then by rows that were multiplied.
  const int32_t* windows;
  int taps;

  int32_t* acc;  // [rows][acc_ld]; if not null: the integers are the result, nothing below is read
  int64_t acc_ld;

  const float* row_scale;     // [rows], activation scale * 2^E
  const float* w_scale;       // [cols]
  const float* bias;          // [cols] or null
  const float* residual;      // [rows][residual_ld] or null
  int64_t residual_ld;
  CodeSource residual_codes;  // or none
  Activation activation;
  float lo, hi;               // hardtanh
  const float* post_scale;    // [cols] or null
  const float* post_bias;     // [cols] or null
  TileResults results;
};
// Rows and columns of a tile and their sums: those of panels stand panel_stride apart, each [rows][panel_cols].
struct TilePart {
  const uint32_t* sums;
  int64_t panel_stride;
  int row, rows;
  int column, columns;  // the first one is the first of a panel
};
using EpilogueFn = void (*)(const EpilogueTile& tile, const TilePart& part);

// ---- between layers --------------------------------------------------------------------------------------------------
// y = activation(a + b), a and b codes, or one of them float32 x; without b: activation(a), or of x.
struct CombineTile {
  int rows, cols;
  CodeSource a, b;  // either may be none
  const float* x;   // [rows][x_ld] or null
  int64_t x_ld;
  Activation activation;
  float lo, hi;
  TileResults results;
};
using CombineFn = void (*)(const CombineTile& tile);
// out[i] = the largest taps[t][i]; at least one tap.
using MaxCodesFn = void (*)(const uint8_t* const* taps, int count, int64_t n, uint8_t* out);
// sums[i] = the sum of taps[t][i].
using SumCodesFn = void (*)(const uint8_t* const* taps, int count, int64_t n, int32_t* sums);

// ---- dot family: unpack codes to bytes, then byte dot products -------------------------------------------------------
// Weights of one panel (`columns` outputs) and one K block, as bytes, N in lanes, K in groups of 4:
//
//   [k / 4][column][k % 4]          one row of it is `columns` * 4 bytes: a few vector registers
//
// Packed, a unit of 32 codes x columns holds `bits` bytes where the unpacked one holds 8 (dot.cpp draws it).
// As bytes a code is alpha * code + beta, modulo 2^8.
using UnpackFn = void (*)(const uint8_t* panel, int units, uint8_t* bytes, int beta);
// Codes of one row to 16-bit words. Or, for `pairs`, 8 codes to the first half of every 16 bytes: the other half is its
// neighbour's.
using ExpandFn = void (*)(const uint8_t* codes, int units, uint8_t* words);
constexpr int kExpandStride = 2 * kRowStride;  // bytes between two rows of words, or two pairs of rows
// sums += (`rows` rows of gathered codes, or of words, x the panel) << shift; k is a multiple of the form's step, and not 0.
// The rows stand row_stride bytes apart.
using DotTileFn = void (*)(const uint8_t* weights, const uint8_t* activations, int64_t row_stride, int k,
                           uint32_t* sums, int shift);

constexpr int kMaxDotForms = 6;

// ---- dot family on matrix registers: a group of rows is multiplied at once ---------------------------------------------
// A panel of 32 outputs as bytes.
struct MatrixWeights {
  const uint8_t* bytes;
  int k;                // of a line, a multiple of a step's codes and not 0
  int lines;            // at least 1
  int64_t line_stride;  // of the codes that lines of weights are multiplied by
};
struct MatrixGroup {
  const uint8_t* rows;    // a stride apart
  const uint32_t* begin;  // sums that are added to, [row][32]; null: zeros
  uint32_t* sums;         // where they go; nothing is shifted
};
struct MatrixTiles {
  int rows;   // of a group, at most
  int codes;  // of a step
  // A thread's registers, for groups of so many rows, before others are called; and back. Takes hundreds of cycles.
  void (*configure)(int group);
  void (*release)();
  // Every step also fetches some lines of what will be needed next.
  void (*pair)(const MatrixWeights& weights, const MatrixGroup& first, const MatrixGroup& second, int64_t row_stride,
               const uint8_t* ahead, int lines);
  // One group of `count` rows; but for its first `skip` rows, which were counted already.
  void (*single)(const MatrixWeights& weights, const MatrixGroup& group, int64_t row_stride, int count, int skip);
  void (*shift_left)(uint32_t* sums, int64_t count, int by);  // count is a multiple of 32
};

struct DotFamily {
  int columns;             // of a panel
  bool signed_weights;     // u8 x s8 instructions: weights are bytes of their levels, 8-bit ones c ^ 0x80
  int forms;               // ways to multiply; which one is exact depends on the widths
  int rate[kMaxDotForms];  // [form] products a cycle, to compare families with (csrc/README.md)
  int tile_rows[kMaxDotForms];
  int least_rows = 1;      // of a tile that does not wait for its sums
  int step[kMaxDotForms];  // codes that a tile multiplies at once
  int (*form)(int w_bits, int a_bits);
  const char* (*form_name)(int form);
  UnpackFn unpack[2][9];                           // [alpha - 1][bits]; null: the packed panel is the byte panel
  ExpandFn expand[kMaxDotForms];                   // [form] null: its tiles read the gathered codes
  DotTileFn tile[kMaxDotForms][kMaxTileRows + 1];  // [form][rows], rows in 1..tile_rows
  DotTileFn fresh[kMaxDotForms]
                 [kMaxTileRows + 1];  // the same that write sums and do not read them; null: there are none
  int few_rows;
  DotTileFn few[kMaxDotForms][9]
               [kMaxFewRows + 1];  // [form][bits][rows], rows in 1..few_rows: packed panel, gathered codes
  bool pairs = false;              // two columns by two rows at a time: weights [k / 8][column][k % 8], tile_rows even
  const MatrixTiles* matrix = nullptr;  // in place of tiles
};

// ---- Winograd's form of 3 x 3 taps (winograd.cpp) ----------------------------------------------------------------------
constexpr int kWinogradSums = 16;  // of products, for 2 x 2 outputs
constexpr int kPlusAndPlus = 5;    // which of them has pixels that are never negative; to the others an offset is added
// 4 x 4 pixels of every tile, two pixels from tile to tile, become 16 bytes a channel.
struct WinogradPixels {
  const uint8_t* pixels;  // of the first tile, its first line and channel
  int64_t line_stride, pixel_stride;
  int tiles, channels;    // channels are a multiple of 16
  int offset;
  uint8_t* to;            // tiles are row_stride apart, the 16 bytes to_stride
  int64_t row_stride, to_stride;
};
using WinogradPixelsFn = void (*)(const WinogradPixels& pixels);
// `count` bytes of each of 3 x 3 taps become as many of each of 16, to_stride apart: a multiple of 64.
using WinogradWeightsFn = void (*)(const uint8_t* taps, int64_t line_stride, int64_t tap_stride, int64_t count,
                                   uint8_t* to, int64_t to_stride);
// A row of the 16 sums of every tile, four matrices [tile][columns], is added to its 2 x 2 outputs, four matrices as well; the last
// row completes them.
struct WinogradSums {
  int row;                // 0..3, in this order
  const uint32_t* terms;  // [output of a tile][columns], of what is four times as large
  const uint32_t* sums;   // matrices are `stride` apart, as those of
  uint32_t* outputs;
  int64_t stride;
  int64_t count, columns;  // of a matrix
};
using WinogradSumsFn = void (*)(const WinogradSums& sums);
struct WinogradFamily {
  WinogradPixelsFn pixels;
  WinogradWeightsFn weights;
  WinogradSumsFn sums;
};

// ---- depthwise -----------------------------------------------------------------------------------------------------
// Lanes are channels, a block of them at a time. Neighbouring rows of the image are interleaved, `rows` of them a strip, so that
// an instruction that adds neighbours adds taps of one channel:
//
//   strip   [lanes group][column][lane][row]      one byte a code, or what the family makes of it
//
// Taps that lie on no row of the layer have weight 0, a pixel outside the image has code 0: neither adds anything.
struct DepthwiseRow {
  const uint8_t* codes;  // of the block's first channel, at the first column
  int64_t step;          // bytes to the next column; 0: all columns are this one
};
// `rows` rows to a strip: group g of column x at to + g * group_bytes + x * column_bytes of the family.
using InterleaveFn = void (*)(const DepthwiseRow* rows, int64_t columns, uint8_t* to, int64_t group_bytes);

// A tensor of two segments stores its pixels [low | high]; blocks want channels in the original order. 16 of them are bytes of
// two runs:
struct MergePiece {
  int32_t to, low, high;                // where 16 bytes begin: in the merged pixel, and in the stored one
  uint8_t from_low[16], from_high[16];  // which of those bytes comes to each place; 0x80: none
};
using MergeFn = void (*)(const MergePiece* pieces, int count, const uint8_t* stored, int64_t stored_step,
                         int64_t pixels, uint8_t* to, int64_t step);

// sums[out_row][column][channel of the block] = (sum over strips and taps of weight * code) << shifts[channel].
struct DepthwiseTile {
  const uint8_t* strips;   // of the first output column
  int64_t strip_bytes, group_bytes;
  int64_t output_bytes;    // between the columns that neighbouring outputs begin at
  int64_t tap_bytes;       // between the columns of neighbouring taps
  int strip_count, taps;   // that an output row reads; taps in a row of the kernel
  const uint8_t* weights;  // [out_row][group][strip][tap], of the form's weight_bytes each
  int64_t weights_row;
  const uint32_t* shifts;  // [channels of the block]
  int out_rows;
  int64_t columns;
  uint32_t* sums;
};
using DepthwiseFn = void (*)(const DepthwiseTile& tile);

// What decides whether a form is exact for the weights of a block, with the largest code for every activation.
struct DepthwiseBounds {
  int least_weight, most_weight;  // levels
  int64_t most_pair;              // of the products of two neighbouring rows of a strip, in magnitude
  int64_t most_sum;               // of all products that such a pair of rows adds up
  int most_shift;
};

constexpr int kMaxDepthwiseForms = 3;

struct DepthwiseForm {
  const char* name;
  bool (*exact)(const DepthwiseBounds& bounds);
  int weight_size;                  // bytes of a weight, 1 or 2
  int (*place)(int lane, int row);  // of a weight among those of a group, strip and tap
  DepthwiseFn any;
  DepthwiseFn three[2];             // [output rows - 1]: three taps, and as many strips as three rows need
};

struct DepthwiseFamily {
  int channels, lanes, rows;  // of a block; of a group; of a strip
  int column_bytes;           // of a group in a strip
  InterleaveFn interleave;
  MergeFn merge;
  int forms;
  DepthwiseForm form[kMaxDepthwiseForms];  // the first one that is exact serves; the last one always is
};

// ---- popcount family: AND and population count on bit planes -----------------------------------------------------------
// Codes of one row to bit planes: plane j of 64 codes is one word at planes + j * plane_stride, the next one word_bytes on.
using PlanesFn = void (*)(const uint8_t* codes, int words, uint8_t* planes, int64_t plane_stride);
// sums += popcount(weights and activations) << shift, one plane of each: weights [line][word][column] uint64, the words of a line of
// activations line_stride bytes behind those of the one before.
struct PopcountTile {
  const uint8_t *weights, *activations;
  int64_t row_stride, line_stride;
  int words, lines;
  uint32_t* sums;
  int shift;
};
using PopcountTileFn = void (*)(const PopcountTile& tile);

struct PopcountFamily {
  const char* name;
  int columns, tile_rows;
  int rate;            // products a cycle of one pair of planes
  PlanesFn planes[9];  // by a_bits; null where another family is always faster
  PopcountTileFn tile[kMaxTileRows + 1];
  int word_bytes = 8;  // of an activation word; 16: it stands there twice, where a load that broadcasts is not free
};

// ---- lut family: exact tables of activation sums, looked up by weight bits ---------------------------------------------
constexpr int kMaxLutBits = 6;                // of activations: a sum of four codes must fit a byte
constexpr int kTableStride = 4 * kRowStride;  // bytes between two rows of tables: 4 bytes a code of a block
// Codes of one row to tables: 128 bytes a unit of 32 codes.
using TablesFn = void (*)(const uint8_t* codes, int units, uint8_t* tables);
// One plane of a packed brick to the index bytes that tiles read: 8 of them a column and unit.
using IndexesFn = void (*)(const uint8_t* packed, int units, uint8_t* indexes);
// sums[panel][row][column] += (one plane of the weights x the activations) << shift; panels stand panel_sums apart.
// The tables of two rows, or pairs of rows, stand row_stride bytes apart.
using LutTileFn = void (*)(const uint8_t* weights, const uint8_t* tables, int64_t row_stride, int units, uint32_t* sums,
                           int64_t panel_sums, int shift);

struct LutFamily {
  const char* name;
  int columns;                          // of a brick
  int rate[kMaxLutBits + 1];            // products a cycle of one weight plane, by a_bits
  int (*place)(int column, int group);  // of a byte among the 4 a column of a unit
  TablesFn tables;
  IndexesFn indexes;                    // null: tiles read the packed weights
  int paired_bits;  // with codes of so many bits two rows have tables together: those of low + 16 * high
  LutTileFn tile[kMaxLutBits + 1][kMaxTileRows + 1];  // [a_bits][rows]; null where another family is always faster
  int few_rows;
  LutTileFn few[kMaxLutBits + 1]
               [kMaxFewRows + 1];  // [a_bits][rows], rows in 1..few_rows: packed weights, tables of a row
  int panel = 32;                  // columns of a panel
  double table_cycles = 0;         // of building tables, a code and row; 0: not known
  int pixel = kUnit;               // tables of so many codes stand one behind the other: where a pixel may begin
};

// ---- lut6 family: the same with six activations and 64 sums a table; lut5: with five and 32 -----------------------------
constexpr int kMaxLut6Bits = 4;       // of activations
constexpr int kLut6Stride = 89 * 64;  // bytes between two rows of tables: 86 groups a block, written four at a time
// Codes of one row to the tables of groups of six (or five). The last group may end behind the row's codes.
using Lut6TablesFn = void (*)(const uint8_t* codes, int groups, uint8_t* tables);
// sums[panel][row][column] += (one plane of the weights x the activations) << shift; panels stand panel_sums apart.
using Lut6TileFn = void (*)(const uint8_t* weights, const uint8_t* tables, int64_t row_stride, int groups,
                            uint32_t* sums, int64_t panel_sums, int shift);

// AVX-512: 64 outputs of a register stand by 32-bit lane, four in each.
constexpr int four_to_a_lane(int column) { return column / 64 * 64 + column % 16 * 4 + column % 64 / 16; }

struct Lut6Family {
  const char* name;
  int columns, tile_rows;
  int rate[kMaxLut6Bits + 1];                           // products a cycle of one weight plane, by a_bits
  Lut6TablesFn tables;
  Lut6TileFn tile[kMaxLut6Bits + 1][kMaxTileRows + 1];  // [a_bits][rows]; null where another family is always faster
  int codes = 6;                                        // of a table, which has 2^codes bytes
  int table_stride = kLut6Stride;                       // bytes between two rows of tables
  int panel = 32;                                       // columns of a panel
  int (*place)(int column) = four_to_a_lane;            // of a column's byte among those of a group
  double table_cycles = 0;                              // of building tables, a code and row; 0: not known
};

struct KernelTable {
  QuantizeFn quantize;
  AbsMaxFn abs_max;
  AllFiniteFn all_finite;
  SumBytesFn sum_bytes;
  EpilogueFn epilogue;
  const DepthwiseFamily* depthwise;
  const DotFamily* dot;
  const PopcountFamily* popcount;
  const LutFamily* lut;
  const Lut6Family* lut6;
  QuantizeSplitFn quantize_split = nullptr;
  CombineFn combine = nullptr;
  MaxCodesFn max_codes = nullptr;
  SumCodesFn sum_codes = nullptr;
  const WinogradFamily* winograd = nullptr;
};

}  // namespace soniq
