/* Loops over tapes.

   A tape is three columns: an opcode and a row of the constants table for each node, and the slots of
   all nodes' inputs end to end. Node k yields slot `slot + k`. Three kinds of loop run one:

   switch  node after node, for deep circuits; also for what is left of a tape when some nodes are dead
   groups  a group of nodes of one opcode at a time, for wide circuits
   block   each node over many elements: rows of a batch, or elements of tensors

   OPCODES_FILE is written from the gates' bodies (bodies.py). For opcode n it has forward<n>(x0, x1,
   x2, c), pull<n>_<slot>(grad, out, x0, x1, x2, c), INPUTS_<n>, HAS_PULL_<n>_<slot> and IS_HEAVY_<n>,
   and FOR_EACH_OPCODE(DO). What an opcode does not have is a constant here, so the compiler drops it.
   Opcodes up to MOST_INPUTS compute nothing: they stand for a node of so many inputs that no seeded
   output depends on. */
#pragma once

#include "elementary.h"
#include OPCODES_FILE

/* Nodes of a group that are computed together on vector registers. */
enum { STAGE = 256, LINE = 64 / sizeof(T) };

#define VECTOR_LOOP _Pragma("clang loop vectorize(assume_safety)")
#define TAPE \
    const uint8_t *restrict ops, const uint32_t *restrict rows, const uint32_t *restrict inputs, \
        const T *restrict constants
#define CONSTANTS(node) (constants + (size_t)rows[node] * MOST_CONSTANTS)

static inline int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }

/* ---- switch ---- */

#define LABEL(n) &&op##n,
#define X(n, place) (INPUTS_##n > place ? values[in[place]] : 0)

/* Nodes from `node` to `stop`; where the inputs of the next one begin. */
static int64_t switch_forward(TAPE, T *restrict values, int64_t slot, int64_t node, int64_t stop,
                              int64_t cursor) {
    static const void *const labels[] = {&&done, &&done, &&done, &&done, FOR_EACH_OPCODE(LABEL)};
    const uint32_t *in = inputs + cursor;
    size_t k = (size_t)node;
    if (node >= stop) goto done;
    goto *labels[ops[k]];
#define DO(n) \
    op##n : { \
        const T *c = CONSTANTS(k); \
        (void)c; \
        values[slot + k] = forward##n(X(n, 0), X(n, 1), X(n, 2), c); \
        in += INPUTS_##n; \
        if (++k >= (size_t)stop) goto done; \
        goto *labels[ops[k]]; \
    }
    FOR_EACH_OPCODE(DO)
#undef DO
done:
    return in - inputs;
}

