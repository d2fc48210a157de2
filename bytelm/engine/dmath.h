// exp, log, sin, cos and power of doubles with the same bits everywhere, each within 2 units in the last place.
// They are made of + - * /, of fused multiply-adds where a product must not be rounded, and of operations on bits. No
// branch depends on an argument, so loops over them become vector code; exp and log do without fma, because a machine
// that lacks it would call a function in the middle of such a loop.
// The names hide those of the C library inside the namespace: no part of the engine can call the latter by mistake.
//
// Source: the constants and the shape of the polynomials are those of fdlibm (Sun Microsystems, 1993).
#pragma once
#include <stdint.h>

namespace BL_NS {

#if defined(__FAST_MATH__) || __FLT_EVAL_METHOD__ != 0
#error "doubles must be IEEE doubles: no -ffast-math, no x87"
#endif

#define BL_MATH static inline __attribute__((always_inline)) double

static inline __attribute__((always_inline)) uint64_t bits_of(double x) {
  uint64_t u;
  __builtin_memcpy(&u, &x, 8);
  return u;
}
BL_MATH from_bits(uint64_t u) {
  double x;
  __builtin_memcpy(&x, &u, 8);
  return x;
}

constexpr double NEAREST = 6755399441055744.0;  // 1.5 * 2^52: x + this - this is x rounded, its low bits are the number
constexpr double LN2_HIGH = 6.93147180369123816490e-01;  // 32 low bits are zero: exact times a whole number below 2^20
constexpr double LN2_LOW = 1.90821492927058770002e-10;

// 2 to the n, for a whole number n of -1022 … 1023.
BL_MATH two_to(double n) { return from_bits(bits_of(n + (NEAREST + 1023.0)) << 52); }

// Where e to the x is 0 already, and all below is taken to be.
BL_MATH least_exponent(double x) { return x < -1000.0 ? -1000.0 : x; }

// e to the x of -1000 … 1400: 0 below -745.2, infinite above 709.8, NaN for NaN.
BL_MATH exp_of_least(double x) {
  double n = x * 1.44269504088896338700 + NEAREST - NEAREST;
  double high = x - n * LN2_HIGH, low = n * LN2_LOW, r = high - low, z = r * r;
  double p = 4.13813679705723846039e-08;
  p = p * z - 1.65339022054652515390e-06;
  p = p * z + 6.61375632143793436117e-05;
  p = p * z - 2.77777777770155933842e-03;
  p = p * z + 1.66666666666666019037e-01;
  double c = r - z * p;
  double y = 1.0 + (r * c / (2.0 - c) - low + high);
  // In two steps: the first is exact, so that a result below the normal numbers is rounded once.
  double half = n * 0.5 + NEAREST - NEAREST;
  return y * two_to(half) * two_to(n - half);
}
BL_MATH exp(double x) { return exp_of_least(least_exponent(x)); }

// The same of every number of an array.
static inline void exp_many(double* x, int n) {
  for (int i = 0; i < n; i++) x[i] = least_exponent(x[i]);
  for (int i = 0; i < n; i++) x[i] = exp_of_least(x[i]);  // a loop of its own: the comparison would become a branch
}

struct Split { double m, k; };  // x = m * 2^k with m in [sqrt(1/2), sqrt(2)), about

static inline __attribute__((always_inline)) Split split(double x) {
  constexpr uint64_t ROOT = 0x3fe6a09e00000000;  // of 1/2
  constexpr uint64_t TWO_52 = 0x4330000000000000;  // its low bits count from there
  // Numbers below the normal ones are taken times 2^54. With a comparison, loops would not become vector code.
  uint64_t raised = 54 & (0 - (((bits_of(x) >> 52) - 1) >> 63));
  uint64_t u = bits_of(x * from_bits((1023 + raised) << 52)) + (0x3ff0000000000000 - ROOT);
  double k = from_bits(u >> 52 | TWO_52) - from_bits((1023 + raised) | TWO_52);
  return {from_bits((u & 0x000fffffffffffff) + ROOT), k};
}

// Natural logarithm of a positive finite number.
BL_MATH log(double x) {
  Split a = split(x);
  double f = a.m - 1.0, s = f / (2.0 + f), z = s * s, w = z * z;
  double even = w * (0.3999999999940941908 + w * (0.2222219843214978396 + w * 0.1531383769920937332));
  double odd = 0.2857142874366239149 + w * (0.1818357216161805012 + w * 0.1479819860511658591);
  odd = z * (0.6666666666666735130 + w * odd);
  double square = 0.5 * f * f;
  return s * (square + (odd + even)) + a.k * LN2_LOW - square + f + a.k * LN2_HIGH;
}

// The same of every number of an array.
static inline void log_many(double* x, int n) {
  for (int i = 0; i < n; i++) x[i] = log(x[i]);
}

// base to the exponent for base > 0, where the result is a normal number.
// The logarithm is kept as a sum of two doubles, as the product with the exponent multiplies its relative error.
static inline double power(double base, double exponent) {
  Split a = split(base);
  double f = a.m - 1.0, d = 2.0 + f, d_low = f - (d - 2.0);
  double s = f / d, s_low = (__builtin_fma(-s, d, f) - s * d_low) / d;
  double z = s * s, z_low = __builtin_fma(s, s, -z) + 2.0 * s * s_low;
  // log m = 2 s (1 + z / 3 + z^2 / 5 + …), of which the first two terms in double precision twice
  double p = 0.0;
  for (int odd = 25; odd >= 5; odd -= 2) p = p * z + 1.0 / odd;
  p *= z * z;
  constexpr double THIRD = 1.0 / 3.0, THIRD_LOW = 1.8503717077085941e-17;
  double t = z * THIRD, t_low = __builtin_fma(z, THIRD, -t) + z * THIRD_LOW + z_low * THIRD;
  double u = t + p, u_low = t - u + p + t_low;
  double v = 1.0 + u, v_low = 1.0 - v + u + u_low;
  double m = 2.0 * s * v, m_low = __builtin_fma(2.0 * s, v, -m) + 2.0 * (s * v_low + s_low * v);
  double k = a.k * LN2_HIGH, sum = k + m, sum_low = k - sum + m + (m_low + a.k * LN2_LOW);
  double l = sum + sum_low, l_low = sum - l + sum_low;
  double y = exponent * l, y_low = __builtin_fma(exponent, l, -y) + exponent * l_low;
  double e = exp(y);
  return e + e * y_low;
}

// The quarter turns of an angle, and the rest in [-pi/4, pi/4] as a sum of two doubles.
struct Turn { uint64_t quarters; double rest, low; };

static inline __attribute__((always_inline)) Turn turn(double x) {
  constexpr double A = 1.5707963267948966, B = 6.123233995736766e-17, C = -1.4973849048591833e-33;  // sum: pi / 2
  double t = x * 0.63661977236758134308 + NEAREST, n = t - NEAREST;
  double r = __builtin_fma(-n, A, x);  // exact up to 2^52 / 8 quarters: the last bit of n * A is not below 2^-52
  double b = n * B, b_low = __builtin_fma(n, B, -b);
  double rest = r - b, taken = r - rest, low = r - (rest + taken) + (taken - b);
  return {bits_of(t), rest, low - b_low - n * C};
}

BL_MATH sine_of(Turn a) {
  double z = a.rest * a.rest, v = z * a.rest;
  double p = 1.58969099521155010221e-10;
  p = p * z - 2.50507602534068634195e-08;
  p = p * z + 2.75573137070700676789e-06;
  p = p * z - 1.98412698298579493134e-04;
  p = p * z + 8.33333333332248946124e-03;
  return a.rest - (z * (0.5 * a.low - v * p) - a.low + v * 1.66666666666666324348e-01);
}
BL_MATH cosine_of(Turn a) {
  double z = a.rest * a.rest;
  double p = -1.13596475577881948265e-11;
  p = p * z + 2.08757232129817482790e-09;
  p = p * z - 2.75573143513906633035e-07;
  p = p * z + 2.48015872894767294178e-05;
  p = p * z - 1.38888888888741095749e-03;
  p = p * z + 4.16666666666666019037e-02;
  double half = 0.5 * z, w = 1.0 - half;
  return w + (1.0 - w - half + (z * z * p - a.rest * a.low));
}

// Sine of the angle x in radians after some quarter turns more, |x| at most 1e7.
BL_MATH sine_after(double x, uint64_t quarters) {
  Turn a = turn(x);
  double sine = sine_of(a), cosine = cosine_of(a);
  uint64_t q = a.quarters + quarters;
  double y = q & 1 ? cosine : sine;
  return from_bits(bits_of(y) ^ (q & 2) << 62);
}
BL_MATH sin(double x) { return sine_after(x, 0); }
BL_MATH cos(double x) { return sine_after(x, 1); }

#undef BL_MATH

}  // namespace BL_NS
