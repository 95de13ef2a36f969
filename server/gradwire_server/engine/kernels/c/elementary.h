/* Scalar functions for one floating type T, FLOAT_BITS wide, by NumPy's names and meaning.

   Exponentials, logarithms and erf are plain arithmetic, so that a loop over them runs on vector
   registers; their error is a few units in the last place. The others are the C library's. */
#pragma once

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if FLOAT_BITS == 64
typedef double T;
typedef int64_t Bits;
typedef uint64_t UnsignedBits;
#define LIBRARY(name) name
enum { FRACTION_BITS = 52, BIAS = 1023 };
static const T smallest_normal = 0x1p-1022;
/* the logarithms of the largest number and the smallest, and 1 beyond them */
static const T exp_high = 710.782712893384, exp_low = -745.4400719213812;
/* ln 2, split so that a small whole number times the first part is exact */
static const T ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
#else
typedef float T;
typedef int32_t Bits;
typedef uint32_t UnsignedBits;
#define LIBRARY(name) name##f
enum { FRACTION_BITS = 23, BIAS = 127 };
static const T smallest_normal = 0x1p-126f;
static const T exp_high = 89.72284f, exp_low = -104.27893f;
static const T ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
#endif

#define F(x) ((T)(x))
#define where(condition, x, y) ((condition) ? (x) : (y))