#define ADD_PULL(n, place) \
    if (HAS_PULL_##n##_##place) \
        grads[i##place] += pull##n##_##place(grads[slot + k], out, x0, x1, x2, c, true, &(bool){false})
#define PULLS(n) \
    const size_t i0 = in[0], i1 = INPUTS_##n > 1 ? in[1] : 0, i2 = INPUTS_##n > 2 ? in[2] : 0; \
    const T x0 = values[i0], x1 = INPUTS_##n > 1 ? values[i1] : 0; \
    const T x2 = INPUTS_##n > 2 ? values[i2] : 0, out = values[slot + k]; \
    (void)i0, (void)i1, (void)i2, (void)x0, (void)x1, (void)x2, (void)out; \
    ADD_PULL(n, 0); \
    ADD_PULL(n, 1); \
    ADD_PULL(n, 2)

/* Nodes before `node` down to `start`; where the inputs of the last one done begin. */
static int64_t switch_backward(TAPE, const T *restrict values, T *restrict grads, int64_t slot,
                               int64_t node, int64_t start, int64_t cursor) {
    static const void *const labels[] = {&&done, &&dead1, &&dead2, &&dead3, FOR_EACH_OPCODE(LABEL)};
    const uint32_t *in = inputs + cursor;
    size_t k = (size_t)node;
#define NEXT \
    if (k <= (size_t)start) goto done; \
    goto *labels[ops[--k]]
    NEXT;
dead1:
    in -= 1;
    NEXT;
dead2:
    in -= 2;
    NEXT;
dead3:
    in -= 3;
    NEXT;
#define DO(n) \
    op##n : { \
        const T *c = CONSTANTS(k); \
        (void)c; \
        in -= INPUTS_##n; \
        PULLS(n); \
        NEXT; \
    }
    FOR_EACH_OPCODE(DO)
#undef DO
#undef NEXT
done:
    return in - inputs;
}

/* ---- groups ---- */

#define STAGED(n, place) (INPUTS_##n > place ? stage##place[t] : 0)

/* Groups from `group` to `stop`; group g has nodes starts[g] to starts[g + 1], of one opcode. */
static void groups_forward(TAPE, T *restrict values, int64_t slot, const int64_t *starts,
                           const int64_t *cursors, int64_t group, int64_t stop) {
    T stage0[STAGE], stage1[STAGE], stage2[STAGE];
    for (int64_t g = group; g < stop; g++) {
        const size_t first = (size_t)starts[g], end = (size_t)starts[g + 1];
        const uint32_t *in = inputs + cursors[g];
        const T *c = CONSTANTS(first);
        switch (ops[first]) {
#define DO(n) \
    case n: \
        if (!IS_HEAVY_##n) { \
            for (size_t k = first; k < end; k++, in += INPUTS_##n) \
                values[slot + k] = forward##n(X(n, 0), X(n, 1), X(n, 2), c); \
            break; \
        } \
        for (size_t k = first, count; k < end; k += count) { \
            count = end - k < STAGE ? end - k : STAGE; \
            for (size_t t = 0; t < count; t++, in += INPUTS_##n) { \
                if (INPUTS_##n > 0) stage0[t] = values[in[0]]; \
                if (INPUTS_##n > 1) stage1[t] = values[in[1]]; \
                if (INPUTS_##n > 2) stage2[t] = values[in[2]]; \
            } \
            T *out = values + slot + k; \
            VECTOR_LOOP for (size_t t = 0; t < count; t++) \
                out[t] = forward##n(STAGED(n, 0), STAGED(n, 1), STAGED(n, 2), c); \
        } \
        break;
            FOR_EACH_OPCODE(DO)
#undef DO
        }
    }
}

/* Groups before `group` down to `start`. */
static void groups_backward(TAPE, const T *restrict values, T *restrict grads, int64_t slot,
                            const int64_t *starts, const int64_t *cursors, int64_t group,
                            int64_t start) {
    for (int64_t g = group - 1; g >= start; g--) {
        const size_t first = (size_t)starts[g], end = (size_t)starts[g + 1];
        const uint32_t *in = inputs + cursors[g];
        const T *c = CONSTANTS(first);
        switch (ops[first]) {
#define DO(n) \
    case n: \
        if (HAS_PULL_##n##_0 || HAS_PULL_##n##_1 || HAS_PULL_##n##_2) \
            for (size_t k = first; k < end; k++, in += INPUTS_##n) { \
                PULLS(n); \
            } \
        break;
            FOR_EACH_OPCODE(DO)
#undef DO
        }
    }
}

/* ---- block ---- */

#define PLACE(addresses, steps, place) ((T *)((addresses)[place] + (int64_t)begin * (steps)[place]))
#define INPUT_BLOCK(n, place) \
    const T *x##place = INPUTS_##n > place ? PLACE(addresses, steps, in[place]) : NULL; \
    (void)x##place
#define AT(n, place) (INPUTS_##n > place ? x##place[t] : 0)

/* Nodes from `node` to `end` over elements `start` to `stop`, `block` at a time.

   Element t of a slot is at its address + t * its step, in bytes; a step of 0 means one block that
   serves all. */
static void block_forward(TAPE, const int64_t *addresses, const int64_t *steps, int64_t slot,
                          int64_t node, int64_t end, int64_t first_input, int64_t block,
                          int64_t start, int64_t stop) {
    for (int64_t begin = start; begin < stop; begin += block) {
        const size_t count = (size_t)smaller(block, stop - begin);
        const uint32_t *in = inputs + first_input;
        for (size_t k = (size_t)node; k < (size_t)end; k++) {
            T *out = PLACE(addresses, steps, slot + k);
            const T *c = CONSTANTS(k);
            switch (ops[k]) {
#define DO(n) \
    case n: { \
        INPUT_BLOCK(n, 0); \
        INPUT_BLOCK(n, 1); \
        INPUT_BLOCK(n, 2); \
        VECTOR_LOOP for (size_t t = 0; t < count; t++) \
            out[t] = forward##n(AT(n, 0), AT(n, 1), AT(n, 2), c); \
        in += INPUTS_##n; \
        break; \
    }
                FOR_EACH_OPCODE(DO)
#undef DO
            }
        }
    }
}

/* a loop for each input, so that each is a plain one and an input used twice stays right */
#define PULL_AT(n, place, exact) \
    pull##n##_##place(grad[t], out[t], AT(n, 0), AT(n, 1), AT(n, 2), c, exact, &met)
#define PULL_BLOCK(n, place) \
    if (HAS_PULL_##n##_##place) { \
        T *to_input = PLACE(grad_addresses, grad_steps, in[place]); \
        bool met = !HAS_TAIL_##n##_##place; \
        if (!met) \
            VECTOR_LOOP for (size_t t = 0; t < count; t++) (void)PULL_AT(n, place, false); \
        if (met) \
            VECTOR_LOOP for (size_t t = 0; t < count; t++) to_input[t] += PULL_AT(n, place, true); \
        else \
            VECTOR_LOOP for (size_t t = 0; t < count; t++) to_input[t] += PULL_AT(n, place, false); \
    }

/* Nodes before `node` down to `end` over elements `start` to `stop`, `block` at a time.

   The first use of a slot that is met, marked fresh, begins its gradient at zero. `input_counts` are
   by opcode. */
static void block_backward(TAPE, const uint8_t *input_counts, const uint8_t *fresh,
                           const int64_t *addresses, const int64_t *steps,
                           const int64_t *grad_addresses, const int64_t *grad_steps, int64_t slot,
                           int64_t node, int64_t end, int64_t past_input, int64_t block,
                           int64_t start, int64_t stop) {
    for (int64_t begin = start; begin < stop; begin += block) {
        const size_t count = (size_t)smaller(block, stop - begin);
        const uint32_t *in = inputs + past_input;
        for (size_t k = (size_t)node; k-- > (size_t)end;) {
            const T *out = PLACE(addresses, steps, slot + k);
            const T *grad = PLACE(grad_addresses, grad_steps, slot + k);
            const T *c = CONSTANTS(k);
            in -= input_counts[ops[k]];
            for (unsigned place = 0; place < input_counts[ops[k]]; place++)
                if (fresh[in - inputs + place])
                    memset(PLACE(grad_addresses, grad_steps, in[place]), 0, count * sizeof(T));
            switch (ops[k]) {
#define DO(n) \
    case n: { \
        INPUT_BLOCK(n, 0); \
        INPUT_BLOCK(n, 1); \
        INPUT_BLOCK(n, 2); \
        PULL_BLOCK(n, 0) \
        PULL_BLOCK(n, 1) \
        PULL_BLOCK(n, 2) \
        break; \
    }
                FOR_EACH_OPCODE(DO)
#undef DO
            }
        }
    }
}

/* ---- rows of a batch ---- */

/* Numbers of a row that go to neighbouring slots, or come from there. Number j of row t is j + t *
   stride elements after the address, and its slot is first + j. A stride of 0 means the same numbers
   for all rows. */
typedef struct {
    int64_t first, count, address, stride;
} Move;

#define FOR_EACH_MOVED(STATEMENT) \
    for (int64_t m = 0; m < move_count; m++) { \
        const int64_t stride = moves[m].stride, count = moves[m].count; \
        T *row = (T *)moves[m].address + begin * stride; \
        T *slots = PLACE(addresses, steps, moves[m].first); \
        for (int64_t near = 0; near < count; near += LINE) \
            for (int64_t t = 0; t < end - begin; t++) \
                for (int64_t j = near; j < smaller(near + LINE, count); j++) STATEMENT; \
    }

static void put_rows(const Move *moves, int64_t move_count, const int64_t *addresses,
                     const int64_t *steps, int64_t block, int64_t begin, int64_t end) {
    FOR_EACH_MOVED(slots[j * block + t] = row[t * stride + j])
}

static void take_rows(const Move *moves, int64_t move_count, const int64_t *addresses,
                      const int64_t *steps, int64_t block, int64_t begin, int64_t end) {
    FOR_EACH_MOVED(row[t * stride + j] = slots[j * block + t])
}

#define ROWS \
    TAPE, int64_t node_count, const int64_t *addresses, const int64_t *steps, const Move *leaves, \
        int64_t leaf_count, const Move *outputs, int64_t output_count

/* Rows from `start` to `stop`: leaves put in, all nodes, outputs taken out. */
static void rows_forward(ROWS, int64_t slot, int64_t block, int64_t start, int64_t stop) {
    for (int64_t begin = start; begin < stop; begin += block) {
        const int64_t end = smaller(begin + block, stop);
        put_rows(leaves, leaf_count, addresses, steps, block, begin, end);
        block_forward(ops, rows, inputs, constants, addresses, steps, slot, 0, node_count, 0, block,
                      begin, end);
        take_rows(outputs, output_count, addresses, steps, block, begin, end);
    }
}

/* The same and then backwards, block by block, so that the second pass finds its values in cache: seeds
   put in, gradients of leaves taken out.

   Nothing is `fresh`: zeros are written over a whole block at once, which need not be read before. */
static void rows_both(ROWS, int64_t slot_count, int64_t input_count, const uint8_t *live_ops,
                      const uint8_t *input_counts, const uint8_t *fresh,
                      const int64_t *grad_addresses, const Move *seeds, int64_t seed_count,
                      const Move *leaf_grads, int64_t leaf_grad_count, int64_t slot, int64_t block,
                      int64_t start, int64_t stop) {
    for (int64_t begin = start; begin < stop; begin += block) {
        const int64_t end = smaller(begin + block, stop);
        rows_forward(ops, rows, inputs, constants, node_count, addresses, steps, leaves, leaf_count,
                     outputs, output_count, slot, block, begin, end);
        memset(PLACE(grad_addresses, steps, 0), 0, (size_t)(slot_count * block) * sizeof(T));
        put_rows(seeds, seed_count, grad_addresses, steps, block, begin, end);
        block_backward(live_ops, rows, inputs, constants, input_counts, fresh, addresses, steps,
                       grad_addresses, steps, slot, node_count, 0, input_count, block, begin, end);
        take_rows(leaf_grads, leaf_grad_count, grad_addresses, steps, block, begin, end);
    }
}

/* ---- both passes of a small circuit, which take less time than Python takes for its columns ---- */

/* All that a call needs to know; engine/small.py fills it in, in this order. */
typedef struct {
    const uint8_t *ops;
    const uint32_t *rows, *inputs;
    const T *constants;
    const int64_t *starts, *cursors;
    const uint8_t *live_ops;
    int64_t nodes, input_count, groups, groups_back, slot;
} Circuit;

/* The same over buffers that stay where they are. */
typedef struct {
    Circuit circuit;
    int64_t slots;
    T *values, *grads;
    int64_t seeds;
    const int64_t *seed_slots;
    const T *seed_numbers;
} BoundCircuit;

/* Forward and backward; `grads` hold the seeds. Without groups (back), node after node. */
static void both(const Circuit *on, T *values, T *grads) {
    const int64_t slot = on->slot;
    if (on->groups)
        groups_forward(on->ops, on->rows, on->inputs, on->constants, values, slot, on->starts,
                       on->cursors, 0, on->groups);
    else
        switch_forward(on->ops, on->rows, on->inputs, on->constants, values, slot, 0, on->nodes, 0);
    if (on->groups_back)
        groups_backward(on->ops, on->rows, on->inputs, on->constants, values, grads, slot,
                        on->starts, on->cursors, on->groups, 0);
    else
        switch_backward(on->live_ops, on->rows, on->inputs, on->constants, values, grads, slot,
                        on->nodes, 0, on->input_count);
}

/* Begins all gradients at zero, or seeds. */
static void both_again(const BoundCircuit *on) {
    memset(on->grads, 0, (size_t)on->slots * sizeof(T));
    for (int64_t k = 0; k < on->seeds; k++) on->grads[on->seed_slots[k]] = on->seed_numbers[k];
    both(&on->circuit, on->values, on->grads);
}

/* ---- Softmax over rows of a tensor, one pass over memory each ---- */

enum { LANES = 32 };

/* The compiler has to be shown how to compare on vector registers. */
static T largest_of(const T *x, int64_t count) {
    T lanes[LANES], largest = -(T)INFINITY;
    const int64_t whole = count - count % LANES;
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = largest;
    for (int64_t first = 0; first < whole; first += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] = x[first + lane] > lanes[lane] ? x[first + lane] : lanes[lane];
    for (int lane = 0; lane < LANES; lane++) largest = lanes[lane] > largest ? lanes[lane] : largest;
    for (int64_t t = whole; t < count; t++) largest = x[t] > largest ? x[t] : largest;
    return largest;
}

/* sums in any order, so that they run on vector registers */
static T sum_of(const T *x, int64_t count) {
#pragma clang fp reassociate(on)
    T total = 0;
    for (int64_t t = 0; t < count; t++) total += x[t];
    return total;
}

/* of grad where one element of the row has more than 3/4 of the mass */
static T level_of(const T *grad, const T *out, int64_t count) {
#pragma clang fp reassociate(on)
    T level = 0;
    for (int64_t t = 0; t < count; t++) level += out[t] > (T)0.75 ? grad[t] : 0;
    return level;
}

static T product_of(const T *grad, const T *out, T level, int64_t count) {
#pragma clang fp reassociate(on)
    T total = 0;
    for (int64_t t = 0; t < count; t++) total += (grad[t] - level) * out[t];
    return total;
}

/* Of each row of `count` elements from `start` to `stop`. */
static void softmax(const T *x, T *out, int64_t count, int64_t start, int64_t stop) {
    for (int64_t row = start; row < stop; row++) {
        const T *from = x + row * count;
        T *to = out + row * count;
        const T largest = largest_of(from, count);
        VECTOR_LOOP for (int64_t t = 0; t < count; t++) to[t] = scalar_exp(from[t] - largest);
        const T total = sum_of(to, count);
        for (int64_t t = 0; t < count; t++) to[t] /= total;
    }
}

/* out * (grad - sum(grad * out)) of each row, of grad less what it is where out > 3/4. */
static void softmax_backward(const T *grad, const T *out, T *to_x, int64_t count, int64_t start,
                             int64_t stop) {
    for (int64_t row = start; row < stop; row++) {
        const T *grads = grad + row * count, *values = out + row * count;
        T *to = to_x + row * count;
        const T level = level_of(grads, values, count);
        const T total = product_of(grads, values, level, count);
        VECTOR_LOOP for (int64_t t = 0; t < count; t++)
            to[t] = values[t] * ((grads[t] - level) - total);
    }
}
