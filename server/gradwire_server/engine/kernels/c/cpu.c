/* Which of x86-64's levels this processor and its system have. Itself it needs none of them. */

#include "modules.h"

#if defined(__x86_64__)
#include <cpuid.h>

enum {
    SSE3 = 1 << 0, SSSE3 = 1 << 9, FMA = 1 << 12, CX16 = 1 << 13, SSE41 = 1 << 19, SSE42 = 1 << 20,
    MOVBE = 1 << 22, POPCNT = 1 << 23, OSXSAVE = 1 << 27, AVX = 1 << 28, F16C = 1 << 29,
};
enum { BMI1 = 1 << 3, AVX2 = 1 << 5, BMI2 = 1 << 8, AVX512F = 1 << 16, AVX512DQ = 1 << 17 };
enum { AVX512CD = 1 << 28, AVX512BW = 1 << 30 };
#define AVX512VL (1u << 31)
enum { LAHF = 1 << 0, LZCNT = 1 << 5 };

static int has(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

static int level(void) {
    unsigned a, b, c, d, extended = 0, wide = 0, saved = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 1;
    const unsigned basic = c;
    if (__get_cpuid(0x80000001, &a, &b, &c, &d)) extended = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) wide = b;
    if (has(basic, OSXSAVE)) { /* the registers that the system saves */
        unsigned high;
        __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    }
    if (!has(basic, SSE3 | SSSE3 | CX16 | SSE41 | SSE42 | POPCNT) || !has(extended, LAHF)) return 1;
    if (!has(basic, FMA | MOVBE | OSXSAVE | AVX | F16C) || !has(wide, BMI1 | AVX2 | BMI2) ||
        !has(extended, LZCNT) || !has(saved, 0x6))
        return 2;
    if (!has(wide, AVX512F | AVX512DQ | AVX512CD | AVX512BW | AVX512VL) || !has(saved, 0xe6))
        return 3;
    return 4;
}
#else
static int level(void) { return 0; }
#endif

static PyModuleDef definition = MODULE("cpu", NULL);

EXPORT PyObject *PyInit_cpu(void) {
    PyObject *module = PyModule_Create2(&definition, PYTHON_API_VERSION);
    if (module && add(module, "LEVEL", PyLong_FromLongLong(level()))) {
        Py_DecRef(module);
        return NULL;
    }
    return module;
}
