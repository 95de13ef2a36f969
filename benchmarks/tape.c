/* The yardstick: circuits of scalar gates as a tape, forward and backward, every value and every
   gradient kept. Four ways to run one, of which a benchmark takes the fastest:

   tape_switch  one gate after another, an opcode switch
   tape_goto    the same with a jump table at the end of every gate
   tape_runs    gates ordered by level and opcode, so that each run of equal ones is a plain loop
   tape_rows    many rows at once, in blocks that stay in cache; blocks [from, to) of a thread

   Values are the leaves, then one for each gate; the last is the output. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef VECTOR_MATH
/* glibc's libmvec, which gcc otherwise calls only with -ffast-math */
#pragma omp declare simd notinbranch
extern double exp(double);
#pragma omp declare simd notinbranch
extern double tanh(double);
#endif
#define SIMD _Pragma("omp simd")

enum { ADD, SUB, MUL, DIV, MAX, NEG, SQUARE, EXP, TANH, SIGMOID, OPCODES };
typedef int32_t Index;
typedef uint8_t Opcode;

/* value z of operands x and y */
#define FORWARD(GATE)                                                                             \
  GATE(ADD, x + y) GATE(SUB, x - y) GATE(MUL, x * y) GATE(DIV, x / y) GATE(MAX, x > y ? x : y)    \
  GATE(NEG, -x) GATE(SQUARE, x * x) GATE(EXP, exp(x)) GATE(TANH, tanh(x))                         \
  GATE(SIGMOID, 1 / (1 + exp(-x)))

/* what gradient g of z gives to x and to y; at a tie of MAX one half each */
#define BACKWARD(ONE, TWO)                                                                        \
  TWO(ADD, g, g) TWO(SUB, g, -g) TWO(MUL, g * y, g * x) TWO(DIV, g / y, -g * z / y)               \
  TWO(MAX, x > y ? g : x == y ? g / 2 : 0, x < y ? g : x == y ? g / 2 : 0)                        \
  ONE(NEG, -g) ONE(SQUARE, 2 * g * x) ONE(EXP, g * z) ONE(TANH, g * (1 - z * z))                  \
  ONE(SIGMOID, g * z * (1 - z))

static void seed(Index values, double *grads) {
  memset(grads, 0, sizeof(double) * values);
  grads[values - 1] = 1;
}

void tape_switch(Index leaves, Index values, const Opcode *opcodes, const Index *first,
                 const Index *second, double *restrict value, double *restrict grad) {
  for (Index k = leaves; k < values; k++) {
    double x = value[first[k]], y = value[second[k]];
    switch (opcodes[k]) {
#define GATE(name, z) case name: value[k] = z; break;
      FORWARD(GATE)
#undef GATE
    }
  }
  seed(values, grad);
  for (Index k = values - 1; k >= leaves; k--) {
    double g = grad[k], x = value[first[k]], y = value[second[k]], z = value[k];
    switch (opcodes[k]) {
#define ONE(name, to_x) case name: grad[first[k]] += to_x; break;
#define TWO(name, to_x, to_y)                                                                     \
  case name: { double p = to_x, q = to_y; grad[first[k]] += p; grad[second[k]] += q; } break;
      BACKWARD(ONE, TWO)
#undef ONE
#undef TWO
    }
  }
}

/* Opcodes of leaves are OPCODES: the jump that ends the backward pass. */
void tape_goto(Index leaves, Index values, const Opcode *opcodes, const Index *first,
               const Index *second, double *restrict value, double *restrict grad) {
  static const void *forward[] = {&&f_ADD, &&f_SUB, &&f_MUL, &&f_DIV, &&f_MAX, &&f_NEG,
                                  &&f_SQUARE, &&f_EXP, &&f_TANH, &&f_SIGMOID};
  static const void *backward[] = {&&b_ADD, &&b_SUB, &&b_MUL, &&b_DIV, &&b_MAX, &&b_NEG,
                                   &&b_SQUARE, &&b_EXP, &&b_TANH, &&b_SIGMOID, &&finished};
  Index k = leaves;
  goto *forward[opcodes[k]];
#define GATE(name, z)                                                                             \
  f_##name : {                                                                                    \
    double x = value[first[k]], y = value[second[k]];                                             \
    (void)y;                                                                                      \
    value[k] = z;                                                                                 \
    if (++k == values) goto turn;                                                                 \
    goto *forward[opcodes[k]];                                                                    \
  }
  FORWARD(GATE)
#undef GATE
turn:
  seed(values, grad);
  k = values - 1;
  goto *backward[opcodes[k]];
#define READ double g = grad[k], x = value[first[k]], z = value[k]; (void)x; (void)z;
#define ONE(name, to_x)                                                                           \
  b_##name : { READ grad[first[k]] += to_x; goto *backward[opcodes[--k]]; }
#define TWO(name, to_x, to_y)                                                                     \
  b_##name : {                                                                                    \
    READ double y = value[second[k]];                                                             \
    (void)y;                                                                                      \
    double p = to_x, q = to_y;                                                                    \
    grad[first[k]] += p;                                                                          \
    grad[second[k]] += q;                                                                         \
    goto *backward[opcodes[--k]];                                                                 \
  }
  BACKWARD(ONE, TWO)
#undef ONE
#undef TWO
#undef READ
finished:
  return;
}

/* Orders values by level, then opcode. `order` gets the old index of each; `starts` and `kinds` the
   runs of equal opcodes, [starts[r], starts[r + 1]). Returns the number of runs, or -1. */
