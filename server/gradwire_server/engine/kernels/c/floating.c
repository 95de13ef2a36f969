/* The module of one floating type: what Python calls, with the lengths that each kernel relies on. */

#include <stdlib.h>

#include "arguments.h"
#include "modules.h"
#include "tape.h"
#include "windows.h"

#define TAPE_ARGUMENTS \
    READ(uint8_t, ops); \
    READ(uint32_t, rows); \
    READ(uint32_t, inputs); \
    READ(T, constants)
#define TAPE_COLUMNS ops, rows, inputs, constants
#define IS_TAPE (rows_count == ops_count)
#define ARE_NODES(first, last) (0 <= (first) && (first) <= (last) && (last) <= ops_count)
#define FIT(slots) (0 <= slot && slot + ops_count <= slots##_count)

KERNEL(switch_forward) {
    ARGUMENTS;
    TAPE_ARGUMENTS;
    WRITE(T, values);
    NUMBER(slot);
    NUMBER(node);
    NUMBER(stop);
    NUMBER(cursor);
    CHECK(IS_TAPE && ARE_NODES(node, stop) && FIT(values) && 0 <= cursor && cursor <= inputs_count);
    int64_t end;
    WITHOUT_LOCK(end = switch_forward(TAPE_COLUMNS, values, slot, node, stop, cursor));
    DONE(PyLong_FromLongLong(end));
}

KERNEL(switch_backward) {
    ARGUMENTS;
    TAPE_ARGUMENTS;
    READ(T, values);
    WRITE(T, grads);
    NUMBER(slot);
    NUMBER(node);
    NUMBER(start);
    NUMBER(cursor);
    CHECK(IS_TAPE && ARE_NODES(start, node) && FIT(values) && FIT(grads) && 0 <= cursor &&
          cursor <= inputs_count);
    int64_t end;
    WITHOUT_LOCK(end = switch_backward(TAPE_COLUMNS, values, grads, slot, node, start, cursor));
    DONE(PyLong_FromLongLong(end));
}

#define ARE_GROUPS(first, last) \
    (0 <= (first) && (first) <= (last) && (last) <= cursors_count && (last) < starts_count)

KERNEL(groups_forward) {
    ARGUMENTS;
    TAPE_ARGUMENTS;
    WRITE(T, values);
    NUMBER(slot);
    READ(int64_t, starts);
    READ(int64_t, cursors);
    NUMBER(group);
    NUMBER(stop);
    CHECK(IS_TAPE && ARE_GROUPS(group, stop) && FIT(values));
    WITHOUT_LOCK(groups_forward(TAPE_COLUMNS, values, slot, starts, cursors, group, stop));
    DONE(none());
}

KERNEL(groups_backward) {
    ARGUMENTS;
    TAPE_ARGUMENTS;
    READ(T, values);
    WRITE(T, grads);
    NUMBER(slot);
    READ(int64_t, starts);
    READ(int64_t, cursors);
    NUMBER(group);
    NUMBER(start);
    CHECK(IS_TAPE && ARE_GROUPS(start, group) && FIT(values) && FIT(grads));
    WITHOUT_LOCK(groups_backward(TAPE_COLUMNS, values, grads, slot, starts, cursors, group, start));
    DONE(none());
}

KERNEL(block_forward) {
    ARGUMENTS;
    TAPE_ARGUMENTS;
    READ(int64_t, addresses);
    READ(int64_t, steps);
    NUMBER(slot);
    NUMBER(node);
    NUMBER(end);
    NUMBER(first_input);
    NUMBER(block);
    NUMBER(start);
    NUMBER(stop);
    CHECK(IS_TAPE && ARE_NODES(node, end) && FIT(addresses) && FIT(steps) && 0 <= first_input &&
          first_input <= inputs_count && block > 0);
    WITHOUT_LOCK(block_forward(TAPE_COLUMNS, addresses, steps, slot, node, end, first_input, block,
                               start, stop));
    DONE(none());
}

