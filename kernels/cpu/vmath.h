/* vmath: the elementary functions of the forward pass, on vectors.
 *
 * The coefficients were fitted for this project (Remez exchange in 40 digits, then a search among the nearest
 * floats); the errors given are those of the fp32 evaluation, tests/unit/kernels/test_kernels.c holds the
 * activations to them. */
#ifndef TIMBRE_KERNELS_CPU_VMATH_H
#define TIMBRE_KERNELS_CPU_VMATH_H

#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

/* Horner's rule: c[count-1] x^(count-1) + ... + c[0]. */
ALWAYS_INLINE vf vmath_polynomial(vf x, const float *c, int count) {
    vf y = v_set(c[count - 1]);
    UNROLL
    for (int i = count - 2; i >= 0; i--)
        y = v_fma(y, x, v_set(c[i]));
    return y;
}

/* The same in pairs, pairs of pairs and so on (Estrin's scheme), for up to 16 coefficients: three
 * multiplications more, but a chain of four instead of `count`, which is what counts where vectors come one
 * by one. */
ALWAYS_INLINE vf vmath_polynomial_short(vf x, const float *c, int count) {
    const vf x2 = x * x, x4 = x2 * x2, x8 = x4 * x4;
    vf part[8];
    UNROLL
    for (int i = 0; i < 8; i++) {
        if (2 * i + 1 < count)
            part[i] = v_fma(v_set(c[2 * i + 1]), x, v_set(c[2 * i]));
        else
            part[i] = 2 * i < count ? v_set(c[2 * i]) : v_zero();
    }
    UNROLL
    for (int i = 0; i < 4; i++)
        part[i] = v_fma(part[2 * i + 1], x2, part[2 * i]);
    return v_fma(v_fma(part[3], x4, part[2]), x8, v_fma(part[1], x4, part[0]));
}

/* e^x, for x clamped to [-87.3, 88.3]: 2^n e^r with |r| <= ln 2 / 2, e^r by a polynomial of degree 6.
 * Relative error at most 2 ulp. */
ALWAYS_INLINE vf vmath_exp(vf x) {
    static const float c[] = {1.0f,          1.0f, 0.5f, 0.1666663083f, 0.04166662188f, 0.008357200148f,
                              0.00139187137f};
    const vf round =
        v_set(12582912.0f); /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    x = v_min(v_set(88.3f), v_max(v_set(-87.3f), x)); /* in this order NaN stays NaN */
    vf t = v_fma(x, v_set(1.44269504f), round);
    vf n = t - round;
    vf r = v_fma(n, v_set(-0.693145752f), x); /* ln 2 in two parts, the first exact times any n here */
    r = v_fma(n, v_set(-1.42860677e-6f), r);
    return (vf)((vi)vmath_polynomial(r, c, 7) + ((vi)t << 23));
}

#if CPU_HAS_BF16
/* The same for results that are rounded to bf16 and x <= 0, in half the time: 2^(x log2 e) by its nearest
 * power and a polynomial of degree 3. Relative error at most 1.1e-4. */
