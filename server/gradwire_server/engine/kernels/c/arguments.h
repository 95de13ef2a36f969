/* Arguments of kernels: arrays by the buffer protocol, and whole numbers.

   A wrapper takes them in order, checks that the columns have the lengths that the kernel relies on,
   and computes without Python's lock. What columns contain (slots, rows, addresses) is the tape's
   promise: the plan makes them, and they never come from a message as they are. */
#pragma once

#include <stdbool.h>

#include "python.h"

enum { MOST_COLUMNS = 16 };

typedef struct {
    PyObject *const *args;
    Py_ssize_t count, next;
    int columns;
    bool failed;
    Py_buffer held[MOST_COLUMNS];
} Arguments;

static inline PyObject *next_argument(Arguments *all) {
    if (all->failed) return NULL;
    if (all->next < all->count) return all->args[all->next++];
    PyErr_Format(PyExc_TypeError, "a kernel got %zd arguments, which are too few", all->count);
    all->failed = true;
    return NULL;
}

static inline void *take_column(Arguments *all, int access, Py_ssize_t item, int64_t *length) {
    PyObject *argument = next_argument(all);
    *length = 0;
    if (!argument) return NULL;
    Py_buffer *buffer = &all->held[all->columns];
    if (PyObject_GetBuffer(argument, buffer, access)) {
        all->failed = true;
        return NULL;
    }
    all->columns++;
    if (buffer->itemsize != item) {
        PyErr_Format(PyExc_TypeError, "argument %zd has items of %zd bytes, not of %zd",
                     all->next - 1, buffer->itemsize, item);
        all->failed = true;
        return NULL;
    }
    *length = buffer->len / item;
    return buffer->buf;
}

static inline int64_t take_number(Arguments *all) {
    PyObject *argument = next_argument(all);
    if (!argument) return 0;
    const long long number = PyLong_AsLongLong(argument);
    if (number == -1 && PyErr_Occurred()) all->failed = true;
    return number;
}

static inline void release(Arguments *all) {
    while (all->columns) PyBuffer_Release(&all->held[--all->columns]);
}

static inline PyObject *none(void) {
    Py_IncRef(&_Py_NoneStruct);
    return &_Py_NoneStruct;
}

#define KERNEL(name) \
    static PyObject *py_##name(PyObject *module, PyObject *const *args, Py_ssize_t count)
#define ARGUMENTS \
    (void)module; \
    Arguments all = {.args = args, .count = count}
#define READ(type, name) \
    int64_t name##_count; \
    const type *name = take_column(&all, PyBUF_SIMPLE, sizeof(type), &name##_count); \
    (void)name; \
    (void)name##_count
#define WRITE(type, name) \
    int64_t name##_count; \
    type *name = take_column(&all, PyBUF_WRITABLE, sizeof(type), &name##_count); \
    (void)name; \
    (void)name##_count
#define NUMBER(name) const int64_t name = take_number(&all)
#define CHECK(fits) \
    if (all.failed || all.next != all.count || !(fits)) { \
        if (!all.failed) PyErr_Format(PyExc_ValueError, "%s: not so: %s", __func__ + 3, #fits); \
        release(&all); \
        return NULL; \
    }
#define WITHOUT_LOCK(...) \
    PyThreadState *state = PyEval_SaveThread(); \
    __VA_ARGS__; \
    PyEval_RestoreThread(state)
#define DONE(result) \
    release(&all); \
    return result
#define METHOD(name) {#name, py_##name, METH_FASTCALL, NULL}
