/* Loops that make a tape of a circuit: levels, groups of equal rows, dead nodes. */

#include "arguments.h"
#include "modules.h"

/* Puts each node one level above its highest input; the leaves are at 0. Returns the top. */
KERNEL(find_levels) {
    ARGUMENTS;
    READ(uint32_t, rows);
    READ(int64_t, input_counts);
    READ(uint32_t, inputs);
    NUMBER(slot);
    WRITE(int32_t, levels);
    CHECK(0 <= slot && slot + rows_count <= levels_count);
    int32_t top = 0;
    WITHOUT_LOCK({
        const uint32_t *in = inputs;
        for (int64_t node = 0; node < rows_count; node++) {
            int32_t level = 0;
            for (int64_t count = input_counts[rows[node]]; count > 0; count--, in++)
                level = levels[*in] > level ? levels[*in] : level;
            levels[slot + node] = ++level;
            top = level > top ? level : top;
        }
    });
    DONE(PyLong_FromLongLong(top));
}

/* Counts the nodes of each level and row into `ends`, end to end. Returns how many have any. */
KERNEL(count_groups) {
    ARGUMENTS;
    READ(uint32_t, rows);
    READ(int32_t, levels);
    NUMBER(slot);
    NUMBER(row_count);
    WRITE(int64_t, ends);
    CHECK(0 <= slot && slot + rows_count <= levels_count);
    int64_t groups = 0, total = 0;
    WITHOUT_LOCK({
        for (int64_t node = 0; node < rows_count; node++)
            ends[(levels[slot + node] - 1) * row_count + rows[node]]++;
        for (int64_t key = 0; key < ends_count; key++) {
            groups += ends[key] > 0;
            total += ends[key];
            ends[key] = total;
        }
    });
    DONE(PyLong_FromLongLong(groups));
}

/* Gives every node a slot, levels ascending and equal rows side by side, in file order.

   `ends` is used up: what is left are the beginnings. */
KERNEL(place_nodes) {
    ARGUMENTS;
    READ(uint32_t, rows);
    READ(int32_t, levels);
    NUMBER(slot);
    NUMBER(row_count);
    WRITE(int64_t, ends);
    WRITE(uint32_t, slots);
    WRITE(uint32_t, new_rows);
    CHECK(0 <= slot && slot + rows_count <= levels_count && slot + rows_count <= slots_count &&
          rows_count == new_rows_count);
    (void)ends_count;
    WITHOUT_LOCK({
        for (int64_t node = rows_count; node-- > 0;) {
            const int64_t place = --ends[(levels[slot + node] - 1) * row_count + rows[node]];
            slots[slot + node] = (uint32_t)(slot + place);
            new_rows[place] = rows[node];
        }
    });
    DONE(none());
}

/* The inputs' slots, node after node in their new order. */
KERNEL(place_inputs) {
    ARGUMENTS;
    READ(uint32_t, rows);
    READ(int64_t, input_counts);
    READ(uint32_t, inputs);
    NUMBER(slot);
    READ(uint32_t, slots);
    READ(int64_t, starts);
    WRITE(uint32_t, new_inputs);
    CHECK(0 <= slot && slot + rows_count <= slots_count && rows_count <= starts_count &&
          inputs_count == new_inputs_count);
    WITHOUT_LOCK({
        const uint32_t *in = inputs;
        for (int64_t node = 0; node < rows_count; node++) {
            uint32_t *to = new_inputs + starts[slots[slot + node] - slot];
            for (int64_t count = input_counts[rows[node]]; count > 0; count--) *to++ = slots[*in++];
        }
    });
    DONE(none());
}

/* What the backward pass does from the slots marked in `reached`, which it extends.

   Nodes not reached get the opcode that computes nothing. `fresh` marks, of the uses of each slot, the
   one met first, which begins its gradient. Bit i of pulls[op] says that input i has a gradient.
   Returns how many nodes are dead. */
KERNEL(trace_back) {
    ARGUMENTS;
    READ(uint8_t, ops);
    READ(uint8_t, input_counts);
    READ(uint8_t, pulls);
    READ(uint32_t, inputs);
    NUMBER(slot);
    WRITE(uint8_t, reached);
    WRITE(uint8_t, live_ops);
    WRITE(uint8_t, fresh);
    CHECK(0 <= slot && slot + ops_count <= reached_count && ops_count == live_ops_count &&
          inputs_count == fresh_count);
    int64_t dead = 0;
    WITHOUT_LOCK({
        int64_t cursor = inputs_count;
        for (int64_t node = ops_count; node-- > 0;) {
            const uint8_t op = ops[node];
            const uint8_t count = input_counts[op];
            cursor -= count;
            live_ops[node] = reached[slot + node] ? op : count;
            if (!reached[slot + node]) {
                dead++;
                continue;
            }
            for (unsigned place = 0; place < count; place++) {
                if (!(pulls[op] >> place & 1)) continue;
                fresh[cursor + place] = !reached[inputs[cursor + place]];
                reached[inputs[cursor + place]] = 1;
            }
        }
    });
    DONE(PyLong_FromLongLong(dead));
}

static PyMethodDef methods[] = {
    METHOD(find_levels), METHOD(count_groups), METHOD(place_nodes),
    METHOD(place_inputs), METHOD(trace_back), {NULL, NULL, 0, NULL},
};
static PyModuleDef definition = MODULE("scheduling", methods);

PyObject *make_scheduling(void) { return make_part(&definition, TEXT(DIGEST)); }