Index tape_schedule(Index leaves, Index values, const Opcode *opcodes, const Index *first,
                    const Index *second, Index *order, Opcode *new_opcodes, Index *new_first,
                    Index *new_second, Index *starts, Opcode *kinds) {
  Index *level = calloc(values, sizeof *level), *place = malloc(values * sizeof *place);
  Index deepest = 0, runs = 0;
  for (Index k = leaves; level && k < values; k++) {
    Index x = level[first[k]], y = level[second[k]];
    level[k] = 1 + (x > y ? x : y);
    if (level[k] > deepest) deepest = level[k];
  }
  size_t bins = ((size_t)deepest + 1) * 16;
  Index *next = calloc(bins + 1, sizeof *next);
  if (!level || !place || !next) {
    free(level), free(place), free(next);
    return -1;
  }
#define BIN(k) ((size_t)level[k] * 16 + opcodes[k])
  for (Index k = 0; k < values; k++) next[BIN(k) + 1]++;
  for (size_t bin = 0; bin < bins; bin++) {
    if (bin >= 16 && next[bin + 1]) starts[runs] = next[bin], kinds[runs++] = bin & 15;
    next[bin + 1] += next[bin];
  }
  starts[runs] = values;
  for (Index k = 0; k < values; k++) order[place[k] = next[BIN(k)]++] = k;
  for (Index p = 0; p < values; p++) {
    new_opcodes[p] = opcodes[order[p]];
    new_first[p] = order[p] < leaves ? p : place[first[order[p]]];
    new_second[p] = order[p] < leaves ? p : place[second[order[p]]];
  }
  free(level), free(place), free(next);
  return runs;
}

void tape_runs(Index values, Index runs, const Index *starts, const Opcode *kinds,
               const Index *restrict first, const Index *restrict second, double *value,
               double *restrict grad) {
  for (Index r = 0; r < runs; r++) {
    Index from = starts[r], count = starts[r + 1] - from;
    const Index *restrict i = first + from, *restrict j = second + from;
    double *restrict out = value + from; /* a run reads earlier levels only */
    switch (kinds[r]) {
#define GATE(name, z)                                                                             \
  case name:                                                                                      \
    SIMD for (Index k = 0; k < count; k++) {                                                      \
      double x = value[i[k]], y = value[j[k]];                                                    \
      (void)y;                                                                                    \
      out[k] = z;                                                                                 \
    }                                                                                             \
    break;
      FORWARD(GATE)
#undef GATE
    }
  }
  seed(values, grad);
  for (Index r = runs - 1; r >= 0; r--) {
    switch (kinds[r]) {
#define READ double g = grad[k], x = value[first[k]], z = value[k]; (void)x; (void)z;
#define ONE(name, to_x)                                                                           \
  case name:                                                                                      \
    for (Index k = starts[r]; k < starts[r + 1]; k++) { READ grad[first[k]] += to_x; }            \
    break;
#define TWO(name, to_x, to_y)                                                                     \
  case name:                                                                                      \
    for (Index k = starts[r]; k < starts[r + 1]; k++) {                                           \
      READ double y = value[second[k]];                                                           \
      (void)y;                                                                                    \
      double p = to_x, q = to_y;                                                                  \
      grad[first[k]] += p;                                                                        \
      grad[second[k]] += q;                                                                       \
    }                                                                                             \
    break;
      BACKWARD(ONE, TWO)
#undef ONE
#undef TWO
#undef READ
    }
  }
}

static inline void rows_forward(Opcode opcode, Index rows, const double *restrict first,
                                const double *restrict second, double *restrict out) {
  switch (opcode) {
#define GATE(name, z)                                                                             \
  case name:                                                                                      \
    SIMD for (Index r = 0; r < rows; r++) {                                                       \
      double x = first[r], y = second[r];                                                         \
      (void)y;                                                                                    \
      out[r] = z;                                                                                 \
    }                                                                                             \
    break;
    FORWARD(GATE)
#undef GATE
  }
}

/* Both operands may be the same value, so each is given its share in a loop of its own. */
static inline void rows_backward(Opcode opcode, Index rows, const double *restrict first,
                                 const double *restrict second, const double *restrict out,
                                 const double *restrict grad, double *to_first,
                                 double *to_second) {
  switch (opcode) {
#define SHARE(to, share)                                                                          \
  SIMD for (Index r = 0; r < rows; r++) {                                                         \
    double g = grad[r], x = first[r], y = second[r], z = out[r];                                  \
    (void)x, (void)y, (void)z;                                                                    \
    to[r] += share;                                                                               \
  }
#define ONE(name, to_x) case name: SHARE(to_first, to_x) break;
#define TWO(name, to_x, to_y) case name: SHARE(to_first, to_x) SHARE(to_second, to_y) break;
    BACKWARD(ONE, TWO)
#undef ONE
#undef TWO
#undef SHARE
  }
}

/* value and grad are [blocks][values][rows of a block]. */
void tape_rows(Index leaves, Index values, const Opcode *opcodes, const Index *first,
               const Index *second, double *all_values, double *all_grads, Index rows, Index from,
               Index to) {
  size_t n = rows, block = n * values;
  for (Index b = from; b < to; b++) {
    double *value = all_values + b * block, *grad = all_grads + b * block;
    for (Index k = leaves; k < values; k++)
      rows_forward(opcodes[k], rows, value + first[k] * n, value + second[k] * n, value + k * n);
    memset(grad, 0, sizeof(double) * block);
    for (Index r = 0; r < rows; r++) grad[(values - 1) * n + r] = 1;
    for (Index k = values - 1; k >= leaves; k--)
      rows_backward(opcodes[k], rows, value + first[k] * n, value + second[k] * n, value + k * n,
                    grad + k * n, grad + first[k] * n, grad + second[k] * n);
  }
}
