// Sixteen float lanes with one meaning on every machine: each lane is an IEEE float32 that is added, multiplied or fused
// with one rounding. AVX-512 holds them in one register, AVX2 in two, NEON in four, plain code in an array. A lane never
// meets another lane but in `total` and `largest`, whose tree is fixed. So a number has the same bits everywhere.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define BL_INLINE static inline __attribute__((always_inline))

namespace BL_NS {

constexpr int LANES = 16;

// Sixteen int8 inputs as four words, for pack_inputs, which returns what the sum of a product begins with.
BL_INLINE int pack_as_they_are(const int8_t* q, uint32_t* to, uint32_t turned) {
  memcpy(to, q, 16);
  for (int i = 0; i < 4; i++) to[i] ^= turned;
  return 0;
}

#if defined(__AVX512F__)

struct Floats { __m512 v; };
struct Ints { __m512i v; };
BL_INLINE Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
BL_INLINE void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
BL_INLINE Floats all(float x) { return {_mm512_set1_ps(x)}; }
BL_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
BL_INLINE Floats add(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
BL_INLINE Floats sub(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
BL_INLINE Floats mul(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
BL_INLINE Floats div(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
BL_INLINE Floats larger(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
BL_INLINE Ints load_ints(const void* p) { return {_mm512_loadu_si512(p)}; }
BL_INLINE void store_ints(void* p, Ints a) { _mm512_storeu_si512(p, a.v); }
BL_INLINE Ints as_ints(Floats a) { return {_mm512_castps_si512(a.v)}; }
BL_INLINE Floats as_floats(Ints a) { return {_mm512_castsi512_ps(a.v)}; }
BL_INLINE Ints add(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
BL_INLINE Ints all_ints(int32_t x) { return {_mm512_set1_epi32(x)}; }
template <int N> BL_INLINE Ints shift_left(Ints a) { return {_mm512_slli_epi32(a.v, N)}; }
BL_INLINE Ints high_half(Ints a) { return {_mm512_and_si512(a.v, _mm512_set1_epi32((int)0xffff0000))}; }
BL_INLINE Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
BL_INLINE Floats load_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
BL_INLINE void low_bytes(uint8_t* p, Ints a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a.v)); }
#if defined(__AVX512VNNI__)
// The instruction wants one unsigned factor: inputs are raised by 128, and the product's end takes 128 * sum back.
constexpr int INPUT_OFFSET = 128, INPUT_WORDS = 1;
struct Inputs { __m512i v; };
BL_INLINE int pack_inputs(const int8_t* q, uint32_t* to) { return pack_as_they_are(q, to, 0x80808080u); }
BL_INLINE Inputs four_inputs(const uint32_t* p) { return {_mm512_set1_epi32((int)p[0])}; }
BL_INLINE Ints dot4(Ints sum, Inputs x, Ints w) { return {_mm512_dpbusd_epi32(sum.v, x.v, w.v)}; }
#else
// Products of bytes in pairs: |x| times w with the sign of x. |x| is at most 127 and w at most 128 in size, so that a
// pair's sum fits 16 bits, where the instruction would otherwise saturate. Where x is negative the bits of w are turned
// over, one instruction for -w - 1. So |x| is missing for each negative x, for all outputs alike: the sum begins with it.
constexpr int INPUT_OFFSET = 0, INPUT_WORDS = 2;
struct Inputs { __m512i size, turn; };
BL_INLINE int pack_inputs(const int8_t* q, uint32_t* to) {
  const __m128i x = _mm_loadu_si128((const __m128i*)q), size = _mm_abs_epi8(x);
  const __m128i turn = _mm_cmpgt_epi8(_mm_setzero_si128(), x);
  _mm_storeu_si128((__m128i*)to, _mm_unpacklo_epi32(size, turn));
  _mm_storeu_si128((__m128i*)to + 1, _mm_unpackhi_epi32(size, turn));
  const __m128i taken = _mm_sad_epu8(_mm_and_si128(size, turn), _mm_setzero_si128());
  return _mm_cvtsi128_si32(taken) + _mm_extract_epi32(taken, 2);
}
BL_INLINE Inputs four_inputs(const uint32_t* p) {
  return {_mm512_set1_epi32((int)p[0]), _mm512_set1_epi32((int)p[1])};
}
BL_INLINE Ints dot4(Ints sum, Inputs x, Ints w) {
  const __m512i pairs = _mm512_maddubs_epi16(x.size, _mm512_xor_si512(w.v, x.turn));
  const __m512i fours = _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
  // gcc adds into another register and copies it back, which costs what the addition costs.
  __asm__("vpaddd %1, %0, %0" : "+v"(sum.v) : "v"(fours));
  return sum;
}
#endif

#elif defined(__AVX2__) && defined(__FMA__)

struct Floats { __m256 a, b; };
struct Ints { __m256i a, b; };
BL_INLINE Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
BL_INLINE void store(float* p, Floats x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
BL_INLINE Floats all(float x) { __m256 v = _mm256_set1_ps(x); return {v, v}; }
BL_INLINE Floats fma(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
BL_INLINE Floats add(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
BL_INLINE Floats sub(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
BL_INLINE Floats mul(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
BL_INLINE Floats div(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
BL_INLINE Floats larger(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
BL_INLINE Ints load_ints(const void* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
BL_INLINE void store_ints(void* p, Ints x) {
  _mm256_storeu_si256((__m256i*)p, x.a), _mm256_storeu_si256((__m256i*)p + 1, x.b);
}
BL_INLINE Ints as_ints(Floats x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
BL_INLINE Floats as_floats(Ints x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
BL_INLINE Ints add(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
BL_INLINE Ints all_ints(int32_t x) { __m256i v = _mm256_set1_epi32(x); return {v, v}; }
template <int N> BL_INLINE Ints shift_left(Ints x) { return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)}; }
BL_INLINE Ints high_half(Ints x) {
  __m256i m = _mm256_set1_epi32((int)0xffff0000);
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
BL_INLINE Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
BL_INLINE Floats load_bf16(const uint16_t* p) {
  __m256i a = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  __m256i b = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p + 1));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
}
BL_INLINE void low_bytes(uint8_t* p, Ints x) {
  int32_t t[16];
  store_ints(t, x);
  for (int l = 0; l < LANES; l++) p[l] = (uint8_t)t[l];
}
constexpr int INPUT_OFFSET = 0, INPUT_WORDS = 1;
struct Inputs { __m256i v, size; };
BL_INLINE int pack_inputs(const int8_t* q, uint32_t* to) { return pack_as_they_are(q, to, 0); }
BL_INLINE Inputs four_inputs(const uint32_t* p) {
  __m256i v = _mm256_set1_epi32((int)p[0]);
  return {v, _mm256_abs_epi8(v)};
}
// As without VNNI above: |x| times w with the sign of x never saturates.
BL_INLINE __m256i dot4_half(__m256i sum, Inputs x, __m256i w) {
  __m256i pairs = _mm256_maddubs_epi16(x.size, _mm256_sign_epi8(w, x.v));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
BL_INLINE Ints dot4(Ints sum, Inputs x, Ints w) { return {dot4_half(sum.a, x, w.a), dot4_half(sum.b, x, w.b)}; }

#elif defined(__ARM_NEON) && defined(__aarch64__)

struct Floats { float32x4_t v[4]; };
struct Ints { int32x4_t v[4]; };
#define BL_FOUR for (int j = 0; j < 4; j++)
BL_INLINE Floats load(const float* p) { Floats r; BL_FOUR r.v[j] = vld1q_f32(p + 4 * j); return r; }
BL_INLINE void store(float* p, Floats a) { BL_FOUR vst1q_f32(p + 4 * j, a.v[j]); }
BL_INLINE Floats all(float x) { Floats r; BL_FOUR r.v[j] = vdupq_n_f32(x); return r; }
BL_INLINE Floats fma(Floats a, Floats b, Floats c) { BL_FOUR c.v[j] = vfmaq_f32(c.v[j], a.v[j], b.v[j]); return c; }
BL_INLINE Floats add(Floats a, Floats b) { BL_FOUR a.v[j] = vaddq_f32(a.v[j], b.v[j]); return a; }
BL_INLINE Floats sub(Floats a, Floats b) { BL_FOUR a.v[j] = vsubq_f32(a.v[j], b.v[j]); return a; }
BL_INLINE Floats mul(Floats a, Floats b) { BL_FOUR a.v[j] = vmulq_f32(a.v[j], b.v[j]); return a; }
BL_INLINE Floats div(Floats a, Floats b) { BL_FOUR a.v[j] = vdivq_f32(a.v[j], b.v[j]); return a; }
// As x86 has it: b where the two are not ordered.
BL_INLINE Floats larger(Floats a, Floats b) {
  BL_FOUR a.v[j] = vbslq_f32(vcgtq_f32(a.v[j], b.v[j]), a.v[j], b.v[j]);
  return a;
}
BL_INLINE Ints load_ints(const void* p) { Ints r; BL_FOUR r.v[j] = vld1q_s32((const int32_t*)p + 4 * j); return r; }
BL_INLINE void store_ints(void* p, Ints a) { BL_FOUR vst1q_s32((int32_t*)p + 4 * j, a.v[j]); }
BL_INLINE Ints as_ints(Floats a) { Ints r; BL_FOUR r.v[j] = vreinterpretq_s32_f32(a.v[j]); return r; }
BL_INLINE Floats as_floats(Ints a) { Floats r; BL_FOUR r.v[j] = vreinterpretq_f32_s32(a.v[j]); return r; }
BL_INLINE Ints add(Ints a, Ints b) { BL_FOUR a.v[j] = vaddq_s32(a.v[j], b.v[j]); return a; }
BL_INLINE Ints all_ints(int32_t x) { Ints r; BL_FOUR r.v[j] = vdupq_n_s32(x); return r; }
template <int N> BL_INLINE Ints shift_left(Ints a) { BL_FOUR a.v[j] = vshlq_n_s32(a.v[j], N); return a; }
BL_INLINE Ints high_half(Ints a) {
  BL_FOUR a.v[j] = vandq_s32(a.v[j], vdupq_n_s32((int32_t)0xffff0000));
  return a;
}
BL_INLINE Floats to_floats(Ints a) { Floats r; BL_FOUR r.v[j] = vcvtq_f32_s32(a.v[j]); return r; }
BL_INLINE Floats load_bf16(const uint16_t* p) {
  Floats r;
  BL_FOUR r.v[j] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * j), 16));
  return r;
}
BL_INLINE void low_bytes(uint8_t* p, Ints a) {
  int32_t t[16];
  store_ints(t, a);
  for (int l = 0; l < LANES; l++) p[l] = (uint8_t)t[l];
}
constexpr int INPUT_OFFSET = 0, INPUT_WORDS = 1;
struct Inputs { int8x8_t v; };
BL_INLINE int pack_inputs(const int8_t* q, uint32_t* to) { return pack_as_they_are(q, to, 0); }
BL_INLINE Inputs four_inputs(const uint32_t* p) { return {vreinterpret_s8_u32(vdup_n_u32(p[0]))}; }
BL_INLINE Ints dot4(Ints sum, Inputs x, Ints w) {
  BL_FOUR {
    int8x16_t b = vreinterpretq_s8_s32(w.v[j]);
    int16x8_t low = vmull_s8(vget_low_s8(b), x.v), high = vmull_s8(vget_high_s8(b), x.v);
    sum.v[j] = vaddq_s32(sum.v[j], vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
  }
  return sum;
}
#undef BL_FOUR

#else

struct Floats { float v[16]; };
struct Ints { int32_t v[16]; };
#define BL_EACH for (int l = 0; l < LANES; l++)
BL_INLINE Floats load(const float* p) { Floats r; memcpy(r.v, p, 64); return r; }
BL_INLINE void store(float* p, Floats a) { memcpy(p, a.v, 64); }
BL_INLINE Floats all(float x) { Floats r; BL_EACH r.v[l] = x; return r; }
BL_INLINE Floats fma(Floats a, Floats b, Floats c) { BL_EACH c.v[l] = __builtin_fmaf(a.v[l], b.v[l], c.v[l]); return c; }
BL_INLINE Floats add(Floats a, Floats b) { BL_EACH a.v[l] += b.v[l]; return a; }
BL_INLINE Floats sub(Floats a, Floats b) { BL_EACH a.v[l] -= b.v[l]; return a; }
BL_INLINE Floats mul(Floats a, Floats b) { BL_EACH a.v[l] *= b.v[l]; return a; }
BL_INLINE Floats div(Floats a, Floats b) { BL_EACH a.v[l] /= b.v[l]; return a; }
BL_INLINE Floats larger(Floats a, Floats b) { BL_EACH a.v[l] = a.v[l] > b.v[l] ? a.v[l] : b.v[l]; return a; }
BL_INLINE Ints load_ints(const void* p) { Ints r; memcpy(r.v, p, 64); return r; }
BL_INLINE void store_ints(void* p, Ints a) { memcpy(p, a.v, 64); }
BL_INLINE Ints as_ints(Floats a) { Ints r; memcpy(&r, &a, 64); return r; }
BL_INLINE Floats as_floats(Ints a) { Floats r; memcpy(&r, &a, 64); return r; }
BL_INLINE Ints add(Ints a, Ints b) { BL_EACH a.v[l] = (int32_t)((uint32_t)a.v[l] + (uint32_t)b.v[l]); return a; }
BL_INLINE Ints all_ints(int32_t x) { Ints r; BL_EACH r.v[l] = x; return r; }
template <int N> BL_INLINE Ints shift_left(Ints a) { BL_EACH a.v[l] = (int32_t)((uint32_t)a.v[l] << N); return a; }
BL_INLINE Ints high_half(Ints a) { BL_EACH a.v[l] &= (int32_t)0xffff0000; return a; }
BL_INLINE Floats to_floats(Ints a) { Floats r; BL_EACH r.v[l] = (float)a.v[l]; return r; }
BL_INLINE Floats load_bf16(const uint16_t* p) {
  Ints r;
  BL_EACH r.v[l] = (int32_t)((uint32_t)p[l] << 16);
  return as_floats(r);
}
BL_INLINE void low_bytes(uint8_t* p, Ints a) { BL_EACH p[l] = (uint8_t)a.v[l]; }
constexpr int INPUT_OFFSET = 0, INPUT_WORDS = 1;
struct Inputs { int32_t v[4]; };
BL_INLINE int pack_inputs(const int8_t* q, uint32_t* to) { return pack_as_they_are(q, to, 0); }
BL_INLINE Inputs four_inputs(const uint32_t* p) {
  const uint32_t x = p[0];
  return {{(int8_t)(x & 255), (int8_t)(x >> 8 & 255), (int8_t)(x >> 16 & 255), (int8_t)(x >> 24)}};
}
BL_INLINE Ints dot4(Ints sum, Inputs x, Ints w) {
  BL_EACH for (int b = 0; b < 4; b++) sum.v[l] += x.v[b] * (int32_t)(int8_t)((uint32_t)w.v[l] >> 8 * b);
  return sum;
}
#undef BL_EACH

#endif

// Rounds to bfloat16, ties to even; for finite numbers.
BL_INLINE uint16_t to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
BL_INLINE float from_bf16(uint16_t x) {
  uint32_t u = (uint32_t)x << 16;
  float r;
  memcpy(&r, &u, 4);
  return r;
}

// The sum of all lanes: always the same tree, lane l with lane l + 8, then 4, 2, 1. The largest lane the same way.
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#if defined(__AVX512F__)
BL_INLINE __m256 lower_half(Floats a) { return _mm512_castps512_ps256(a.v); }
BL_INLINE __m256 upper_half(Floats a) { return _mm512_extractf32x8_ps(a.v, 1); }
#else
BL_INLINE __m256 lower_half(Floats a) { return a.a; }
BL_INLINE __m256 upper_half(Floats a) { return a.b; }
#endif
BL_INLINE float total(Floats a) {
  const __m256 eight = _mm256_add_ps(lower_half(a), upper_half(a));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
BL_INLINE float largest(Floats a) {
  const __m256 eight = _mm256_max_ps(lower_half(a), upper_half(a));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#else
BL_INLINE float total(Floats a) {
  float t[16];
  store(t, a);
  for (int n = 8; n; n /= 2)
    for (int l = 0; l < n; l++) t[l] += t[l + n];
  return t[0];
}
BL_INLINE float largest(Floats a) {
  float t[16];
  store(t, a);
  for (int n = 8; n; n /= 2)
    for (int l = 0; l < n; l++) t[l] = t[l] > t[l + n] ? t[l] : t[l + n];
  return t[0];
}
#endif

// Lanes [from, to) of a, and `other` in all others.
BL_INLINE Floats lanes_between(Floats a, int from, int to, float other) {
#if defined(__AVX512F__)
  const uint32_t below_to = to >= LANES ? 0xffff : (1u << to) - 1;
  return {_mm512_mask_blend_ps((__mmask16)(below_to >> from << from), _mm512_set1_ps(other), a.v)};
#else
  float t[LANES];
  store(t, a);
  for (int l = 0; l < LANES; l++) t[l] = l >= from && l < to ? t[l] : other;
  return load(t);
#endif
}

// e to the x, relative error about 1e-7; x is cut to [-87, 87].
// Source: Cephes, single precision: the argument less a multiple of log 2, then a polynomial of degree 6.
BL_INLINE Floats exponential(Floats x) {
  x = larger(x, all(-87.0f));
  x = sub(all(0.0f), larger(sub(all(0.0f), x), all(-87.0f)));
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23: the nearest whole number is left in the low bits
  Floats t = fma(x, all(1.44269504088896341f), magic), n = sub(t, magic);
  Floats r = fma(n, all(-0.693145751953125f), x);
  r = fma(n, all(-1.42860682030941723212e-6f), r);
  Floats p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), all(1.0f));
  return as_floats(add(as_ints(p), shift_left<23>(as_ints(t))));
}

}  // namespace BL_NS