ALWAYS_INLINE vf vmath_exp_short(vf x) {
    static const float c[] = {0.999928f, 0.693261f, 0.242611f, 0.0551717f};
    const vf t = x * v_set(1.44269504f);
    const __m512 n = _mm512_roundscale_ps((__m512)t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return (vf)_mm512_scalef_ps((__m512)vmath_polynomial(t - (vf)n, c, 4), n);
}
#endif

/* x Phi(x) = 0.5 x (1 + erf(x / sqrt 2)). Phi(x) - 0.5 = x Q(x^2), Q a polynomial of degree 14 in x^2 scaled
 * to
 * [-1, 1] over |x| <= 5.5, where 5.5 Phi(-5.5) is 1e-7; beyond, Phi is 0 or 1. Absolute error at most
 * 5e-7 for x < 0 (near -5, where a unit in the last place of Phi counts five times), 1.7e-7 (1 + y) above. */
ALWAYS_INLINE vf vmath_gelu(vf x) {
    static const float c[] = {0.12855193f,    -0.0641723797f,  0.047736764f,   -0.0387908407f,
                              0.0320880637f,  -0.0260776989f,  0.0202361811f,  -0.0148146059f,
                              0.010661277f,   -0.00739236502f, 0.003880515f,   -0.0014929024f,
                              0.00134166377f, -0.00127530913f, 0.000428811152f};
    vf square = v_min(x * x, v_set(30.25f));
    vf h = x * vmath_polynomial_short(v_fma(square, v_set(2.0f / 30.25f), v_set(-1.0f)), c, 15);
    h = v_min(v_max(h, v_set(-0.5f)), v_set(0.5f));
    return v_fma(x, h, x * v_set(0.5f));
}

ALWAYS_INLINE vf vmath_silu(vf x) {
    return x / (v_set(1.0f) + vmath_exp(v_zero() - x));
}

/* 0.5 x (1 + tanh u) = x / (1 + e^(-2u)) */
ALWAYS_INLINE vf vmath_gelu_tanh(vf x) {
    vf u = x * v_fma(x * x, v_set(-2.0f * 0.7978845608f * 0.044715f), v_set(-2.0f * 0.7978845608f));
    return x / (v_set(1.0f) + vmath_exp(u));
}

/* (1 - e) / (1 + e) with e = e^(-2|x|); below 0.25, where that cancels, the Taylor series. Relative error at
 * most 4 ulp. */
ALWAYS_INLINE vf vmath_tanh(vf x) {
    static const float c[] = {1.0f,           -0.333333333f, 0.133333333f,
                              -0.0539682540f, 0.0218694885f, -0.0088632355f};
    const vi sign = (vi){0} + INT32_MIN;
    vf a = (vf)((vi)x & ~sign);
    vf e = vmath_exp(a * v_set(-2.0f));
    vf far = (v_set(1.0f) - e) / (v_set(1.0f) + e);
    vf near = a * vmath_polynomial(a * a, c, 6);
    return (vf)((vi)v_select(a < v_set(0.25f), near, far) | ((vi)x & sign));
}

ALWAYS_INLINE vf vmath_activate(enum kernels_activation act, vf x) {
    switch (act) {
    case KERNELS_GELU:
        return vmath_gelu(x);
    case KERNELS_GELU_TANH:
        return vmath_gelu_tanh(x);
    case KERNELS_RELU:
        return v_max(v_zero(), x);
    case KERNELS_SILU:
        return vmath_silu(x);
    case KERNELS_TANH:
        return vmath_tanh(x);
    case KERNELS_IDENTITY:
        break;
    }
    return x;
}

/* vmath_gelu for results that are rounded to bf16, in half the time: Q of degree 7 in x^2 over |x| <= 3.9,
 * with 3.9 Q(3.9^2) = 0.5, so that Phi is 0 or 1 beyond. Absolute error at most 1.9e-4, relative error at
 * most 3e-4 above -1, where rounding alone makes it 2e-3. */
ALWAYS_INLINE vf vmath_gelu_short(vf x) {
    static const float c[] = {0.398621887f,    -0.0658039823f,   0.00945775956f,  -0.000993448892f,
                              7.29241219e-05f, -3.49872494e-06f, 9.74198997e-08f, -1.18336052e-09f};
    const vf near = v_min(v_max(x, v_set(-3.89990497f)), v_set(3.89990497f));
    return x * v_fma(near, vmath_polynomial(near * near, c, 8), v_set(0.5f));
}

/* The activation of a number that will be rounded to an element. */
ALWAYS_INLINE vf vmath_activate_element(enum kernels_activation act, vf x) {
    return CPU_HAS_BF16 && act == KERNELS_GELU ? vmath_gelu_short(x) : vmath_activate(act, x);
}

#endif