KERNEL(block_backward) {
    ARGUMENTS;
    TAPE_ARGUMENTS;
    READ(uint8_t, input_counts);
    READ(uint8_t, fresh);
    READ(int64_t, addresses);
    READ(int64_t, steps);
    READ(int64_t, grad_addresses);
    READ(int64_t, grad_steps);
    NUMBER(slot);
    NUMBER(node);
    NUMBER(end);
    NUMBER(past_input);
    NUMBER(block);
    NUMBER(start);
    NUMBER(stop);
    CHECK(IS_TAPE && ARE_NODES(end, node) && FIT(addresses) && FIT(steps) && FIT(grad_addresses) &&
          FIT(grad_steps) && fresh_count == inputs_count && 0 <= past_input &&
          past_input <= inputs_count && block > 0);
    WITHOUT_LOCK(block_backward(TAPE_COLUMNS, input_counts, fresh, addresses, steps, grad_addresses,
                                grad_steps, slot, node, end, past_input, block, start, stop));
    DONE(none());
}

/* moves come as rows of four whole numbers */
#define MOVES(name) \
    READ(int64_t, name##_numbers); \
    const Move *name = (const Move *)name##_numbers; \
    const int64_t name##_count = name##_numbers_count / 4
#define ROWS_ARGUMENTS \
    TAPE_ARGUMENTS; \
    READ(int64_t, addresses); \
    READ(int64_t, steps); \
    MOVES(leaves); \
    MOVES(outputs)
#define ROWS_COLUMNS \
    TAPE_COLUMNS, ops_count, addresses, steps, leaves, leaves_count, outputs, outputs_count
#define ARE_ROWS (IS_TAPE && FIT(addresses) && FIT(steps) && block > 0)

KERNEL(rows_forward) {
    ARGUMENTS;
    ROWS_ARGUMENTS;
    NUMBER(slot);
    NUMBER(block);
    NUMBER(start);
    NUMBER(stop);
    CHECK(ARE_ROWS);
    WITHOUT_LOCK(rows_forward(ROWS_COLUMNS, slot, block, start, stop));
    DONE(none());
}

KERNEL(rows_both) {
    ARGUMENTS;
    ROWS_ARGUMENTS;
    READ(uint8_t, live_ops);
    READ(uint8_t, input_counts);
    READ(uint8_t, fresh);
    READ(int64_t, grad_addresses);
    MOVES(seeds);
    MOVES(leaf_grads);
    NUMBER(slot);
    NUMBER(block);
    NUMBER(start);
    NUMBER(stop);
    CHECK(ARE_ROWS && live_ops_count == ops_count && fresh_count == inputs_count &&
          grad_addresses_count == addresses_count);
    WITHOUT_LOCK(rows_both(ROWS_COLUMNS, grad_addresses_count, inputs_count, live_ops, input_counts,
                           fresh, grad_addresses, seeds, seeds_count, leaf_grads, leaf_grads_count,
                           slot, block, start, stop));
    DONE(none());
}

/* Small circuits keep Python's lock: waiting to get it back would take longer than they do. */

KERNEL(both) {
    ARGUMENTS;
    READ(int64_t, circuit);
    WRITE(T, values);
    WRITE(T, grads);
    CHECK(circuit_count >= (int64_t)(sizeof(Circuit) / sizeof *circuit) &&
          values_count == grads_count);
    both((const Circuit *)circuit, values, grads);
    DONE(none());
}

enum { SMALL_SLOTS = 1 << 14 };

/* an address is handed over in two thirds of the time that an array takes */
KERNEL(both_again) {
    ARGUMENTS;
    NUMBER(address);
    CHECK(address != 0);
    const BoundCircuit *on = (const BoundCircuit *)address;
    if (on->slots < SMALL_SLOTS) {
        both_again(on);
    } else {
        WITHOUT_LOCK(both_again(on));
    }
    DONE(none());
}

#define ARE_OF(count, array) (0 <= start && start <= stop && stop * (count) <= array##_count)

KERNEL(softmax) {
    ARGUMENTS;
    READ(T, x);
    WRITE(T, out);
    NUMBER(size);
    NUMBER(start);
    NUMBER(stop);
    CHECK(size > 0 && ARE_OF(size, x) && ARE_OF(size, out));
    WITHOUT_LOCK(softmax(x, out, size, start, stop));
    DONE(none());
}

KERNEL(softmax_backward) {
    ARGUMENTS;
    READ(T, grad);
    READ(T, out);
    WRITE(T, to_x);
    NUMBER(size);
    NUMBER(start);
    NUMBER(stop);
    CHECK(size > 0 && ARE_OF(size, grad) && ARE_OF(size, out) && ARE_OF(size, to_x));
    WITHOUT_LOCK(softmax_backward(grad, out, to_x, size, start, stop));
    DONE(none());
}

/* ---- windows ---- */

#define WINDOWS \
    READ(int64_t, window_numbers); \
    const Windows *w = (const Windows *)window_numbers
#define ARE_WINDOWS \
    (window_numbers_count == (int64_t)(sizeof(Windows) / sizeof(int64_t)) && w->strides[0] > 0 && \
     w->strides[1] > 0)
#define PATCH_SIZE (w->kernel[0] * w->kernel[1] * w->counts[0] * w->counts[1])
#define PLANE_SIZE (w->sizes[0] * w->sizes[1])
#define WINDOW_COUNT (w->counts[0] * w->counts[1])

KERNEL(gather) {
    ARGUMENTS;
    READ(T, x);
    WINDOWS;
    WRITE(T, patches);
    NUMBER(start);
    NUMBER(stop);
    CHECK(ARE_WINDOWS && ARE_OF(PLANE_SIZE, x) && ARE_OF(PATCH_SIZE, patches));
    WITHOUT_LOCK(gather(x, w, patches, start, stop));
    DONE(none());
}

KERNEL(spread) {
    ARGUMENTS;
    READ(T, patches);
    WINDOWS;
    WRITE(T, out);
    NUMBER(start);
    NUMBER(stop);
    CHECK(ARE_WINDOWS && ARE_OF(PATCH_SIZE, patches) && ARE_OF(PLANE_SIZE, out));
    WITHOUT_LOCK(spread(patches, w, out, start, stop));
    DONE(none());
}

KERNEL(find_largest) {
    ARGUMENTS;
    READ(T, x);
    WINDOWS;
    WRITE(T, largest);
    WRITE(int64_t, places);
    NUMBER(start);
    NUMBER(stop);
    CHECK(ARE_WINDOWS && ARE_OF(PLANE_SIZE, x) && ARE_OF(WINDOW_COUNT, largest) &&
          ARE_OF(WINDOW_COUNT, places));
    WITHOUT_LOCK(find_largest(x, w, largest, places, start, stop));
    DONE(none());
}

KERNEL(spread_largest) {
    ARGUMENTS;
    READ(T, grad);
    READ(T, largest);
    READ(T, x);
    WINDOWS;
    WRITE(T, out);
    NUMBER(start);
    NUMBER(stop);
    CHECK(ARE_WINDOWS && ARE_OF(WINDOW_COUNT, grad) && ARE_OF(WINDOW_COUNT, largest) &&
          ARE_OF(PLANE_SIZE, x) && ARE_OF(PLANE_SIZE, out));
    T *rest = malloc((size_t)(WINDOW_COUNT + 1) * sizeof(T));
    if (!rest) {
        release(&all);
        return PyErr_NoMemory();
    }
    WITHOUT_LOCK(spread_largest(grad, largest, x, w, out, rest, start, stop));
    free(rest);
    DONE(none());
}

/* ---- the functions that are plain arithmetic, one element at a time, for tests ---- */

#define ELEMENTARY(name) \
    KERNEL(name) { \
        ARGUMENTS; \
        READ(T, x); \
        WRITE(T, out); \
        CHECK(x_count == out_count); \
        for (int64_t t = 0; t < x_count; t++) out[t] = scalar_##name(x[t]); \
        DONE(none()); \
    }
ELEMENTARY(exp)
ELEMENTARY(expm1)
ELEMENTARY(log)
ELEMENTARY(log1p)
ELEMENTARY(tanh)
ELEMENTARY(erf)

static PyMethodDef methods[] = {
    METHOD(switch_forward), METHOD(switch_backward), METHOD(groups_forward),
    METHOD(groups_backward), METHOD(block_forward), METHOD(block_backward),
    METHOD(rows_forward), METHOD(rows_both), METHOD(both), METHOD(both_again),
    METHOD(softmax), METHOD(softmax_backward), METHOD(gather), METHOD(spread),
    METHOD(find_largest), METHOD(spread_largest), METHOD(exp), METHOD(expm1),
    METHOD(log), METHOD(log1p), METHOD(tanh), METHOD(erf), {NULL, NULL, 0, NULL},
};

#if FLOAT_BITS == 64
static PyModuleDef definition = MODULE("float64", methods);
PyObject *make_float64(void) { return make_part(&definition, TEXT(DIGEST)); }
#else
static PyModuleDef definition = MODULE("float32", methods);
PyObject *make_float32(void) { return make_part(&definition, TEXT(DIGEST)); }
#endif