INLINE Bits bits_of(T x) {
    Bits bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE T from_bits(Bits bits) {
    T x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Horner's scheme, highest power first */
#define POLYNOMIAL(name, ...) \
    INLINE T name(T x) { \
        static const T terms[] = {__VA_ARGS__}; \
        T y = terms[0]; \
        _Pragma("clang loop unroll(full)") \
        for (unsigned k = 1; k < sizeof terms / sizeof *terms; k++) y = y * x + terms[k]; \
        return y; \
    }

/* exp_series: (exp(r) - 1 - r) / r^2.
   log_series: (atanh(s) / s - 1) / s^2, in s^2.
   erf(x) is x times erf_near(x^2) up to 1, and from there to erf_end (where it rounds to 1) 1 less the
   exponential of erf_far(x): through the Chebyshev nodes of erf(sqrt(s)) / sqrt(s) on [0, 1] and of
   log(1 - erf(x)). ndtr_series and its numbers are those of array_erf.py. */
#if FLOAT_BITS == 64
POLYNOMIAL(exp_series, 1 / 6227020800., 1 / 479001600., 1 / 39916800., 1 / 3628800., 1 / 362880.,
           1 / 40320., 1 / 5040., 1 / 720., 1 / 120., 1 / 24., 1 / 6., 1 / 2.)
POLYNOMIAL(log_series, 1 / 21., 1 / 19., 1 / 17., 1 / 15., 1 / 13., 1 / 11., 1 / 9., 1 / 7., 1 / 5.,
           1 / 3.)
POLYNOMIAL(erf_near, -7.795898827002142e-10, 1.3720064546777686e-08, -1.6208483801871705e-07,
           1.6447424703317362e-06, -1.492473690741966e-05, 0.00012055294904839707,
           -0.0008548325975389692, 0.0052239776071164225, -0.02686617064323777, 0.11283791670945006,
           -0.37612638903183543, 1.1283791670955126)
POLYNOMIAL(erf_far, -5.038175090820216e-18, 4.372730657464627e-16, -1.803681420277295e-14,
           4.704754571528763e-13, -8.710329646313464e-12, 1.2176913893331286e-10,
           -1.3348440700984947e-09, 1.1757498115750717e-08, -8.454071020048298e-08,
           5.008717897920234e-07, -2.452846118538208e-06, 9.88504231580783e-06,
           -3.223400632863468e-05, 8.134663117117e-05, -0.00013878978515156762,
           5.9988163202506775e-05, 0.0005115746202377613, -0.0016410725055028398,
           0.00018134612945957767, 0.019136993126873038, -0.10277298786463396, -0.6366206965657829,
           -1.1283787825197156, -5.442051963983573e-08)
static const T erf_end = 6;
POLYNOMIAL(ndtr_series, 2.1479772915839718e-10, 3.7967308507960474e-10, -2.59425113480782e-09,
           -5.7223827170707425e-09, 2.05083033049148e-08, 5.5934197021786736e-08,
           -1.625201932923532e-07, -4.725017211967578e-07, 1.5519808338701463e-06,
           3.4474117706002786e-06, -1.773844689883524e-05, -1.178277707218133e-05,
           0.0002060369018460292, -0.00034520256138739156, -0.0013935077411854693,
           0.009915085613480746, -0.03210283425093028, 0.06980961463401143, -0.10860958645428487,
           0.11305959211536436, -0.04180752757187663, -0.11853147654582685, 1.2576226059539464)
static const T ndtr_stretch = 2.25, ndtr_centre = 4.949747468305833, ndtr_last = 39.59797974644666;
#else
POLYNOMIAL(exp_series, 1 / 5040.f, 1 / 720.f, 1 / 120.f, 1 / 24.f, 1 / 6.f, 1 / 2.f)
POLYNOMIAL(log_series, 1 / 9.f, 1 / 7.f, 1 / 5.f, 1 / 3.f)
POLYNOMIAL(erf_near, -0.0005648059865503044, 0.004921762027877231, -0.02671505423226643,
           0.11280316652505075, -0.37612343775327806, 1.1283791261787373)
POLYNOMIAL(erf_far, 1.6371514145936436e-06, -4.605804268918978e-05, 0.0005968056256607798,
           -0.004759596293266265, 0.026421136005663898, -0.11008008294882024, -0.631826051559163,
           -1.130233434841994, 0.00032013804967769883)
static const T erf_end = 4;
POLYNOMIAL(ndtr_series, -2.097901691038564e-05, -1.6462020189795042e-05, 0.00037901862920580276,
           -0.0003522537535409457, -0.005189625283895338, 0.028100443060640842,
           -0.0769927637142416, 0.1287781635311899, -0.10862336045434787, -0.06746822187478897,
           1.2794893793365294)
static const T ndtr_stretch = 2.588235294117647, ndtr_centre = 4.242640687119285, ndtr_last = 14.424978336205568;
#endif

/* adding it rounds to a whole number, which is then in the low bits */
#define MAGIC ((T)1.5 * (T)((Bits)1 << FRACTION_BITS))
static const T per_ln2 = (T)1.4426950408889634;
/* beyond it tanh is 1 to the last place */
static const T tanh_end = 22;

/* 2^k, for k = rounded - MAGIC inside the exponent's range */
INLINE T power_of_two(T rounded) {
    return from_bits((Bits)((UnsignedBits)(bits_of(rounded) + BIAS) << FRACTION_BITS));
}

/* exp(r) - 1, and k + MAGIC, where x = k * ln(2) + r */
INLINE T reduced(T x, T *rounded) {
    *rounded = x * per_ln2 + MAGIC;
    const T k = *rounded - MAGIC;
    const T r = (x - k * ln2_high) - k * ln2_low;
    return exp_series(r) * r * r + r;
}

/* 2^k as two factors, which reach the ends of the range, subnormals too */
INLINE T half_power(T rounded, T *second) {
    const T k = rounded - MAGIC;
    const T half = k * (T)0.5 + MAGIC;
    *second = power_of_two((k - (half - MAGIC)) + MAGIC);
    return power_of_two(half);
}

INLINE T scalar_exp(T x) {
    T inside = x < exp_low ? exp_low : x, rounded, second;
    inside = inside > exp_high ? exp_high : inside;
    const T less_one = reduced(inside, &rounded);
    const T first = half_power(rounded, &second);
    return (less_one + 1) * first * second;
}

INLINE T scalar_expm1(T x) {
    T inside = x < -2 * tanh_end ? -2 * tanh_end : x, rounded, second;
    inside = inside > exp_high ? exp_high : inside;
    const T less_one = reduced(inside, &rounded);
    const T first = half_power(rounded, &second);
    const T near = less_one * (first * second) + (first * second - 1);
    const T far = (less_one + 1) * first * second;
    return x > 2 * tanh_end ? far : near;
}

INLINE T scalar_tanh(T x) {
    T inside = x < -tanh_end ? -tanh_end : x, rounded;
    inside = inside > tanh_end ? tanh_end : inside;
    T less_one = reduced(inside * 2, &rounded);
    const T scale = power_of_two(rounded);
    less_one = less_one * scale + (scale - 1);
    return less_one / (less_one + 2);
}

INLINE T scalar_log(T x) {
    const bool is_subnormal = x < smallest_normal;
    const T normal = is_subnormal ? x * (T)((Bits)1 << (FRACTION_BITS + 1)) : x;
    const T lifted = is_subnormal ? (T)(FRACTION_BITS + 1) : 0;
    /* the exponent of x / sqrt(1/2), so that the rest is between sqrt(1/2) and sqrt(2) */
    const Bits exponent = (bits_of(normal) - bits_of((T)0.70710678118654752)) >> FRACTION_BITS;
    const T rest =
        from_bits(bits_of(normal) - (Bits)((UnsignedBits)exponent << FRACTION_BITS));
    const T k = (T)exponent - lifted, s = (rest - 1) / (rest + 1), square = s * s;
    const T series = 2 * s + 2 * s * square * log_series(square);
    T log_x = k * ln2_high + (series + k * ln2_low);
    log_x = x == (T)INFINITY ? x : log_x;
    log_x = x == 0 ? -(T)INFINITY : log_x;
    return x >= 0 ? log_x : (T)NAN;
}

INLINE T scalar_log1p(T x) {
    const T y = 1 + x, lost = (x - (y - 1)) / y;
    return scalar_log(y) + (((y > 0) & (y < (T)INFINITY)) ? lost : 0);
}

INLINE T scalar_erf(T x) {
    T size = x < 0 ? -x : x, rounded;
    size = size > erf_end ? erf_end : size;
    const T less_one = reduced(erf_far(size), &rounded);
    T far = 1 - (less_one + 1) * power_of_two(rounded);
    far = x < 0 ? -far : far;
    return size > 1 ? far : x * erf_near(x * x);
}

/* The normal distribution's share below x, right to the last digits of its tail. */
INLINE T scalar_ndtr(T x) {
    T size = x < 0 ? -x : x, second;
    size = size > ndtr_last ? ndtr_last : size;
    /* exp(-size^2 / 2), whose rounded exponent would cost digits: the square of high is exact */
    const T high = from_bits(bits_of(size) & ~(((Bits)1 << (FRACTION_BITS + 2) / 2) - 1));
    const T exponent = high * high * (T)-0.5;
    const T rounded = exponent * per_ln2 + MAGIC, k = rounded - MAGIC;
    const T whole = (exponent - k * ln2_high) - k * ln2_low;
    const T r = whole - (size - high) * (size + high) * (T)0.5;
    const T first = half_power(rounded, &second);
    const T place = ndtr_stretch * (size / (size + ndtr_centre)) - 1;
    const T scale = ndtr_series(place) / (2 + (T)2.8284271247461903 * size);
    const T tail = (exp_series(r) * r * r + r + 1) * scale * first * second;
    return x < 0 ? tail : 1 - tail;
}

/* Derivatives of sigmoid and tanh, with their digits in the tails (array_slopes.py), which take a
   second exponential. A loop over many asks first whether it meets a tail: where it is not `exact`,
   an element in a tail is only `met`. */
#define TAIL bool exact, bool *met

INLINE T scalar_sigmoid_slope(T x, T out, TAIL) {
    *met |= x > 4;
    return exact && x > 4 ? out / (1 + scalar_exp(x)) : out * (1 - out);
}

INLINE T scalar_tanh_slope(T x, T out, TAIL) {
    const T size = x < 0 ? -x : x, steep = 1 + (out < 0 ? -out : out);
    *met |= size > 2;
    return exact && size > 2 ? scalar_exp(-2 * size) * steep * steep : 1 - out * out;
}

INLINE bool scalar_isnan(T x) { return x != x; }
INLINE bool scalar_isinf(T x) { return LIBRARY(__builtin_fabs)(x) == (T)INFINITY; }
INLINE T scalar_maximum(T x, T y) { return ((x > y) | (x != x)) ? x : y; }
INLINE T scalar_minimum(T x, T y) { return ((x < y) | (x != x)) ? x : y; }
INLINE T scalar_sign(T x) { return x != x ? x : (T)((x > 0) - (x < 0)); }

INLINE T scalar_power(T x, T y) {
    if (y == 2) return x * x;
    return y == 1 ? x : LIBRARY(pow)(x, y);
}

INLINE T scalar_fmod(T x, T y) { return LIBRARY(fmod)(x, y); }

/* with the sign of y, as Python has it */
INLINE T scalar_remainder(T x, T y) {
    const T rest = LIBRARY(fmod)(x, y);
    if (y == 0) return rest;
    if (rest == 0) return LIBRARY(copysign)(0, y);
    return (y < 0) != (rest < 0) ? rest + y : rest;
}

#define OF_THE_LIBRARY(name, function) \
    INLINE T scalar_##name(T x) { return LIBRARY(function)(x); }
OF_THE_LIBRARY(abs, __builtin_fabs)
OF_THE_LIBRARY(acos, acos)
OF_THE_LIBRARY(acosh, acosh)
OF_THE_LIBRARY(asin, asin)
OF_THE_LIBRARY(asinh, asinh)
OF_THE_LIBRARY(atan, atan)
OF_THE_LIBRARY(atanh, atanh)
OF_THE_LIBRARY(ceil, __builtin_ceil)
OF_THE_LIBRARY(cos, cos)
OF_THE_LIBRARY(cosh, cosh)
OF_THE_LIBRARY(floor, __builtin_floor)
OF_THE_LIBRARY(rint, __builtin_rint)
OF_THE_LIBRARY(sin, sin)
OF_THE_LIBRARY(sinh, sinh)
OF_THE_LIBRARY(sqrt, __builtin_sqrt)
OF_THE_LIBRARY(tan, tan)
OF_THE_LIBRARY(trunc, __builtin_trunc)
